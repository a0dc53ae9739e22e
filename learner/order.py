"""The order of a stream: a pure function of (seed, task, epoch), so that resuming takes a few integers."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

ROUNDS = 8


def generator(*key: int | str) -> np.random.Generator:
    """A random generator that depends on `key` alone, never on what was drawn before."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))


def shuffled(positions: np.ndarray, size: int, *key: int | str) -> np.ndarray:
    """The permutation of ``range(size)`` that `key` names, at `positions` alone: its cost does not depend on `size`.

    A Feistel network over the next power of four, walked until it lands inside (Black & Rogaway 2002, "Ciphers with
    arbitrary finite domains").

    Args:
        positions: int ``[n]``, each below `size`.
        size: of the whole.
        key: names the permutation.

    Returns:
        int64 ``[n]``.
    """
    half = np.uint64(max(1, math.ceil(max(1, size - 1).bit_length() / 2)))
    low = np.uint64((1 << int(half)) - 1)
    keys = generator(*key).integers(1 << 63, size=ROUNDS, dtype=np.uint64)
    at = np.asarray(positions).astype(np.uint64)
    outside = np.ones(len(at), bool)
    while outside.any():
        left, right = at[outside] >> half, at[outside] & low
        for one in keys:
            left, right = right, left ^ (_mixed(right ^ one) & low)
        at[outside] = left << half | right
        outside = at >= size
    return at.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit of the result depends on every bit of `x`."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Order:
    """In which order a task's samples are learnt from.

    It depends on nothing but these integers: neither on what was drawn before, nor on how many workers read ahead, nor
    on how many ranks share a step.

    Attributes:
        seed: of the run.
        task: its number.
        size: samples of the task.
        batch: samples a step, over all ranks.
    """

    seed: int
    task: int
    size: int
    batch: int

    @property
    def steps(self) -> int:
        """Steps in an epoch; the last one may be short."""
        return math.ceil(self.size / self.batch)

    def step(self, number: int) -> np.ndarray:
        """The positions that step `number`, counted from 0 over all epochs, learns from; int64 ``[<= batch]``."""
        epoch, positions = self._place(number)
        return shuffled(np.asarray(positions), self.size, "order", self.seed, self.task, epoch)

    def replay(self, exemplars: int, number: int) -> np.ndarray:
        """Which of so many exemplars step `number` rehearses: as many as it learns, or all, none twice."""
        _, positions = self._place(number)
        count = min(exemplars, len(positions))
        return shuffled(np.arange(count), exemplars, "replay", self.seed, self.task, number)

    def _place(self, number: int) -> tuple[int, range]:
        """The epoch of step `number`, and its places in it."""
        epoch, at = divmod(number, self.steps)
        return epoch, range(at * self.batch, min((at + 1) * self.batch, self.size))
