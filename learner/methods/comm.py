"""Continual learning over modalities that come one after the other, each aligned with text.

After Jin & Kim (2025): prompts of each modality on one frozen trunk, consolidated within a modality, aggregated by
relevance between modalities, and embeddings that are re-aligned with the class names after each task. Where the paper
is silent the choices are ours; each part is a switch of the recipe.

A sample's *views* are what it has of the modalities. Shapes beside those of `learner.batch`: V views, L blocks, Q
prompts, T width of the text anchors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from learner.methods.base import FUSED, Context, ParameterGroup, UseOfExemplars
from learner.modules.heads import GaussianReadout, GaussianSpace, Prior
from learner.modules.prompts import blended, prompted
from learner.modules.text_anchors import TEMPLATES, random_anchors, text_anchors
from store.types import Modality, PalimpsestError

PRIORS = [Prior(isotropic=True, strength=s) for s in (1.0, 0.3, 3.0, 10.0)]


@dataclass(frozen=True, slots=True)
class CommParams:
    """The method's switches and weights.

    Attributes:
        text: the frozen encoder of class names, as a recipe names a backbone for text.
        anchors: what modalities are aligned with: class names, or ``random`` orthogonal vectors.
        prompts: Q, tokens a block; 0 leaves the trunk as it is.
        scale: on cosines while training.
        regularise: keep a modality's prompts a running average over its tasks, that moves the less the more they move
            its features, and hold those features while training.
        shift: weight of that hold.
        relevance: aggregate prompts by learned relevance; else all modalities that were met count the same.
        own: least weight of a sample's own modality, where it is known.
        realign: align every modality with all names again after each task, from what is stored of each class; else a
            modality stays aligned as it was when its last task ended.
    """

    text: str = "tiny"
    anchors: Literal["text", "random"] = "text"
    prompts: int = 4
    scale: float = 16.0
    regularise: bool = True
    shift: float = 1.0
    relevance: bool = True
    own: float = 0.5
    realign: bool = True


class Comm:
    """The method's hooks; see `methods.base.Method`."""

    scope: Literal["task", "seen"] = "task"
    exemplars: UseOfExemplars = "unused"
    stem = True
    aligned = True

    def __init__(self, context: Context, **params: Any):
        self.context, self.params = context, CommParams(**params)
        forms = {(b.tokens, b.dim, b.pooled_dim, len(b.blocks)) for b in context.backbones.values()}
        if len(forms) != 1:
            raise PalimpsestError(
                "method comm has one trunk for all modalities: name one for all, as canonical, in learner.backbones"
            )
        ((_, dim, self.width, blocks),) = forms
        self.trunk = next(iter(context.backbones.values()))
        self.names = [str(m) for m in context.backbones]  # of the modalities that the stream may have
        shape = (len(self.names), blocks, self.params.prompts, dim)
        self.prompts = nn.Parameter((torch.randn(shape) * 0.02).to(context.device))
        self.modules: nn.Module = nn.ParameterDict({"prompts": self.prompts})
        self.former = self.prompts.detach().clone()  # as the task found them
        self.tasks = torch.zeros(len(self.names), dtype=torch.int64)  # that each modality had
        self.inputs = GaussianReadout({"input": self.width}, PRIORS)  # of prompt-free features, by modality
        self.spaces = {name: GaussianSpace(self.width, PRIORS) for name in self.names}  # of prompted ones, by class
        self.maps: dict[str, tuple[Tensor, Tensor]] = {}  # to text anchors: [P, T] and [T]
        self.text = torch.zeros(0, 0)

    @property
    def nbytes(self) -> int:
        """The Gaussians' statistics."""
        spaces = [t for space in self.spaces.values() for t in (space.counts, space.means, space.scatter)]
        return self.inputs.nbytes + sum(t.nbytes for t in spaces)

    def anchor(self, names: Sequence[str]) -> Tensor:
        """Unit vectors ``[n, T]`` of class names, met or not."""
        encoder = self.context.further(Modality.TEXT, self.params.text)
        return text_anchors(encoder, names, TEMPLATES)

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Learn which modality is which, and find a first alignment for those that the task brings."""
        self.former = self.prompts.detach().clone()
        self._name_classes()
        found = [(i, x) for batch in task.train.batches() for i, _, _, x in self._views(batch)]
        kinds = torch.cat([torch.full((len(x),), i) for i, x in found])
        self.now = kinds.unique()
        pooled = torch.cat([x for _, x in found])
        there = torch.ones(len(pooled), 1, dtype=torch.bool)
        self.inputs.update({"input": pooled}, there, kinds, torch.arange(len(self.names)))
        held = [(i, x) for batch in task.val.batches() for i, _, _, x in self._views(batch)]
        if held:
            pooled = torch.cat([x for _, x in held])
            kinds = torch.cat([torch.full((len(x),), i) for i, x in held])
            self.inputs.calibrate({"input": pooled}, torch.ones(len(pooled), 1, dtype=torch.bool), kinds)
        self.trial: dict[str, tuple[Tensor, Tensor]] = {}
        for name, x, labels in self._featured(task.train, self.former):
            space = GaussianSpace(self.width, PRIORS[:1])
            space.update(x, labels, torch.arange(len(self.context.index.classes)))
            self.trial[name] = self._aligned(*space.discriminant(space.means, PRIORS[0]), space.counts > 0)
        return [{"params": [self.prompts], "scale": 1.0}] if self.params.prompts else []

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy of scaled cosines to the task's names, and the shift of features that were there before."""
        likely, shifts, views = [], [], 0
        for i, rows, tokens, pooled in self._views(batch):
            weights = self._weights(pooled, i)
            mask = batch.masks[Modality(self.names[i])][rows]
            now = prompted(self.trunk, tokens, mask, blended(self._held(i), weights))
            matrix, offset = (t.float().to(now.device) for t in self.trial[self.names[i]])
            own = torch.unique(batch.labels)
            cosines = F.normalize(now @ matrix + offset) @ self.text.to(now.device).T
            outside = torch.ones(len(self.text), dtype=torch.bool, device=now.device)
            outside[own] = False
            logits = (self.params.scale * cosines).masked_fill(outside, -torch.inf)
            likely.append(F.cross_entropy(logits, batch.labels[rows], reduction="sum"))
            views += len(now)
            if self.params.regularise and self.tasks[i]:
                with torch.no_grad():
                    then = prompted(self.trunk, tokens, mask, blended(self.former, weights))
                shifts.append((now - then).square().mean(1).sum())
        terms = {"classification": torch.stack(likely).sum() / views}
        if shifts:
            terms["shift"] = self.params.shift * torch.stack(shifts).sum() / views
        return terms

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Consolidate prompts, carry what is stored along, take in the task's features and align all modalities."""
        before = list(self._featured(task.train, self.former))
        for i in self.now.tolist() if self.params.prompts else ():
            share = 1.0
            if self.params.regularise and self.tasks[i]:
                share = 1 / (1 + int(self.tasks[i])) / (1 + self._shift(task.train, i))
            self.prompts[i] = self.former[i].lerp(self.prompts[i], share)
        classes = torch.arange(len(self.context.index.classes))
        after = list(self._featured(task.train, self.prompts))
        for (name, then, _), (_, now, labels) in zip(before, after, strict=True):
            if self.tasks[self.names.index(name)]:
                matrix, offset, residual = fit_drift(then, now)
                self.spaces[name].transport(matrix, offset, residual)
                self.context.anchors.carry(name, partial(_moved, matrix, offset))
            self.spaces[name].update(now, labels, classes)
        for name, x, labels in self._featured(task.val, self.prompts):
            self.spaces[name].calibrate(x, labels)
        self.tasks[self.now] += 1
        met = {name: space for name, space in self.spaces.items() if len(space.counts)}
        fresh = {self.names[i] for i in self.now.tolist()}
        for name in met if self.params.realign else fresh:
            self.maps[name] = self._realigned(met[name], met if self.params.realign else {name: met[name]})

    @torch.no_grad()
    def predict(self, batch: Batch, spaces: Mapping[str, Tensor] | None = None) -> Tensor:
        """Scores ``[B, C]``: the mean of a sample's views, the modality of each being known."""
        features = spaces or self.embed(batch)
        scores = torch.zeros(len(batch), len(self.text), dtype=torch.float64)
        for i, name in enumerate(self.names):
            rows = batch.masks[Modality(name)].any(1).cpu()
            if rows.any():
                scores[rows] += self._scores(features[name].cpu()[rows].double(), self._certain(i, int(rows.sum())))
        return (scores / batch.presence.cpu().sum(1, keepdim=True).clamp_min(1)).float().to(self.context.device)

    @torch.no_grad()
    def predict_unnamed(self, tokens: Tensor, mask: Tensor, pooled: Tensor) -> tuple[Tensor, list[str]]:
        """Scores ``[V, C]`` of views whose modality is not told, and what each is taken for; see `base.Unnamed`."""
        weights = self._relevance(pooled)
        shared = weights if self.params.relevance else self._uniform(len(pooled))
        x = prompted(self.trunk, tokens, mask, blended(self.prompts, shared.float().to(tokens.device)))
        scores = self._scores(x.cpu().double(), weights)
        return scores.float().to(self.context.device), [self.names[i] for i in weights.argmax(1).tolist()]

    @torch.no_grad()
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """The trunk's prompted features by modality; fused is the mean of those that a sample has."""
        spaces = {name: torch.zeros(len(batch), self.width, device=self.context.device) for name in self.names}
        for i, rows, tokens, pooled in self._views(batch):
            mask = batch.masks[Modality(self.names[i])][rows]
            weights = self._weights(pooled, i)
            spaces[self.names[i]][rows] = prompted(self.trunk, tokens, mask, blended(self.prompts, weights))
        count = batch.presence.sum(1, keepdim=True).clamp_min(1).to(self.context.device)
        return {**spaces, FUSED: torch.stack(list(spaces.values())).sum(0) / count}

    def state_dict(self) -> dict[str, Any]:
        """Prompts, statistics, maps and text anchors."""
        return {
            "prompts": self.prompts.detach(),
            "tasks": self.tasks,
            "text": self.text,
            "inputs": self.inputs.state_dict(),
            "spaces": {name: space.state() for name, space in self.spaces.items()},
            "maps": {name: list(found) for name, found in self.maps.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over all that."""
        with torch.no_grad():
            self.prompts.copy_(state["prompts"])
        self.tasks, self.text = state["tasks"].clone(), state["text"]
        self.inputs.load_state_dict(state["inputs"])
        for name, space in self.spaces.items():
            space.take(state["spaces"][name])
        self.maps = {name: (found[0], found[1]) for name, found in state["maps"].items()}

    def explain(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def _name_classes(self) -> None:
        classes = self.context.index.classes
        if self.params.anchors == "random":
            width = self.context.further(Modality.TEXT, self.params.text).pooled_dim
            self.text = random_anchors(len(classes), width)
        elif fresh := classes[len(self.text) :]:
            self.text = torch.cat([self.text.reshape(-1, (found := self.anchor(fresh).cpu()).shape[1]), found])

    def _views(self, batch: Batch) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Each modality that some sample has: its number, which samples, their tokens and prompt-free features."""
        for i, name in enumerate(self.names):
            rows = batch.masks[Modality(name)].any(1)
            if rows.any():
                yield i, rows, batch.tokens[Modality(name)][rows], batch.pooled[Modality(name)][rows]

    @torch.no_grad()
    def _featured(self, examples: Examples, prompts: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """By modality the features ``[n, P]`` of `examples` under `prompts`, float64 on the CPU, and labels ``[n]``."""
        found: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for batch in examples.batches():
            for i, rows, tokens, pooled in self._views(batch):
                mask = batch.masks[Modality(self.names[i])][rows]
                x = prompted(self.trunk, tokens, mask, blended(prompts, self._weights(pooled, i)))
                found.setdefault(i, []).append((x.cpu().double(), batch.labels[rows].cpu()))
        for i, parts in sorted(found.items()):
            x, labels = (torch.cat(column) for column in zip(*parts, strict=True))
            yield self.names[i], x, labels

    def _shift(self, examples: Examples, modality: int) -> float:
        """How far a modality's features go from the task's first prompts to its last, as a share of their length."""
        name = self.names[modality]
        then, now = (
            next(x for found, x, _ in self._featured(examples, prompts) if found == name)
            for prompts in (self.former, self.prompts.detach())
        )
        return float(((now - then).norm(dim=1) / then.norm(dim=1).clamp_min(1e-12)).mean())

    def _held(self, modality: int) -> Tensor:
        """All prompts, of which only the modality's own learn."""
        own = F.one_hot(torch.tensor(modality), len(self.names)).bool().to(self.former.device)[:, None, None, None]
        return torch.where(own, self.prompts, self.former)

    def _relevance(self, pooled: Tensor) -> Tensor:
        """How relevant each modality is to prompt-free features: posteriors ``[V, M]``, 0 for those never met."""
        there = torch.ones(len(pooled), 1, dtype=torch.bool)
        scores = self.inputs.scores({"input": pooled}, there).double()
        known = self.inputs.spaces["input"].counts > 0
        found = scores[:, : len(known)].masked_fill(~known, -torch.inf).softmax(1)
        return F.pad(found, (0, len(self.names) - found.shape[1]))

    def _uniform(self, views: int) -> Tensor:
        known = F.pad((self.inputs.spaces["input"].counts > 0).double(), (0, len(self.names)))[: len(self.names)]
        return (known / known.sum()).expand(views, -1)

    def _weights(self, pooled: Tensor, modality: int) -> Tensor:
        """Weights of all prompts ``[V, M]`` for views of a known modality."""
        if not len(self.inputs.spaces["input"].counts):
            return self._certain(modality, len(pooled)).float().to(pooled.device)
        shared = self._relevance(pooled) if self.params.relevance else self._uniform(len(pooled))
        own = self._certain(modality, len(pooled))
        return (self.params.own * own + (1 - self.params.own) * shared).float().to(pooled.device)

    def _certain(self, modality: int, views: int) -> Tensor:
        return F.one_hot(torch.tensor(modality), len(self.names)).double().expand(views, -1)

    def _scores(self, x: Tensor, weights: Tensor) -> Tensor:
        """Features ``[V, P]`` against all names ``[V, C]``, through the maps of the modalities by weight.

        An embedding's length is its certainty: scores are cosines times that.
        """
        embedded = torch.zeros(len(x), self.text.shape[1], dtype=torch.float64)
        for name, (matrix, offset) in self.maps.items():
            embedded += weights[:, self.names.index(name), None] * (x @ matrix + offset)
        return embedded @ self.text.double().T

    def _realigned(self, own: GaussianSpace, all_spaces: Mapping[str, GaussianSpace]) -> tuple[Tensor, Tensor]:
        """The map of one modality: classes that it has not met lie where other modalities met them."""
        classes = len(self.text)
        sums, counts = torch.zeros(classes, self.width, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
        for space in all_spaces.values():
            sums[: len(space.counts)] += space.means * space.counts[:, None]
            counts[: len(space.counts)] += space.counts
        means = sums / counts.clamp_min(1)[:, None]
        here = own.counts > 0
        means[: len(here)][here] = own.means[here]
        weight, bias = own.discriminant(means, own.prior)
        return self._aligned(weight / own.temperature, bias / own.temperature, counts > 0)

    def _aligned(self, weight: Tensor, bias: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """The least map ``[P, T]``, ``[T]`` whose products with the known names' anchors are these discriminants."""
        known = F.pad(known, (0, len(self.text) - len(known)))
        inverse = torch.linalg.pinv(self.text[known].double())  # [T, C]
        n = weight.shape[1]
        return weight[:, known[:n]] @ inverse.T, inverse @ bias[known[:n]]


def _moved(matrix: Tensor, offset: Tensor, former: np.ndarray) -> np.ndarray:
    """Stored vectors ``[n, P]`` as they would be encoded now."""
    now: np.ndarray = (torch.from_numpy(former).double() @ matrix.T + offset).float().numpy()
    return now
