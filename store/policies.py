"""Which samples stay as anchors or exemplars when there is room for few: pure functions, the same in, the same out.

n candidates of width D; a policy returns positions among them, int64, at most as many as asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np


def herding(vectors: np.ndarray, count: int) -> np.ndarray:
    """The candidates whose running mean follows the mean of all most closely (iCaRL, Rebuffi et al. 2017, algorithm 4).

    A prefix of the result is the result for a smaller count, so a shrinking memory drops from the end.

    Args:
        vectors: ``[n, D]``, unit length where the metric is cosine.
        count: how many to take.
    """
    vectors = np.asarray(vectors, np.float64)
    mean, total = vectors.mean(axis=0) if len(vectors) else 0.0, 0.0
    left, taken = np.ones(len(vectors), bool), []
    for step in range(1, min(count, len(vectors)) + 1):
        distance = np.linalg.norm(mean - (total + vectors) / step, axis=1)
        best = int(np.where(left, distance, np.inf).argmin())
        left[best] = False
        taken.append(best)
        total = total + vectors[best]
    return np.array(taken, np.int64)


def random(vectors: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """A uniform draw without replacement."""
    return rng.permutation(len(vectors))[:count].astype(np.int64)


def kmeans(vectors: np.ndarray, count: int, rng: np.random.Generator, *, rounds: int = 20) -> np.ndarray:
    """One candidate a cluster, the one nearest its centre, so that rare modes are kept too (Lloyd, k-means++ start)."""
    vectors = np.asarray(vectors, np.float64)
    count = min(count, len(vectors))
    if not count:
        return np.empty(0, np.int64)
    start = [int(rng.integers(len(vectors)))]
    nearest = _squared(vectors, vectors[start])[:, 0]
    for _ in range(count - 1):
        total = nearest.sum()
        start.append(int(rng.choice(len(vectors), p=nearest / total) if total > 0 else rng.integers(len(vectors))))
        nearest = np.minimum(nearest, _squared(vectors, vectors[start[-1:]])[:, 0])
    centres = vectors[start]
    for _ in range(rounds):
        cluster = _squared(vectors, centres).argmin(axis=1)
        parts = [vectors[cluster == centre] for centre in range(count)]
        moved = np.stack([part.mean(axis=0) if len(part) else centres[i] for i, part in enumerate(parts)])
        if np.array_equal(moved, centres):
            break
        centres = moved
    distance, taken = _squared(vectors, centres), []
    for centre in range(count):
        best = int(distance[:, centre].argmin())
        distance[best] = np.inf
        taken.append(best)
    return np.array(taken, np.int64)


def choose(
    vectors: np.ndarray, groups: Sequence[Hashable], per_group: int, policy: str = "herding", seed: int = 0
) -> np.ndarray:
    """At most `per_group` candidates of each group, such as each (class, domain).

    Args:
        vectors: ``[n, D]``.
        groups: of each candidate, ``[n]``.
        per_group: the bound.
        policy: ``herding``, ``kmeans`` or ``random``.
        seed: of the policies that draw.

    Returns:
        Positions, ascending.

    Raises:
        ValueError: there is no such policy.
    """
    members: dict[Hashable, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    taken = [np.empty(0, np.int64)]
    for group, positions in members.items():
        part, rng = vectors[positions], np.random.default_rng([seed, *hashlib.sha256(repr(group).encode()).digest()])
        if policy == "herding":
            picked = herding(part, per_group)
        elif policy == "kmeans":
            picked = kmeans(part, per_group, rng)
        elif policy == "random":
            picked = random(part, per_group, rng)
        else:
            raise ValueError(f"no policy {policy!r}: take herding, kmeans or random")
        taken.append(np.asarray(positions, np.int64)[picked])
    return np.sort(np.concatenate(taken))


def _squared(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances ``[n, centres]``."""
    return np.stack([((vectors - centre) ** 2).sum(axis=1) for centre in centres], axis=1)
