"""What every backbone offers, whatever checkpoint is behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from store.types import Modality, Sample


class Block(Protocol):
    """A transformer block in two halves, so that an adapter can sit beside the feed-forward one."""

    def attend(self, h: Tensor, mask: Tensor) -> Tensor:
        """Self-attention with its residual."""

    def feed(self, h: Tensor) -> Tensor:
        """The feed-forward half *without* its residual."""


def through(block: Block, h: Tensor, mask: Tensor) -> Tensor:
    """A whole block as it was pre-trained, ``[B, N, D]`` -> ``[B, N, D]``."""
    h = block.attend(h, mask)
    return h + block.feed(h)


class Backbone(Protocol):
    """A frozen transformer for one modality; it owns its preprocessing.

    Attributes:
        name: registry name.
        digest: hash of weights and preprocessing; with `name` it identifies the features.
        dim: D, the width of the hidden states.
        pooled_dim: P, the width of `pool`'s result.
        tokens: N of the longest input.
        blocks: the transformer's blocks, first to last.

    A large one may say by an attribute `at_once` how many samples go through it together, else 32 do. One that squeezes
    its signal may have a method `summary`, from patches and their validity to what goes beside the pooled output into
    the frozen features, ``[B, Q - P]``, and that width as `summary_dim`.

    Shapes: B batch, N tokens, F values in a patch, D width, P pooled width, Q width of the frozen features.
    """

    name: str
    modality: Modality
    digest: str
    dim: int
    pooled_dim: int
    tokens: int
    blocks: Sequence[Block]

    def patches(self, sample: Sample) -> np.ndarray:
        """The sample's signal as float32 ``[n, F]``, n <= the backbone's longest input."""

    def stem(self, patches: Tensor, mask: Tensor) -> Tensor:
        """Patches ``[B, N, F]`` to the first block's input ``[B, N, D]``."""

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """The last block's output ``[B, N, D]`` to one vector a sample ``[B, P]``; absent samples give zeros."""


def frozen_dim(backbone: Backbone) -> int:
    """Q, the width of the frozen features: of the pooled output and the summary."""
    return backbone.pooled_dim + getattr(backbone, "summary_dim", 0)


def one_trunk(backbones: Mapping[Modality, Backbone]) -> bool:
    """Whether several modalities go through the very same blocks, so that no shape or type tells them apart."""
    return len(backbones) > 1 and len({id(backbone.blocks) for backbone in backbones.values()}) == 1
