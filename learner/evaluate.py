"""After each task, on every task seen: predictions by classifier and by retrieval, per modality subset.

It writes what was predicted; what that means in accuracy or forgetting is SQL (`store/views.sql`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch

from learner.data import Examples, Task
from learner.methods.base import Method
from store.anchors import AnchorStore
from store.types import Modality

NEIGHBOURS = 10


def subsets(modalities: Sequence[Modality]) -> Iterator[tuple[str, tuple[Modality, ...]]]:
    """Every non-empty set of modalities with its name; of more than three only the single ones and ``all``."""
    for size in range(1, len(modalities) if len(modalities) <= 3 else 2):
        for chosen in combinations(modalities, size):
            yield "+".join(chosen), chosen
    yield "all", tuple(modalities)


@torch.no_grad()
def predictions(
    method: Method, anchors: AnchorStore, tasks: Sequence[Task], splits: Sequence[str] = ("val", "test")
) -> Iterator[dict[str, Any]]:
    """Rows for the ledger's `predictions`, but for the run: one a sample, protocol and modality subset.

    Samples that have none of a subset's modalities are left out of it; classes not learnt yet cannot be predicted.
    """
    for task in tasks:
        for split in splits:
            yield from _of_split(method, anchors, task.number, split, getattr(task, split))


def _of_split(
    method: Method, anchors: AnchorStore, number: int, split: str, examples: Examples
) -> Iterator[dict[str, Any]]:
    classes = examples.index.classes
    for batch in examples.batches(128):
        for name, chosen in subsets(list(batch.masks)):
            part = batch.only(chosen)
            there = part.presence.any(1).tolist()
            space = chosen[0] if len(chosen) == 1 and name != "all" else "fused"
            spaces = method.embed(part)
            confidence, best = (column.tolist() for column in method.predict(part, spaces).softmax(1).max(1))
            if known := len(anchors.ids(space)) > 0:  # of a modality that training never met there are none
                nearest, share = anchors.knn(space, spaces[space].cpu().numpy(), NEIGHBOURS)
            for i, example in enumerate(batch.examples):
                if not there[i]:
                    continue
                row = {
                    "on_task": number,
                    "split": split,
                    "modalities": name,
                    "key": example.key,
                    "label": example.label,
                }
                by_head = {"predicted": classes[best[i]], "confidence": confidence[i]}
                yield {**row, "protocol": "classifier", **by_head}
                if known:
                    by_anchor = {"predicted": nearest[i], "confidence": float(share[i])}
                    yield {**row, "protocol": "retrieval", **by_anchor}
