"""A stream's tasks: predicates over the samples in the ledger, sealed one after the other as recordings arrive."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from flows.recipe import Recipe, StreamSpec
from learner.index import LAYOUT, Index, Rows, write_index
from learner.order import generator
from store import cache
from store.lake import lock
from store.ledger import Ledger
from store.types import Modality, PalimpsestError, Split

_SAMPLES = """
    SELECT s.key, s.recording, s.checksum, s."offset", s.size, s.shard, s.url, coalesce(s.labels[1], '') AS label,
        coalesce(s.domain, '') AS domain, coalesce(s.arrival, '') AS arrival, coalesce(t.task, 0) AS task, s.split,
        s.modalities, s.sidecars, CASE WHEN len(s.labels) > 1 THEN s.labels[2:] END AS also
    FROM sample_index s
    LEFT JOIN (
        SELECT ts.dataset, ts.key, ts.task FROM task_samples ts
        JOIN tasks k ON k.stream = ts.stream AND k.task = ts.task AND (ts.manifest IS NULL OR ts.manifest = k.manifest)
        WHERE ts.stream = $stream
    ) t ON t.dataset = s.dataset AND t.key = s.key
    WHERE s.dataset = $dataset
"""
_ROWS = f'SELECT * EXCLUDE (arrival) FROM ({_SAMPLES}) ORDER BY shard, "offset"'
_GROUPS = f"""
    SELECT label, domain, arrival, split, count(*) AS samples, count(*) FILTER (task = 0) AS open FROM ({_SAMPLES})
    GROUP BY ALL
"""
# The open samples that task $task gets: those of its groups, but for training samples that a draw by their key, uniform
# from 0 to 1, gives to one of the others that are sealed with it; $first is the first of so many $tasks.
_MEMBERS = f"""
    WITH homes AS (
        SELECT unnest($labels) AS label, unnest($domains) AS domain, unnest($arrivals) AS arrival,
            unnest($homes) - $first AS home
    ), open AS (
        SELECT key, split, home, ('0x' || md5($seed || ' ' || key)[:8])::BIGINT / 2^32 AS draw
        FROM ({_SAMPLES}) JOIN homes USING (label, domain, arrival) WHERE task = 0
    )
    SELECT key, split FROM open WHERE $task - $first = CASE
        WHEN $blur > 0 AND split = 'train' AND draw < $blur
        THEN (home + 1 + floor(draw / $blur * ($tasks - 1))::BIGINT) % $tasks ELSE home END
    ORDER BY key
"""
_SOURCES = ("samples", "sidecars", "shards", "tasks", "task_samples")
_COLUMNS = ("label", "domain", "arrival")
SEALED_AT_ONCE = 1 << 20  # samples a ledger file

Row = dict[str, Any]
Predicate = dict[str, set[str]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StreamData:
    """A stream's samples.

    Attributes:
        names: of the sealed tasks, by number.
        labels: of what each of them is made; empty where tasks are not made of labels.
        tasks: their examples by split, in shard order; those without any modality of the run are left out.
        index: every sample of the data set.
    """

    names: dict[int, str]
    labels: dict[int, list[str]]
    tasks: dict[int, dict[Split, Rows]]
    index: Index

    def shards(self, tasks: Iterable[int]) -> dict[str, Rows]:
        """The shards that samples of `tasks` lie in, each with all its examples in shard order."""
        names = {shard for task in tasks for rows in self.tasks[task].values() for shard in rows.shards}
        return {shard: self.index.in_shard(shard) for shard in self.index.shards if shard in names}


def seal(ledger: Ledger, recipe: Recipe) -> int:
    """Seal what has arrived into tasks; returns how many tasks the stream has now.

    Declared tasks come first, in their order, as soon as they have training samples; later arrivals that fit a task
    already sealed form a further one behind it (``EN``, then ``EN#2``). A sealed task's sample list never changes.
    Where the recipe blurs the borders, training samples are drawn into other tasks among those sealed together.

    Raises:
        PalimpsestError: the stream was begun under another definition, its data set holds no samples, or blur leaves a
            task none to learn from.
    """
    with _alone(ledger, recipe):
        return _seal(ledger, recipe)


def _seal(ledger: Ledger, recipe: Recipe) -> int:
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
    groups = ledger.rows(_GROUPS, _parameters(recipe))
    if not groups:
        raise PalimpsestError(
            f"data set {recipe.dataset} holds no samples in {ledger.lake.root}: "
            f"run `palimpsest ingest {recipe.dataset} --source DIR` first"
        )
    if not former:
        ledger.append("streams", [row])
    sealed = ledger.rows("SELECT * FROM tasks WHERE stream = ? ORDER BY task", [recipe.name])
    left = [group for group in groups if group["open"]]
    rounds = Counter(_base(task["task_name"]) for task in sealed)
    tasks: list[Row] = []
    homes: list[Row] = []
    for name, predicate in _declared(recipe, groups, sealed):
        members = [group for group in left if _matches(group, predicate)]
        if not any(group["split"] == "train" for group in members):
            continue
        rounds[name] += 1
        task = {"stream": recipe.name, "task": len(sealed) + len(tasks) + 1}
        labels = sorted({value for values in predicate.values() for value in values})
        tasks.append({**task, "task_name": name if rounds[name] == 1 else f"{name}#{rounds[name]}", "labels": labels})
        places = {tuple(group[column] for column in _COLUMNS) for group in members}
        homes += [dict(zip(_COLUMNS, place, strict=True)) | {"home": task["task"]} for place in sorted(places)]
        left = [group for group in left if group not in members]
    if tasks:
        _seal_together(ledger, recipe, tasks, homes)
    return len(sealed) + len(tasks)


def load(ledger: Ledger, recipe: Recipe, modalities: Collection[str]) -> StreamData:
    """The sealed tasks of the recipe's stream as a run on `modalities` sees them, over the index of its data set.

    The index is derived from the ledger and lies in the cache; it is made again when the ledger has changed.
    """
    with _alone(ledger, recipe):
        folder = ledger.lake.cache / "index" / f"{recipe.name}-{LAYOUT}-{ledger.state(*_SOURCES)}"
        if not folder.exists():
            write_index(folder, recipe.dataset, ledger.batches(_ROWS, _parameters(recipe)))
        index = Index(folder, ledger.lake)
        rows = ledger.rows("SELECT task, task_name, labels FROM tasks WHERE stream = ? ORDER BY task", [recipe.name])
    cache.used(folder)
    wanted = [Modality(name) for name in modalities]
    tasks = {
        row["task"]: {split: index.select(task=row["task"], split=split, modalities=wanted) for split in Split}
        for row in rows
    }
    names = {row["task"]: row["task_name"] for row in rows}
    of_labels = recipe.stream.by in (None, "label")
    labels = {row["task"]: row["labels"] if of_labels else [] for row in rows}
    return StreamData(names, labels, tasks, index)


def _alone(ledger: Ledger, recipe: Recipe) -> AbstractContextManager[None]:
    """Runs of a stream may learn side by side, but one at a time seals its tasks or replaces its index."""
    return lock(ledger.lake, f"stream-{recipe.name}", wait=True)


def _parameters(recipe: Recipe) -> dict[str, str]:
    return {"stream": recipe.name, "dataset": recipe.dataset}


def _declared(recipe: Recipe, groups: Sequence[Row], sealed: list[Row]) -> list[tuple[str, Predicate]]:
    """Every task that the recipe declares, as (name, predicate); values that were sealed together stay together."""
    spec = recipe.stream
    if spec.by is None:
        wanted = [
            (task.name, {"label": set(task.labels), "domain": set(task.domains)})
            for task in _shuffled(spec, spec.tasks)
        ]
        return [(name, {column: values for column, values in by.items() if values}) for name, by in wanted]
    cut = [(task["task_name"], task["labels"]) for task in sealed if _base(task["task_name"]) == task["task_name"]]
    if spec.by == "arrival":
        held = {value for _, chunk in cut for value in chunk}
        later = _arrivals([group for group in groups if group["arrival"] not in held], spec.per_task)
        return [(name, {"arrival": set(chunk)}) for name, chunk in [*cut, *later]]
    seen = {group[spec.by] for group in groups}
    order = [value for value in spec.order if value in seen] + sorted(seen - set(spec.order))
    left = [value for value in _shuffled(spec, order) if not any(value in chunk for _, chunk in cut)]
    chunks = [left[i : i + spec.per_task] for i in range(0, len(left), spec.per_task)]
    return [(name, {spec.by: set(chunk)}) for name, chunk in [*cut, *(("+".join(chunk), chunk) for chunk in chunks)]]


def _shuffled(spec: StreamSpec, items: Sequence[T]) -> list[T]:
    """`items` in the order that the recipe's seed draws, or as they are."""
    if spec.order_seed is None:
        return list(items)
    return [items[i] for i in generator("tasks", spec.order_seed).permutation(len(items))]


def _arrivals(groups: Iterable[Row], per_task: int) -> Iterator[tuple[str, list[str]]]:
    """Arrivals in order of time, `per_task` a task; one that brought nothing to learn from goes with the next."""
    learnable: dict[str, bool] = {}
    for group in groups:
        learnable[group["arrival"]] = learnable.get(group["arrival"], False) or group["split"] == "train"
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


def _matches(group: Row, predicate: Predicate) -> bool:
    return all(group[column] in wanted for column, wanted in predicate.items())


def _seal_together(ledger: Ledger, recipe: Recipe, tasks: list[Row], homes: list[Row]) -> None:
    """Seal the open samples of the groups in `homes`, all of `tasks` in one commit: blur draws from all of them."""
    blur, sealed = recipe.stream.blur, []
    bound: dict[str, Any] = {f"{column}s": [home[column] for home in homes] for column in (*_COLUMNS, "home")}
    bound |= {**_parameters(recipe), "first": tasks[0]["task"], "tasks": len(tasks)}
    bound |= {"blur": blur, "seed": str(recipe.stream.order_seed)}
    for task in tasks:
        members = list(ledger.batches(_MEMBERS, bound | {"task": task["task"]}, size=SEALED_AT_ONCE))
        digest, counts = hashlib.sha256(), Counter[str]()
        for i, batch in enumerate(members):
            pairs = list(zip(batch["key"].to_pylist(), batch["split"].to_pylist(), strict=True))
            counts.update(split for _, split in pairs)
            listed = "\n".join(f"{recipe.dataset}/{key} {split}" for key, split in pairs)
            digest.update(("\n" if i else "").encode() + listed.encode())
        if not counts[Split.TRAIN]:
            raise PalimpsestError(
                f"a blur of {blur} leaves task {task['task_name']} of stream {recipe.name} without training samples: "
                "lower it"
            )
        row = {"stream": recipe.name, "task": task["task"], "manifest": digest.hexdigest()}
        for batch in members:  # without the tasks' own rows, written last, they count for nothing
            named = {**row, "dataset": recipe.dataset}
            columns = {column: pa.repeat(value, len(batch)) for column, value in named.items()}
            ledger.append_table("task_samples", pa.table({**columns, "key": batch["key"], "split": batch["split"]}))
        sealed.append({**task, **row, **{str(split): counts[split] for split in Split}})
    ledger.append("tasks", sealed)
