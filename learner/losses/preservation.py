"""Knowledge preservation: the relations of representations to each other, or to anchors, stay as they were."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def preservation(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    """KL divergence between the row-softmaxes of two similarity matrices (after CTP, Zhu et al. 2023, and Co2L).

    Args:
        student: similarities ``[B, A]`` of the current representations to A candidates.
        teacher: the same of the previous model's; receives no gradient. -inf marks a candidate to leave out.
        temperature: of both softmaxes.

    Returns:
        A scalar, 0 when no relation has changed.
    """
    left_out = torch.isinf(teacher)
    p = (teacher.detach() / temperature).softmax(1)
    log_p = (teacher.detach() / temperature).log_softmax(1).masked_fill(left_out, 0.0)
    log_q = (student.masked_fill(left_out, -torch.inf) / temperature).log_softmax(1).masked_fill(left_out, 0.0)
    return (p * (log_p - log_q)).sum(1).mean()


def to_anchors(x: Tensor, anchors: Tensor) -> Tensor:
    """Cosine of every representation ``[B, d]`` to its own candidates ``[B, A, d]`` -> ``[B, A]``."""
    return (F.normalize(x, dim=1)[:, None] @ F.normalize(anchors, dim=2).transpose(1, 2))[:, 0]


def in_batch(x: Tensor) -> Tensor:
    """Cosines between the representations of a batch ``[B, d]`` -> ``[B, B]``, each sample's own left out."""
    unit = F.normalize(x, dim=1)
    return (unit @ unit.T).masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), -torch.inf)
