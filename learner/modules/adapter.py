"""The cross-modality adapter with a mixture of experts, after Chee et al.; latents after LAVISH (Lin et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learner.modules.experts import Experts
from learner.modules.router import Router


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the valid tokens, ``[B, N, D]`` -> ``[B, D]``; zeros where none is valid."""
    weights = mask.to(x.dtype)
    return (weights[:, None] @ x).squeeze(1) / weights.sum(1, keepdim=True).clamp_min(1)


class CrossModalAdapter(nn.Module):
    """What one modality's tokens take from the others', added beside a frozen feed-forward layer.

    Args:
        dim: D, width of the target tokens.
        context_dim: width of the context tokens.
        latents: L, how many learned latents the context is read through.
        experts: the bottlenecks.
        router: picks among them.
    """

    def __init__(self, *, dim: int, context_dim: int, latents: int, experts: Experts, router: Router):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, context_dim) * context_dim**-0.5)
        self.query = nn.Linear(dim, context_dim, bias=False)
        self.value = nn.Linear(context_dim, dim, bias=False)
        self.experts, self.router = experts, router

    def forward(
        self, x: Tensor, x_mask: Tensor, y: Tensor, y_mask: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The adapter's addition to `x`.

        Args:
            x: target tokens ``[B, N, D]``.
            x_mask: validity ``[B, N]``.
            y: context tokens ``[B, S, context_dim]``; S may be 0.
            y_mask: validity ``[B, S]``; a sample without valid context gets no cross-attention term at all.
            noise: see `Router.forward`.

        Returns:
            ``[B, N, D]``, gates ``[B, K]`` and chosen experts ``[B, K]``.
        """
        scale = y.shape[-1] ** -0.5
        some = y_mask.any(1)[:, None, None]
        keys = y_mask | ~y_mask.any(1, keepdim=True)
        read = (self.latents @ y.transpose(1, 2) * scale).masked_fill(~keys[:, None], -torch.inf).softmax(2)
        latents = self.latents + read @ y if y.shape[1] else self.latents.expand(len(x), -1, -1)  # [B, L, C]
        # Queries and values of a few latents cost less than those of all tokens, and their products are the same.
        asked = (x @ (latents @ self.query.weight).transpose(1, 2) * scale).softmax(2)  # [B, N, L]
        crossed = torch.baddbmm(x, asked, self.value(latents).masked_fill(~some, 0.0))
        pooled = torch.cat([masked_mean(x, x_mask), masked_mean(y, y_mask)], 1)
        gates, chosen = self.router(pooled, noise)
        return self.experts(crossed, gates, chosen), gates, chosen
