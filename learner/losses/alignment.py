"""Cross-modal representation alignment with a relaxation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from store.types import Modality


def alignment(
    z: Mapping[Modality, Tensor], presence: Tensor, labels: Tensor, *, temperature: float = 0.1, margin: float = 0.7
) -> Tensor:
    """Class-aware contrastive loss between every pair of modalities, relaxed by a margin.

    For sample i of modality a, all samples of its class in modality b are positives (supervised contrastive form,
    Khosla et al. 2020). The relaxation is ours: a sample whose mean cosine to its positives already exceeds `margin`
    costs nothing and has no gradient, so that modality-specific information need not be given up.

    Args:
        z: representations ``[B, d]``.
        presence: bool ``[B, M]`` in the order of `z`.
        labels: ``[B]``.
        temperature: of the cosines.
        margin: cosine beyond which nothing is asked.

    Returns:
        A scalar; 0 where no pair of modalities is present.
    """
    unit = {m: F.normalize(v, dim=1) for m, v in z.items()}
    same = labels[:, None] == labels
    total, terms = labels.new_zeros((), dtype=torch.float32), 0
    for (i, a), (j, b) in permutations(enumerate(unit), 2):
        rows, columns = presence[:, i], presence[:, j]
        if not (rows.any() and columns.any()):
            continue
        cosine = unit[a][rows] @ unit[b][columns].T
        positive = same[rows][:, columns]
        count = positive.sum(1)
        log_p = (cosine / temperature).log_softmax(1)
        loss = -(log_p * positive).sum(1) / count.clamp_min(1)
        asked = (count > 0) & ((cosine * positive).sum(1) / count.clamp_min(1) < margin)
        total = total + (loss * asked).sum() / rows.sum()
        terms += 1
    return total / max(1, terms)
