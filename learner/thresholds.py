"""Where a posterior becomes a label, for samples that may have several."""

from __future__ import annotations

import numpy as np


def f1_thresholds(posteriors: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The threshold of each class at which those who reach it give the best F1, as SAMSEMO's official code tunes it.

    Args:
        posteriors: of held-out samples, ``[n, C]``.
        truth: whether a sample has the class's label, bool ``[n, C]``.

    Returns:
        ``[C]``, halfway between the last posterior that reaches it and the first that does not; of equally good ones
        the highest, and 0.5 where there are no samples.
    """
    n, classes = posteriors.shape
    if not n:
        return np.full(classes, 0.5)
    order = np.argsort(-posteriors, axis=0)
    ranked = np.take_along_axis(posteriors, order, 0)
    following = np.concatenate([ranked[1:], np.zeros((1, classes))])
    hits = np.take_along_axis(truth, order, 0).cumsum(0)
    f1 = 2 * hits / (np.arange(1, n + 1)[:, None] + truth.sum(0))  # of the first 1, 2 ... n
    f1[:-1][ranked[1:] == ranked[:-1]] = -1  # equals are not parted
    best = f1.argmax(0)[None]
    return ((np.take_along_axis(ranked, best, 0) + np.take_along_axis(following, best, 0)) / 2)[0]
