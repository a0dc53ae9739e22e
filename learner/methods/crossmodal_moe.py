"""Cross-modality adapters with a mixture of experts, representation alignment and knowledge preservation.

After Chee, Hsu & Lee (ECAI 2025). Where the paper is silent the choices are ours; each part is a switch of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.backbones.base import frozen_dim
from learner.batch import Batch
from learner.compensation import fit_drift
from learner.data import Examples, Task
from learner.losses.alignment import alignment
from learner.losses.classification import among
from learner.losses.distillation import distillation
from learner.losses.preservation import in_batch, preservation, to_anchors
from learner.methods.base import FUSED, Context, ParameterGroup
from learner.modules.heads import GaussianReadout, Prior
from learner.modules.network import Network, NetworkShape, Output, gate_use, router_noise
from store.anchors import Relations

PRIORS = [Prior(isotropic=True, strength=s, pull=p) for p in (0.0, 10.0, torch.inf) for s in (1.0, 0.3, 3.0, 10.0)]


@dataclass(frozen=True, slots=True)
class CrossModalMoEParams:
    """The method's switches and weights.

    Attributes:
        alignment: weight of the relaxed cross-modal contrastive term; 0 leaves it out.
        margin: cosine beyond which alignment asks nothing.
        preservation: weight of the relational term; 0 leaves it out.
        relations: to stored ``anchors``, or ``batch`` for relations inside the batch.
        neighbours: k, nearest anchors under the teacher.
        strangers: r, random anchors beside them.
        distillation: weight of the logit term; 0 leaves it out.
        modality_dropout: chance that a sample loses one of its modalities in training.
        plasticity: learning rate after the first task, as a share of that in it.
        freeze: how many of the experts that still learn are frozen per adapter after each task, the most used first.
        spare: experts per adapter that a task finds trainable, top_k at least; more are grown where there are fewer.
        compensate: carry stored vectors along when their space drifts.
        refit: read classes off in closed form from frozen and fused features; else the trained head speaks.
    """

    alignment: float = 1.0
    margin: float = 0.7
    preservation: float = 1.0
    relations: Literal["anchors", "batch"] = "anchors"
    neighbours: int = 16
    strangers: int = 16
    distillation: float = 1.0
    modality_dropout: float = 0.2
    plasticity: float = 0.1
    freeze: int = 1
    spare: int = 2
    compensate: bool = True
    refit: bool = True
    shape: NetworkShape = field(default_factory=NetworkShape)


class CrossModalMoE:
    """The method's hooks; see `methods.base.Method`."""

    scope: Literal["task", "seen"] = "task"

    def __init__(self, context: Context, **params: Any):
        own = {name for name in CrossModalMoEParams.__dataclass_fields__ if name != "shape"}
        shape = NetworkShape(**{name: value for name, value in params.items() if name not in own})
        self.params = CrossModalMoEParams(**{n: v for n, v in params.items() if n in own}, shape=shape)
        self.context = context
        self.network = self._fresh()
        self.teacher: Network | None = None
        self.readout = GaussianReadout(
            {**{str(m): frozen_dim(b) for m, b in context.backbones.items()}, FUSED: shape.fused_dim},
            PRIORS,
            doubted=FUSED,
        )
        self._met: list[list[bool]] = []  # sets of modalities that came together in training
        self._routing: dict[str, dict[str, Any]] = {}

    def _fresh(self) -> Network:
        return Network(self.context.backbones, self.context.stages, self.params.shape).to(self.context.device)

    @property
    def nbytes(self) -> int:
        """Statistics of the readout."""
        return self.readout.nbytes

    @property
    def aligned(self) -> bool:
        """Whether training draws the modalities into one space."""
        return self.params.alignment > 0

    @property
    def modules(self) -> nn.Module:
        """The network."""
        return self.network

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Keep the model as it is now as the teacher, and make room in the head and for experts."""
        self.teacher = self.network.frozen_copy() if task.number > 1 else None
        self._own = torch.tensor(task.train.classes)
        self.network.head.grow(len(self.context.index.classes))
        spare = max(self.params.spare, self.params.shape.top_k)
        for adapter in self.network.adapters.values():
            if self.params.freeze and (short := spare - len(adapter.experts.trainable)) > 0:
                adapter.experts.grow(short)
                adapter.router.grow(short)
        scale = self.params.plasticity if self.teacher is not None else 1.0
        return [{"params": self.network.trained_parameters(), "scale": scale}]

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Classification + distillation + alignment + preservation."""
        terms: dict[str, Tensor] = {}
        for name, part in (("", batch), ("rehearsal ", replay)):
            if part is None:
                continue
            part = self._drop_modalities(part, generator)
            noise = router_noise(self.network, len(part), generator)
            if self.teacher is not None:
                with torch.no_grad():
                    before = self.teacher(part)
            with ThreadPoolExecutor(1) as beside:  # the store searches while the student goes forward
                related = beside.submit(self._relations(before, part, generator)) if self._asks_anchors else None
                output = self.network(part, noise)
            terms[f"{name}classification"] = self._classification(output, part, alone=replay is None)
            if self.params.alignment and len(output.z) > 1:
                gather = self.context.gather
                z = {m: gather(x) for m, x in output.z.items()}
                presence = gather(part.presence.float()).bool()
                aligned = alignment(z, presence, gather(part.labels), margin=self.params.margin)
                terms[f"{name}alignment"] = self.params.alignment * aligned
            if self.teacher is not None:
                old = before.logits.shape[1]
                if self.params.distillation:
                    distilled = distillation(output.logits[:, :old], before.logits)
                    terms[f"{name}distillation"] = self.params.distillation * distilled
                if self.params.preservation:
                    preserved = self._preservation(output, before, part, related.result() if related else None)
                    terms[f"{name}preservation"] = self.params.preservation * preserved
        return terms

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Compensate what drifted, re-fit the readout and freeze the most influential experts."""
        compensate = self.teacher if self.params.compensate else None
        batches, outputs, before = self._run(task.train, compensate)
        presence = torch.cat([batch.presence for batch in batches])
        self._met += [pattern for pattern in presence.unique(dim=0).tolist() if pattern not in self._met]
        if before:
            self._compensate(self._gather(before), self._gather(outputs), presence)
        self.readout.update(*self._statistics(batches, outputs), torch.tensor(self.context.index.class_of_group))
        held_out, seen, _ = self._run(task.val)
        if held_out:
            features, there, _ = self._statistics(held_out, seen)
            self.readout.calibrate(features, there, torch.cat([batch.labels for batch in held_out]))
        self._freeze(batches, outputs)

    @torch.no_grad()
    def predict(self, batch: Batch, spaces: Mapping[str, Tensor] | None = None) -> Tensor:
        """Scores ``[B, C]``: log-likelihoods up to a constant, or the head's logits where nothing is re-fitted."""
        fused = (spaces or self.embed(batch))[FUSED]
        if not self.params.refit:
            return self.network.head(fused)
        features = {**{str(m): pooled for m, pooled in batch.pooled.items()}, FUSED: fused}
        return self.readout.scores(features, self._spaces(batch.presence)).to(self.context.device)

    @torch.no_grad()
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Modality representations and the fused one."""
        output = self.network(batch)
        return {**{str(m): z for m, z in output.z.items()}, FUSED: output.fused}

    def state_dict(self) -> dict[str, Any]:
        """Network and readout; the teacher is the former snapshot's network."""
        return {"network": self.network.give(), "readout": self.readout.state_dict(), "met": self._met}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a network with its classes and experts, and the readout."""
        self.network.take(state["network"])
        self.readout.load_state_dict(state["readout"])
        self._met = [list(pattern) for pattern in state["met"]]

    @torch.no_grad()
    def explain(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Experts, those frozen, and how samples are routed: those just learnt, and held-out ones of each task."""
        structure = self.network.structure()
        routed = [
            {"on_task": task.number, "split": "val", **gate_use(self.network, *self._run(task.val)[:2])}
            for task in tasks
        ]
        sizes = {"experts": structure["experts"], "frozen": structure["frozen"], "top_k": self.params.shape.top_k}
        return {**sizes, **self._routing, "routed": routed}

    def _classification(self, output: Output, batch: Batch, *, alone: bool) -> Tensor:
        if not alone:
            return F.cross_entropy(output.logits, batch.labels)
        return among(output.logits, batch.labels, self._own.to(batch.labels.device))

    def _drop_modalities(self, batch: Batch, generator: torch.Generator) -> Batch:
        modalities = list(batch.masks)
        chance = torch.rand(len(batch), generator=generator)
        victim = torch.randint(len(modalities), (len(batch),), generator=generator)
        several = (batch.presence.sum(1) > 1).cpu()
        dropped = (chance < self.params.modality_dropout) & several
        return batch.keep({m: ~(dropped & (victim == i)) for i, m in enumerate(modalities)})

    @property
    def _asks_anchors(self) -> bool:
        return self.teacher is not None and self.params.preservation > 0 and self.params.relations == "anchors"

    def _relations(
        self, before: Output, batch: Batch, generator: torch.Generator
    ) -> Callable[[], dict[str, Relations]]:
        """What asks the store how the teacher sees a batch: its nearest anchors, and strangers drawn here and now."""
        store, queries, strangers = self.context.anchors, {}, {}
        for space, then in _by_space(before, batch):
            if len(known := store.ids(space)):
                drawn = torch.randint(len(known), (len(then), self.params.strangers), generator=generator)
                queries[space], strangers[space] = then.cpu().numpy(), known[drawn.numpy()]
        return lambda: store.relations(queries, self.params.neighbours, strangers)

    def _preservation(
        self, output: Output, before: Output, batch: Batch, related: Mapping[str, Relations] | None
    ) -> Tensor:
        """To the anchors in `related`; inside the batch where it is None."""
        terms = []
        for (space, now), (_, then) in zip(_by_space(output, batch), _by_space(before, batch), strict=True):
            if related is None:
                terms.append(preservation(in_batch(now), in_batch(then)))
            elif space in related:
                anchors = torch.from_numpy(related[space].vectors).to(now.device)
                similarities = torch.from_numpy(related[space].similarities).to(now.device)
                terms.append(preservation(to_anchors(now, anchors), similarities))
        return torch.stack(terms).mean() if terms else output.fused.new_zeros(())

    def _compensate(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], presence: Tensor) -> None:
        store, there = self.context.anchors, self._spaces(presence)
        for i, space in enumerate(after):
            rows = there[:, i]
            if rows.sum() < 2:
                continue
            matrix, offset, residual = fit_drift(before[space][rows].cpu(), after[space][rows].cpu())
            store.carry(space, partial(_moved, matrix, offset))
            if space == FUSED:
                self.readout.transport(FUSED, matrix, offset, residual)

    def _run(
        self, examples: Examples, teacher: Network | None = None
    ) -> tuple[list[Batch], list[Output], list[Output]]:
        """All of `examples` without their tokens, which are large, and what network and teacher make of them."""
        batches, outputs, before = [], [], []
        for batch in examples.batches():
            outputs.append(self.network(batch))
            if teacher is not None:
                before.append(teacher(batch))
            batches.append(replace(batch, tokens={}))
        return batches, outputs, before

    def _freeze(self, batches: list[Batch], outputs: list[Output]) -> None:
        self._routing = gate_use(self.network, batches, outputs)
        for name, adapter in self.network.adapters.items():
            mass = torch.tensor(self._routing["gate_mass"].get(name, ()))
            used = [e for e in mass.argsort(descending=True, stable=True).tolist() if mass[e] > 0]
            adapter.experts.freeze([e for e in used if e not in adapter.experts.frozen][: self.params.freeze])

    def _statistics(self, batches: list[Batch], outputs: list[Output]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        features = {str(m): torch.cat([batch.pooled[m] for batch in batches]) for m in self.context.backbones}
        features[FUSED] = torch.cat([output.fused for output in outputs])
        presence = self._spaces(torch.cat([batch.presence for batch in batches]))
        return features, presence, torch.cat([batch.groups for batch in batches])

    def _gather(self, outputs: list[Output]) -> dict[str, Tensor]:
        spaces = {str(m): torch.cat([output.z[m] for output in outputs]) for m in outputs[0].z}
        return {**spaces, FUSED: torch.cat([output.fused for output in outputs])}

    def _spaces(self, presence: Tensor) -> Tensor:
        """Presence by space ``[B, M + 1]``; the fused space speaks for sets of modalities that training has met."""
        met = torch.tensor(self._met, dtype=torch.bool, device=presence.device).reshape(-1, presence.shape[1])
        together = (presence[:, None] == met).all(2).any(1, keepdim=True)
        return torch.cat([presence, together], 1)


def _moved(matrix: Tensor, offset: Tensor, former: np.ndarray) -> np.ndarray:
    """Stored vectors ``[n, d]`` as they would be encoded now."""
    now: np.ndarray = (torch.from_numpy(former).double() @ matrix.T + offset).float().numpy()
    return now


def _by_space(output: Output, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """The representations ``[n, d]`` of the samples that have a space, for each space that two or more have."""
    presence = torch.cat([batch.presence, batch.presence.any(1, keepdim=True)], 1)
    for i, (space, all_of_them) in enumerate({**{str(m): z for m, z in output.z.items()}, FUSED: output.fused}.items()):
        if (rows := presence[:, i]).sum() >= 2:
            yield space, all_of_them[rows]
