"""Recordings in, shards and ledger rows out: plan, build a shard, commit; killed anywhere, the next run ends the same.

A run plans what is new and records the plan before anything is decoded. Shards are built one by one, by any number of
processes, and committed by the driver in the plan's order, rows after bytes. What a kill leaves planned but not
committed is built first by the next run, exactly as planned.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.clip import ClipFormat, cut_all, source_path
from pipelines.crew import in_order, watched
from pipelines.plan import Batch, Item, Progress, Row, all_labels, look, plan, quarantined, scratch
from pipelines.quality import Quality, Unfit
from pipelines.readers import Reader
from store.catalog import write_catalog
from store.lake import Lake, lock, sweep
from store.ledger import Ledger
from store.shards import Entry, ShardWriter
from store.types import PalimpsestError, Sample, Seconds

CHANGED = "its files changed while they were read: the next ingest tries again"
FATAL = "its decoder dies: the file is damaged so that it crashes or never ends, or too large for this machine's memory"
COMMIT_SHARDS = 8
COMMIT_EVERY: Seconds = 5.0


@dataclass(frozen=True, slots=True)
class Built:
    """What building a batch gave: rows for the ledger, by table."""

    batch: str
    recordings: int
    rows: dict[str, list[Row]]


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What a run did; `quarantined` holds name and reason of this run's failures."""

    dataset: str
    recordings: int = 0
    samples: int = 0
    shards: int = 0
    resumed: int = 0
    known: int = 0
    relabelled: int = 0
    duplicates: int = 0
    skipped: int = 0
    arriving: int = 0
    quarantined: tuple[tuple[str, str], ...] = field(default=())
    seconds: Seconds = 0.0


def ingest(
    lake: Lake,
    reader: Reader,
    source: Path,
    *,
    format: ClipFormat,
    dataset: str,
    group: str = "none",
    workers: int = 1,
    limit: int | None = None,
    retry_quarantined: bool = False,
    settle_s: Seconds | None = None,
    arrival: str | None = None,
    progress: Progress | None = None,
    run: Callable[[Sequence[Batch]], Iterable[Built]] | None = None,
) -> IngestSummary:
    """Bring `dataset` up to date with the recordings below `source`.

    Args:
        lake: where shards and rows go.
        reader: finds the recordings.
        source: the folder they lie in.
        format: how samples are cut.
        dataset: the data set's name in the lake.
        group: what shards are sorted by: label, domain, arrival or none.
        workers: processes that build shards; 1 builds them here.
        limit: look at the reader's first recordings only.
        retry_quarantined: try recordings in quarantine again even though their bytes have not changed.
        settle_s: leave recordings whose files are absent, or changed within so many seconds, to a later run.
        arrival: what recordings that come without an arrival of their own get for it when they are first planned.
        progress: called with recordings done and recordings to do; while they are being found, with 0 to do.
        run: builds the batches and yields results in their order, instead of `workers` processes.

    Raises:
        PalimpsestError: `dataset` is no such name, the source is absent, another ingest of `dataset` is running, or
            it has another format.
    """
    begun = time.monotonic()
    checked_name(dataset)
    source = source.expanduser().absolute()
    if not source.is_dir():
        raise PalimpsestError(f"no such folder: {source}. Give the folder of {dataset}'s recordings with --source.")
    ledger = Ledger(lake)
    try:
        with lock(lake, f"ingest-{dataset}"):
            ledger.sweep()
            _sweep(lake, dataset)
            work = plan(
                ledger,
                reader,
                source,
                format=format,
                dataset=dataset,
                group=group,
                limit=limit,
                retry_quarantined=retry_quarantined,
                settle_s=settle_s,
                arrival=arrival,
                progress=progress,
            )
            built = in_order(build_shard, work.batches, workers) if run is None else run(work.batches)
            done = _commit_all(ledger, built, work.batches.recordings, progress)
            _sweep(lake, dataset)  # after a worker that died
            write_catalog(lake)
    except BlockingIOError as error:
        raise PalimpsestError(f"another ingest of {dataset} is running in {lake.root}; wait for it to end") from error
    counts = ("resumed", "known", "relabelled", "duplicates", "skipped", "arriving")
    return replace(
        done,
        dataset=dataset,
        quarantined=work.refused + done.quarantined,
        seconds=time.monotonic() - begun,
        **{name: getattr(work, name) for name in counts},
    )


def _sweep(lake: Lake, dataset: str) -> None:
    """Remove what killed workers left."""
    shutil.rmtree(scratch(lake, dataset), ignore_errors=True)
    if "://" not in (folder := lake.shard_url(dataset, "")):
        sweep(Path(folder))


def checked_name(dataset: str) -> str:
    """`dataset` itself, which names folders in the lake and may not lead out of it.

    Raises:
        PalimpsestError: it is no such name.
    """
    if not re.fullmatch(r"\w[\w.-]*", dataset):
        raise PalimpsestError(
            f"a data set cannot be called {dataset!r}: begin with a letter or digit, and use only letters, digits, "
            "_, - and dots. Give another name with --as NAME, or in the recipe's `dataset`."
        )
    return dataset


def build_shard(batch: Batch) -> Built:
    """Decode the batch's recordings and write its shard; what is unfit leaves a gap and a reason.

    Pure but for the one file it puts, so it may run anywhere, twice, or be killed.
    """
    rows: dict[str, list[Row]] = {"samples": [], "recordings": [], "quarantined": [], "shards": []}
    with ShardWriter(batch.url) as writer:
        for item in batch.items:
            mark, quality = writer.mark(), Quality()
            done = len(rows["samples"])
            reason = FATAL if item.id in batch.fatal else None
            with watched(item):
                for sample in () if reason else _cut(item, batch, quality):
                    if isinstance(sample, str):
                        reason = sample
                        break
                    rows["samples"].append(_sample_row(sample, batch.shard, writer.add(sample)))
            if reason:
                writer.take_back(mark)
                del rows["samples"][done:]
            elif not item.again:
                rows["recordings"].append(_recording_row(batch.dataset, item, len(rows["samples"]) - done, quality))
            identity = None if reason == CHANGED else item.id  # the same bytes are to be tried again
            rows["quarantined"].append(quarantined(batch.dataset, item.recording, identity, reason))
    shard = writer.shard
    rows["shards"].append(
        {"dataset": batch.dataset, "shard": batch.shard, "batch": batch.id, "samples": len(rows["samples"])}
        | ({"url": shard.url, "bytes": shard.bytes, "sha256": shard.sha256} if shard else {})
    )
    return Built(batch.id, len(batch.items), rows)


def _cut(item: Item, batch: Batch, quality: Quality) -> Iterator[Sample | str]:
    """The recording's samples; where it fails, the reason comes last."""
    try:
        yield from cut_all(
            item.recording,
            batch.format,
            batch.source,
            dataset=batch.dataset,
            recording_id=item.id,
            quality=quality,
            scratch=batch.scratch,
        )
        if look(item.recording, batch.source)[1] != item.seen:
            yield CHANGED
    except Unfit as unfit:
        yield str(unfit)
    except Exception as error:  # whatever a decoder raises on one recording must not stop the others
        yield f"cannot be decoded ({type(error).__name__}: {error})"


def commit(ledger: Ledger, built: Sequence[Built]) -> None:
    """Record built shards, the rows of `shards` last: a batch without one is built again."""
    wounds = {(row["dataset"], row["name"]) for row in ledger.rows("SELECT dataset, name FROM quarantined")}
    for table in ("samples", "recordings", "quarantined", "shards"):
        rows = [row for one in built for row in one.rows[table]]
        if table == "quarantined":  # only what once failed can be mended
            rows = [row for row in rows if row["reason"] or (row["dataset"], row["name"]) in wounds]
        if table == "shards":
            rows = [row | {"url": ledger.lake.relative(row["url"])} if "url" in row else row for row in rows]
        ledger.append(table, rows)


def _commit_all(ledger: Ledger, built: Iterable[Built], total: int, progress: Progress | None) -> IngestSummary:
    """Commit results as they come, several at a time; returns what they were."""
    done, failures, ready = Counter[str](), list[tuple[str, str]](), list[Built]()
    since = -COMMIT_EVERY  # the first at once, so that a run killed early has not been in vain
    try:
        for one in built:
            ready.append(one)
            done += Counter(
                found=one.recordings, **{table: len(one.rows[table]) for table in ("samples", "recordings")}
            )
            done["shards"] += any(row["samples"] for row in one.rows["shards"])
            failures += [(row["name"], row["reason"]) for row in one.rows["quarantined"] if row["reason"]]
            if progress:
                progress(done["found"], total)
            if len(ready) == COMMIT_SHARDS or time.monotonic() - since > COMMIT_EVERY:
                commit(ledger, ready)
                ready, since = [], time.monotonic()
    finally:
        commit(ledger, ready)
    del done["found"]
    return IngestSummary("", **done, quarantined=tuple(failures))


def _sample_row(sample: Sample, shard: str, entry: Entry) -> Row:
    columns = ("dataset", "key", "recording", "labels", "domain", "arrival", "split", "start_s", "duration_s")
    return {name: sample.meta[name] for name in columns} | {
        "modalities": list(sample.modalities),
        "shard": shard,
        "offset": entry.offset,
        "size": entry.size,
        "checksum": entry.checksum,
    }


def _recording_row(dataset: str, item: Item, clips: int, quality: Any) -> Row:
    recording = item.recording
    return {
        "dataset": dataset,
        "recording": item.id,
        "name": recording.name,
        "source_path": source_path(recording),
        "bytes": item.bytes,
        "labels": all_labels(recording),
        "domain": recording.domain,
        "arrival": recording.arrival,
        "split": recording.split,
        "language": recording.language,
        "clips": clips,
        "quality": json.dumps(quality),
    }
