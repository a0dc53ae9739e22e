"""MMEncoder: frozen modality-specific transformers joined by trainable adapters in their upper blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from learner.backbones.base import Backbone, through
from learner.batch import Batch
from learner.modules.adapter import CrossModalAdapter
from store.types import Modality, PalimpsestError

MakeAdapter = Callable[[int, int], CrossModalAdapter]


@dataclass(slots=True)
class Encoded:
    """The encoder's output: pooled ``[B, P]`` a modality, and for each adapter the gates and experts it chose."""

    pooled: dict[Modality, Tensor]
    routing: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def first_adapters(backbones: Mapping[Modality, Backbone], stages: int, last: int = 0) -> dict[Modality, int]:
    """The block of each backbone that its first adapter sits beside; see `block_groups`."""
    return {m: block_groups(len(backbone.blocks), stages, last)[0][-1] for m, backbone in backbones.items()}


def before_stages(backbones: Mapping[Modality, Backbone], stages: int) -> dict[Modality, int | None]:
    """The last block of each backbone below its last `stages` quarters; None where they begin at the stem."""
    first = {m: _edges(len(backbone.blocks), stages)[0] for m, backbone in backbones.items()}
    return {m: block - 1 if block else None for m, block in first.items()}


def block_groups(depth: int, stages: int, last: int = 0) -> list[range]:
    """The blocks up to and with each adapter, which sits at the last block of its range.

    Stage s of every backbone ends at the same relative depth, so a backbone of 12 blocks and one of 4 are paired by
    it. Four stages span a whole backbone, whatever its depth. With `last` the adapters sit at each of so many last
    blocks instead, paired from the end.

    Raises:
        PalimpsestError: the stages have fewer blocks than `last`, or one of them has none.
    """
    edges = _edges(depth, stages)
    if last:
        if not 0 < last <= depth - edges[0]:
            raise PalimpsestError(
                f"adapted_blocks is {last}, but {stages} of the 4 quarters of a backbone of {depth} blocks hold only "
                f"{depth - edges[0]}: raise learner.stages, or take fewer"
            )
        edges = [edges[0], *range(depth - last + 1, depth + 1)]
    groups = [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    if not all(groups):
        raise PalimpsestError(
            f"a backbone of {depth} blocks has none in some of its last {stages} quarters: set "
            "learner.params.adapted_blocks to how many of its last blocks get an adapter"
        )
    return groups


def _edges(depth: int, stages: int) -> list[int]:
    """Where each adapted stage begins, and where the last one ends."""
    return [round(depth * (4 - stages + s) / 4) for s in range(stages + 1)]


class MMEncoder(nn.Module):
    """Backbones + cross-modality adapters.

    Args:
        backbones: frozen; their parameters are not registered here and never train.
        stages: how many quarters of each backbone, counted from its end, have an adapter.
        context_dim: width that the other modalities' tokens are projected to.
        make_adapter: builds an adapter from the target's width and `context_dim`.
        last: an adapter at each of so many last blocks; 0 puts one at the end of each stage.
    """

    def __init__(
        self,
        *,
        backbones: Mapping[Modality, Backbone],
        stages: int,
        context_dim: int,
        make_adapter: MakeAdapter,
        last: int = 0,
    ):
        super().__init__()
        self.backbones = dict(backbones)
        self.stages, self.context_dim = last or stages, context_dim
        self.groups = {m: block_groups(len(backbone.blocks), stages, last) for m, backbone in backbones.items()}
        self.context = nn.ModuleDict({m: nn.Linear(b.dim, context_dim, bias=False) for m, b in backbones.items()})
        self.adapters = nn.ModuleDict(
            {f"{m}-{s}": make_adapter(b.dim, context_dim) for s in range(self.stages) for m, b in backbones.items()}
        )

    def forward(self, batch: Batch, noise: Tensor | None = None) -> Encoded:
        """Run the blocks above the trunks with their adapters.

        Args:
            batch: its tokens are what enters the first adapter and what the frozen block beside it gives.
            noise: standard normal ``[B, E]`` for the routers while training, None in evaluation.

        Returns:
            Pooled representations (zeros where a modality is missing) and the routing of every adapter that had work.
        """
        there = {m: b for m, b in self.backbones.items() if batch.masks[m].any()}  # the others cost nothing
        x: dict[Modality, Tensor] = {}
        h: dict[Modality, Tensor] = {}
        encoded = Encoded({})
        for stage in range(self.stages):
            for m, backbone in there.items():
                if stage:
                    x[m], h[m] = self._frozen(backbone, self.groups[m][stage], h[m], batch.masks[m])
                else:
                    x[m], h[m] = batch.tokens[m].split(backbone.dim, 2)
            context = {m: self.context[m](x[m]) for m in x} if len(x) > 1 else {}
            for m in there:
                mask = batch.masks[m]
                others = [o for o in there if o != m]
                y = torch.cat([x[m].new_zeros(len(batch), 0, self.context_dim), *(context[o] for o in others)], 1)
                y_mask = torch.cat([mask[:, :0], *(batch.masks[o] for o in others)], 1)
                added, gates, chosen = self.adapters[f"{m}-{stage}"](x[m], mask, y, y_mask, noise)
                h[m] = h[m] + added
                encoded.routing[f"{m}-{stage}"] = (gates, chosen)
        for m, backbone in self.backbones.items():
            if m in there:
                encoded.pooled[m] = backbone.pool(h[m], batch.masks[m])
            else:
                encoded.pooled[m] = batch.pooled[m].new_zeros(len(batch), backbone.pooled_dim)
        return encoded

    @staticmethod
    def _frozen(backbone: Backbone, blocks: range, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the adapter beside the last of `blocks`, and what that block gives without it."""
        for i in blocks[:-1]:
            h = through(backbone.blocks[i], h, mask)
        last = backbone.blocks[blocks[-1]]
        x = last.attend(h, mask)
        return x, x + last.feed(x)
