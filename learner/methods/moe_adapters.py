"""Mixture-of-experts adapters without anything across modalities: the most used experts of each task freeze.

After Yu et al. (2024, "Boosting continual learning of vision-language models via mixture-of-experts adapters"). Each
sample's top-K experts act beside the feed-forward layers, only the task's own classes compete for its samples, and the
most often chosen experts of a task stop learning though they can still be chosen. Without a task's identity at test
there is one router for all tasks, as in the paper's class-incremental form. The paper has two experts for each of a
known number of tasks; a stream has no such number, so experts are added when too few can learn. Exemplars, where the
recipe keeps any, are rehearsed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.batch import Batch
from learner.data import Task
from learner.losses.classification import among
from learner.methods.base import Context
from learner.methods.taught import Taught
from learner.modules.network import Network
from store.types import Modality


class MoEAdapters(Taught):
    """The method's hooks; see `methods.base.Method`.

    Args:
        context: see `methods.base.Context`.
        freeze: experts frozen per adapter after each task; some may have been frozen before.
        shape: of the network.
    """

    def __init__(self, context: Context, *, freeze: int = 2, **shape: Any):
        self.freeze = freeze
        super().__init__(context, **{"latents": 0, **shape})  # without latents the adapters read no other modality

    def _fresh(self) -> Network:
        network = super()._fresh()
        for adapter in network.adapters.values():
            adapter.query.requires_grad_(False)  # idle without latents: neither trained nor counted
            adapter.value.requires_grad_(False)
        return network

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
