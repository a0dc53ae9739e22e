"""What the learner computes on: a batch of frozen trunk tokens with masks.

Shapes used throughout `learner`: B batch, M modalities, N tokens, D width of a backbone, P its pooled width,
Q that of its frozen features, d width of a modality's representation, E experts, K selected, C classes, A anchors, G
groups.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learner.loader import Example
from store.types import Modality


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples as their frozen trunks see them.

    Attributes:
        tokens: ``[B, N, 2 D]`` a modality: what enters the first adapter, and what the frozen block beside it gives.
            For methods that have no adapters the second half is what enters the first block that they prompt; the
            stem's output alone, ``[B, N, D]``, where that is the first one.
        masks: which tokens are valid, bool ``[B, N]``; a missing modality has none.
        pooled: the frozen backbone's features ``[B, Q]``: pooled output and summary; zeros where missing.
        labels: class numbers of the stream, int64 ``[B]``.
        groups: class-and-domain numbers of the stream, int64 ``[B]``.
        examples: where the samples come from; none for files that lie in no shard.
    """

    tokens: dict[Modality, Tensor]
    masks: dict[Modality, Tensor]
    pooled: dict[Modality, Tensor]
    labels: Tensor
    groups: Tensor
    examples: tuple[Example, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def presence(self) -> Tensor:
        """Bool ``[B, M]``, modalities in the order of `tokens`."""
        return torch.stack([mask.any(1) for mask in self.masks.values()], 1)

    @property
    def views(self) -> Tensor:
        """How many modalities each sample has, int64 ``[B, 1]``; 1 where it has none, so that sums become means."""
        return self.presence.sum(1, keepdim=True).clamp_min(1)

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        tokens, masks, pooled = (
            {m: x.to(device) for m, x in part.items()} for part in (self.tokens, self.masks, self.pooled)
        )
        return Batch(tokens, masks, pooled, self.labels.to(device), self.groups.to(device), self.examples)

    def only(self, modalities: Collection[Modality]) -> Batch:
        """The same samples with every other modality missing."""
        return self.keep({m: torch.full((len(self),), m in modalities) for m in self.masks})

    def keep(self, present: dict[Modality, Tensor]) -> Batch:
        """The same samples with modality m missing wherever ``present[m]``, bool ``[B]``, is false."""
        keep = {m: present[m].to(mask.device) for m, mask in self.masks.items()}
        return replace(
            self,
            masks={m: mask & keep[m][:, None] for m, mask in self.masks.items()},
            pooled={m: pooled * keep[m][:, None] for m, pooled in self.pooled.items()},
        )
