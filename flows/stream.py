"""A stream's tasks: predicates over the samples in the ledger, sealed one after the other as recordings arrive."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flows.recipe import Recipe
from learner.loader import Example
from learner.order import generator
from store.ledger import Ledger
from store.types import PalimpsestError

_SAMPLES = """
    SELECT s.*, t.task FROM sample_index s
    LEFT JOIN (
        SELECT ts.dataset, ts.key, ts.task FROM task_samples ts JOIN tasks USING (stream, task)
        WHERE ts.stream = $stream
    ) t ON t.dataset = s.dataset AND t.key = s.key
    WHERE s.dataset = $dataset ORDER BY s.key
"""


@dataclass(frozen=True, slots=True)
class StreamData:
    """A stream's samples.

    Attributes:
        names: of the sealed tasks, by number.
        tasks: their examples by split, in shard order; those without any modality of the run are left out.
        shards: every example of the data set under the shard it lies in, in shard order.
    """

    names: dict[int, str]
    tasks: dict[int, dict[str, list[Example]]]
    shards: dict[str, list[Example]]


def seal(ledger: Ledger, recipe: Recipe) -> int:
    """Seal what has arrived into tasks; returns how many tasks the stream has now.

    Declared tasks come first, in their order, as soon as they have training samples; later arrivals that fit a task
    already sealed form a further one behind it (``EN``, then ``EN#2``). A sealed task's sample list never changes.

    Raises:
        PalimpsestError: the stream was begun under another definition, or its data set holds no samples.
    """
    definition = json.dumps(recipe.stream.model_dump(), sort_keys=True)
    row = {
        "stream": recipe.name,
        "dataset": recipe.dataset,
        "scenario": recipe.stream.scenario,
        "definition": definition,
    }
    former = ledger.rows("SELECT definition FROM streams WHERE stream = ?", [recipe.name])
    if former and former[0]["definition"] != definition:
        raise PalimpsestError(
            f"stream {recipe.name} was begun with other tasks than the recipe now declares. "
            "Give the recipe another `name`, or put its `stream` section back."
        )
    samples = ledger.rows(_SAMPLES, {"stream": recipe.name, "dataset": recipe.dataset})
    if not samples:
        raise PalimpsestError(
            f"data set {recipe.dataset} holds no samples in {ledger.lake.root}: "
            f"run `palimpsest ingest {recipe.dataset} --source DIR` first"
        )
    if not former:
        ledger.append("streams", [row])
    sealed = ledger.rows("SELECT * FROM tasks WHERE stream = ? ORDER BY task", [recipe.name])
    open_samples = [sample for sample in samples if sample["task"] is None]
    rounds = Counter(_base(task["task_name"]) for task in sealed)
    number = len(sealed)
    for name, predicate in _declared(recipe, samples, sealed):
        members = [sample for sample in open_samples if _matches(sample, predicate)]
        if not any(member["split"] == "train" for member in members):
            continue
        number += 1
        rounds[name] += 1
        chunk = sorted({value for values in predicate.values() for value in values})
        _seal_one(ledger, recipe.name, number, name if rounds[name] == 1 else f"{name}#{rounds[name]}", chunk, members)
        taken = {member["key"] for member in members}
        open_samples = [sample for sample in open_samples if sample["key"] not in taken]
    return number


def load(ledger: Ledger, recipe: Recipe, modalities: Collection[str]) -> StreamData:
    """The sealed tasks of the recipe's stream as a run on `modalities` sees them, and all that lies in their shards."""
    data = StreamData({}, {}, {})
    for row in ledger.rows("SELECT task, task_name FROM tasks WHERE stream = ? ORDER BY task", [recipe.name]):
        data.names[row["task"]] = row["task_name"]
        data.tasks[row["task"]] = {"train": [], "val": [], "test": []}
    rows = ledger.rows(_SAMPLES, {"stream": recipe.name, "dataset": recipe.dataset})
    shards = _with_sidecars(rows)
    for row in sorted(rows, key=lambda row: (row["shard"], row["offset"])):
        example = Example.from_row(row | {"shard": shards[row["shard"]]}, ledger.lake)
        data.shards.setdefault(example.shard, []).append(example)
        if row["task"] in data.tasks and set(modalities) & set(row["modalities"]):
            data.tasks[row["task"]][row["split"]].append(example)
    return data


def _with_sidecars(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Another name for every shard that has sidecars, so that what was computed without them is not taken for it."""
    sidecars: dict[str, set[str]] = {}
    for row in rows:
        sidecars.setdefault(row["shard"], set()).update(part["shard"] for part in row["sidecars"])
    return {
        shard: f"{hashlib.sha256(' '.join(sorted(others)).encode()).hexdigest()[:12]}+{shard}" if others else shard
        for shard, others in sidecars.items()
    }


def _declared(
    recipe: Recipe, samples: Iterable[dict[str, Any]], sealed: list[dict[str, Any]]
) -> list[tuple[str, dict[str, set[str]]]]:
    """Every task that the recipe declares, as (name, predicate); values that were sealed together stay together."""
    spec = recipe.stream
    if spec.by is None:
        wanted = [(task.name, {"label": set(task.labels), "domain": set(task.domains)}) for task in spec.tasks]
        return [(name, {column: values for column, values in by.items() if values}) for name, by in wanted]
    cut = [(task["task_name"], task["labels"]) for task in sealed if _base(task["task_name"]) == task["task_name"]]
    if spec.by == "arrival":
        held = {value for _, chunk in cut for value in chunk}
        later = _arrivals([sample for sample in samples if (sample["arrival"] or "") not in held], spec.per_task)
        return [(name, {"arrival": set(chunk)}) for name, chunk in [*cut, *later]]
    seen = {value for sample in samples for value in _values(sample, spec.by)}
    order = [value for value in spec.order if value in seen] + sorted(seen - set(spec.order))
    if spec.order_seed is not None:
        order = [order[i] for i in generator("tasks", spec.order_seed).permutation(len(order))]
    left = [value for value in order if not any(value in chunk for _, chunk in cut)]
    chunks = [left[i : i + spec.per_task] for i in range(0, len(left), spec.per_task)]
    return [(name, {spec.by: set(chunk)}) for name, chunk in [*cut, *(("+".join(chunk), chunk) for chunk in chunks)]]


def _arrivals(samples: Iterable[dict[str, Any]], per_task: int) -> Iterator[tuple[str, list[str]]]:
    """Arrivals in order of time, `per_task` a task; one that brought nothing to learn from goes with the next."""
    learnable: dict[str, bool] = {}
    for sample in samples:
        arrival = sample["arrival"] or ""
        learnable[arrival] = learnable.get(arrival, False) or sample["split"] == "train"
    chunk: list[str] = []
    for arrival in sorted(learnable):
        chunk.append(arrival)
        if sum(learnable[one] for one in chunk) == per_task:
            yield _span(chunk), chunk
            chunk = []
    if any(learnable[one] for one in chunk):
        yield _span(chunk), chunk


def _span(arrivals: Sequence[str]) -> str:
    """A task's name: the time of its first arrival to that of its last; what has none came before all others."""
    return "..".join(dict.fromkeys(arrival or "earlier" for arrival in (arrivals[0], arrivals[-1])))


def _base(name: str) -> str:
    """A task's name without the number that later arrivals add."""
    return re.sub(r"#\d+$", "", name)


def _values(sample: dict[str, Any], column: str) -> list[str]:
    if column == "label":
        return (sample["labels"] or [""])[:1]
    return [sample[column] or ""]


def _matches(sample: dict[str, Any], predicate: dict[str, set[str]]) -> bool:
    return all(set(_values(sample, column)) & wanted for column, wanted in predicate.items())


def _seal_one(
    ledger: Ledger, stream: str, number: int, name: str, chunk: list[str], members: list[dict[str, Any]]
) -> None:
    listed = "\n".join(f"{member['dataset']}/{member['key']} {member['split']}" for member in members)
    rows = [{"stream": stream, "task": number, **{c: m[c] for c in ("dataset", "key", "split")}} for m in members]
    ledger.append("task_samples", rows)  # without the task's own row, written last, these count for nothing
    counts = Counter(member["split"] for member in members)
    row = {"stream": stream, "task": number, "task_name": name, "labels": chunk}
    manifest = hashlib.sha256(listed.encode()).hexdigest()
    ledger.append(
        "tasks", [{**row, "manifest": manifest, **{split: counts[split] for split in ("train", "val", "test")}}]
    )
