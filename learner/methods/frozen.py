"""What methods share that read classes off the frozen backbones' features in closed form, without a gradient step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from learner.backbones.base import frozen_dim, one_trunk
from learner.batch import Batch
from learner.data import Task
from learner.methods.base import FUSED, Context, ParameterGroup, UseOfExemplars

ONE_TRUNK = "trunk"  # the space of features whose modalities share it


class Frozen:
    """The hooks that need no statistics.

    Attributes:
        widths: Q of each space of features: of the modalities, or of the one trunk that all of them share.
    """

    scope: Literal["task", "seen"] = "task"
    exemplars: UseOfExemplars = "unused"

    def __init__(self, context: Context):
        self.context = context
        self.modules: nn.Module = nn.Module()
        self.widths = {str(m): frozen_dim(backbone) for m, backbone in context.backbones.items()}
        if one_trunk(context.backbones):
            self.widths = {ONE_TRUNK: max(self.widths.values())}

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

    def parts(self, batch: Batch) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Of each modality that some sample has: its space, features ``[n', Q]``, which samples have it, bool ``[B]``.

        Features are float64 on the CPU.
        """
        for i, (modality, x) in enumerate(features(batch).items()):
            rows = batch.presence[:, i].cpu()
            if rows.any():
                yield ONE_TRUNK if ONE_TRUNK in self.widths else modality, x.cpu()[rows].double(), rows


class Readout(Protocol):
    """Classes by the features of one space; float64 on the CPU.

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
        """Take in samples ``[n, Q]`` of `labels` ``[n]``, in any portions."""

    def calibrate(self, x: Tensor, labels: Tensor) -> None:
        """Settle, after the last update, what held-out samples ``[n, Q]`` must decide; n may be 0."""

    def scores(self, x: Tensor) -> Tensor:
        """``[n, Q]`` -> ``[n, C]``; any value for classes that it has not met."""


class BySpace(Frozen):
    """A readout a space; those of what a sample has are averaged, so a missing modality is a mask.

    Args:
        context: see `methods.base.Context`.
        readout: a fresh one for features ``[n, Q]``, given Q.
    """

    def __init__(self, context: Context, readout: Callable[[int], Readout]):
        super().__init__(context)
        self.readouts = {space: readout(width) for space, width in self.widths.items()}

    @property
    def nbytes(self) -> int:
        """What the readouts keep."""
        return sum(readout.nbytes for readout in self.readouts.values())

    def end_task(self, task: Task) -> None:
        """Take in the task's samples, batch by batch."""
        for readout in self.readouts.values():
            readout.grow(len(self.context.index.classes))
        for batch in task.train.batches():
            for space, x, rows in self.parts(batch):
                self.readouts[space].update(x, batch.labels.cpu()[rows])
        held_out: dict[str, list[tuple[Tensor, Tensor]]] = {
            space: [(torch.empty(0, width, dtype=torch.float64), torch.empty(0, dtype=torch.int64))]
            for space, width in self.widths.items()
        }
        for batch in task.val.batches():
            for space, x, rows in self.parts(batch):
                labels = batch.labels.cpu()[rows]
                held_out[space].append((x[labels >= 0], labels[labels >= 0]))
        for space, readout in self.readouts.items():
            x, labels = (torch.cat(parts) for parts in zip(*held_out[space], strict=True))
            readout.calibrate(x, labels)

    def predict(self, batch: Batch, spaces: Mapping[str, Tensor] | None = None) -> Tensor:
        """The average of the present modalities' scores ``[B, C]``; a class that one has not met scores average there.

        A zero would be a veto beside positive scores, and a vote beside negative ones.
        """
        classes = max(len(readout.met) for readout in self.readouts.values())
        scores = torch.zeros(len(batch), classes, dtype=torch.float64)
        for space, x, rows in self.parts(batch):
            if self.readouts[space].met.any():
                scores[rows] += self._scores(space, x)
        return (scores / batch.views.cpu()).float().to(self.context.device)

    def predict_unnamed(self, tokens: Tensor, mask: Tensor, pooled: Tensor) -> tuple[Tensor, list[str] | None]:
        """See `methods.base.Unnamed`."""
        return self._scores(ONE_TRUNK, pooled.cpu().double()).float().to(self.context.device), None

    def _scores(self, space: str, x: Tensor) -> Tensor:
        met, found = self.readouts[space].met, self.readouts[space].scores(x)
        return torch.where(met, found, found[:, met].mean(1, keepdim=True))

    def state_dict(self) -> dict[str, Any]:
        """The statistics by space."""
        return {space: readout.statistics for space, readout in self.readouts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over statistics."""
        for space, readout in self.readouts.items():
            readout.statistics = dict(state[space])


def features(batch: Batch) -> dict[str, Tensor]:
    """The backbones' frozen features ``[B, Q]`` by space."""
    return {str(m): pooled for m, pooled in batch.pooled.items()}
