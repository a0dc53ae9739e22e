"""The order of a stream: a pure function of (seed, task, epoch), so that resuming takes a few integers."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """A random generator that depends on `key` alone, never on what was drawn before."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))


def epoch_order(size: int, *, seed: int, task: int, epoch: int) -> np.ndarray:
    """A permutation of ``range(size)``: the order in which epoch `epoch` of task `task` sees its samples."""
    return generator("order", seed, task, epoch).permutation(size)


def replay_order(size: int, count: int, *, seed: int, task: int, step: int) -> np.ndarray:
    """The `count` exemplars out of `size` that are rehearsed at `step`; without repetition while `size` allows."""
    return generator("replay", seed, task, step).permutation(size)[:count] if size else np.empty(0, np.int64)
