"""The noisy top-K router (after Shazeer et al. 2017) that picks a few experts for each sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Router(nn.Module):
    """Gates over experts from the pooled target and the pooled context.

    Args:
        inputs: width of the concatenated ``[pooled X ; pooled Y]``.
        experts: E.
        top_k: K, how many experts a sample uses.
    """

    def __init__(self, *, inputs: int, experts: int, top_k: int):
        super().__init__()
        self.top_k = top_k
        self.gate = nn.Parameter(torch.randn(inputs, experts) * inputs**-0.5)
        self.noise = nn.Parameter(torch.zeros(inputs, experts))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Choose the experts.

        Args:
            x: ``[B, inputs]``.
            noise: standard normal ``[B, E]`` while training, None in evaluation.

        Returns:
            Gates ``[B, K]`` that sum to 1, and the experts' numbers ``[B, K]``.
        """
        logits = x @ self.gate
        if noise is not None:
            logits = logits + noise[:, : logits.shape[1]] * (F.softplus(x @ self.noise) + 1e-2)
        kept, chosen = logits.topk(self.top_k, dim=1)
        return kept.softmax(1), chosen

    def grow(self, count: int) -> None:
        """Make room for `count` more experts; the columns there are stay as they are."""
        extra = (torch.randn(len(self.gate), count) * len(self.gate) ** -0.5).to(self.gate.device)
        self.gate = nn.Parameter(torch.cat([self.gate.detach(), extra], 1))
        self.noise = nn.Parameter(torch.cat([self.noise.detach(), torch.zeros_like(extra)], 1))
