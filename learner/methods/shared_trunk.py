"""What methods share that send every modality through one frozen trunk.

A sample's *views* are what it has of the modalities. Shapes beside those of `learner.batch`: V views, L blocks of the
last stages, which may be prompted, Q prompts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from learner.backbones.base import one_trunk
from learner.batch import Batch
from learner.data import Task
from learner.methods.base import FUSED, Context, UseOfExemplars
from learner.modules.encoder import before_stages
from store.types import Modality, PalimpsestError


class View(NamedTuple):
    """One modality of a batch: its number, which samples have it ``[B]``, and of those what `Batch` holds."""

    modality: int
    rows: Tensor
    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class SharedTrunk(ABC):
    """The hooks that follow from a view's features and scores; see `methods.base.Method`.

    Attributes:
        blocks: L.

    Raises:
        PalimpsestError: the modalities of the stream have trunks of their own.
    """

    scope: Literal["task", "seen"] = "task"
    exemplars: UseOfExemplars = "unused"
    one_trunk = True

    def __init__(self, context: Context):
        if len(context.backbones) > 1 and not one_trunk(context.backbones):
            raise PalimpsestError(
                f"method {type(self).__name__} has one trunk for all modalities: in learner.backbones name for each of "
                "them the same one that takes them all, as canonical"
            )
        self.context = context
        self.names = [str(m) for m in context.backbones]  # of the modalities that the stream may have
        self.trunk = next(iter(context.backbones.values()))
        self.width = self.trunk.pooled_dim
        below = before_stages({self.trunk.modality: self.trunk}, context.stages)[self.trunk.modality]
        self.blocks = len(self.trunk.blocks) - (0 if below is None else below + 1)
        self.modules: nn.Module = nn.Module()

    @property
    def nbytes(self) -> int:
        """Nothing is kept of past data."""
        return 0

    @abstractmethod
    def features(self, tokens: Tensor, mask: Tensor, pooled: Tensor, modality: int | None) -> Tensor:
        """Views as the method sees them, ``[V, P]``; `modality` is None where it is not told."""

    @abstractmethod
    def scores(self, x: Tensor, pooled: Tensor, modality: int | None) -> Tensor:
        """Features ``[V, P]`` -> scores ``[V, C]``."""

    def taken_for(self, pooled: Tensor) -> list[str] | None:
        """The modality that each view is taken for; None where the method does not ask."""
        return None

    def predict(self, batch: Batch, spaces: Mapping[str, Tensor] | None = None) -> Tensor:
        """The mean of the scores of a sample's views ``[B, C]``, the modality of each being known."""
        found = spaces or self.embed(batch)
        total: Tensor | None = None
        for view in self.views(batch):
            scores = self.scores(found[self.names[view.modality]][view.rows], view.pooled, view.modality)
            if total is None:
                total = scores.new_zeros(len(batch), scores.shape[1])
            total[view.rows] += scores
        if total is None:
            raise PalimpsestError("none of these samples has any of the stream's modalities")
        return total / batch.views.to(total.device)

    def predict_unnamed(self, tokens: Tensor, mask: Tensor, pooled: Tensor) -> tuple[Tensor, list[str] | None]:
        """See `methods.base.Unnamed`."""
        x = self.features(tokens[..., -self.trunk.dim :], mask, pooled, None)
        return self.scores(x, pooled, None), self.taken_for(pooled)

    @torch.no_grad()
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Features by modality; fused is the mean of those that a sample has."""
        spaces = {name: torch.zeros(len(batch), self.width, device=self.context.device) for name in self.names}
        for view in self.views(batch):
            x = self.features(view.tokens, view.mask, view.pooled, view.modality)
            spaces[self.names[view.modality]][view.rows] = x.float()
        return {**spaces, FUSED: torch.stack(list(spaces.values())).sum(0) / batch.views.to(self.context.device)}

    def explain(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def views(self, batch: Batch) -> Iterator[View]:
        """Each modality that some sample has."""
        for i, name in enumerate(self.names):
            mask = batch.masks[Modality(name)]
            rows = mask.any(1)
            if rows.any():
                tokens = batch.tokens[Modality(name)][rows][..., -self.trunk.dim :]
                yield View(i, rows, tokens, mask[rows], batch.pooled[Modality(name)][rows])
