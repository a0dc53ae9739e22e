"""Classification in which only some of the classes compete."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def among(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of ``[B, C]`` over `classes` alone.

    Pushing down classes of which a task brings no sample is what forgets them. But one class alone has nothing to learn
    from, its cross-entropy being 0 whatever the logits: where `classes` is of one, all compete.

    Args:
        logits: ``[B, C]``.
        labels: ``[B]``, each one of `classes`.
        classes: ``[K]``, ascending.
    """
    if len(classes) == 1:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits[:, classes], torch.searchsorted(classes, labels))
