"""The trainable network that the gradient-trained methods share: MMEncoder, fusion and a growing head."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learner.backbones.base import Backbone, frozen_dim
from learner.batch import Batch
from learner.modules.adapter import CrossModalAdapter
from learner.modules.encoder import MMEncoder
from learner.modules.experts import Experts
from learner.modules.fusion import Fusion
from learner.modules.heads import CosineHead
from learner.modules.router import Router
from store.types import Modality, PalimpsestError


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """Sizes of the trainable parts; see the modules for what each means.

    Attributes:
        adapted_blocks: an adapter at each of so many last blocks; 0 puts one at the end of each stage.
    """

    experts: int = 4
    top_k: int = 2
    bottleneck: int = 16
    latents: int = 8
    context_dim: int = 64
    dim: int = 128
    fused_dim: int = 256
    adapted_blocks: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.experts:
            raise PalimpsestError(
                f"top_k is {self.top_k}: a sample uses at least 1 and at most all {self.experts} experts"
            )


@dataclass(slots=True)
class Output:
    """A forward pass: representations a modality ``[B, d]``, the fused one, logits ``[B, C]``, routing an adapter."""

    z: dict[Modality, Tensor]
    fused: Tensor
    logits: Tensor
    routing: dict[str, tuple[Tensor, Tensor]]


class Network(nn.Module):
    """MMEncoder -> fusion -> cosine head."""

    def __init__(self, backbones: Mapping[Modality, Backbone], stages: int, shape: NetworkShape):
        super().__init__()

        def make_adapter(dim: int, context_dim: int) -> CrossModalAdapter:
            return CrossModalAdapter(
                dim=dim,
                context_dim=context_dim,
                latents=shape.latents,
                experts=Experts(dim=dim, bottleneck=shape.bottleneck, count=shape.experts),
                router=Router(inputs=dim + context_dim, experts=shape.experts, top_k=shape.top_k),
            )

        self.encoder = MMEncoder(
            backbones=backbones,
            stages=stages,
            context_dim=shape.context_dim,
            make_adapter=make_adapter,
            last=shape.adapted_blocks,
        )
        widths = {m: backbone.pooled_dim for m, backbone in backbones.items()}
        frozen = {m: frozen_dim(backbone) for m, backbone in backbones.items()}
        self.fusion = Fusion(widths=widths, frozen=frozen, dim=shape.dim, fused_dim=shape.fused_dim)
        self.head = CosineHead(dim=shape.fused_dim)

    @property
    def adapters(self) -> dict[str, CrossModalAdapter]:
        """The adapters by ``modality-stage``."""
        return dict(self.encoder.adapters.items())  # type: ignore[arg-type]

    def forward(self, batch: Batch, noise: Tensor | None = None) -> Output:
        """Run a batch; `noise` is for the routers, see `MMEncoder.forward`."""
        encoded = self.encoder(batch, noise)
        z, fused = self.fusion(encoded.pooled, batch.pooled, batch.presence)
        return Output(z, fused, self.head(fused), encoded.routing)

    def frozen_copy(self) -> Network:
        """A copy that shares the backbones and receives no gradient: the teacher of the next task."""
        shared = {id(backbone): backbone for backbone in self.encoder.backbones.values()}
        return copy.deepcopy(self, shared).requires_grad_(False)

    def structure(self) -> dict[str, Any]:
        """What `restructure` needs to make room for this network's tensors."""
        return {
            "classes": len(self.head.weight),
            "experts": {name: len(adapter.experts) for name, adapter in self.adapters.items()},
            "frozen": {name: sorted(adapter.experts.frozen) for name, adapter in self.adapters.items()},
        }

    def restructure(self, structure: Mapping[str, Any]) -> None:
        """Grow to the classes and experts of `structure` and freeze the experts it names."""
        self.head.grow(structure["classes"])
        for name, adapter in self.adapters.items():
            if fresh := structure["experts"][name] - len(adapter.experts):
                adapter.experts.grow(fresh)
                adapter.router.grow(fresh)
            adapter.experts.freeze(structure["frozen"][name])

    def take(self, state: Mapping[str, Any]) -> None:
        """Become the network of `give`'s result, in place, so that an optimiser keeps its parameters."""
        self.restructure(state["structure"])
        self.load_state_dict(state["tensors"])

    def give(self) -> dict[str, Any]:
        """Structure and tensors."""
        return {"structure": self.structure(), "tensors": dict(self.state_dict())}

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that still learn."""
        return [p for p in self.parameters() if p.requires_grad]


def gate_use(network: Network, batches: Iterable[Batch], outputs: Iterable[Output]) -> dict[str, dict[str, Any]]:
    """How the adapters route the samples that have their modality, as the ledger keeps it; without noise.

    Returns:
        By adapter: ``gate_mass``, each expert's share of all gates ``[E]``, and ``gate_entropy``, the mean over the
        samples of the entropy of their K gates, in nats. An adapter that had no sample is left out.
    """
    use: dict[str, dict[str, Any]] = {"gate_mass": {}, "gate_entropy": {}}
    passes = list(zip(batches, outputs, strict=True))
    for name, adapter in network.adapters.items():
        modality = Modality(name.rpartition("-")[0])
        routed = [
            [part[batch.masks[modality].any(1)].cpu() for part in output.routing[name]]
            for batch, output in passes
            if name in output.routing
        ]
        if routed:
            gates, chosen = (torch.cat(parts) for parts in zip(*routed, strict=True))  # [n, K], [n, K]
            mass = torch.zeros(len(adapter.experts)).scatter_add_(0, chosen.flatten(), gates.flatten())
            use["gate_mass"][name] = (mass / len(gates)).tolist()
            use["gate_entropy"][name] = torch.special.entr(gates).sum(1).mean().item()
    return use


def router_noise(network: Network, batch: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise ``[B, E]`` for all routers of a step; E is the largest number of experts."""
    experts = max(len(adapter.experts) for adapter in network.adapters.values())
    device = network.head.weight.device
    return torch.randn(batch, experts, generator=generator).to(device)
