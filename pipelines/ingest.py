"""Recordings in, shards and ledger rows out: plan, build a shard, commit; killed anywhere, the next run ends the same.

A run plans what is new and records the plan before anything is decoded. Shards are built one by one, by any number of
processes, and committed by the driver in the plan's order, rows after bytes. What a kill leaves planned but not
committed is built first by the next run, exactly as planned.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.clip import ClipFormat, below, cut_all, source_path
from pipelines.quality import Unfit
from pipelines.readers import Reader, draw_split
from store.catalog import write_catalog
from store.lake import Lake, exists, lock, put, sweep
from store.ledger import Ledger
from store.shards import write_shard
from store.types import Clip, PalimpsestError, Recording, Seconds, clip_key, slug

BATCH_RECORDINGS, BATCH_CLIPS, BATCH_BYTES = 128, 512, 128 << 20
COMMIT_EVERY: Seconds = 5.0

Row = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Item:
    """A recording that is to be cut: its identity and its size in bytes beside what its reader said.

    `again` marks one whose other clips are already in the data set.
    """

    recording: Recording
    id: str
    bytes: int
    again: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """The recordings of one shard, and all that a worker needs to build it."""

    id: str
    dataset: str
    shard: str
    url: str
    source: Path
    format: ClipFormat
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Built:
    """What building a batch gave: rows for the ledger, by table."""

    batch: str
    recordings: int
    rows: dict[str, list[Row]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run has to do and what it need not.

    Attributes:
        batches: shards to build, those that a killed run left over, or that were lost since, first.
        resumed: how many of them those are.
        known: recordings that are already in the data set.
        relabelled: samples whose label, domain, arrival or split has changed since.
        duplicates: recordings whose bytes came earlier under another name.
        skipped: recordings in quarantine that have not changed since.
        refused: name and reason of recordings that cannot even be read.
    """

    batches: tuple[Batch, ...]
    resumed: int = 0
    known: int = 0
    relabelled: int = 0
    duplicates: int = 0
    skipped: int = 0
    refused: tuple[tuple[str, str], ...] = ()


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
        progress: called with recordings done and recordings to do.
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
            if "://" not in (folder := lake.shard_url(dataset, "")):
                sweep(Path(folder))
            work = plan(
                ledger,
                reader,
                source,
                format=format,
                dataset=dataset,
                group=group,
                limit=limit,
                retry_quarantined=retry_quarantined,
            )
            built = _in_order(work.batches, workers) if run is None else run(work.batches)
            done = _commit_all(ledger, built, sum(len(b.items) for b in work.batches), progress)
            write_catalog(lake)
    except BlockingIOError as error:
        raise PalimpsestError(f"another ingest of {dataset} is running in {lake.root}; wait for it to end") from error
    failures = tuple((row["name"], row["reason"]) for row in done["quarantined"] if row["reason"])
    return IngestSummary(
        dataset=dataset,
        recordings=len(done["recordings"]),
        samples=len(done["samples"]),
        shards=sum(bool(row["samples"]) for row in done["shards"]),
        resumed=work.resumed,
        known=work.known,
        relabelled=work.relabelled,
        duplicates=work.duplicates,
        skipped=work.skipped,
        quarantined=work.refused + failures,
        seconds=time.monotonic() - begun,
    )


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


def plan(
    ledger: Ledger,
    reader: Reader,
    source: Path,
    *,
    format: ClipFormat,
    dataset: str,
    group: str = "none",
    limit: int | None = None,
    retry_quarantined: bool = False,
) -> Plan:
    """Compare the recordings below `source` with the ledger, record what is to be built, and correct what has changed.

    Raises:
        PalimpsestError: `dataset` was ingested with another format or reader.
    """
    digest = format_digest(format, reader)
    claim = _claim(ledger, dataset, reader, format, digest)
    shards = ledger.rows("SELECT shard, batch, url FROM shards WHERE dataset = ?", [dataset])
    # A shard that was lost is not finished: its batch is built again. One of nothing but failures has no file.
    finished = [row for row in shards if not row["url"] or exists(ledger.lake.resolve(row["url"]))]
    held = _Held(ledger, dataset, {row["shard"] for row in finished})
    batches = ledger.rows("SELECT * FROM batches WHERE dataset = ? ORDER BY position", [dataset])
    built = {row["batch"] for row in finished}
    pending = [row for row in batches if row["batch"] not in built]
    awaited = {recording for row in pending for recording in row["recordings"]}
    known = duplicates = skipped = 0
    found: dict[str, Item] = {}
    refused: list[Row] = []
    corrections: dict[str, list[Row]] = {"samples": [], "recordings": [], "quarantined": []}
    identities = _Identities(ledger.lake, dataset)
    for position, recording in enumerate(reader.recordings(source)):
        if limit is not None and position >= limit and not awaited - found.keys():
            break
        try:
            item = identities.identify(recording, source)
        except Unfit as unfit:
            if held.quarantine.get(recording.name, (None, None))[1] == str(unfit) and not retry_quarantined:
                skipped += 1
            else:
                refused.append(_quarantined(dataset, recording, None, str(unfit)))
            continue
        if limit is not None and position >= limit and item.id not in awaited:
            continue
        if item.id in found:
            duplicates += 1
            if recording.name == held.recordings.get(item.id, {}).get("name"):
                found[item.id] = item  # a copy that sorts first does not take the name
            continue
        found[item.id] = item
    identities.save()
    fresh = []
    for item in found.values():
        failed_as, reason = held.quarantine.get(item.recording.name, (None, None))
        if item.id in held.recordings:
            known += 1
            wanting = held.correct(item, corrections, format.min_s)
            if not wanting:
                if reason:  # what failed is no longer wanted
                    corrections["quarantined"].append(_quarantined(dataset, item.recording, item.id, None))
                continue
            item = replace(item, recording=replace(item.recording, clips=wanting), again=True)
        if reason and failed_as == item.id and item.id not in awaited and not retry_quarantined:
            skipped += 1
        else:
            fresh.append(item)
    todo = {item.id: item for item in fresh}
    left_over = [
        _batch(ledger.lake, dataset, row["batch"], row["slug"], source, format, [todo.pop(i) for i in ids])
        for row in pending
        if (ids := [i for i in row["recordings"] if i in todo])
    ]
    planned = []
    for items in _chunks(sorted(todo.values(), key=lambda item: (_group(item, group), item.id))):
        ends = dict.fromkeys((_group(items[0], group), _group(items[-1], group)))
        name = " ".join(end for end in ends if end) or dataset
        planned.append(
            _batch(ledger.lake, dataset, _identity(dataset, digest, items), slug(name), source, format, items)
        )
    ledger.append("datasets", claim)
    ledger.append("quarantined", refused)
    for table, rows in corrections.items():
        ledger.append(table, rows)
    _record(ledger, dataset, planned, len(batches))
    return Plan(
        batches=(*left_over, *planned),
        resumed=len(left_over),
        known=known,
        relabelled=len(corrections["samples"]),
        duplicates=duplicates,
        skipped=skipped,
        refused=tuple((row["name"], row["reason"]) for row in refused),
    )


def build_shard(batch: Batch) -> Built:
    """Decode the batch's recordings and write its shard; what is unfit leaves a gap and a reason.

    Pure but for the one file it puts, so it may run anywhere, twice, or be killed.
    """
    rows: dict[str, list[Row]] = {"samples": [], "recordings": [], "quarantined": [], "shards": []}
    samples = []
    for item in batch.items:
        try:
            cut = cut_all(item.recording, batch.format, batch.source, dataset=batch.dataset, recording_id=item.id)
        except Exception as error:  # whatever a decoder raises on one recording must not stop the others
            reason = str(error) if isinstance(error, Unfit) else f"cannot be decoded ({type(error).__name__}: {error})"
            rows["quarantined"].append(_quarantined(batch.dataset, item.recording, item.id, reason))
            continue
        samples += cut
        if not item.again:
            rows["recordings"].append(_recording_row(batch.dataset, item, len(cut), cut[0].meta["quality"]))
        rows["quarantined"].append(_quarantined(batch.dataset, item.recording, item.id, None))
    shard = write_shard(batch.url, samples) if samples else None
    for sample, entry in zip(samples, shard.entries if shard else (), strict=True):
        meta = sample.meta
        columns = ("dataset", "key", "recording", "labels", "domain", "arrival", "split", "start_s", "duration_s")
        rows["samples"].append(
            {name: meta[name] for name in columns}
            | {"modalities": list(sample.modalities), "shard": batch.shard, "offset": entry.offset}
            | {"size": entry.size, "checksum": entry.checksum}
        )
    rows["shards"].append(
        {"dataset": batch.dataset, "shard": batch.shard, "batch": batch.id, "samples": len(samples)}
        | ({"url": shard.url, "bytes": shard.bytes, "sha256": shard.sha256} if shard else {})
    )
    return Built(batch.id, len(batch.items), rows)


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


def format_digest(format: ClipFormat, reader: Reader) -> str:
    """What a data set's samples depend on beside the recordings: the format, and the reader with its parameters."""
    told = f"{format.digest} {reader.name} {reader.version} {reader!r}"
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _commit_all(ledger: Ledger, built: Iterable[Built], total: int, progress: Progress | None) -> dict[str, list[Row]]:
    """Commit results as they come, several at a time; returns all their rows."""
    done: dict[str, list[Row]] = {"samples": [], "recordings": [], "quarantined": [], "shards": []}
    ready: list[Built] = []
    finished, since = 0, time.monotonic()
    try:
        for one in built:
            ready.append(one)
            finished += one.recordings
            for table, rows in one.rows.items():
                done[table] += rows
            if progress:
                progress(finished, total)
            if time.monotonic() - since > COMMIT_EVERY:
                commit(ledger, ready)
                ready, since = [], time.monotonic()
    finally:
        commit(ledger, ready)
    return done


def _in_order(batches: Sequence[Batch], workers: int) -> Iterator[Built]:
    if min(workers, len(batches)) <= 1:
        yield from map(build_shard, batches)
        return
    # Spawned, not forked: decoders and Arrow hold threads that a fork would leave locked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(batches)), mp_context=context, initializer=follow_parent)
    try:
        yield from pool.map(build_shard, batches)
    except BrokenProcessPool as error:
        raise PalimpsestError(
            "a worker process died, out of memory or in a decoder; what was done is kept. "
            "Run the same command again, with --workers 1 if it dies again."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def follow_parent() -> None:
    """End this worker when the driver dies, however it dies."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _claim(ledger: Ledger, dataset: str, reader: Reader, format: ClipFormat, digest: str) -> list[Row]:
    """The row, if one is needed, that makes `dataset` one of this format; refused if it is one of another."""
    held = ledger.rows("SELECT * EXCLUDE recorded_at FROM datasets WHERE dataset = ?", [dataset])
    row = held[0] if held else {"dataset": dataset}
    if row.get("format_digest") == digest:
        return []
    if row.get("format_digest"):
        raise PalimpsestError(
            f"data set {dataset} was ingested with another format or reader ({row['format_digest']}, now {digest}). "
            "Use --as NAME to ingest into a data set of another name, or restore the recipe's format."
        )
    return [row | {"reader": reader.name, "format_digest": digest, "format": format.json}]


class _Held:
    """What the ledger knows of a data set."""

    def __init__(self, ledger: Ledger, dataset: str, finished: Container[str]):
        def load(table: str) -> list[Row]:
            return ledger.rows(f"SELECT * EXCLUDE recorded_at FROM {table} WHERE dataset = ?", [dataset])

        self.samples: dict[str, dict[str, Row]] = {}
        for row in load("samples"):
            if row["shard"] in finished:  # what a kill left half committed is built again, and so is what was lost
                self.samples.setdefault(row["recording"], {})[row["key"]] = row
        self.recordings = {row["recording"]: row for row in load("recordings") if row["recording"] in self.samples}
        self.quarantine = {row["name"]: (row["recording"], row["reason"]) for row in load("quarantined")}

    def correct(self, item: Item, corrections: dict[str, list[Row]], min_s: Seconds) -> tuple[Clip, ...]:
        """Note what is now said otherwise of a known recording; returns its clips that have never been cut."""
        recording, rows, wanting = item.recording, self.samples[item.id], []
        labels: dict[str, list[str]] = {}
        named = {clip_key(item.id, clip.start_s, clip.end_s) for clip in recording.clips if clip.end_s is not None}
        for clip in recording.clips or (Clip(),):
            keys = _keys(rows, item.id, clip, named) if recording.clips else list(rows)
            for key in keys:
                labels.setdefault(key, []).extend(clip.labels or recording.labels)
            if not keys and (clip.end_s is None or clip.end_s - clip.start_s >= min_s):
                wanting.append(clip)
        common = {name: getattr(recording, name) for name in ("domain", "arrival", "split")}
        for key, names in labels.items():
            now = rows[key] | common | {"labels": list(dict.fromkeys(names))}
            if now != rows[key]:
                corrections["samples"].append(now)
        held = self.recordings[item.id]
        now = held | common | {"labels": _all_labels(recording), "name": recording.name}
        now |= {"source_path": source_path(recording), "language": recording.language}
        if now != held:
            corrections["recordings"].append(now)
        return tuple(wanting)


class _Identities:
    """Content ids, remembered by size and time of change so that a second run reads no media."""

    def __init__(self, lake: Lake, dataset: str):
        self._path = lake.cache / "identities" / f"{slug(dataset)}.json"
        try:
            self._known: dict[str, str] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            self._known = {}
        self._used: dict[str, str] = {}

    def identify(self, recording: Recording, source: Path) -> Item:
        """The recording with its identity; its split is drawn here where the reader leaves it open."""
        if not recording.tracks:
            raise Unfit("it names neither a file nor a text")
        sizes, marks, root = 0, [str(source)], source.resolve()
        for modality, track in sorted(recording.tracks.items()):
            marks.append(f"{modality} {track.path} {track.offset} {track.length} {track.text!r}")
            name = str(track.path)
            try:
                for path in _files(source / track.path) if track.path else ():
                    name = below(path, source)
                    if not path.resolve().is_relative_to(root):
                        raise Unfit(f"{name} leads out of the data set's folder")
                    stat = path.stat()
                    if not stat.st_size:
                        raise Unfit(f"the file is empty: {name}")
                    sizes += track.length or stat.st_size
                    marks.append(f"{name} {stat.st_size} {stat.st_mtime_ns}")
            except (FileNotFoundError, NotADirectoryError, ValueError) as error:
                raise Unfit(f"no such file: {name}") from error
            except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
                raise Unfit(f"cannot be read: {name} ({getattr(error, 'strerror', None) or error})") from error
        mark = hashlib.sha256("\n".join(marks).encode()).hexdigest()[:32]
        try:
            identity = self._known.get(mark) or recording.content_id(source)
        except OSError as error:
            raise Unfit(f"cannot be read: {error.strerror or error}") from error
        self._used[mark] = identity
        split = recording.split or draw_split(recording.group or identity)
        return Item(replace(recording, split=split), identity, sizes)

    def save(self) -> None:
        """Write what was seen, if anything was new."""
        merged = self._known | self._used
        if merged != self._known:
            put(self._path, json.dumps(merged).encode())


def _files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def _keys(known: Mapping[str, Row], recording_id: str, clip: Clip, named: Container[str]) -> list[str]:
    """The known samples that `clip` means; one that reaches the recording's end is known by its start.

    `named` are the keys of clips that say their end, which an open one means only where both end alike.
    """
    if clip.end_s is not None:
        return [key for key in [clip_key(recording_id, clip.start_s, clip.end_s)] if key in known]
    start = clip_key(recording_id, clip.start_s, 0.0).rsplit("-", 1)[0]
    keys = [key for key in known if key.rsplit("-", 1)[0] == start]
    # Where both end alike they became one sample, which bears the labels of both.
    return [key for key in keys if key not in named] or [
        key for key in keys if clip.labels and set(clip.labels) <= set(known[key]["labels"])
    ]


def _all_labels(recording: Recording) -> list[str]:
    return list(dict.fromkeys([*recording.labels, *(label for clip in recording.clips for label in clip.labels)]))


def _group(item: Item, group: str) -> str:
    if group == "label":
        return " ".join(_all_labels(item.recording))
    return (getattr(item.recording, group) if group != "none" else None) or ""


def _chunks(items: list[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    clips = size = 0
    for item in items:
        clips, size = clips + max(len(item.recording.clips), 1), size + item.bytes
        if chunk and (len(chunk) == BATCH_RECORDINGS or clips > BATCH_CLIPS or size > BATCH_BYTES):
            yield chunk
            chunk, clips, size = [], max(len(item.recording.clips), 1), item.bytes
        chunk.append(item)
    if chunk:
        yield chunk


def _identity(dataset: str, digest: str, items: Sequence[Item]) -> str:
    told = [dataset, digest, *(f"{item.id} {item.recording.clips}" for item in items)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def _batch(
    lake: Lake, dataset: str, batch: str, name: str, source: Path, format: ClipFormat, items: Sequence[Item]
) -> Batch:
    shard = f"{name}-{batch}.tar"
    return Batch(batch, dataset, shard, lake.shard_url(dataset, shard), source, format, tuple(items))


def _record(ledger: Ledger, dataset: str, planned: Sequence[Batch], first: int) -> None:
    whole = hashlib.sha256("".join(batch.id for batch in planned).encode()).hexdigest()[:12]
    ledger.append(
        "batches",
        [
            {"dataset": dataset, "batch": batch.id, "plan": whole, "position": first + number}
            | {"slug": batch.shard.removesuffix(f"-{batch.id}.tar"), "recordings": [item.id for item in batch.items]}
            for number, batch in enumerate(planned)
        ],
    )


def _recording_row(dataset: str, item: Item, clips: int, quality: Any) -> Row:
    recording = item.recording
    return {
        "dataset": dataset,
        "recording": item.id,
        "name": recording.name,
        "source_path": source_path(recording),
        "bytes": item.bytes,
        "labels": _all_labels(recording),
        "domain": recording.domain,
        "arrival": recording.arrival,
        "split": recording.split,
        "language": recording.language,
        "clips": clips,
        "quality": json.dumps(quality),
    }


def _quarantined(dataset: str, recording: Recording, identity: str | None, reason: str | None) -> Row:
    return {
        "dataset": dataset,
        "name": recording.name,
        "recording": identity,
        "source_path": source_path(recording),
        "reason": reason,
    }
