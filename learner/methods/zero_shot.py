"""The floor for methods aligned with text: the first task aligns the trunk with names, and nothing is learnt after it.

What it scores on later tasks is what their names alone are worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from learner.batch import Batch
from learner.data import Task
from learner.methods.base import FUSED, Context, ParameterGroup
from learner.methods.class_names import ClassNames
from learner.methods.shared_trunk import SharedTrunk
from learner.modules.heads import GaussianSpace, Prior
from learner.modules.text_anchors import least_map


class ZeroShot(SharedTrunk):
    """The method's hooks; see `methods.base.Method`."""

    def __init__(self, context: Context, text: str = "tiny", anchors: Literal["text", "random"] = "text"):
        super().__init__(context)
        self.text = ClassNames(context, text, anchors)
        self.space = GaussianSpace(self.width, [Prior(isotropic=True)])
        self.map: tuple[Tensor, Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """The first task's Gaussians."""
        return self.space.nbytes

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Name the classes."""
        self.text.name(self.context.index.classes)
        return []

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Never asked for."""
        return {}

    def end_task(self, task: Task) -> None:
        """Align after the first task."""
        if self.map is None:
            classes = torch.arange(len(self.context.index.classes))
            for batch in task.train.batches():
                for view in self.views(batch):
                    self.space.update(view.pooled.cpu().double(), batch.labels.cpu()[view.rows.cpu()], classes)
            weight, bias = self.space.discriminant(self.space.means, self.space.prior)
            self.map = least_map(weight, bias, self.text.anchors[: len(bias)])

    def features(self, tokens: Tensor, mask: Tensor, pooled: Tensor, modality: int | None) -> Tensor:
        """The frozen ones."""
        return pooled

    def scores(self, x: Tensor, pooled: Tensor, modality: int | None) -> Tensor:
        """Embedded features against all names."""
        return self._against(x, self.text.anchors)

    def predict_names(self, batch: Batch, names: Sequence[str]) -> Tensor:
        """See `methods.base.Names`."""
        spaces = self.embed(batch)
        return self._against(spaces[FUSED], self.text.of(names))

    def _against(self, x: Tensor, anchors: Tensor) -> Tensor:
        if self.map is None:
            return torch.zeros(len(x), len(anchors), device=x.device)
        matrix, offset = self.map
        return ((x.cpu().double() @ matrix + offset) @ anchors.double().T).float().to(x.device)

    def state_dict(self) -> dict[str, Any]:
        """Names, Gaussians and the map."""
        return {"text": self.text.anchors, "space": self.space.state(), "map": list(self.map or ())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over all that."""
        self.text.anchors = state["text"]
        self.space.take(state["space"])
        self.map = (state["map"][0], state["map"][1]) if state["map"] else None
