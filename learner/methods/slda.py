"""Streaming linear discriminant analysis on frozen features, after Hayes & Kanan (2020).

With several modalities each has its own analysis, and their log-likelihoods add up at temperatures read off held-out
samples: on the streams at hand that is stronger than one analysis of all features side by side. Where all share one
trunk one analysis takes them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from learner.batch import Batch
from learner.data import Task
from learner.methods.base import Context
from learner.methods.frozen import ONE_TRUNK, Frozen, features
from learner.modules.heads import GaussianReadout


class SLDA(Frozen):
    """One Gaussian a class with a shared covariance, on the pooled outputs of the frozen backbones."""

    def __init__(self, context: Context):
        super().__init__(context)
        self.readout = GaussianReadout(self.widths)

    @property
    def nbytes(self) -> int:
        """Means and covariance."""
        return self.readout.nbytes

    def end_task(self, task: Task) -> None:
        """Take in the task's samples, batch by batch."""
        owner = torch.arange(len(self.context.index.classes))
        for batch in task.train.batches():
            for spaces, presence, rows in self._spaces(batch):
                self.readout.update(spaces, presence, batch.labels[rows], owner)
        for batch in task.val.batches():
            for spaces, presence, rows in self._spaces(batch):
                self.readout.calibrate(spaces, presence, batch.labels[rows])

    def predict(self, batch: Batch, spaces: Mapping[str, Tensor] | None = None) -> Tensor:
        """Log-likelihoods ``[B, C]`` up to a constant; where modalities share a trunk, the mean over them."""
        found = [(self.readout.scores(spaces, presence), rows) for spaces, presence, rows in self._spaces(batch)]
        assert found, "a batch has some modality"
        total = torch.zeros(len(batch), found[0][0].shape[1])
        for scores, rows in found:
            total[rows] += scores
        return (total / (batch.views.cpu() if ONE_TRUNK in self.widths else 1)).to(self.context.device)

    def predict_unnamed(self, tokens: Tensor, mask: Tensor, pooled: Tensor) -> tuple[Tensor, list[str] | None]:
        """See `methods.base.Unnamed`."""
        there = torch.ones(len(pooled), 1, dtype=torch.bool)
        return self.readout.scores({ONE_TRUNK: pooled}, there).to(self.context.device), None

    def _spaces(self, batch: Batch) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """What the readout takes at once: features by space, which there are ``[n, S]``, and whose they are ``[B]``."""
        if ONE_TRUNK not in self.widths:
            yield features(batch), batch.presence, torch.ones(len(batch), dtype=torch.bool)
        else:
            for space, x, rows in self.parts(batch):
                yield {space: x}, torch.ones(len(x), 1, dtype=torch.bool), rows

    def state_dict(self) -> dict[str, Any]:
        """The statistics."""
        return {"readout": self.readout.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over statistics."""
        self.readout.load_state_dict(state["readout"])
