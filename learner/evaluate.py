"""After each task, on every task seen: predictions by classifier and by retrieval, per modality subset.

Where all modalities share one trunk the classifier is asked again without being told which is which (``agnostic``).

It writes what was predicted, and where the right anchors ranked; what that means in accuracy, recall or forgetting is
SQL (`store/views.sql`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from learner.backbones.base import one_trunk
from learner.batch import Batch
from learner.data import Examples, Task
from learner.methods.base import FUSED, Method, Unnamed
from learner.retrieval import Retrieval, average_precision, vote
from learner.thresholds import f1_thresholds
from store.anchors import AnchorStore
from store.types import Modality, Split

Row = dict[str, Any]

NEIGHBOURS = 10  # that vote for a label
RANKED = 100  # K, anchors that are ranked for each query
SHOWN = 3  # of them that are kept by name


def subsets(modalities: Sequence[Modality]) -> Iterator[tuple[str, tuple[Modality, ...]]]:
    """Every non-empty set of modalities with its name; of more than three only the single ones and ``all``."""
    for size in range(1, len(modalities) if len(modalities) <= 3 else 2):
        for chosen in combinations(modalities, size):
            yield "+".join(chosen), chosen
    yield "all", tuple(modalities)


def searches(
    name: str, chosen: Sequence[Modality], modalities: Sequence[Modality], *, aligned: bool
) -> Iterator[tuple[str, str, str]]:
    """What one modality set can be asked: (name, space of the queries, space of the anchors).

    A single modality asks its own space, and those of the others (``audio>video``) where all were trained into one; a
    set of several asks the fused space.
    """
    if name == "all" or len(chosen) > 1:
        yield name, FUSED, FUSED
        return
    (own,) = chosen
    yield name, own, own
    yield from ((f"{own}>{other}", own, other) for other in modalities if aligned and other != own)


@torch.no_grad()
def predictions(
    method: Method,
    anchors: AnchorStore,
    tasks: Sequence[Task],
    splits: Sequence[str] = ("val", "test"),
    *,
    several: bool = False,
) -> Iterator[Row]:
    """Rows for the ledger's `predictions`, but for the run: one a sample, protocol and modality subset.

    Samples that have none of a subset's modalities are left out of it; classes not learnt yet cannot be predicted.
    Retrieval compares labels, not instances: an anchor is right when it has the query's label.

    Args:
        method: as it is after the last of `tasks`.
        anchors: the run's.
        tasks: all that were learnt.
        splits: that are measured.
        several: samples may have several labels. The classifier then tells a set of labels too: the classes whose
            posterior reaches the threshold that is best for the class's F1 on the val split of `tasks`.
    """
    retrieval = Retrieval(anchors)
    told: dict[str, list[tuple[Row, np.ndarray]]] = {}
    for task in tasks:
        for split in splits:
            for row, posterior in _of_split(method, retrieval, task, split, several):
                if posterior is None:
                    yield row
                else:
                    told.setdefault(row["modalities"], []).append((row, posterior))
    for pairs in told.values():
        yield from _with_sets(pairs, tasks[-1].train.index.classes)


def _of_split(
    method: Method, retrieval: Retrieval, task: Task, split: str, several: bool
) -> Iterator[tuple[Row, np.ndarray | None]]:
    """Rows; where a set of labels is still to be told, with all labels and the posterior ``[C]``."""
    examples: Examples = getattr(task, split)
    classes = examples.index.classes
    aligned = getattr(method, "aligned", False)
    unnamed = method if isinstance(method, Unnamed) and one_trunk(examples.features.backbones) else None
    for batch in examples.batches(128):
        modalities = list(batch.masks)
        met = [m for m, mask in batch.masks.items() if mask.any()]
        answers: dict[tuple[Modality, ...], tuple[dict[str, torch.Tensor], torch.Tensor]] = {}
        told: dict[tuple[Modality, ...], tuple[np.ndarray, np.ndarray]] = {}
        for name, chosen in subsets(modalities):
            part = batch.only(chosen)
            there = part.presence.any(1).cpu().numpy()
            shown = [example for example, present in zip(batch.examples, there, strict=True) if present]
            rows = [{"on_task": task.number, "split": split, "key": one.key, "label": one.label} for one in shown]
            if not rows:
                continue
            here = tuple(m for m in met if m in chosen)  # which several sets may come to
            if here not in answers:
                embedded = method.embed(part)
                answers[here] = embedded, method.predict(part, embedded)
            spaces, scores = answers[here]
            own = [i for i, label in enumerate(classes[: scores.shape[1]]) if label in task.labels]
            posteriors = scores.softmax(1).cpu().numpy()[there]
            confidence, best = posteriors.max(1).tolist(), posteriors.argmax(1)
            within = scores[:, own].argmax(1).cpu().numpy()[there] if own else None
            for i, (row, example) in enumerate(zip(rows, shown, strict=True)):
                by_head = {"predicted": classes[best[i]], "confidence": confidence[i]}
                by_head["predicted_in_task"] = classes[own[within[i]]] if within is not None else None
                by_head["labels"] = list(example.labels) if several else None
                row = {**row, "modalities": name, "protocol": "classifier", **by_head}
                yield row, posteriors[i] if several else None
            if unnamed is not None:
                if here not in told:
                    told[here] = _without_names(unnamed, part)
                posteriors, identified = (found[there] for found in told[here])
                for row, posterior, share in zip(rows, posteriors, identified, strict=True):
                    best_of = {"predicted": classes[posterior.argmax()], "confidence": float(posterior.max())}
                    best_of["identified"] = None if np.isnan(share) else float(share)
                    yield {**row, "modalities": name, "protocol": "agnostic", **best_of}, None
            for asked, query, space in searches(name, chosen, modalities, aligned=aligned):
                if not {space, query} <= set(retrieval.anchors.spaces):  # training never met that modality
                    continue
                queries, labels = spaces[query].cpu().numpy()[there], [str(row["label"]) for row in rows]
                found = _retrieved(retrieval, space, query, queries, labels)
                for row, by_anchor in zip(rows, found, strict=True):
                    yield {**row, "modalities": asked, "protocol": "retrieval", **by_anchor}, None


def _without_names(method: Unnamed, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors ``[B, C]`` of samples whose views come without the names of their modalities.

    And ``[B]`` the share of each one's views that were taken for what they are, nan where the method does not ask.
    """
    views = [(str(m), mask.any(1), mask) for m, mask in batch.masks.items() if mask.any()]
    longest = max(mask.shape[1] for _, _, mask in views)

    def padded(x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, 0) * (x.dim() - 2) + (0, longest - x.shape[1]))

    scores, taken = method.predict_unnamed(
        torch.cat([padded(batch.tokens[Modality(name)][rows]) for name, rows, _ in views]),
        torch.cat([padded(mask[rows]) for _, rows, mask in views]),
        torch.cat([batch.pooled[Modality(name)][rows] for name, rows, _ in views]),
    )
    owner = torch.cat([rows.nonzero()[:, 0] for _, rows, _ in views])  # the sample of each view, [V]
    count = owner.bincount(minlength=len(batch)).clamp_min(1)
    names = [name for name, rows, _ in views for _ in range(int(rows.sum()))]
    right = [float("nan")] * len(names) if taken is None else [float(a == b) for a, b in zip(taken, names, strict=True)]
    mean = scores.new_zeros(len(batch), scores.shape[1]).index_add_(0, owner, scores) / count[:, None]
    share = scores.new_zeros(len(batch)).index_add_(0, owner, scores.new_tensor(right)) / count
    return mean.softmax(1).cpu().numpy(), share.cpu().numpy()


def _with_sets(told: Sequence[tuple[Row, np.ndarray]], classes: Sequence[str]) -> Iterator[Row]:
    """The rows of one modality set with the labels that their posteriors ``[C]`` reach the thresholds of."""
    rows, posteriors = [row for row, _ in told], np.stack([posterior for _, posterior in told])
    held_out = np.array([row["split"] == Split.VAL for row in rows])
    truth = np.array([[name in row["labels"] for name in classes[: posteriors.shape[1]]] for row in rows])
    reached = posteriors >= f1_thresholds(posteriors[held_out], truth[held_out])
    for row, sure in zip(rows, reached, strict=True):
        yield {**row, "predicted_labels": [name for name, told in zip(classes, sure, strict=False) if told]}


def _retrieved(
    retrieval: Retrieval, space: str, asked: str, queries: np.ndarray, labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """What each of the queries ``[B, D]`` finds in `space`.

    ``hit`` is the rank, from 1, of the first anchor of the query's label among the nearest `RANKED`, None where there
    is none; ``average_precision`` is over those ranked; ``novelty`` is 1 less the cosine to the nearest.
    """
    similarity, ids = retrieval.search(space, queries, RANKED, asked=asked)  # [B, K], [B, K]
    found = retrieval.anchors.labels(ids)
    predicted, share = vote(similarity[:, :NEIGHBOURS], found[:, :NEIGHBOURS])
    right = found == np.array(labels, dtype=object)[:, None]
    first = np.where(right.any(1), right.argmax(1) + 1, 0).tolist()
    average = average_precision(right, [retrieval.labels(space)[label] for label in labels]).tolist()
    shown = ids[:, :SHOWN]
    nearest = np.array(retrieval.anchors.rows(shown.ravel())["key"].to_pylist(), dtype=object).reshape(shown.shape)
    for i in range(len(queries)):
        yield {
            "predicted": predicted[i],
            "confidence": share[i],
            "hit": first[i] or None,
            "average_precision": average[i],
            "novelty": 1 - float(similarity[i, 0]),
            "nearest": nearest[i].tolist(),
        }
