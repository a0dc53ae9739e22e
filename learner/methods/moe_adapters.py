"""Mixture-of-experts adapters without anything across modalities: the most used experts of each task freeze.

After Yu et al. (2024, "Boosting continual learning of vision-language models via mixture-of-experts adapters"). Each
sample's top-K experts act beside the feed-forward layers, and only the task's own classes compete for its samples. The
paper has two forms. The task-incremental one has a router and two experts for each of a known number of tasks, and the
experts that a task chose most often stop learning though they can still be chosen; the class-incremental one has one
router and two experts in all, and freezes none. Here is something of both: one router an adapter, since no task's
identity is given at test; frozen experts, since nothing else would hold them to earlier tasks; and as many experts as
the recipe says, to which more are added when too few can learn, since a stream has no known number of tasks. Each
adapter and its router see their own modality alone: modalities first meet in the fusion below the head. Exemplars,
where the recipe keeps any, are rehearsed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.batch import Batch
from learner.data import Task
from learner.losses.classification import among
from learner.methods.base import Context, ParameterGroup, UseOfExemplars
from learner.methods.finetune import Finetune
from learner.modules.network import Network
from store.types import Modality


class MoEAdapters(Finetune):
    """The method's hooks; see `methods.base.Method`.

    Args:
        context: see `methods.base.Context`.
        freeze: experts frozen per adapter after each task; some may have been frozen before.
        shape: of the network, which has no latents.
    """

    exemplars: UseOfExemplars = "optional"

    def __init__(self, context: Context, *, freeze: int = 2, **shape: Any):
        self.freeze = freeze
        super().__init__(context, latents=0, **shape)

    def _fresh(self) -> Network:
        network = super()._fresh()
        _silence(*network.encoder.context.values())  # type: ignore[arg-type]
        for adapter in network.adapters.values():
            _silence(adapter.query, adapter.value)
        return network

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Note the task's classes."""
        self.own = torch.tensor(task.train.classes, device=self.context.device)
        return super().begin_task(task)

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy among the task's classes."""
        terms = {"classification": among(self._output(batch, generator).logits, batch.labels, self.own)}
        if replay is not None:
            terms["rehearsal"] = F.cross_entropy(self._output(replay, generator).logits, replay.labels)
        return terms

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Freeze the experts that the task's samples chose most often, and leave enough for the next task."""
        adapters = self.network.adapters
        chosen = {name: torch.zeros(len(adapter.experts), dtype=torch.int64) for name, adapter in adapters.items()}
        for batch in task.train.batches():
            for name, (_, experts) in self.network(batch).routing.items():
                there = batch.masks[Modality(name.rpartition("-")[0])].any(1)
                chosen[name] += experts[there].flatten().bincount(minlength=len(chosen[name])).cpu()
        for name, adapter in adapters.items():
            by_use = chosen[name].argsort(descending=True, stable=True)[: self.freeze].tolist()
            adapter.experts.freeze([e for e in by_use if chosen[name][e]])
            if (short := self.shape.top_k - len(adapter.experts.trainable)) > 0:
                adapter.experts.grow(short)
                adapter.router.grow(short)


def _silence(*layers: nn.Linear) -> None:
    """Have `layers` give zeros, from weights that are neither trained nor counted nor stored."""
    for layer in layers:
        zeros = torch.zeros_like(layer.weight.detach())
        del layer.weight
        layer.register_buffer("weight", zeros, persistent=False)
