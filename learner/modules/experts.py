"""Expert bottlenecks D -> r -> D: only the chosen ones are computed, frozen ones stay routable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Experts(nn.Module):
    """E bottlenecks whose up-projections start at zero, so that an untrained adapter adds nothing.

    Args:
        dim: D.
        bottleneck: r.
        count: E at the start.
    """

    def __init__(self, *, dim: int, bottleneck: int, count: int):
        super().__init__()
        self.dim, self.bottleneck = dim, bottleneck
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)  # a scale that learns would move frozen experts
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        self.frozen: set[int] = set()
        self.grow(count)

    def __len__(self) -> int:
        return len(self.down)

    @property
    def trainable(self) -> list[int]:
        """Numbers of the experts that still learn."""
        return [e for e in range(len(self)) if e not in self.frozen]

    def grow(self, count: int) -> None:
        """Add `count` fresh experts."""
        device = self.down[0].device if len(self.down) else None
        for _ in range(count):  # drawn on the CPU, so that a seed means the same on every device
            down, up = torch.randn(self.dim, self.bottleneck) * self.dim**-0.5, torch.zeros(self.bottleneck, self.dim)
            self.down.append(nn.Parameter(down.to(device)))
            self.up.append(nn.Parameter(up.to(device)))

    def freeze(self, experts: list[int]) -> None:
        """Stop `experts` from learning, for good; they can still be chosen."""
        self.frozen |= set(experts)
        for e in experts:
            self.down[e].requires_grad_(False)
            self.up[e].requires_grad_(False)

    def forward(self, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """The gated sum of the chosen experts.

        Args:
            x: ``[B, N, D]``.
            gates: ``[B, K]``.
            chosen: expert numbers ``[B, K]``.

        Returns:
            ``[B, N, D]``.
        """
        B, K = chosen.shape
        down = torch.stack(list(self.down))[chosen]  # [B, K, D, r]
        up = torch.stack(list(self.up))[chosen]  # [B, K, r, D]
        # K bottlenecks side by side are one wide bottleneck: two batched products do them all.
        hidden = F.relu(self.norm(x) @ down.transpose(1, 2).reshape(B, self.dim, -1))  # [B, N, K r]
        hidden = hidden * gates.repeat_interleave(self.bottleneck, 1)[:, None]
        return hidden @ up.reshape(B, K * self.bottleneck, self.dim)
