"""The classes of a stream by name, for methods that are aligned with text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from learner.methods.base import Context
from learner.modules.text_anchors import random_anchors, text_anchors
from store.types import Modality, PalimpsestError


class ClassNames:
    """The anchors ``[C, T]`` of a stream's classes, in the order of their numbers.

    Args:
        context: of the method.
        encoder: the frozen encoder of names, as a recipe names a backbone for text.
        kind: what they are: ``text``, or ``random`` orthogonal vectors.
    """

    def __init__(self, context: Context, encoder: str, kind: Literal["text", "random"]):
        if kind not in ("text", "random"):
            raise PalimpsestError(f"anchors are text or random, not {kind!r}")
        self.context, self.encoder, self.kind = context, encoder, kind
        self.anchors = torch.zeros(0, 0)

    def name(self, classes: Sequence[str]) -> None:
        """Have anchors for all of `classes`; those that there are stay."""
        text = self.context.further(Modality.TEXT, self.encoder)
        if self.kind == "random":
            self.anchors = random_anchors(len(classes), text.pooled_dim)
        elif fresh := classes[len(self.anchors) :]:
            self.anchors = torch.cat([self.anchors.reshape(-1, text.pooled_dim), text_anchors(text, fresh).cpu()])

    def of(self, names: Sequence[str]) -> Tensor:
        """Anchors ``[n, T]`` of `names`, whether or not they are classes.

        Raises:
            PalimpsestError: the anchors are random, so that a name means nothing.
        """
        if self.kind == "random":
            raise PalimpsestError("names mean nothing to a stream whose anchors are random: set anchors=text")
        return text_anchors(self.context.further(Modality.TEXT, self.encoder), names).cpu()
