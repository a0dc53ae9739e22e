"""Joint training: from the start, on all data seen so far, at every task. An upper reference, not a contender."""

from __future__ import annotations

from typing import Literal

from learner.data import Task
from learner.methods.base import ParameterGroup
from learner.methods.finetune import Finetune


class Joint(Finetune):
    """`Finetune` on everything at once."""

    scope: Literal["task", "seen"] = "seen"

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Start over."""
        self.network = self._fresh()
        return super().begin_task(task)
