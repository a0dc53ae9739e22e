"""The hooks of a method. The trainer owns the loop, the optimiser, checkpoints and progress; a method owns the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor, nn

from learner.backbones.base import Backbone
from learner.batch import Batch
from learner.data import ClassIndex, Examples, Task
from store.anchors import AnchorStore
from store.types import Modality, PalimpsestError

FUSED = "fused"  # the space of all that a sample has together
UseOfExemplars = Literal["optional", "needed", "unused"]


def _none(modality: Modality, name: str) -> Backbone:
    raise PalimpsestError(f"there is no backbone {name} for {modality} here")


@dataclass(frozen=True, slots=True)
class Context:
    """What every method is given.

    Attributes:
        backbones: frozen, by modality.
        stages: how many quarters of each backbone, the last ones, are adapted.
        index: the stream's class numbers so far.
        anchors: the run's anchor store; the trainer adds to it after each task.
        device: where tensors live.
        gather: the rows of all ranks that share a step, with their gradients, for terms that compare samples.
        further: another frozen backbone by modality and name, for methods that need one beside the stream's.
    """

    backbones: Mapping[Modality, Backbone]
    stages: int
    index: ClassIndex
    anchors: AnchorStore
    device: torch.device
    gather: Callable[[Tensor], Tensor] = lambda rows: rows
    further: Callable[[Modality, str], Backbone] = _none


class ParameterGroup(TypedDict):
    """Parameters to train, and their learning rate as a share of the recipe's."""

    params: list[nn.Parameter]
    scale: float


class Method(Protocol):
    """A continual-learning method.

    Attributes:
        scope: ``task`` learns from the current task's samples, ``seen`` from all so far (joint training).
        nbytes: bytes of statistics derived from past data, anchors and exemplars apart.

    A method whose modalities are trained into one space, so that a sound may ask for a video, says so by a true
    attribute ``aligned``; without it they are not asked for each other. One that is undefined without exemplars, or
    leaves them unused, says so by its class's attribute ``exemplars``; without it they are optional. One that
    sends all modalities through one trunk, and so wants as tokens what enters its last stages, says so by its class's
    attribute ``one_trunk``.
    """

    scope: Literal["task", "seen"]

    @property
    def nbytes(self) -> int: ...  # noqa: D102

    @property
    def modules(self) -> nn.Module:
        """Everything with parameters, for counting and for the checkpoint."""

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Get ready for a task; returns what is to be trained, empty for methods without gradient steps."""

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted scalars by name; their sum is minimised. All randomness comes from `generator`."""

    def end_task(self, task: Task) -> None:
        """Consolidate."""

    def predict(self, batch: Batch, spaces: Mapping[str, Tensor] | None = None) -> Tensor:
        """Scores ``[B, C]`` whose softmax is the confidence; `spaces` is what `embed` gave, where that is at hand."""

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Representations ``[B, d]`` by space: one a modality, and ``fused``."""

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts and lists of tensors and JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state` describes."""

    def explain(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Figures about the last of `tasks`, all that were seen, as JSON values; `store/views.sql` reads them."""


@runtime_checkable
class Recalls(Protocol):
    """A method that keeps something of each exemplar."""

    def recall(self, exemplars: Examples) -> None:
        """Take note of `exemplars`, all that are kept after a task, the model being as it will be measured."""


@runtime_checkable
class Unnamed(Protocol):
    """A method that can do without knowing through which modality it meets a sample, where all have one trunk."""

    def predict_unnamed(self, tokens: Tensor, mask: Tensor, pooled: Tensor) -> tuple[Tensor, list[str] | None]:
        """Scores of views of any modality, all of one shape and type.

        Args:
            tokens: ``[V, N, W]``.
            mask: ``[V, N]``.
            pooled: the frozen trunk's features ``[V, P]``.

        Returns:
            ``[V, C]``, and the modality that each view is taken for; None where the method does not ask.
        """


@runtime_checkable
class Names(Protocol):
    """A method that knows classes by their names, and so can be asked for some that it has never met."""

    def predict_names(self, batch: Batch, names: Sequence[str]) -> Tensor:
        """Scores ``[B, n]`` of `names`, met or not."""


@runtime_checkable
class Herds(Protocol):
    """A method that has a say in which samples become exemplars; else they are drawn at random."""

    def herd(self, task: Task, budget: int) -> Sequence[int]:
        """Positions among the task's training samples, the best of each class and domain first, `budget` of each."""
