"""Streaming linear discriminant analysis on frozen features, after Hayes & Kanan (2020).

With several modalities each has its own analysis, and their log-likelihoods add up at temperatures read off held-out
samples: on the streams at hand that is stronger than one analysis of all features side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from learner.batch import Batch
from learner.data import Task
from learner.methods.base import Context, ParameterGroup
from learner.modules.heads import GaussianReadout


class SLDA:
    """One Gaussian a class with a shared covariance, on the pooled outputs of the frozen backbones."""

    scope: Literal["task", "seen"] = "task"

    def __init__(self, context: Context):
        self.context = context
        self.modules: nn.Module = nn.Module()
        self.readout = GaussianReadout({str(m): b.pooled_dim for m, b in context.backbones.items()})

    @property
    def nbytes(self) -> int:
        """Means and covariance."""
        return self.readout.nbytes

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Nothing is trained by gradient."""
        return []

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Never asked for."""
        return {}

    def end_task(self, task: Task) -> None:
        """Take in the task's samples."""
        self.readout.update(*self._statistics(list(task.train.batches())))
        if held_out := list(task.val.batches()):
            self.readout.calibrate(*self._statistics(held_out), owner=torch.arange(len(self.context.index.classes)))

    def predict(self, batch: Batch, spaces: Mapping[str, Tensor] | None = None) -> Tensor:
        """Log-likelihoods ``[B, C]`` up to a constant."""
        features = {str(m): pooled for m, pooled in batch.pooled.items()}
        return self.readout.scores(features, batch.presence).to(self.context.device)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """The frozen features themselves; fused is all of them side by side."""
        spaces = {str(m): pooled for m, pooled in batch.pooled.items()}
        return {**spaces, "fused": torch.cat(list(spaces.values()), 1)}

    def _statistics(self, batches: list[Batch]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        features = {str(m): torch.cat([batch.pooled[m] for batch in batches]) for m in self.context.backbones}
        presence = torch.cat([batch.presence for batch in batches])
        return features, presence, torch.cat([batch.labels for batch in batches])

    def state_dict(self) -> dict[str, Any]:
        """The statistics."""
        return {"readout": self.readout.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over statistics."""
        self.readout.load_state_dict(state["readout"])

    def explain(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}
