"""Plain fine-tuning: cross-entropy on whatever comes, nothing against forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.batch import Batch
from learner.data import Task
from learner.methods.base import FUSED, Context, ParameterGroup, UseOfExemplars
from learner.modules.network import Network, NetworkShape, Output, router_noise


class Finetune:
    """The shared network under cross-entropy alone; what rehearses exemplars builds on it."""

    scope: Literal["task", "seen"] = "task"
    exemplars: UseOfExemplars = "unused"

    def __init__(self, context: Context, **shape: Any):
        self.context, self.shape = context, NetworkShape(**shape)
        self.network = self._fresh()

    def _fresh(self) -> Network:
        return Network(self.context.backbones, self.context.stages, self.shape).to(self.context.device)

    @property
    def nbytes(self) -> int:
        """Nothing is kept."""
        return 0

    @property
    def modules(self) -> nn.Module:
        """The network."""
        return self.network

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Make room in the head."""
        self.network.head.grow(len(self.context.index.classes))
        return [{"params": self.network.trained_parameters(), "scale": 1.0}]

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy over all classes met so far, its mean over new samples and exemplars taken together."""
        parts = {"classification": batch} if replay is None else {"classification": batch, "rehearsal": replay}
        total = sum(map(len, parts.values()))
        return {
            name: len(part) / total * F.cross_entropy(self._output(part, generator).logits, part.labels)
            for name, part in parts.items()
        }

    def _output(self, batch: Batch, generator: torch.Generator) -> Output:
        """A training pass, with noise for the routers."""
        return self.network(batch, router_noise(self.network, len(batch), generator))

    def end_task(self, task: Task) -> None:
        """Nothing."""

    def predict(self, batch: Batch, spaces: Mapping[str, Tensor] | None = None) -> Tensor:
        """The head's logits ``[B, C]``."""
        return self.network.head((spaces or self.embed(batch))[FUSED])

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Modality representations and the fused one."""
        output = self.network(batch)
        return {**{str(m): z for m, z in output.z.items()}, FUSED: output.fused}

    def state_dict(self) -> dict[str, Any]:
        """The network and its structure."""
        return {"network": self.network.give()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a network, whatever its number of classes."""
        self.network.take(state["network"])

    def explain(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Nothing to tell."""
        return {}
