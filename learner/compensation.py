"""Where did representations go? The drift of a space, fitted on the current task's samples."""

from __future__ import annotations

from torch import Tensor, eye, linalg


def fit_drift(old: Tensor, new: Tensor, *, ridge: float = 1e-2) -> tuple[Tensor, Tensor, Tensor]:
    """The affine map that carries former representations to present ones, held towards the identity.

    Minimises ``sum |A o + b - n|^2 + ridge tr(C) |A - I|^2`` with C the scatter of `old`. It is fitted where both are
    known, on the current task's samples, and applied to stored vectors whose samples are gone (learned drift
    compensation, after Gomez-Villa et al. 2024).

    Args:
        old: former representations ``[n, d]``.
        new: present ones ``[n, d]``.
        ridge: pull towards the identity, in units of the mean variance.

    Returns:
        A ``[d, d]``, b ``[d]`` and the covariance ``[d, d]`` of what they leave unexplained, float64.
    """
    old, new = old.double(), new.double()
    start, end = old.mean(0), new.mean(0)
    x, y = old - start, new - end
    scatter = x.T @ x
    pull = (ridge * scatter.trace() + 1e-12) * eye(len(scatter), dtype=x.dtype, device=x.device)  # never singular
    matrix = linalg.solve(scatter + pull, x.T @ y + pull).T
    left = y - x @ matrix.T
    return matrix, end - matrix @ start, left.T @ left / len(left)
