"""Class names as fixed unit vectors: what every modality is aligned with. T is their width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.backbones.base import Backbone, through
from store.types import PalimpsestError, Sample

TEMPLATES = ("a recording of {}", "this is {}", "{}")


@torch.no_grad()
def text_anchors(encoder: Backbone, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Unit vectors ``[n, T]`` of `names`: what a name adds to a sentence, the mean over `templates`.

    Args:
        encoder: frozen, of text.
        names: of classes; an underscore is a space.
        templates: sentences with a gap for the name.
    """
    device = next(encoder.parameters()).device  # type: ignore[attr-defined]

    def encoded(text: str) -> Tensor:
        patches = torch.from_numpy(encoder.patches(Sample("", {}, text=text)))[None].to(device)
        mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=device)
        h = encoder.stem(patches, mask)
        for block in encoder.blocks:
            h = through(block, h, mask)
        return F.normalize(encoder.pool(h, mask)[0], dim=0)

    rows = []
    for name in names:
        said = [encoded(t.format(name.replace("_", " "))) - encoded(t.format("").strip()) for t in templates]
        rows.append(F.normalize(torch.stack(said).mean(0), dim=0))
    return torch.stack(rows)


def random_anchors(count: int, width: int) -> Tensor:
    """The first `count` rows of one fixed random orthogonal matrix ``[width, width]``: anchors without a meaning.

    Raises:
        PalimpsestError: there are no so many.
    """
    if count > width:
        raise PalimpsestError(f"no more than {width} vectors of {width} numbers are orthogonal, and {count} are needed")
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q[:count].float()


def least_map(weight: Tensor, bias: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """The least affine map ``[P, T]``, ``[T]`` of features under which products with `anchors` are given discriminants.

    What all of them have in common tells none apart and is taken out, lest a name that is none of them win by it.

    Args:
        weight: ``[P, K]``.
        bias: ``[K]``.
        anchors: ``[K, T]``.
    """
    inverse = torch.linalg.pinv(anchors.double())  # [T, K]
    return (weight - weight.mean(1, keepdim=True)) @ inverse.T, inverse @ (bias - bias.mean())
