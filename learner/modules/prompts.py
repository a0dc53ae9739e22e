"""Deep prompts on a frozen trunk, after Jia et al. (2022): tokens put in front before each block and taken off behind.

Shapes: B batch, L prompted blocks, Q prompts, N tokens, D width, P pooled width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.backbones.base import Backbone, through


def prompted(trunk: Backbone, tokens: Tensor, mask: Tensor, prompts: Tensor) -> Tensor:
    """The trunk's pooled output under prompts.

    Args:
        trunk: frozen.
        tokens: what enters its L last blocks ``[B, N, D]``.
        mask: validity ``[B, N]``.
        prompts: of those blocks ``[B, L, Q, D]``; Q may be 0.

    Returns:
        ``[B, P]``.
    """
    (L, Q), h = prompts.shape[1:3], tokens
    valid = torch.cat([mask.new_ones(len(mask), Q), mask], 1)
    for i, block in enumerate(trunk.blocks[len(trunk.blocks) - L :]):
        h = through(block, torch.cat([prompts[:, i], h], 1), valid)[:, Q:]
    return trunk.pool(h, mask)


def blended(pools: Tensor, weights: Tensor) -> Tensor:
    """``[M, L, Q, D]`` by weights ``[B, M]`` that sum to 1 -> ``[B, L, Q, D]``."""
    return torch.einsum("bm,mlqd->blqd", weights, pools)
