"""From the encoder's pooled outputs to modality representations, and from those to the fused one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from store.types import Modality


class Fusion(nn.Module):
    """A representation a modality, and one MLP over all of them; a missing modality enters as zeros.

    Each representation is a fixed random projection of the frozen features plus a small learned part, so that what a
    task does not need is not forgotten: fine-tuning on four classes would otherwise keep four directions.

    Args:
        widths: P of each modality.
        frozen: Q of each modality.
        dim: d of a modality representation.
        fused_dim: width of the fused representation.
    """

    def __init__(self, *, widths: Mapping[Modality, int], frozen: Mapping[Modality, int], dim: int, fused_dim: int):
        super().__init__()
        self.dim = dim
        self.project = nn.ModuleDict(
            {m: nn.Sequential(nn.LayerNorm(width), _small(nn.Linear(width, dim))) for m, width in widths.items()}
        )
        self.mlp = nn.Sequential(nn.GELU(), _small(nn.Linear(dim * len(widths), fused_dim)))
        for m, width in frozen.items():
            self.register_buffer(f"skip_{m}", torch.randn(dim, width) * width**-0.5)
        self.register_buffer("skip_fused", torch.randn(fused_dim, dim * len(widths)) * (dim * len(widths)) ** -0.5)

    def forward(
        self, pooled: Mapping[Modality, Tensor], frozen: Mapping[Modality, Tensor], presence: Tensor
    ) -> tuple[dict[Modality, Tensor], Tensor]:
        """Fuse.

        Args:
            pooled: the encoder's outputs ``[B, P]``.
            frozen: the features of the frozen backbones alone, ``[B, Q]``.
            presence: ``[B, M]``.

        Returns:
            Representations ``[B, d]`` by modality and the fused one ``[B, fused_dim]``, of unit length.
        """
        fixed: list[Tensor] = []
        z: dict[Modality, Tensor] = {}
        for i, m in enumerate(pooled):
            fixed.append(F.linear(F.layer_norm(frozen[m], frozen[m].shape[1:]), self.get_buffer(f"skip_{m}")))
            fixed[-1] = fixed[-1] * presence[:, i, None]
            z[m] = F.normalize(fixed[-1] + self.project[m](pooled[m]) * presence[:, i, None])
        joined = torch.cat(list(z.values()), 1) * self.dim**0.5  # back to unit variance
        fused = F.linear(torch.cat(fixed, 1), self.get_buffer("skip_fused")) + self.mlp(joined)
        return z, F.normalize(fused)


def _small(layer: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        layer.weight.mul_(0.1)
    return layer
