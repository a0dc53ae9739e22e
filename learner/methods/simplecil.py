"""Class prototypes on frozen features: a class is the mean of its samples, and the nearest by cosine wins.

SimpleCIL (Zhou et al. 2023, "Revisiting class-incremental learning with pre-trained models"). The paper has one
modality; here each has prototypes of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.methods.base import Context
from learner.methods.frozen import BySpace

SCALE = 16.0  # of the cosines, so that a softmax over them is worth reading


class Prototypes:
    """The mean of each class; see `frozen.Readout`.

    Args:
        width: P.
    """

    def __init__(self, width: int):
        self.statistics = {
            "sums": torch.zeros(0, width, dtype=torch.float64),  # [C, P]
            "counts": torch.zeros(0, dtype=torch.float64),  # [C]
        }

    @property
    def nbytes(self) -> int:
        """Sums and counts."""
        return sum(values.nbytes for values in self.statistics.values())

    @property
    def met(self) -> Tensor:
        """Bool ``[C]``."""
        return self.statistics["counts"] > 0

    def grow(self, classes: int) -> None:
        """Have room for `classes` in all."""
        fresh = classes - len(self.statistics["counts"])
        self.statistics = {
            "sums": F.pad(self.statistics["sums"], (0, 0, 0, fresh)),
            "counts": F.pad(self.statistics["counts"], (0, fresh)),
        }

    def update(self, x: Tensor, labels: Tensor) -> None:
        """Add samples to the means of their classes."""
        sums, counts = self.statistics["sums"], self.statistics["counts"]
        self.statistics = {
            "sums": sums.index_add(0, labels, x),
            "counts": counts + labels.bincount(minlength=len(counts)),
        }

    def calibrate(self, x: Tensor, labels: Tensor) -> None:
        """Nothing to settle."""

    def scores(self, x: Tensor) -> Tensor:
        """Scaled cosines."""
        prototypes = self.statistics["sums"] / self.statistics["counts"].clamp_min(1)[:, None]
        return SCALE * F.normalize(x) @ F.normalize(prototypes).T


class SimpleCIL(BySpace):
    """The method's hooks; see `methods.base.Method`."""

    def __init__(self, context: Context):
        super().__init__(context, Prototypes)
