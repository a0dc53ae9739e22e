"""What methods share that read classes off the frozen backbones' features in closed form, without a gradient step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from learner.batch import Batch
from learner.data import Task
from learner.methods.base import FUSED, Context, ParameterGroup, UseOfExemplars


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
        spaces = features(batch)
        return {**spaces, FUSED: torch.cat(list(spaces.values()), 1)}

    def explain(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Nothing to tell."""
        return {}


class Readout(Protocol):
    """Classes by the features of one modality; float64 on the CPU.

    Attributes:
        statistics: all of its state.
        nbytes: of what is derived from past data.
        met: the classes of which samples were taken in, bool ``[C]``.
    """

    statistics: dict[str, Tensor]

    @property
    def nbytes(self) -> int: ...  # noqa: D102

    @property
    def met(self) -> Tensor: ...  # noqa: D102

    def grow(self, classes: int) -> None:
        """Have room for `classes` in all."""

    def update(self, x: Tensor, labels: Tensor) -> None:
        """Take in samples ``[n, P]`` of `labels` ``[n]``, in any portions."""

    def calibrate(self, x: Tensor, labels: Tensor) -> None:
        """Settle, after the last update, what held-out samples ``[n, P]`` must decide; n may be 0."""

    def scores(self, x: Tensor) -> Tensor:
        """``[n, P]`` -> ``[n, C]``; any value for classes that it has not met."""


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
        """Take in the task's samples, batch by batch."""
        for readout in self.readouts.values():
            readout.grow(len(self.context.index.classes))
        for batch in task.train.batches():
            for modality, x, rows in self._parts(batch):
                self.readouts[modality].update(x, batch.labels.cpu()[rows])
        held_out: dict[str, list[tuple[Tensor, Tensor]]] = {
            str(m): [(torch.empty(0, b.pooled_dim, dtype=torch.float64), torch.empty(0, dtype=torch.int64))]
            for m, b in self.context.backbones.items()
        }
        for batch in task.val.batches():
            for modality, x, rows in self._parts(batch):
                labels = batch.labels.cpu()[rows]
                held_out[modality].append((x[labels >= 0], labels[labels >= 0]))
        for modality, readout in self.readouts.items():
            x, labels = (torch.cat(parts) for parts in zip(*held_out[modality], strict=True))
            readout.calibrate(x, labels)

    def predict(self, batch: Batch, spaces: Mapping[str, Tensor] | None = None) -> Tensor:
        """The average of the present modalities' scores ``[B, C]``; a class that one has not met scores average there.

        A zero would be a veto beside positive scores, and a vote beside negative ones.
        """
        classes = max(len(readout.met) for readout in self.readouts.values())
        scores = torch.zeros(len(batch), classes, dtype=torch.float64)
        for modality, x, rows in self._parts(batch):
            if (met := self.readouts[modality].met).any():
                found = self.readouts[modality].scores(x)
                scores[rows] += torch.where(met, found, found[:, met].mean(1, keepdim=True))
        present = batch.presence.cpu().sum(1, keepdim=True)
        return (scores / present.clamp_min(1)).float().to(self.context.device)

    def state_dict(self) -> dict[str, Any]:
        """The statistics by modality."""
        return {modality: readout.statistics for modality, readout in self.readouts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over statistics."""
        for modality, readout in self.readouts.items():
            readout.statistics = dict(state[modality])

    def _parts(self, batch: Batch) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each modality that some sample has, those samples' features ``[n', P]``, and which they are, bool ``[n]``."""
        for i, (modality, x) in enumerate(features(batch).items()):
            rows = batch.presence[:, i].cpu()
            if rows.any():
                yield modality, x.cpu()[rows].double(), rows


def features(batch: Batch) -> dict[str, Tensor]:
    """The backbones' pooled outputs ``[B, P]`` by space."""
    return {str(m): pooled for m, pooled in batch.pooled.items()}
