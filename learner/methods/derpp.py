"""Dark experience replay: exemplars are rehearsed by label, and by the logits they had when they were taken in.

DER++ (Buzzega et al. 2020): loss = CE(new) + alpha MSE(logits of exemplars, stored ones) + beta CE(exemplars). Where
the paper fills a reservoir as samples pass, the trainer chooses exemplars at a task's end: their logits are of that
moment, over the classes known then. Both terms use one draw of exemplars; the paper draws twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from learner.batch import Batch
from learner.data import Examples
from learner.methods.base import Context, UseOfExemplars
from learner.methods.finetune import Finetune


class DERpp(Finetune):
    """The method's hooks; see `methods.base.Method`.

    Args:
        context: see `methods.base.Context`.
        alpha: weight of the stored logits.
        beta: weight of the exemplars' labels.
        shape: of the network.
    """

    exemplars: UseOfExemplars = "needed"

    def __init__(self, context: Context, *, alpha: float = 0.2, beta: float = 0.5, **shape: Any):
        super().__init__(context, **shape)
        self.alpha, self.beta = alpha, beta
        self.logits: dict[str, Tensor] = {}  # of each exemplar by key, [C then]

    @property
    def nbytes(self) -> int:
        """The stored logits."""
        return sum(logits.nbytes for logits in self.logits.values())

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy on new samples and exemplars + the distance from the exemplars' stored logits."""
        terms = {"classification": F.cross_entropy(self._output(batch, generator).logits, batch.labels)}
        if replay is not None:
            logits = self._output(replay, generator).logits
            stored = [self.logits.get(example.key, logits.new_empty(0)) for example in replay.examples]
            terms["rehearsal"] = self.beta * F.cross_entropy(logits, replay.labels)
            terms["dark experience"] = self.alpha * dark_experience(logits, stored)
        return terms

    @torch.no_grad()
    def recall(self, exemplars: Examples) -> None:
        """Keep the logits of new exemplars as they are now, and forget those of exemplars that had to go."""
        kept = {}
        for batch in exemplars.batches():
            for example, logits in zip(batch.examples, self.network(batch).logits, strict=True):
                kept[example.key] = self.logits.get(example.key, logits.clone())
        self.logits = kept

    def state_dict(self) -> dict[str, Any]:
        """The network and the stored logits."""
        return {**super().state_dict(), "logits": self.logits}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over both."""
        super().load_state_dict(state)
        self.logits = {key: logits.to(self.context.device) for key, logits in state["logits"].items()}


def dark_experience(logits: Tensor, stored: list[Tensor]) -> Tensor:
    """Mean squared distance of ``[B, C]`` from B stored vectors, each over the classes it knows, ``[C then]``."""
    then = pad_sequence(stored, batch_first=True, padding_value=torch.nan)  # [B, C']
    known = ~then.isnan()
    return F.mse_loss(logits[:, : then.shape[1]][known], then[known]) if known.any() else logits.sum() * 0
