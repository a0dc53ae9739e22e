"""Classification heads: a cosine head that grows with the classes, and a closed-form Gaussian readout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from store.types import PalimpsestError


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
        fresh = F.normalize(torch.randn(classes - len(self.weight), self.weight.shape[1])).to(self.weight.device)
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), fresh]))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, d]`` -> ``[B, C]``."""
        return self.scale * F.normalize(x) @ F.normalize(self.weight).T


_TEMPERATURES = torch.tensor([2 ** (step / 2) for step in range(16)], dtype=torch.float64)
_STATE = ("counts", "means", "scatter", "owner", "doubt", "surprise")
_JOINT = "joint"


@dataclass(frozen=True, slots=True)
class Prior:
    """What a Gaussian space assumes before it has seen anything (regularised discriminant analysis, Friedman 1989).

    Attributes:
        isotropic: covariances are drawn to a multiple of the identity; else correlations are, and variances stay.
        strength: how far, in units of what the oracle-approximating rule of Chen et al. (2010) says.
        pull: in samples, how much a class's mean weighs in those of its groups; at infinity domains do not count.
    """

    isotropic: bool = False
    strength: float = 1.0
    pull: float = 0.0


class GaussianSpace:
    """Streaming linear discriminant analysis in one feature space (after Hayes & Kanan 2020).

    Every group (a class, or a class in one domain) is a Gaussian; all share one covariance S. With m_g a group's mean,
    x scores m_g' S^-1 x - m_g' S^-1 m_g / 2. All arithmetic is float64 on the CPU.

    Args:
        width: d.
        priors: to choose among, by held-out samples; the first one until there are any.
        rank: directions of the covariance that `compress` leaves beside its diagonal; None leaves all.
    """

    def __init__(self, width: int, priors: Sequence[Prior] = (Prior(),), rank: int | None = None):
        self.priors, self.rank = tuple(priors), rank
        self.counts = torch.zeros(0, dtype=torch.float64)  # [G]
        self.means = torch.zeros(0, width, dtype=torch.float64)  # [G, d]
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)  # within groups [d, d], once a sample was met
        self.owner = torch.zeros(0, dtype=torch.int64)  # the class of each group, [G]
        self.doubt: Tensor = torch.zeros(0, 0, dtype=torch.float64)  # [d, d] once the space drifts: what that left open
        self.surprise = torch.zeros(len(priors), len(_TEMPERATURES), dtype=torch.float64)  # of held-out classes
        self._solved: dict[Prior, tuple[Tensor, Tensor]] = {}
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}

    def update(self, x: Tensor, groups: Tensor, owner: Tensor) -> None:
        """Take in samples ``[n, d]`` of groups ``[n]``, in any portions; `owner` ``[G]`` has each group's class."""
        if (fresh := int(groups.max()) + 1 - len(self.counts)) > 0:
            self.counts, self.means = F.pad(self.counts, (0, fresh)), F.pad(self.means, (0, 0, 0, fresh))
        self.owner = owner[: len(self.counts)].clone()
        met, place = groups.unique(return_inverse=True)
        known, new = self.counts[met], place.bincount().double()
        mean = torch.zeros(len(met), x.shape[1], dtype=x.dtype).index_add_(0, place, x) / new[:, None]
        centred, shift = x - mean[place], mean - self.means[met]
        between = shift * (known * new / (known + new)).sqrt()[:, None]
        former = self.scatter if len(self.scatter) else x.new_zeros(())
        self.scatter = torch.addmm(former, centred.T, centred).addmm_(between.T, between)
        self.means[met] += shift * (new / (known + new))[:, None]
        self.counts[met] += new
        self._solved.clear()

    def calibrate(self, x: Tensor, classes: Tensor) -> None:
        """Add the held-out samples' surprise under every prior and temperature; see `GaussianReadout.calibrate`."""
        own = self.owner == classes[:, None]  # [n, G]
        rows = own.any(1)
        for i, prior in enumerate(self.priors):
            heated = self._raw(x[rows], prior) / _TEMPERATURES[:, None, None] + self.share  # [T, n, G]
            likely = heated.masked_fill(~own[rows], -torch.inf).logsumexp(2) - heated.logsumexp(2)
            self.surprise[i] -= likely.sum(1)

    def transport(self, matrix: Tensor, offset: Tensor, residual: Tensor) -> None:
        """Follow a drift; see `GaussianReadout.transport`."""
        if not len(self.counts):
            return
        matrix, offset = matrix.double().cpu(), offset.double().cpu()
        self.means = torch.where(self.counts[:, None] > 0, self.means @ matrix.T + offset, self.means)
        self.scatter = matrix @ self.scatter @ matrix.T
        former = matrix @ self.doubt @ matrix.T if len(self.doubt) else 0.0
        self.doubt = former + residual.double().cpu()
        self._solved.clear()

    @property
    def temperature(self) -> float:
        """Where held-out classes were least surprising."""
        return float(_TEMPERATURES[self.surprise.argmin() % len(_TEMPERATURES)])

    @property
    def prior(self) -> Prior:
        """Under which held-out classes were least surprising."""
        return self.priors[int(self.surprise.argmin()) // len(_TEMPERATURES)]

    @property
    def share(self) -> Tensor:
        """Log of each group's share of its class ``[G]``; 0 for a group never met, which is all that is known of it."""
        same = (self.owner[:, None] == self.owner).double()
        return torch.where(self.counts > 0, self.counts / (same @ self.counts).clamp_min(1), 1.0).log()

    def scores(self, x: Tensor) -> Tensor:
        """Log-likelihoods up to a constant, ``[n, d]`` -> ``[n, G]``; a group never met here scores average."""
        return self._raw(x, self.prior) / self.temperature

    def compress(self) -> None:
        """Leave of the covariance its `rank` strongest directions and its diagonal: all that is then stored."""
        if self.rank is not None:
            self._take_factors({"scatter": self._factored(self.scatter), "doubt": self._factored(self.doubt)})

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        return sum(t.nbytes for t in self.state().values())

    def state(self) -> dict[str, Tensor]:
        """The statistics; where covariances are compressed, as they were left by `compress`."""
        statistics = {field: getattr(self, field) for field in _STATE}
        for field, (directions, rest) in self._factors.items():
            del statistics[field]
            statistics |= {f"{field}_directions": directions, f"{field}_rest": rest}
        return statistics

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Go on from saved statistics."""
        for field in state.keys() & set(_STATE):
            setattr(self, field, state[field].to(getattr(self, field).dtype))
        parts = ((field, f"{field}_directions", f"{field}_rest") for field in ("scatter", "doubt"))
        self._take_factors({f: (state[d].double(), state[r].double()) for f, d, r in parts if d in state})
        self._solved.clear()

    def _take_factors(self, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
        self._factors = factors
        for field, (directions, rest) in factors.items():
            setattr(self, field, directions.T @ directions + rest.diag())
        self._solved.clear()

    def _factored(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The strongest directions of a covariance ``[r, d]``, and what they leave of its diagonal ``[d]``."""
        values, vectors = torch.linalg.eigh(matrix)  # ascending
        first = max(0, len(values) - (self.rank or 0))
        strongest = vectors[:, first:] * values[first:].clamp_min(0).sqrt()
        return strongest.T.contiguous(), (matrix.diagonal() - strongest.square().sum(1)).clamp_min(0)

    def _raw(self, x: Tensor, prior: Prior) -> Tensor:
        if len(self.owner.unique()) == len(self.owner):  # one group a class: there is nothing to pull
            prior = replace(prior, pull=0.0)
        if prior not in self._solved:
            self._solved[prior] = self._solve(prior)
        weight, bias = self._solved[prior]
        scores, known = x @ weight + bias, self.counts > 0
        return torch.where(known, scores, scores[:, known].mean(1, keepdim=True))

    def _solve(self, prior: Prior) -> tuple[Tensor, Tensor]:
        """The discriminant of the groups ``[d, G]`` and its offset ``[G]``."""
        means, scatter = self.means, self.scatter
        if prior.pull:
            same = (self.owner[:, None] == self.owner).double() * self.counts
            aside = means - same @ means / same.sum(1, keepdim=True).clamp_min(1)  # from the class's mean
            pulled = aside / (1 + self.counts[:, None] / prior.pull)
            means, scatter = means - pulled, torch.addmm(scatter, (pulled * self.counts[:, None]).T, pulled)
        return self.discriminant(means, prior, scatter)

    def discriminant(self, means: Tensor, prior: Prior, scatter: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights ``[d, K]`` and offsets ``[K]`` that tell Gaussians of this space's covariance apart.

        Args:
            means: theirs ``[K, d]``.
            prior: of the covariance.
            scatter: within groups, where it is not the space's own.
        """
        factor, deviation = self._factor(prior, self.scatter if scatter is None else scatter)
        means = means / deviation
        weight = torch.cholesky_solve(means.T, factor)
        return weight / deviation[:, None], -0.5 * (means * weight.T).sum(1)

    def draw(self, group: int, count: int, generator: torch.Generator) -> Tensor:
        """Samples ``[count, d]`` of a group's Gaussian, under the prior that held-out samples chose."""
        factor, deviation = self._factor(self.prior, self.scatter)
        noise = torch.randn(count, len(deviation), generator=generator, dtype=torch.float64)
        return self.means[group] + noise @ factor.T * deviation

    def _factor(self, prior: Prior, scatter: Tensor) -> tuple[Tensor, Tensor]:
        """The covariance under `prior`: the Cholesky factor ``[d, d]`` of its correlations, and deviations ``[d]``."""
        freedom = (self.counts.sum() - (self.counts > 0).sum()).clamp_min(1)
        covariance = scatter / freedom  # from here on in place: a temporary costs more than what is computed
        if len(self.doubt):
            covariance += self.doubt
        deviation = covariance.diagonal().clamp_min(1e-12).sqrt()
        if prior.isotropic:
            deviation = deviation.square().mean().sqrt().expand_as(deviation)
        correlation = covariance.div_(deviation[:, None]).div_(deviation)
        shrinkage = min(1.0, prior.strength * _oas(correlation, float(self.counts.sum())))
        correlation.mul_(1 - shrinkage).diagonal().add_(shrinkage)
        return _cholesky(correlation), deviation


class GaussianReadout:
    """Closed-form classification from several feature spaces, some of which a sample may lack.

    The spaces a sample has are taken as independent given its group: their scores add up, each at its own temperature.

    Args:
        widths: width of each space.
        priors: to choose among in each space.
        doubted: a space that has a say only where held-out samples are less surprising with it.
    """

    def __init__(self, widths: Mapping[str, int], priors: Sequence[Prior] = (Prior(),), doubted: str | None = None):
        self.spaces = {name: GaussianSpace(width, priors) for name, width in widths.items()}
        silent = (None,) if doubted is None else (None, doubted)
        self._ways = tuple(product(silent, (False, True)))  # to join: the space left out, whether frequencies count
        self.counts = torch.zeros(0, dtype=torch.float64)  # samples of each group, [G]
        self.owner = torch.zeros(0, dtype=torch.int64)  # the class of each group, [G]
        self.surprise = torch.zeros(len(self._ways), len(_TEMPERATURES), dtype=torch.float64)  # of held-out classes

    def update(self, features: Mapping[str, Tensor], presence: Tensor, groups: Tensor, owner: Tensor) -> None:
        """Take in samples.

        Args:
            features: ``[n, width]`` a space.
            presence: bool ``[n, S]``.
            groups: int64 ``[n]``.
            owner: the class of each group, int64 ``[G]``.
        """
        groups, owner = groups.cpu(), owner.cpu()
        new = groups.bincount(minlength=len(self.counts)).double()
        self.counts = new + F.pad(self.counts, (0, len(new) - len(self.counts)))
        self.owner = owner[: len(new)].clone()
        for name, x, rows in self._parts(features, presence):
            self.spaces[name].update(x, groups[rows], owner)

    def calibrate(self, features: Mapping[str, Tensor], presence: Tensor, classes: Tensor) -> None:
        """Learn from held-out samples which prior suits each space, how far it can be trusted, and how spaces join.

        A space that fits what it was fitted on too well (few samples, or a network trained on the very same) would
        outvote the others. Prior and temperature (Guo et al. 2017) of each are those under which the likelihood of
        held-out classes, summed over all tasks so far, is highest; so is whether the doubted space speaks, and whether
        classes count as equally frequent or as often as they were met.

        Args:
            features: ``[n, width]`` a space, not those given to `update`.
            presence: bool ``[n, S]``.
            classes: int64 ``[n]``; samples of unknown classes are left out.
        """
        classes = classes.cpu()
        for name, x, rows in self._parts(features, presence):
            if len(self.spaces[name].counts):
                self.spaces[name].calibrate(x, classes[rows])
        known = torch.isin(classes, self.owner)
        evidence = self._evidence(features, presence)
        for i, (silent, frequent) in enumerate(self._ways):
            heated = self._joined(evidence, silent, frequent)[known] / _TEMPERATURES[:, None, None]  # [T, n, C]
            likely = heated.log_softmax(2).gather(2, classes[known].expand(len(heated), -1)[..., None])
            self.surprise[i] -= likely.sum((1, 2))

    def transport(self, space: str, matrix: Tensor, offset: Tensor, residual: Tensor) -> None:
        """Follow a space that has moved: every stored statistic of it goes through ``x -> matrix x + offset``.

        Args:
            space: which one.
            matrix: ``[d, d]``.
            offset: ``[d]``.
            residual: covariance ``[d, d]`` of what the map does not explain. Stored means are uncertain by as much, and
                the space counts for less from then on.
        """
        self.spaces[space].transport(matrix, offset, residual)

    def scores(self, features: Mapping[str, Tensor], presence: Tensor) -> Tensor:
        """Log-likelihood up to a constant of every class, float32 ``[B, C]``; even where a sample has no space."""
        best = self._ways[int(self.surprise.argmin()) // len(_TEMPERATURES)]
        return self._joined(self._evidence(features, presence), *best).float()

    def _evidence(self, features: Mapping[str, Tensor], presence: Tensor) -> dict[str, Tensor]:
        """What each space says of the groups ``[B, G]``: 0 of samples that lack it, its average of groups it lacks."""
        nothing = torch.zeros(len(presence), len(self.counts), dtype=torch.float64)
        evidence = dict.fromkeys(self.spaces, nothing)
        for name, x, rows in self._parts(features, presence):
            if len((space := self.spaces[name]).counts):
                found = space.scores(x)
                average = found.mean(1, keepdim=True).expand(-1, len(self.counts) - found.shape[1])
                evidence[name] = nothing.index_put((rows,), torch.cat([found, average], 1))
        return evidence

    def _joined(self, evidence: Mapping[str, Tensor], silent: str | None, frequent: bool) -> Tensor:
        """The classes' scores ``[B, C]`` from all spaces but `silent`: a class is the mixture of its groups."""
        counts = self.counts.clamp_min(1)
        if not frequent:
            counts = counts / counts.new_zeros(int(self.owner.max()) + 1).index_add_(0, self.owner, counts)[self.owner]
        scores = sum((said for name, said in evidence.items() if name != silent), counts.log())
        return torch.stack([scores[:, self.owner == c].logsumexp(1) for c in range(int(self.owner.max()) + 1)], 1)

    @property
    def nbytes(self) -> int:
        """Bytes of stored statistics."""
        return sum(t.nbytes for part in self.state_dict().values() for t in part.values())

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The statistics by space, and those of all together."""
        joint = {"counts": self.counts, "owner": self.owner, "surprise": self.surprise}
        return {name: space.state() for name, space in self.spaces.items()} | {_JOINT: joint}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over saved statistics."""
        for name, space in self.spaces.items():
            space.take(state[name])
        for field, values in state[_JOINT].items():
            setattr(self, field, values)

    def _parts(self, features: Mapping[str, Tensor], presence: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each space that some sample has, those samples' features ``[n', d]``, and which they are, bool ``[n]``."""
        for i, name in enumerate(self.spaces):
            rows = presence[:, i].cpu()
            if rows.any():
                yield name, features[name].detach().cpu()[rows].double(), rows


def _oas(correlation: Tensor, samples: float) -> float:
    """How far to shrink a correlation matrix to the identity, 0 to 1."""
    d = len(correlation)
    square, trace = float(torch.linalg.vector_norm(correlation)) ** 2, float(correlation.trace())
    excess = (samples + 1 - 2 / d) * (square - trace**2 / d)
    return min(1.0, ((1 - 2 / d) * square + trace**2) / excess) if excess > 0 else 1.0


def _cholesky(matrix: Tensor) -> Tensor:
    """The factor of `matrix`, whose diagonal is made a little larger where it is singular."""
    for ridge in (0.0, 1e-6, 1e-4, 1e-2, 1.0):
        matrix.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return factor
    raise PalimpsestError("the features of this stream are not finite: check its samples and the backbones' weights")
