"""From the encoder's pooled outputs to modality representations, and from those to the fused one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from store.types import Modality


class Fusion(nn.Module):
    """A projection a modality and one MLP over all of them; a missing modality enters as zeros.

    Args:
        widths: P of each modality.
        dim: d of a modality representation.
        fused_dim: width of the fused representation.
    """

    def __init__(self, *, widths: Mapping[Modality, int], dim: int, fused_dim: int):
        super().__init__()
        self.project = nn.ModuleDict(
            {m: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim)) for m, width in widths.items()}
        )
        self.mlp = nn.Sequential(nn.GELU(), nn.Linear(dim * len(widths), fused_dim))

    def forward(self, pooled: Mapping[Modality, Tensor], presence: Tensor) -> tuple[dict[Modality, Tensor], Tensor]:
        """Pooled ``[B, P]`` and presence ``[B, M]`` -> representations ``[B, d]`` and the fused ``[B, fused_dim]``."""
        z = {m: self.project[m](pooled[m]) * presence[:, i, None] for i, m in enumerate(pooled)}
        return z, self.mlp(torch.cat(list(z.values()), 1))
