"""Finding anchors: what the store's index calls near, ranked again by what tells labels apart.

Cosines of frozen features share a large common part, and samples of one label differ along directions (voice, place,
stroke) in which others differ as much. Both are estimated from the anchors themselves and taken out: vectors are
centred, and whitened by the covariance within labels, as linear discriminant analysis does.

B queries, D width of a space, k neighbours, U distinct candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from store.anchors import AnchorStore

CANDIDATES = 400  # that the index gives for each query, to be ranked again
FITTED_ON = 20_000  # anchors at most
SHRINKAGE = 0.2  # of the covariance to a multiple of the identity: anchors are few beside D
TEMPERATURE = 0.1


@dataclass(frozen=True, slots=True)
class Space:
    """What was estimated of a space.

    Attributes:
        centre: the mean of its anchors ``[D]``.
        spread: unit directions in which samples of one label differ ``[D, R]``; None where labels have one anchor each.
        excess: the share of each that is taken out ``[R]``, between 0 and 1.
    """

    centre: np.ndarray
    spread: np.ndarray | None = None
    excess: np.ndarray | None = None

    def whitened(self, x: np.ndarray) -> np.ndarray:
        """Vectors ``[n, D]`` in coordinates where samples of one label differ alike in every direction; to a scale."""
        return x if self.spread is None else x - (x @ self.spread * self.excess) @ self.spread.T


class Retrieval:
    """Asks an anchor store that does not change meanwhile."""

    def __init__(self, anchors: AnchorStore):
        self.anchors = anchors
        self.labels = cache(self._labels)
        self._space = cache(self._fit)

    def search(
        self, space: str, queries: np.ndarray, k: int, *, asked: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` anchors nearest to each query among the `CANDIDATES` that its plain cosine finds.

        Args:
            space: where to look; it holds an anchor.
            queries: ``[B, D]`` of any length.
            k: how many; all of them where the space holds fewer.
            asked: the space the queries are of, where that is another, as wide: then each is centred by its own, which
                closes the gap between modalities (after Liang et al. 2022), and nothing is whitened.

        Returns:
            Cosines between what is left, float32 ``[B, k]``, falling, and anchor ids, int64 ``[B, k]``.
        """
        own, there = self._space(asked or space), self._space(space)
        centred = _unit(np.asarray(queries, np.float32)) - own.centre  # [B, D]
        _, ids = self.anchors.search(space, centred + there.centre, max(k, CANDIDATES))
        distinct, place = np.unique(ids, return_inverse=True)  # [U]
        candidates = self.anchors.vectors(space, distinct) - there.centre  # [U, D]
        if own is there:
            centred, candidates = there.whitened(centred), there.whitened(candidates)
        similarity = _unit(centred) @ _unit(candidates).T  # [B, U]
        similarity = np.take_along_axis(similarity, place.reshape(ids.shape), 1)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(similarity, order, 1), np.take_along_axis(ids, order, 1)

    def _labels(self, space: str) -> Counter[str]:
        """How many anchors of each label `space` holds."""
        return Counter(self.anchors.labels(self.anchors.ids(space)).tolist())

    def _fit(self, space: str) -> Space:
        ids = self.anchors.ids(space)
        ids = np.sort(np.random.default_rng(0).permutation(ids)[:FITTED_ON])
        vectors = self.anchors.vectors(space, ids).astype(np.float64)
        _, label, counts = np.unique(self.anchors.labels(ids).astype(str), return_inverse=True, return_counts=True)
        means = np.zeros((len(counts), vectors.shape[1]))
        np.add.at(means, label, vectors)
        within = vectors - (means / counts[:, None])[label]
        centre = vectors.mean(0).astype(np.float32)
        few = len(within) < within.shape[1]
        values, vectors = np.linalg.eigh(within @ within.T if few else within.T @ within)
        spread = values.sum() / within.shape[1]  # the mean variance, were it the same in all D directions
        kept = values > max(1e-9 * len(within), 1e-10 * values[-1])
        if not kept.any():
            return Space(centre)
        values, vectors = values[kept], vectors[:, kept]
        directions = within.T @ vectors / np.sqrt(values) if few else vectors
        # The inverse root of (1 - s) C / spread + s I, which beside a factor is I less a part along C's own directions.
        excess = 1 - np.sqrt(SHRINKAGE / (SHRINKAGE + (1 - SHRINKAGE) * values / spread))
        return Space(centre, directions.astype(np.float32), excess.astype(np.float32))


def vote(similarity: np.ndarray, labels: np.ndarray) -> tuple[list[str], list[float]]:
    """The label with most of the votes, and its share of them; a vote weighs exp(similarity / `TEMPERATURE`).

    Args:
        similarity: of the neighbours, nearest first, ``[B, k]``.
        labels: theirs, ``[B, k]``. Of equals the first in the alphabet wins.
    """
    weights = np.exp((similarity - similarity[:, :1]) / TEMPERATURE)
    names, column = np.unique(labels.astype(str), return_inverse=True)
    shares = np.zeros((len(similarity), len(names)))
    np.add.at(shares, (np.arange(len(similarity))[:, None], column.reshape(labels.shape)), weights)
    shares /= weights.sum(1, keepdims=True)
    return names[shares.argmax(1)].tolist(), shares.max(1).tolist()


def average_precision(right: np.ndarray, relevant: Sequence[int]) -> np.ndarray:
    """Average precision over a ranking cut off at K ``[B]``.

    The sum over ranks i that are right of (right ones up to i) / i, divided by how many could have been ranked.

    Args:
        right: whether the anchor at each rank is, bool ``[B, K]``.
        relevant: how many right ones there are in all, ``[B]``; where there are none the result is 0.
    """
    precision = right.cumsum(1) / np.arange(1, right.shape[1] + 1)
    return np.asarray((precision * right).sum(1) / np.clip(relevant, 1, right.shape[1]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
