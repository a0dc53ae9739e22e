"""Learning without forgetting: the new task's classes by labels, the old ones by the former model's soft targets.

LwF (Li & Hoiem 2017). As with its heads, one a task, only the task's own classes compete for its samples; the old
classes, all in one softmax, are held by distillation at T = 2. Exemplars, where the recipe keeps any, are rehearsed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.batch import Batch
from learner.losses.classification import among
from learner.losses.distillation import distillation
from learner.methods.base import Context
from learner.methods.taught import Taught


class LwF(Taught):
    """The method's hooks; see `methods.base.Method`.

    Args:
        context: see `methods.base.Context`.
        distillation: weight of the soft targets, lambda_o in the paper.
        shape: of the network.
    """

    def __init__(self, context: Context, *, distillation: float = 1.0, **shape: Any):
        super().__init__(context, **shape)
        self.weight = distillation

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy among the task's classes + distillation of the old ones."""
        logits = self._output(batch, generator).logits
        terms = {"classification": among(logits, batch.labels, self.own)}
        if (former := self._former(batch)) is not None:
            terms["distillation"] = self.weight * distillation(logits[:, : former.shape[1]], former)
        if replay is not None:
            terms["rehearsal"] = F.cross_entropy(self._output(replay, generator).logits, replay.labels)
        return terms
