"""Label-free pre-training of the `tiny` backbones: masked reconstruction of patches (after MAE, He et al. 2022).

Shapes: B batch, N tokens, F values in a patch, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from learner import registry
from learner.backbones.base import Block, through
from learner.backbones.tiny import TinyBackbone
from learner.loader import Example, pipeline
from learner.order import generator
from store.types import PalimpsestError

Progress = Callable[[int, int, float], None]


def pretrain(
    name: str,
    examples: Sequence[Example],
    *,
    steps: int = 600,
    batch_size: int = 32,
    masked: float = 0.6,
    lr: float = 1e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = lambda done, total, loss: None,
) -> bytes:
    """Train backbone `name` to fill in patches that were hidden from it.

    Args:
        name: of a tiny backbone, or of a family that shares one trunk.
        examples: unlabelled recordings; those without the modality are left out, and labels are never read.
        steps: optimiser steps.
        batch_size: samples a step.
        masked: share of the valid tokens that are hidden.
        lr: peak learning rate.
        seed: of everything.
        device: where to compute.
        progress: told steps done, steps in all and the loss.

    Returns:
        The weights as safetensors in half precision.

    Raises:
        PalimpsestError: no example has the modality.
    """
    torch.manual_seed(int(generator("pretrain", name, seed).integers(2**63)))
    model, *others = registry.untrained(name)
    patches, mask = _gather([model, *others], examples)
    model.to(device)
    hidden = nn.Parameter(torch.randn(model.spec.dim, device=device) * 0.02)
    decoder = nn.Linear(model.spec.dim, math.prod(model.spec.patch)).to(device)
    parameters = [*model.parameters(), *decoder.parameters(), hidden]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    for step in range(steps):
        rng = generator("pretrain", name, seed, step)
        rows = rng.permutation(len(patches))[:batch_size]
        x, valid = patches[rows].to(device), _spans(mask[rows], rng, model).to(device)
        hide = torch.from_numpy(rng.random(valid.shape) < masked).to(device) & valid
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = _reconstruction(model, decoder, hidden, x, valid, hide)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        progress(step + 1, steps, loss.item())
    return save({key: value.half().cpu().contiguous() for key, value in model.state_dict().items()})


def _reconstruction(
    model: TinyBackbone, decoder: nn.Linear, hidden: Tensor, x: Tensor, valid: Tensor, hide: Tensor
) -> Tensor:
    """Mean squared error on the hidden patches, each normalised by its own mean and deviation."""
    h = torch.where(hide[..., None], hidden, model.embed(x)) + model.positions[: x.shape[1]]
    for block in cast(Sequence[Block], model.blocks):
        h = through(block, h, valid)
    target = (x - x.mean(2, keepdim=True)) / (x.std(2, keepdim=True) + 0.1)
    return (decoder(model.norm(h)) - target)[hide].pow(2).mean()


def _spans(valid: Tensor, rng: np.random.Generator, model: TinyBackbone) -> Tensor:
    """Validity ``[B, N]`` cut to a random stretch from the start, so that short ones are met too."""
    if len(model.spec.grid) > 1:
        return valid
    share = torch.from_numpy(rng.uniform(0.15, 1.0, (len(valid), 1)))
    kept = (valid.sum(1, keepdim=True) * share).ceil().clamp_min(4)
    return valid & (torch.arange(valid.shape[1]) < kept)


def _gather(models: Sequence[TinyBackbone], examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """All patches ``[n, N, F]``, padded, and their validity ``[n, N]``."""
    known = {model.modality for model in models}
    wanted = [example for example in examples if known & set(example.modalities)]
    if not wanted:
        raise PalimpsestError(f"nothing to pre-train {models[0].name} on: no sample has {' or '.join(sorted(known))}")
    rows = [
        model.patches(sample) for sample in pipeline(wanted) for model in models if model.modality in sample.modalities
    ]
    longest = max(map(len, rows))
    x = np.zeros((len(rows), longest, rows[0].shape[1]), np.float32)
    for i, row in enumerate(rows):
        x[i, : len(row)] = row
    lengths = torch.tensor([len(row) for row in rows])
    return torch.from_numpy(x), torch.arange(longest) < lengths[:, None]
