"""Classification heads: a cosine head that grows with the classes, and a closed-form Gaussian readout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineHead(nn.Module):
    """Scaled cosine to a learned vector per class; rows of earlier classes stay when it grows.

    Args:
        dim: width of the features.
        scale: factor on the cosine.
    """

    def __init__(self, *, dim: int, scale: float = 16.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(0, dim))

    def grow(self, classes: int) -> None:
        """Have `classes` rows in all."""
        if classes == len(self.weight):
            return
        fresh = torch.randn(classes - len(self.weight), self.weight.shape[1], device=self.weight.device)
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), F.normalize(fresh)]))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, d]`` -> ``[B, C]``."""
        return self.scale * F.normalize(x) @ F.normalize(self.weight).T


_STATE = ("counts", "means", "scatter", "pairs", "doubt")


class GaussianReadout:
    """Streaming linear discriminant analysis over several feature spaces, some of which a sample may lack.

    Every group (a class, or a class in one domain) is a Gaussian; all share one covariance. With S the covariance of
    the spaces that a sample has and m_g the group's mean there, its score is m_g' S^-1 x - m_g' S^-1 m_g / 2: a missing
    space is integrated out. S is shrunk to its diagonal by the oracle-approximating rule of Chen et al. (2010).

    Args:
        widths: width of each space.
    """

    def __init__(self, widths: Mapping[str, int]):
        self.widths = dict(widths)
        total = sum(widths.values())
        self.counts = torch.zeros(0, len(widths), dtype=torch.float64)  # [G, S]
        self.means = torch.zeros(0, total, dtype=torch.float64)  # [G, W]
        self.scatter = torch.zeros(total, total, dtype=torch.float64)  # [W, W]
        self.pairs = torch.zeros(len(widths), len(widths), dtype=torch.float64)  # samples having both spaces
        self.doubt = torch.zeros(total, total, dtype=torch.float64)  # covariance of what drift left uncertain
        self._solved: dict[tuple[bool, ...], tuple[Tensor, Tensor, Tensor]] = {}

    def update(self, features: Mapping[str, Tensor], presence: Tensor, groups: Tensor) -> None:
        """Take in a task's samples at once.

        Args:
            features: ``[n, width]`` a space.
            presence: bool ``[n, S]``.
            groups: int64 ``[n]``.
        """
        presence, groups = presence.cpu(), groups.cpu()
        x, there = self._joined(features), self._spread(presence)  # [n, W] each
        if (fresh := int(groups.max()) + 1 - len(self.means)) > 0:
            self.counts = F.pad(self.counts, (0, 0, 0, fresh))
            self.means = F.pad(self.means, (0, 0, 0, fresh))
        for g in groups.unique().tolist():
            mine = groups == g
            count = presence[mine].sum(0).double()  # [S]
            new = self._spread(count[None])[0]  # [W]
            mean = (x[mine] * there[mine]).sum(0) / new.clamp_min(1)
            centred = (x[mine] - mean) * there[mine]
            known = self._spread(self.counts[g][None])[0]
            shift = torch.where((known > 0) & (new > 0), (known * new / (known + new).clamp_min(1)).sqrt(), 0.0)
            shift = shift * (mean - self.means[g])
            self.scatter += centred.T @ centred + shift[:, None] * shift
            self.means[g] = (self.means[g] * known + mean * new) / (known + new).clamp_min(1)
            self.counts[g] += count
        here = presence.double()
        self.pairs += here.T @ here
        self._solved.clear()

    def transport(self, space: str, matrix: Tensor, offset: Tensor, residual: Tensor) -> None:
        """Follow a space that has moved: every stored statistic of it goes through ``x -> matrix x + offset``.

        Args:
            space: which one.
            matrix: ``[d, d]``.
            offset: ``[d]``.
            residual: covariance ``[d, d]`` of what the map does not explain. Stored means are uncertain by as much, and
                the space counts for less from then on.
        """
        at = self._columns(space)
        matrix, offset = matrix.double().cpu(), offset.double().cpu()
        self.doubt[at, at] = matrix @ self.doubt[at, at] @ matrix.T + residual.double().cpu()
        known = self.counts[:, list(self.widths).index(space)] > 0
        self.means[known, at] = self.means[known, at] @ matrix.T + offset
        self.scatter[at] = matrix @ self.scatter[at]
        self.scatter[:, at] = self.scatter[:, at] @ matrix.T
        self._solved.clear()

    def scores(self, features: Mapping[str, Tensor], presence: Tensor) -> Tensor:
        """Log-likelihood up to a constant of every group, float32 ``[B, G]``; zeros where a sample has no space."""
        presence = presence.cpu()
        x = self._joined(features)
        scores = torch.zeros(len(x), len(self.means), dtype=torch.float64)
        for pattern in presence.unique(dim=0):
            if pattern.any():
                mine = (presence == pattern).all(1)
                columns, weight, bias = self._solve(tuple(pattern.tolist()))
                scores[mine] = x[mine][:, columns] @ weight + bias
        return scores.float()

    @property
    def nbytes(self) -> int:
        """Bytes of stored statistics."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())

    def state_dict(self) -> dict[str, Any]:
        """The statistics."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved statistics."""
        for name in _STATE:
            setattr(self, name, state[name].double())
        self._solved.clear()

    def _solve(self, pattern: tuple[bool, ...]) -> tuple[Tensor, Tensor, Tensor]:
        if pattern not in self._solved:
            spaces = torch.tensor(pattern)
            columns = self._spread(spaces[None])[0].nonzero()[:, 0]
            pairs = self._spread(self._spread(self.pairs).T).T[columns][:, columns]
            covariance = self.scatter[columns][:, columns] / (pairs - (self.counts > 0).sum(0).max()).clamp_min(1)
            covariance = covariance + self.doubt[columns][:, columns]
            deviation = covariance.diagonal().clamp_min(1e-12).sqrt()
            correlation = covariance / deviation[:, None] / deviation
            samples = float(self.pairs[spaces][:, spaces].min())
            shrunk = _oas(correlation, samples)
            # A group that never had a space is taken to be average there.
            known = self._spread((self.counts > 0).double())[:, columns]
            average = (self.means[:, columns] * known).sum(0) / known.sum(0).clamp_min(1)
            means = torch.where(known > 0, self.means[:, columns], average) / deviation
            weight = torch.cholesky_solve(means.T, _cholesky(shrunk))  # [W', G]
            bias = -0.5 * (means * weight.T).sum(1)
            self._solved[pattern] = (columns, weight / deviation[:, None], bias)
        return self._solved[pattern]

    def _columns(self, space: str) -> slice:
        names = list(self.widths)
        start = sum(self.widths[name] for name in names[: names.index(space)])
        return slice(start, start + self.widths[space])

    def _joined(self, features: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([features[space].detach().double().cpu() for space in self.widths], 1)

    def _spread(self, by_space: Tensor) -> Tensor:
        """``[n, S]`` -> ``[n, W]``: each space's value for each of its columns."""
        return by_space.double().repeat_interleave(torch.tensor(list(self.widths.values())), 1)


def _oas(correlation: Tensor, samples: float) -> Tensor:
    d = len(correlation)
    square, trace = float((correlation**2).sum()), float(correlation.trace())
    excess = (samples + 1 - 2 / d) * (square - trace**2 / d)
    rho = min(1.0, ((1 - 2 / d) * square + trace**2) / excess) if excess > 0 else 1.0
    return (1 - rho) * correlation + rho * torch.eye(d, dtype=correlation.dtype)


def _cholesky(matrix: Tensor) -> Tensor:
    """The factor of `matrix`; blocks estimated on different samples may need a little more diagonal."""
    ridge, eye = 0.0, torch.eye(len(matrix), dtype=matrix.dtype)
    while True:
        factor, failed = torch.linalg.cholesky_ex(matrix + ridge * eye)
        if not failed:
            return factor
        ridge = max(1e-3, ridge * 4)
