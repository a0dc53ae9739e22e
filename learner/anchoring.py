"""Upkeep of the anchors after a task: encoded anew where exemplars allow it, chosen anew where newcomers are."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import torch

from learner.data import Examples, Task
from learner.loader import Example
from learner.methods.base import FUSED, Method
from store.anchors import AnchorStore
from store.policies import choose

BATCH = 64


def keep_anchors(
    store: AnchorStore, method: Method, task: Task, exemplars: Examples, *, per_group: int, policy: str, seed: int
) -> None:
    """Hold at most `per_group` anchors of each class and domain, chosen among those there are and the task's samples.

    Args:
        store: the anchors so far, already carried along with the drift of their spaces.
        method: as it is after the task.
        task: just learnt.
        exemplars: samples of earlier tasks that are still at hand; their anchors get their present representations.
        per_group: the bound.
        policy: one of `store.policies.POLICIES`, applied in the fused space.
        seed: of policies that draw.
    """
    refresh(store, method, exemplars)
    newcomers, embedded = _embed(method, task.train)
    bound = {_group(example) for example in newcomers}
    again = {_name(example) for example in newcomers}
    columns = ("anchor", "label", "domain", "dataset", "key")
    there = list(zip(*(store.table[column].to_pylist() for column in columns), strict=True))
    # A sample that comes again takes the place of its former anchor.
    rivals = [row for row in there if (row[1], row[2]) in bound and (row[3], row[4]) not in again]
    fused = embedded[FUSED][1]
    fused = fused / np.maximum(np.linalg.norm(fused, axis=1, keepdims=True), 1e-12)
    if rivals:
        fused = np.concatenate([store.vectors(FUSED, [row[0] for row in rivals]), fused])
    taken = choose(
        fused,
        [(row[1], row[2]) for row in rivals] + [_group(example) for example in newcomers],
        per_group,
        policy,
        seed,
        keys=["/".join(row[3:]) for row in rivals] + ["/".join(_name(example)) for example in newcomers],
        foreign=_means(store, bound) if policy == "boundary" else None,
    )
    stay = {rivals[i][0] for i in taken if i < len(rivals)}
    store.keep([row[0] for row in there if (row[1], row[2]) not in bound or row[0] in stay])
    kept = taken[taken >= len(rivals)] - len(rivals)
    columns = ("key", "dataset", "recording", "label", "domain")
    rows = [{**{c: getattr(newcomers[i], c) for c in columns}, "task": task.number} for i in kept]
    parts = {}
    for space, (has, vectors) in embedded.items():
        parts[space] = np.flatnonzero(has[kept]), vectors[kept][has[kept]]
    store.add(rows, parts)


def refresh(store: AnchorStore, method: Method, exemplars: Examples) -> None:
    """Give the anchors of `exemplars` their present representations, which no compensation can better."""
    names = zip(store.table["dataset"].to_pylist(), store.table["key"].to_pylist(), strict=True)
    anchor = dict(zip(names, store.table["anchor"].to_pylist(), strict=True))
    known = [example for example in exemplars.examples if _name(example) in anchor]
    if not known:
        return
    read, embedded = _embed(method, Examples(exemplars.features, known, exemplars.index))
    ids = np.array([anchor[_name(example)] for example in read])
    for space, (has, vectors) in embedded.items():
        has = has & np.isin(ids, store.ids(space))
        store.replace(space, ids[has], vectors[has])


@torch.no_grad()
def _embed(method: Method, examples: Examples) -> tuple[list[Example], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Those that can be read, and by space which of them have it, boolean ``[n]``, and representations ``[n, d]``."""
    read: list[Example] = []
    there: list[np.ndarray] = []
    parts: dict[str, list[np.ndarray]] = {}
    for batch in examples.batches(BATCH):
        read += batch.examples
        there.append(batch.presence.cpu().numpy())
        for space, vectors in method.embed(batch).items():
            parts.setdefault(space, []).append(vectors.cpu().numpy())
    if not read:
        return [], {}
    presence = np.concatenate(there)
    has = {str(m): presence[:, i] for i, m in enumerate(examples.features.backbones)}
    has[FUSED] = np.ones(len(read), bool)
    return read, {space: (has[space], np.concatenate(vectors)) for space, vectors in parts.items()}


def _means(store: AnchorStore, without: set[tuple[str, str]]) -> dict[Hashable, np.ndarray]:
    """The mean fused vector of each group of anchors but those in `without`."""
    groups = store.table.group_by(["label", "domain"]).aggregate([("anchor", "list")]).to_pylist()
    members = {(row["label"], row["domain"]): row["anchor_list"] for row in groups}
    return {group: store.vectors(FUSED, ids).mean(axis=0) for group, ids in members.items() if group not in without}


def _group(example: Example) -> tuple[str, str]:
    return example.label, example.domain


def _name(example: Example) -> tuple[str, str]:
    return example.dataset, example.key
