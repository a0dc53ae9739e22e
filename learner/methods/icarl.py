"""Incremental classifier and representation learning: sigmoid distillation, herded exemplars, nearest-mean classes.

iCaRL (Rebuffi et al. 2017). Each class is a sigmoid of its own: the task's classes learn from labels, all others from
the former model's outputs, on new samples and exemplars alike. Exemplars are taken by herding in the fused space, and a
sample is of the class whose exemplars' mean lies nearest. The paper re-encodes all exemplars likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learner.batch import Batch
from learner.data import Examples, Task
from learner.methods.base import FUSED, Context, UseOfExemplars
from learner.methods.taught import Taught
from store.policies import herding


class ICaRL(Taught):
    """The method's hooks; see `methods.base.Method`."""

    exemplars: UseOfExemplars = "needed"

    def __init__(self, context: Context, **shape: Any):
        super().__init__(context, **shape)
        self.means = torch.empty(0, self.shape.fused_dim)  # [C, d], of unit length; zeros for a class without exemplars

    @property
    def nbytes(self) -> int:
        """The means of the classes."""
        return self.means.nbytes

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Binary cross-entropy of every class, on new samples and exemplars."""
        terms = {}
        for name, part in (("classification", batch), ("rehearsal", replay)):
            if part is not None:
                logits = self._output(part, generator).logits
                terms[name] = sigmoid_distillation(logits, part.labels, self._former(part), self.own)
        return terms

    def herd(self, task: Task, budget: int) -> Sequence[int]:
        """By class and domain, the samples whose running mean follows the group's."""
        places = {example.key: i for i, example in enumerate(task.train.examples)}
        groups, vectors, read = self._fused(task.train, "groups")
        members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
        return [places[read[m[i]]] for m in members for i in herding(vectors[m].numpy(), budget)]

    def recall(self, exemplars: Examples) -> None:
        """Take the classes' means anew, in the space as it is now."""
        labels, vectors, _ = self._fused(exemplars, "labels")
        self.means = class_means(vectors, torch.from_numpy(labels), len(self.context.index.classes))

    def predict(self, batch: Batch, spaces: Mapping[str, Tensor] | None = None) -> Tensor:
        """Scaled cosine to each class's mean ``[B, C]``: of unit vectors the most alike is the nearest."""
        means = self.means.to(self.context.device)
        known = means.any(1)
        scores = self.network.head.scale * (spaces or self.embed(batch))[FUSED] @ means.T
        return scores.masked_fill(~known & known.any(), -torch.inf)  # all are alike where no exemplar could be read

    def state_dict(self) -> dict[str, Any]:
        """The network and the means."""
        return {**super().state_dict(), "means": self.means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over both."""
        super().load_state_dict(state)
        self.means = state["means"]

    @torch.no_grad()
    def _fused(self, examples: Examples, column: str) -> tuple[np.ndarray, Tensor, list[str]]:
        """Numbers ``[n]``, fused vectors ``[n, d]`` and keys of the samples that can be read."""
        numbers: list[int] = []
        vectors = [torch.empty(0, self.shape.fused_dim)]
        keys: list[str] = []
        for batch in examples.batches():
            numbers += getattr(batch, column).tolist()
            vectors.append(self.network(batch).fused.cpu())
            keys += [example.key for example in batch.examples]
        return np.array(numbers, np.int64), torch.cat(vectors), keys


def sigmoid_distillation(logits: Tensor, labels: Tensor, former: Tensor | None, own: Tensor) -> Tensor:
    """Binary cross-entropy summed over classes, mean over samples.

    Args:
        logits: ``[B, C]``.
        labels: ``[B]``.
        former: the previous model's logits ``[B, C']``, the targets of the classes that are not the task's own.
        own: classes of the task ``[K]``, whose targets are the labels.
    """
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    if former is not None:
        old = torch.ones(former.shape[1], dtype=torch.bool, device=logits.device)
        old[own[own < len(old)]] = False
        target[:, : len(old)] = torch.where(old, former.sigmoid(), target[:, : len(old)])
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()


def class_means(vectors: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The direction of the mean of each class's vectors ``[n, d]`` -> ``[classes, d]``; zeros where there are none."""
    sums = torch.zeros(classes, vectors.shape[1]).index_add_(0, labels, vectors)
    return F.normalize(sums)
