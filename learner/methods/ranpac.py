"""Random projection and ridge regression on frozen features: the same answer as from all data at once.

RanPAC (McDonnell et al. 2023). Features f become h = relu(f W) with a fixed random W; the sums G = h'h and Q = h'y over
all samples give the readout (G + ridge I)^-1 Q, whatever the order of the tasks. The ridge is where held-out samples of
the newest task are fitted best. The paper adapts the backbone on its first task; here it stays frozen, each modality
has a readout of its own, and the projection is narrower than the paper's 10,000, since G counts as memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.methods.base import Context
from learner.methods.frozen import BySpace

RIDGES = torch.logspace(-8, 8, 17, dtype=torch.float64)


class RandomRidge:
    """Ridge regression to one-hot labels after a random projection; see `frozen.Readout`.

    Args:
        width: P.
        projected: M, width of the projection.
    """

    def __init__(self, width: int, projected: int):
        self.statistics = {
            "projection": torch.randn(width, projected).double(),  # [P, M]
            "gram": torch.zeros(projected, projected, dtype=torch.float64),  # G
            "sums": torch.zeros(projected, 0, dtype=torch.float64),  # Q, [M, C]
            "ridge": torch.ones((), dtype=torch.float64),
            "weights": torch.zeros(projected, 0, dtype=torch.float64),  # [M, C]
        }

    @property
    def nbytes(self) -> int:
        """Both sums, and what was solved from them; the projection knows no data."""
        return sum(values.nbytes for name, values in self.statistics.items() if name != "projection")

    @property
    def met(self) -> Tensor:
        """Bool ``[C]``."""
        return self.statistics["sums"].any(0)

    def grow(self, classes: int) -> None:
        """Have room for `classes` in all."""
        sums = self.statistics["sums"]
        self.statistics["sums"] = F.pad(sums, (0, classes - sums.shape[1]))

    def update(self, x: Tensor, labels: Tensor) -> None:
        """Add samples to the sums."""
        h, gram, sums = self._project(x), self.statistics["gram"], self.statistics["sums"]
        self.statistics |= {"gram": gram + h.T @ h, "sums": sums + h.T @ F.one_hot(labels, sums.shape[1]).double()}

    def calibrate(self, x: Tensor, labels: Tensor) -> None:
        """Take the ridge that fits held-out samples best in the mean square, where there are any, and solve for it."""
        values, vectors = torch.linalg.eigh(self.statistics["gram"])  # one decomposition serves every ridge
        rotated = vectors.T @ self.statistics["sums"]

        def solved(ridge: Tensor) -> Tensor:
            return vectors @ (rotated / (values.clamp_min(0) + ridge)[:, None])

        ridge = self.statistics["ridge"]
        if len(x) and self.met.any():
            h, wanted = self._project(x), F.one_hot(labels, rotated.shape[1]).double()
            ridge = min(RIDGES, key=lambda ridge: float(F.mse_loss(h @ solved(ridge), wanted))).clone()
        self.statistics |= {"ridge": ridge, "weights": solved(ridge)}

    def scores(self, x: Tensor) -> Tensor:
        """The regression's answers: near 1 for the class, near 0 for others."""
        return self._project(x) @ self.statistics["weights"]

    def _project(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.statistics["projection"])


class RanPAC(BySpace):
    """The method's hooks; see `methods.base.Method`.

    Args:
        context: see `methods.base.Context`.
        projected: M, width of the random projection of each modality.
    """

    def __init__(self, context: Context, *, projected: int = 1000):
        super().__init__(context, lambda width: RandomRidge(width, projected))
