"""What methods share that read classes off the frozen backbones' features in closed form, without a gradient step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from learner.batch import Batch
from learner.data import Task
from learner.methods.base import Context, ParameterGroup, UseOfExemplars


class Frozen:
    """The hooks that need no statistics."""

    scope: Literal["task", "seen"] = "task"
    exemplars: UseOfExemplars = "unused"

    def __init__(self, context: Context):
        self.context = context
        self.modules: nn.Module = nn.Module()

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Nothing is trained by gradient."""
        return []

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Never asked for."""
        return {}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """The frozen features themselves; fused is all of them side by side."""
        spaces = {str(m): pooled for m, pooled in batch.pooled.items()}
        return {**spaces, "fused": torch.cat(list(spaces.values()), 1)}

    def explain(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def _statistics(self, batches: list[Batch]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Features ``[n, P]`` by modality, presence ``[n, M]`` and labels ``[n]``."""
        features = {str(m): torch.cat([batch.pooled[m] for batch in batches]) for m in self.context.backbones}
        presence = torch.cat([batch.presence for batch in batches])
        return features, presence, torch.cat([batch.labels for batch in batches])


class Readout(Protocol):
    """Classes by the features of one modality; float64 on the CPU.

    Attributes:
        statistics: all of its state.
        nbytes: of what is derived from past data.
    """

    statistics: dict[str, Tensor]

    @property
    def nbytes(self) -> int: ...  # noqa: D102

    def update(self, x: Tensor, labels: Tensor, classes: int) -> None:
        """Take in samples ``[n, P]`` of `labels` ``[n]``; there are `classes` by now."""

    def calibrate(self, x: Tensor, labels: Tensor) -> None:
        """Settle what held-out samples ``[n, P]`` must decide."""

    def scores(self, x: Tensor) -> Tensor:
        """``[n, P]`` -> ``[n, C]``."""


class ByModality(Frozen):
    """A readout a modality; those of the modalities that a sample has are averaged, so what is missing is a mask.

    Args:
        context: see `methods.base.Context`.
        readouts: by modality.
    """

    def __init__(self, context: Context, readouts: Mapping[str, Readout]):
        super().__init__(context)
        self.readouts = dict(readouts)

    @property
    def nbytes(self) -> int:
        """What the readouts keep."""
        return sum(readout.nbytes for readout in self.readouts.values())

    def end_task(self, task: Task) -> None:
        """Take in the task's samples."""
        classes = len(self.context.index.classes)
        for readout, x, labels, _ in self._parts(*self._statistics(list(task.train.batches()))):
            readout.update(x, labels, classes)
        if held_out := list(task.val.batches()):
            for readout, x, labels, _ in self._parts(*self._statistics(held_out)):
                readout.calibrate(x[labels >= 0], labels[labels >= 0])

    def predict(self, batch: Batch, spaces: Mapping[str, Tensor] | None = None) -> Tensor:
        """The average of the present modalities' scores ``[B, C]``."""
        features, presence = {str(m): pooled for m, pooled in batch.pooled.items()}, batch.presence.cpu()
        scores = torch.zeros(len(batch), len(self.context.index.classes), dtype=torch.float64)
        for readout, x, _, rows in self._parts(features, presence, batch.labels):
            found = readout.scores(x)
            scores[rows, : found.shape[1]] += found
        return (scores / presence.sum(1, keepdim=True).clamp_min(1)).float().to(self.context.device)

    def state_dict(self) -> dict[str, Any]:
        """The statistics by modality."""
        return {modality: readout.statistics for modality, readout in self.readouts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over statistics."""
        for modality, readout in self.readouts.items():
            readout.statistics = dict(state[modality])

    def _parts(
        self, features: Mapping[str, Tensor], presence: Tensor, labels: Tensor
    ) -> Iterator[tuple[Readout, Tensor, Tensor, Tensor]]:
        """Each readout, features ``[n', P]`` and labels of the samples that have its modality, and which they are."""
        for i, (modality, readout) in enumerate(self.readouts.items()):
            rows = presence[:, i].cpu()
            if rows.any():
                yield readout, features[modality].cpu()[rows].double(), labels.cpu()[rows], rows
