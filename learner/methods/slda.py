"""Streaming linear discriminant analysis on frozen features, after Hayes & Kanan (2020).

With several modalities each has its own analysis, and their log-likelihoods add up at temperatures read off held-out
samples: on the streams at hand that is stronger than one analysis of all features side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from learner.batch import Batch
from learner.data import Task
from learner.methods.base import Context
from learner.methods.frozen import Frozen, features
from learner.modules.heads import GaussianReadout


class SLDA(Frozen):
    """One Gaussian a class with a shared covariance, on the pooled outputs of the frozen backbones."""

    def __init__(self, context: Context):
        super().__init__(context)
        self.readout = GaussianReadout({str(m): b.pooled_dim for m, b in context.backbones.items()})

    @property
    def nbytes(self) -> int:
        """Means and covariance."""
        return self.readout.nbytes

    def end_task(self, task: Task) -> None:
        """Take in the task's samples, batch by batch."""
        owner = torch.arange(len(self.context.index.classes))
        for batch in task.train.batches():
            self.readout.update(features(batch), batch.presence, batch.labels, owner)
        for batch in task.val.batches():
            self.readout.calibrate(features(batch), batch.presence, batch.labels)

    def predict(self, batch: Batch, spaces: Mapping[str, Tensor] | None = None) -> Tensor:
        """Log-likelihoods ``[B, C]`` up to a constant."""
        return self.readout.scores(features(batch), batch.presence).to(self.context.device)

    def state_dict(self) -> dict[str, Any]:
        """The statistics."""
        return {"readout": self.readout.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over statistics."""
        self.readout.load_state_dict(state["readout"])
