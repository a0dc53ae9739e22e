"""Distillation of logits (Hinton et al. 2015; in continual learning, LwF)."""

from __future__ import annotations

from torch import Tensor


def distillation(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    """T^2 KL(teacher || student) over the classes both know, ``[B, C]`` each; no gradient to the teacher."""
    p = (teacher.detach() / temperature).softmax(1)
    log_ratio = (teacher.detach() / temperature).log_softmax(1) - (student / temperature).log_softmax(1)
    return temperature**2 * (p * log_ratio).sum(1).mean()
