"""Continual learning over modalities that come one after the other, each aligned with text.

After Jin & Kim (2025): prompts of each modality on one frozen trunk, consolidated within a modality, aggregated by
relevance between modalities, and embeddings that are re-aligned with the class names after each task. Where the paper
is silent the choices are ours; each part is a switch of the recipe.

Shapes beside those of `methods.shared_trunk`: T width of the text anchors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.batch import Batch
from learner.compensation import fit_drift
from learner.data import Examples, Task
from learner.methods.base import FUSED, Context, ParameterGroup
from learner.methods.class_names import ClassNames
from learner.methods.shared_trunk import SharedTrunk
from learner.modules.heads import GaussianReadout, GaussianSpace, Prior
from learner.modules.prompts import blended, prompted
from learner.modules.text_anchors import least_map
from store.types import PalimpsestError

PRIORS = [Prior(isotropic=True, strength=s) for s in (1.0, 0.3, 3.0, 10.0)]
RATE = 10.0  # at which prompts learn, as a share of the recipe's, which suits the weights of networks
INPUT = "input"  # the space of prompt-free features
Features = dict[int, tuple[Tensor, Tensor]]  # by modality: features [n, P], float64 on the CPU, and labels [n]


@dataclass(frozen=True, slots=True)
class CommParams:
    """The method's switches and weights.

    Attributes:
        text: the frozen encoder of class names, as a recipe names a backbone for text.
        anchors: what modalities are aligned with: class names, or ``random`` orthogonal vectors.
        prompts: Q, tokens a block; 0 leaves the trunk as it is.
        ridge: of the alignments that are fitted while training, as a share of the features' mean square.
        scale: on their products with text anchors.
        regularise: keep a modality's prompts a running average over its tasks, that moves the less the more they move
            its features, and hold those features while training.
        shift: weight of that hold.
        relevance: aggregate prompts by learned relevance; else all modalities that were met count the same.
        own: least weight of a sample's own modality, where it is known.
        realign: how every modality is aligned with all names again after each task, from what is stored of each class:
            by ``discriminants`` of its Gaussians, in closed form; by cross-entropy on ``samples`` of them; or
            ``never``: it stays as it was aligned when its last task ended.
        samples: of each class, that are drawn.
        rank: directions of a modality's covariance that are stored beside its diagonal, 0 or more; None stores all.
    """

    text: str = "tiny"
    anchors: Literal["text", "random"] = "text"
    prompts: int = 8
    ridge: float = 0.1
    scale: float = 4.0
    regularise: bool = True
    shift: float = 1.0
    relevance: bool = True
    own: float = 0.5
    realign: Literal["discriminants", "samples", "never"] = "discriminants"
    samples: int = 64
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.realign not in ("discriminants", "samples", "never"):
            raise PalimpsestError(f"realign is discriminants, samples or never, not {self.realign!r}")


class Comm(SharedTrunk):
    """The method's hooks; see `methods.base.Method`."""

    def __init__(self, context: Context, **params: Any):
        super().__init__(context)
        self.params = CommParams(**params)
        self.text = ClassNames(context, self.params.text, self.params.anchors)
        shape = (len(self.names), self.blocks, self.params.prompts, self.trunk.dim)
        self.prompts = nn.Parameter((torch.randn(shape) * 0.02).to(context.device))
        self.modules: nn.Module = nn.ParameterDict({"prompts": self.prompts})
        self.former = self.prompts.detach().clone()  # as the task found them
        self.tasks = torch.zeros(len(self.names), dtype=torch.int64)  # that each modality had
        self.inputs = GaussianReadout({INPUT: self.width}, PRIORS)  # of prompt-free features, by modality
        self.spaces = [GaussianSpace(self.width, PRIORS, self.params.rank) for _ in self.names]  # prompted, by class
        self.maps: dict[int, tuple[Tensor, Tensor]] = {}  # by modality, features to text anchors: [P, T] and [T]
        self.now: list[int] = []  # the modalities of the task

    @property
    def nbytes(self) -> int:
        """The Gaussians' statistics: of the modalities, and of their classes."""
        return self.inputs.nbytes + sum(space.nbytes for space in self.spaces)

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Learn which modality is which."""
        self.former = self.prompts.detach().clone()
        self.text.name(self.context.index.classes)
        fresh, held = (self._inputs(examples) for examples in (task.train, task.val))
        self.now = sorted(fresh)
        for found, take in ((fresh, self._meet), (held, self.inputs.calibrate)):
            if found:
                x = torch.cat(list(found.values()))
                kinds = torch.cat([torch.full((len(x),), i) for i, x in found.items()])
                take({INPUT: x}, torch.ones(len(x), 1, dtype=torch.bool), kinds)
        return [{"params": [self.prompts], "scale": RATE}] if self.params.prompts else []

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy of alignments that halves of the batch give each other, and the shift of what was there."""
        likely, shifts, views = [], [], 0
        present, target = batch.labels.unique(return_inverse=True)
        anchors = self.text.anchors.to(target.device)[present]
        for view in self.views(batch):
            i, weights = view.modality, self._weights(view.pooled, view.modality)
            own = F.one_hot(torch.tensor(i), len(self.names)).bool().to(self.former.device)[:, None, None, None]
            pools = torch.where(own, self.prompts, self.former)  # of which only the modality's own learn
            now = prompted(self.trunk, view.tokens, view.mask, blended(pools, weights))
            likely.append(len(now) * crossed(now, target[view.rows], anchors, self.params.ridge, self.params.scale))
            views += len(now)
            if self.params.regularise and self.tasks[i]:
                with torch.no_grad():
                    then = prompted(self.trunk, view.tokens, view.mask, blended(self.former, weights))
                shifts.append((now - then).square().mean(1).sum())
        terms = {"classification": torch.stack(likely).sum() / views}
        if shifts:
            terms["shift"] = self.params.shift * torch.stack(shifts).sum() / views
        return terms

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Consolidate prompts, carry what is stored along, take in the task's features and align all modalities."""
        again = [i for i in self.now if self.tasks[i]] if self.params.prompts else []
        then = self._features(task.train, self.former, again)
        if self.params.regularise:
            for i, (moved, _) in self._features(task.train, self.prompts, again).items():
                former = then[i][0]
                shift = float(((moved - former).norm(dim=1) / former.norm(dim=1).clamp_min(1e-12)).mean())
                share = 1 / (1 + int(self.tasks[i])) / (1 + shift)
                self.prompts[i] = self.former[i].lerp(self.prompts[i], share)
        now, classes = self._features(task.train, self.prompts), torch.arange(len(self.context.index.classes))
        for i, (x, labels) in now.items():
            if i in then:
                self.spaces[i].transport(*fit_drift(then[i][0], x))
                self._carry(i, then[i][0], x)
            self.spaces[i].update(x, labels, classes)
        for i, (x, labels) in self._features(task.val, self.prompts, self.now).items():
            self.spaces[i].calibrate(x, labels)
        for i in self.now:
            self.spaces[i].compress()
        self.tasks[self.now] += 1
        known = [i for i, space in enumerate(self.spaces) if len(space.counts)]
        for i in known if self.params.realign != "never" else self.now:
            self.maps[i] = self._realigned(i, known if self.params.realign != "never" else [i])

    @torch.no_grad()
    def features(self, tokens: Tensor, mask: Tensor, pooled: Tensor, modality: int | None) -> Tensor:
        """The trunk's, under the prompts of all modalities by weight."""
        return prompted(self.trunk, tokens, mask, blended(self.prompts, self._weights(pooled, modality)))

    @torch.no_grad()
    def scores(self, x: Tensor, pooled: Tensor, modality: int | None) -> Tensor:
        """Embedded features against all names, through the maps of the modalities by weight.

        An embedding's length is its certainty: scores are cosines times that.
        """
        embedded = self._embedded(x, pooled, modality)
        return (embedded @ self.text.anchors.double().T).float().to(x.device)

    @torch.no_grad()
    def predict_names(self, batch: Batch, names: Sequence[str]) -> Tensor:
        """See `methods.base.Names`."""
        anchors, scores = self.text.of(names).double(), torch.zeros(len(batch), len(names), dtype=torch.float64)
        spaces = self.embed(batch)
        for view in self.views(batch):
            x = spaces[self.names[view.modality]][view.rows]
            scores[view.rows.cpu()] += self._embedded(x, view.pooled, view.modality) @ anchors.T
        return (scores / batch.views.cpu()).float().to(self.context.device)

    def taken_for(self, pooled: Tensor) -> list[str]:
        """The most relevant modality of each view."""
        return [self.names[i] for i in self._relevance(pooled).argmax(1).tolist()]

    def state_dict(self) -> dict[str, Any]:
        """Prompts, statistics, maps and text anchors."""
        return {
            "prompts": self.prompts.detach(),
            "tasks": self.tasks,
            "text": self.text.anchors,
            "inputs": self.inputs.state_dict(),
            "spaces": {name: space.state() for name, space in zip(self.names, self.spaces, strict=True)},
            "maps": {self.names[i]: list(found) for i, found in self.maps.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over all that."""
        with torch.no_grad():
            self.prompts.copy_(state["prompts"])
        self.tasks, self.text.anchors = state["tasks"].clone(), state["text"]
        self.inputs.load_state_dict(state["inputs"])
        for name, space in zip(self.names, self.spaces, strict=True):
            space.take(state["spaces"][name])
        self.maps = {self.names.index(name): (found[0], found[1]) for name, found in state["maps"].items()}

    def _meet(self, features: Mapping[str, Tensor], presence: Tensor, kinds: Tensor) -> None:
        self.inputs.update(features, presence, kinds, torch.arange(len(self.names)))

    def _inputs(self, examples: Examples) -> dict[int, Tensor]:
        """By modality the prompt-free features of `examples` ``[n, P]``."""
        found: dict[int, list[Tensor]] = {}
        for batch in examples.batches():
            for view in self.views(batch):
                found.setdefault(view.modality, []).append(view.pooled.cpu().double())
        return {i: torch.cat(parts) for i, parts in sorted(found.items())}

    @torch.no_grad()
    def _features(self, examples: Examples, prompts: Tensor, only: Collection[int] | None = None) -> Features:
        """The features of `examples` under `prompts`; of some modalities, where only they are asked for."""
        found: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for batch in examples.batches() if only is None or only else ():
            for view in self.views(batch):
                if only is None or view.modality in only:
                    blend = blended(prompts, self._weights(view.pooled, view.modality))
                    x = prompted(self.trunk, view.tokens, view.mask, blend)
                    found.setdefault(view.modality, []).append((x.cpu().double(), batch.labels[view.rows].cpu()))
        return {
            i: (torch.cat([x for x, _ in parts]), torch.cat([labels for _, labels in parts]))
            for i, parts in sorted(found.items())
        }

    def _relevance(self, pooled: Tensor) -> Tensor:
        """How relevant each modality is to prompt-free features: posteriors ``[V, M]``, 0 for those never met."""
        there = torch.ones(len(pooled), 1, dtype=torch.bool)
        scores = self.inputs.scores({INPUT: pooled}, there).double()
        known = self.inputs.spaces[INPUT].counts > 0
        found = scores[:, : len(known)].masked_fill(~known, -torch.inf).softmax(1)
        return F.pad(found, (0, len(self.names) - found.shape[1]))

    def _weights(self, pooled: Tensor, modality: int | None) -> Tensor:
        """Weights of all prompts ``[V, M]``, on the device."""
        if self.params.relevance:
            shared = self._relevance(pooled)
        else:
            met = F.pad(self.inputs.spaces[INPUT].counts > 0, (0, len(self.names)))[: len(self.names)].double()
            shared = (met / met.sum()).expand(len(pooled), -1)
        if modality is not None:
            shared = self.params.own * self._certain(modality, len(pooled)) + (1 - self.params.own) * shared
        return shared.float().to(self.prompts.device)

    def _certain(self, modality: int, views: int) -> Tensor:
        return F.one_hot(torch.tensor(modality), len(self.names)).double().expand(views, -1)

    def _embedded(self, x: Tensor, pooled: Tensor, modality: int | None) -> Tensor:
        """Features ``[V, P]`` beside text, ``[V, T]``, float64 on the CPU."""
        weights = self._relevance(pooled) if modality is None else self._certain(modality, len(x))
        embedded = torch.zeros(len(x), self.text.anchors.shape[1], dtype=torch.float64)
        for i, (matrix, offset) in self.maps.items():
            embedded += weights[:, i, None] * (x.cpu().double() @ matrix + offset)
        return embedded

    def _realigned(self, modality: int, known: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The map of one modality, by which all classes of the `known` ones are told apart.

        In closed form, classes that the modality has not met lie where others met them.
        """
        own = self.spaces[modality]
        means, counts = torch.zeros(len(self.text.anchors), self.width).double(), torch.zeros(len(self.text.anchors))
        for space in (self.spaces[i] for i in known):
            means[: len(space.counts)] += space.means * space.counts[:, None]
            counts[: len(space.counts)] += space.counts
        means /= counts.clamp_min(1)[:, None]
        here = own.counts > 0
        means[: len(here)][here] = own.means[here]
        weight, bias = own.discriminant(means, own.prior)
        closed = self._aligned(weight / own.temperature, bias / own.temperature, counts > 0)
        return closed if self.params.realign != "samples" else self._sampled(modality, counts > 0, closed)

    def _sampled(self, modality: int, known: Tensor, start: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The map under which samples of a modality's Gaussians are the least surprising among all known names."""
        space, generator = self.spaces[modality], torch.Generator().manual_seed(int(self.tasks.sum()))
        mine = (space.counts > 0).nonzero()[:, 0].tolist()
        x = torch.cat([space.draw(c, self.params.samples, generator) for c in mine])
        labels = torch.tensor(mine).repeat_interleave(self.params.samples)
        matrix, offset = (t.clone().requires_grad_() for t in self.maps.get(modality, start))
        anchors = self.text.anchors.double()
        optimizer = torch.optim.LBFGS([matrix, offset], max_iter=30, line_search_fn="strong_wolfe")

        def surprise() -> Tensor:
            optimizer.zero_grad()
            logits = ((x @ matrix + offset) @ anchors.T).masked_fill(~known, -torch.inf)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(surprise)
        return matrix.detach(), offset.detach()

    def _carry(self, modality: int, before: Tensor, after: Tensor) -> None:
        """Move a modality's anchors, which have unit length, as samples ``[n, P]`` have moved; alone and fused."""
        store, name = self.context.anchors, self.names[modality]
        matrix, offset, _ = fit_drift(F.normalize(before), F.normalize(after))
        store.carry(name, partial(_moved, matrix, offset))
        ids = store.ids(name)
        fused = np.zeros((len(ids), self.width), np.float32)
        for other in self.names:
            there = np.isin(ids, store.ids(other))
            fused[there] += store.vectors(other, ids[there])
        store.replace(FUSED, ids, fused)

    def _aligned(self, weight: Tensor, bias: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """The map whose products with the known names' anchors are these discriminants of the first K classes."""
        known = known[: len(bias)]
        return least_map(weight[:, known], bias[known], self.text.anchors[: len(bias)][known])


def crossed(x: Tensor, target: Tensor, anchors: Tensor, ridge: float, scale: float) -> Tensor:
    """Cross-entropy where each half of `x` is aligned with text by what the other half teaches, in closed form.

    A readout that is fitted in closed form wants features from which it generalises, and that is what the gradient
    through it asks for (after Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers").
    Samples whose class the other half lacks are left out; 0 where that is all of them.

    Args:
        x: features ``[n, P]``.
        target: classes ``[n]``.
        anchors: of the classes ``[C, T]``.
        ridge: of the regression, as a share of the features' mean square.
        scale: on products of embeddings with anchors.
    """
    halves = torch.arange(len(x), device=x.device).chunk(2)
    terms = []
    for teaches, asks in (halves, halves[::-1]) if len(halves) == 2 else ():
        asks = asks[torch.isin(target[asks], target[teaches])]
        centre, wanted = x[teaches].mean(0), anchors[target[teaches]]
        support, query = x[teaches] - centre, x[asks] - centre
        gram = support @ support.T
        gram = gram + (ridge * gram.diagonal().mean() + 1e-6) * torch.eye(len(gram), device=x.device)
        embedded = wanted.mean(0) + query @ support.T @ torch.linalg.solve(gram, wanted - wanted.mean(0))
        terms.append(F.cross_entropy(scale * embedded @ anchors.T, target[asks], reduction="sum"))
    return torch.stack(terms).sum() / len(x) if terms else 0 * x.sum()


def _moved(matrix: Tensor, offset: Tensor, former: np.ndarray) -> np.ndarray:
    """Stored vectors ``[n, P]`` as they would be encoded now."""
    now: np.ndarray = (torch.from_numpy(former).double() @ matrix.T + offset).float().numpy()
    return now
