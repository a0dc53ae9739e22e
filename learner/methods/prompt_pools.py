"""Prompts drawn from one pool by what a sample looks like, whatever its modality: L2P and CODA-Prompt.

After Wang et al. (2022, "Learning to prompt for continual learning") and Smith et al. (2023, "CODA-Prompt"), on the
trunk and with the deep prompts that `comm` has. Both papers have one modality. Shapes: S entries of the pool.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.batch import Batch
from learner.data import Task
from learner.losses.classification import among
from learner.methods.base import Context, ParameterGroup
from learner.methods.shared_trunk import SharedTrunk
from learner.modules.heads import CosineHead
from learner.modules.prompts import blended, prompted
from store.types import PalimpsestError


class PromptPool(SharedTrunk):
    """Cross-entropy among a task's own classes over prompts from a pool.

    Args:
        context: see `methods.base.Context`.
        entries: S.
        prompts: Q of an entry.
    """

    def __init__(self, context: Context, entries: int, prompts: int):
        super().__init__(context)
        pool = torch.randn(entries, self.blocks, prompts, self.trunk.dim) * 0.02
        self.pool = nn.Parameter(pool.to(context.device))
        self.keys = nn.Parameter(torch.randn(entries, self.width).to(context.device))
        self.head = CosineHead(dim=self.width).to(context.device)
        self.parameters = nn.ParameterDict({"prompts": self.pool, "key": self.keys})
        self.modules = nn.ModuleDict({"pool": self.parameters, "head": self.head})
        self.own = torch.empty(0, dtype=torch.int64)

    @abstractmethod
    def drawn(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """The prompts of views by their prompt-free features, ``[V, L, Q, D]``, and a term to minimise with them."""

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Make room in the head."""
        self.own = torch.tensor(task.train.classes, device=self.context.device)
        self.head.grow(len(self.context.index.classes))
        return [{"params": list(self.modules.parameters()), "scale": 1.0}]

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy, and what goes with the choice of prompts; means over the views."""
        likely, chosen, views = [], [], 0
        for view in self.views(batch):
            prompts, term = self.drawn(view.pooled)
            logits = self.head(prompted(self.trunk, view.tokens, view.mask, prompts))
            likely.append(len(logits) * among(logits, batch.labels[view.rows], self.own))
            chosen.append(len(logits) * term)
            views += len(logits)
        return {"classification": torch.stack(likely).sum() / views, "choice": torch.stack(chosen).sum() / views}

    def end_task(self, task: Task) -> None:
        """Nothing."""

    @torch.no_grad()
    def features(self, tokens: Tensor, mask: Tensor, pooled: Tensor, modality: int | None) -> Tensor:
        """Whatever the modality."""
        return prompted(self.trunk, tokens, mask, self.drawn(pooled)[0])

    @torch.no_grad()
    def scores(self, x: Tensor, pooled: Tensor, modality: int | None) -> Tensor:
        """The head's logits."""
        return self.head(x)

    def state_dict(self) -> dict[str, Any]:
        """Pool and head."""
        return {"tensors": dict(self.modules.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them over, whatever the number of classes."""
        self.head.grow(len(state["tensors"]["head.weight"]))
        self.modules.load_state_dict(state["tensors"])


class L2P(PromptPool):
    """The entries whose keys lie nearest to a sample, side by side.

    Args:
        context: see `methods.base.Context`.
        entries: S.
        prompts: of an entry.
        chosen: entries a sample.
        pull: weight of drawing the chosen keys to the sample.
    """

    def __init__(self, context: Context, entries: int = 10, prompts: int = 2, chosen: int = 2, pull: float = 0.5):
        if not 1 <= chosen <= entries:
            raise PalimpsestError(f"chosen is {chosen}: a sample takes at least 1 and at most all {entries} entries")
        super().__init__(context, entries, prompts)
        self.chosen, self.pull = chosen, pull

    def drawn(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest entries' prompts, and how far their keys are from the samples."""
        near, which = (F.normalize(pooled) @ F.normalize(self.keys).T).topk(self.chosen, 1)  # [V, k]
        prompts = self.pool[which]  # [V, k, L, Q, D]
        return prompts.transpose(1, 2).flatten(2, 3), self.pull * (1 - near).mean()


class CodaPrompt(PromptPool):
    """All entries, each weighed by a cosine in the features that it attends to; each task trains some of its own.

    Args:
        context: see `methods.base.Context`.
        entries: S.
        a_task: entries that a task trains, while there are fresh ones; the last tasks share the last.
        prompts: Q.
        apart: weight of the orthogonality of what a task trains to all that is there.
    """

    def __init__(self, context: Context, entries: int = 20, a_task: int = 2, prompts: int = 4, apart: float = 0.1):
        if not 1 <= a_task <= entries:
            raise PalimpsestError(f"a_task is {a_task}: a task trains at least 1 and at most all {entries} entries")
        super().__init__(context, entries, prompts)
        self.a_task, self.apart = a_task, apart
        self.attention = nn.Parameter(torch.randn(entries, self.width).to(context.device))
        self.parameters["attention"] = self.attention
        self.begun = torch.zeros((), dtype=torch.int64)  # entries that tasks have trained, or train now

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Take up fresh entries."""
        self.begun = (self.begun + self.a_task).clamp_max(len(self.pool))
        return super().begin_task(task)

    def drawn(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """The entries' prompts by weight, and how far those that learn are from being orthogonal to the others."""
        begun = int(self.begun)
        parts = [
            torch.cat([values[: begun - self.a_task].detach(), values[begun - self.a_task : begun]])
            for values in (self.pool, self.keys, self.attention)
        ]
        pool, keys, attention = parts
        weights = F.cosine_similarity(pooled[:, None] * attention, keys[None], 2)  # [V, S]
        overlap = pool.new_zeros(())
        for values in parts:
            unit = F.normalize(values.flatten(1))
            product = unit[-self.a_task :] @ unit.T
            overlap = overlap + (product - torch.eye(len(unit), device=unit.device)[-self.a_task :]).square().mean()
        return blended(pool, weights), self.apart * overlap

    def state_dict(self) -> dict[str, Any]:
        """And how many entries are in use."""
        return {**super().state_dict(), "begun": self.begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take all that over."""
        super().load_state_dict(state)
        self.begun = state["begun"].clone()
