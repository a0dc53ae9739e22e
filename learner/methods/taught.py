"""What methods share that hold the model to what it was before the task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learner.batch import Batch
from learner.data import Task
from learner.methods.base import Context, ParameterGroup, UseOfExemplars
from learner.methods.finetune import Finetune
from learner.modules.network import Network


class Taught(Finetune):
    """`Finetune` beside a teacher, the network as it ended the former task.

    Attributes:
        teacher: None in the first task.
        own: class numbers of the task, ascending ``[K]``.
    """

    exemplars: UseOfExemplars = "optional"

    def __init__(self, context: Context, **shape: Any):
        super().__init__(context, **shape)
        self.teacher: Network | None = None
        self.own = torch.empty(0, dtype=torch.int64)

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Keep the network as it is now."""
        self.teacher = self.network.frozen_copy() if task.number > 1 else None
        self.own = torch.tensor(task.train.classes, device=self.context.device)
        return super().begin_task(task)

    @torch.no_grad()
    def _former(self, batch: Batch) -> Tensor | None:
        """The teacher's logits ``[B, C]`` over the classes that it knows; None without one."""
        return self.teacher(batch).logits if self.teacher is not None else None
