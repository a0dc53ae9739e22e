"""Tracks found later, such as transcripts or inertial data, joined to samples there are; no shard is rewritten."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from pipelines.clip import ClipFormat, cut_all
from pipelines.plan import look
from pipelines.quality import Unfit
from store.catalog import write_catalog
from store.lake import Lake, lock
from store.ledger import Ledger
from store.shards import ShardWriter
from store.types import Clip, Modality, PalimpsestError, Recording, Sample, Seconds, Track

FILES = (Modality.AUDIO, Modality.IMU, Modality.IMAGE, Modality.DEPTH)
BATCH = 256  # recordings a sidecar shard

Row = dict[str, Any]
Text = tuple[Seconds, Seconds, str]


@dataclass(frozen=True, slots=True)
class Addition:
    """What was found of a recording: files, and texts from one second to another."""

    recording: str
    tracks: dict[Modality, Track] = field(default_factory=dict)
    texts: list[Text] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SidecarSummary:
    """What was added; `refused` holds name and reason of what was not."""

    recordings: int = 0
    samples: int = 0
    shards: int = 0
    refused: tuple[tuple[str, str], ...] = ()


def add(
    lake: Lake, dataset: str, manifest: Path, *, progress: Callable[[int, int], None] | None = None
) -> SidecarSummary:
    """Join the tracks that `manifest` lists to the samples of `dataset`, in sidecar shards.

    A second call with the same manifest and files writes the same bytes again. A modality that samples have already is
    replaced where it is read; its bytes stay.

    Args:
        lake: holds the data set.
        dataset: its name.
        manifest: a CSV; `recording` is a recording's name, source path or id, the other columns are `audio`, `imu`,
            `image`, `depth` (paths relative to the manifest), `imu_rate_hz`, and `text` with `start_s` and `end_s`.
            Second 0 of a track is second 0 of its recording.
        progress: called with recordings done and recordings to do.

    Raises:
        PalimpsestError: there is no such data set or manifest, a row of it cannot be understood, or an ingest runs.
    """
    ledger = Ledger(lake)
    held = ledger.rows("SELECT format FROM datasets WHERE dataset = ? AND format IS NOT NULL", [dataset])
    if not held:
        raise PalimpsestError(f"{lake.root} holds no data set {dataset}: ingest it first")
    # Windows come from the samples, margins and all.
    format = replace(ClipFormat.from_json(held[0]["format"]), margin_s=0.0, min_s=0.0, max_s=math.inf)
    found = read_additions(manifest)
    ids, refused, shards, samples = _names(ledger, dataset), [], 0, 0
    refused += [(one.recording, f"{dataset} has no such recording") for one in found if one.recording not in ids]
    wanted: dict[str, Addition] = {}
    for one in (one for one in found if one.recording in ids):
        both = wanted.setdefault(ids[one.recording], one)
        if both is not one:  # named by name and by id
            both.tracks.update(one.tracks)
            both.texts.extend(one.texts)
    todo = sorted(wanted.items(), key=itemgetter(0))
    try:
        with lock(lake, f"ingest-{dataset}"):
            for start in range(0, len(todo), BATCH):
                rows, faults = _shard(ledger, dataset, todo[start : start + BATCH], format, manifest.absolute().parent)
                refused += faults
                shards, samples = shards + bool(rows), samples + len({row["key"] for row in rows})
                if progress:
                    progress(min(start + BATCH, len(todo)), len(todo))
            write_catalog(lake)
    except BlockingIOError as error:
        raise PalimpsestError(f"an ingest of {dataset} is running in {lake.root}; wait for it to end") from error
    return SidecarSummary(len(found) - len(refused), samples, shards, tuple(refused))


def read_additions(manifest: Path) -> list[Addition]:
    """The manifest's rows by recording.

    Raises:
        PalimpsestError: there is no such file, or a row of it cannot be understood; the message names it.
    """
    if not manifest.is_file():
        raise PalimpsestError(f"no such file: {manifest}")
    found: dict[str, Addition] = {}
    with open(manifest, encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file, restval="")
        if "recording" not in (rows.fieldnames or ()) or not {*FILES, Modality.TEXT} & {*(rows.fieldnames or ())}:
            wanted = ", ".join([*FILES, Modality.TEXT])
            raise PalimpsestError(f"{manifest} must have a column `recording` and one or more of {wanted}")
        for row in rows:
            try:
                start, end = (
                    float(row.get(name) or otherwise) for name, otherwise in (("start_s", 0), ("end_s", "inf"))
                )
                rate = float(row["imu_rate_hz"]) if row.get("imu_rate_hz") else None
            except ValueError as error:
                words = "start_s, end_s and imu_rate_hz must be numbers"
                raise PalimpsestError(f"{manifest} line {rows.line_num}: {words} ({error})") from error
            one = found.setdefault(row["recording"], Addition(row["recording"]))
            for modality in FILES:
                if path := row.get(modality):
                    one.tracks[modality] = Track(Path(path), rate_hz=rate if modality is Modality.IMU else None)
            if text := (row.get("text") or "").strip():
                one.texts.append((start, end, text))
    return list(found.values())


def _names(ledger: Ledger, dataset: str) -> dict[str, str]:
    rows = ledger.rows("SELECT name, source_path, recording FROM recordings WHERE dataset = ?", [dataset])
    named = {row["source_path"]: row["recording"] for row in rows}
    named |= {row["name"]: row["recording"] for row in rows}
    return named | {row["recording"]: row["recording"] for row in rows}


def _shard(
    ledger: Ledger, dataset: str, wanted: Sequence[tuple[str, Addition]], format: ClipFormat, source: Path
) -> tuple[list[Row], list[tuple[str, str]]]:
    """Write and record one sidecar shard; returns its rows, and what was refused."""
    told, refused, good = [dataset], [], []
    for identity, one in wanted:
        recording = Recording(one.recording, one.tracks)
        try:
            look(recording, source)
            rates = [track.rate_hz for track in one.tracks.values()]
            told.append(f"{identity} {recording.content_id(source)} {rates} {one.texts}")
            good.append((identity, one))
        except (Unfit, OSError) as error:
            refused.append((one.recording, str(error)))
    batch = hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
    name = f"sidecar-{batch}.tar"
    url = ledger.lake.shard_url(dataset, name)
    windows: dict[str, dict[str, tuple[Seconds, Seconds]]] = defaultdict(dict)
    for row in ledger.rows(
        "SELECT recording, key, start_s, duration_s FROM samples WHERE dataset = ? "
        "AND recording IN (SELECT unnest(?)) ORDER BY key",
        [dataset, [identity for identity, _ in good]],
    ):
        windows[row["recording"]][row["key"]] = row["start_s"], row["start_s"] + row["duration_s"]
    rows: list[Row] = []
    with ShardWriter(url) as writer:
        for identity, one in good:
            mark, before = writer.mark(), len(rows)
            try:
                for sample in _samples(windows[identity], one, format, source):
                    entry = dataclasses.asdict(writer.add(sample))
                    rows += [
                        {"dataset": dataset, "modality": str(modality), "shard": name, **entry}
                        for modality in sample.modalities
                    ]
                if len(rows) == before:
                    raise Unfit("it has nothing at the times of the recording's samples")
            except Exception as error:  # whatever a decoder raises on one recording must not stop the others
                writer.take_back(mark)
                del rows[before:]
                refused.append((one.recording, str(error)))
    if (shard := writer.shard) is not None:
        ledger.append("sidecars", rows)
        row = {"dataset": dataset, "shard": name, "batch": batch, "samples": len(shard.entries), "bytes": shard.bytes}
        ledger.append("shards", [row | {"url": ledger.lake.relative(url), "sha256": shard.sha256}])
    return rows, refused


def _samples(
    windows: Mapping[str, tuple[Seconds, Seconds]], one: Addition, format: ClipFormat, source: Path
) -> Iterator[Sample]:
    """What `one` has in the window of each of the recording's samples, which are given by key."""

    def ms(start: Seconds, end: Seconds | None) -> tuple[int, int | None]:
        return round(1000 * start), None if end is None else round(1000 * end)

    spans = {key: (start, end if end > start else None) for key, (start, end) in windows.items()}
    cut: dict[tuple[int, int | None], Sample] = {}
    if one.tracks:
        clips = tuple(Clip(*span) for span in spans.values())
        cut = {ms(*s.meta["clip"]): s for s in cut_all(Recording("", one.tracks, clips), format, source, partial=True)}
    for key, (start, end) in windows.items():
        found = cut.get(ms(*spans[key]))
        tracks = dict(found.meta["tracks"]) if found else {}
        sample = replace(found or Sample(key, {}), key=key, meta={"key": key, "tracks": tracks})
        # A text belongs to the sample in which its middle lies, one without times to every sample.
        said = [text for a, b, text in one.texts if (a <= start and end <= b) or start <= (a + b) / 2 < end]
        if said:
            sample.text = " ".join(said)
            tracks["text"] = {"length": len(sample.text)}
        if sample.modalities:
            yield sample
