"""Which samples stay as anchors or exemplars when there is room for few: pure functions, the same in, the same out.

n candidates of width D; a policy returns positions among them, int64, at most as many as asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

POLICIES = ("herding", "kmeans", "boundary", "reservoir")


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


def boundary(vectors: np.ndarray, count: int, foreign: np.ndarray) -> np.ndarray:
    """The candidates nearest to another group: smallest margin between their own mean and the nearest foreign one.

    Args:
        vectors: ``[n, D]``.
        count: how many to take.
        foreign: means of the other groups ``[G, D]``; without any, those farthest from their own mean are taken.
    """
    vectors = np.asarray(vectors, np.float64)
    if not len(vectors):
        return np.empty(0, np.int64)
    margin = -np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    if len(foreign):
        margin += np.sqrt(_squared(vectors, foreign).min(axis=1))
    return np.argsort(margin, kind="stable")[:count]


def reservoir(keys: Sequence[str], count: int, seed: int) -> np.ndarray:
    """The candidates whose keys hash lowest under `seed`: a uniform sample of all that were ever offered.

    What was kept, offered again beside newcomers, gives what all at once would have given (bottom-k sampling, Cohen &
    Kaplan 2007), whatever the order or the portions of arrival.
    """
    ranks = [hashlib.blake2b(f"{seed} {key}".encode(), digest_size=16).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=ranks.__getitem__)[:count], np.int64)


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
    vectors: np.ndarray,
    groups: Sequence[Hashable],
    per_group: int,
    policy: str = "herding",
    seed: int = 0,
    *,
    keys: Sequence[str] = (),
    foreign: Mapping[Hashable, np.ndarray] | None = None,
) -> np.ndarray:
    """At most `per_group` candidates of each group, such as each (class, domain).

    Args:
        vectors: ``[n, D]``.
        groups: of each candidate, ``[n]``.
        per_group: the bound.
        policy: one of `POLICIES`.
        seed: of the policies that draw.
        keys: names of the candidates, ``[n]``, for ``reservoir``.
        foreign: means ``[D]`` of groups without candidates, for ``boundary``.

    Returns:
        Positions, ascending.

    Raises:
        ValueError: there is no such policy, or it lacks keys.
    """
    if policy not in POLICIES:
        raise ValueError(f"no policy {policy!r}: take {', '.join(POLICIES)}")
    if policy == "reservoir" and len(keys) != len(groups):
        raise ValueError(f"reservoir takes a key a candidate: {len(groups)}, not {len(keys)}")
    members: dict[Hashable, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    means: dict[Hashable, np.ndarray] = {}
    if policy == "boundary":
        means = {**(foreign or {}), **{group: vectors[positions].mean(axis=0) for group, positions in members.items()}}
    taken = [np.empty(0, np.int64)]
    for group, positions in members.items():
        part = vectors[positions]
        if policy == "herding":
            picked = herding(part, per_group)
        elif policy == "kmeans":
            digest = hashlib.sha256(repr(group).encode()).digest()
            picked = kmeans(part, per_group, np.random.default_rng([seed, *digest]))
        elif policy == "boundary":
            picked = boundary(part, per_group, np.array([mean for other, mean in means.items() if other != group]))
        else:
            picked = reservoir([keys[i] for i in positions], per_group, seed)
        taken.append(np.asarray(positions, np.int64)[picked])
    return np.sort(np.concatenate(taken))


def _squared(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances ``[n, centres]``."""
    return np.stack([((vectors - centre) ** 2).sum(axis=1) for centre in centres], axis=1)
