"""What an ingest has to do: the recordings found, compared with the ledger, and recorded in batches before any is cut.

Everything found passes through a file, so that a million recordings take the memory of a thousand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import pickle
import sqlite3
import stat
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, overload

from pipelines.checksums import Checksums
from pipelines.clip import ClipFormat, below, inside, source_path
from pipelines.quality import Unfit
from pipelines.readers import Reader, draw_split
from store.lake import Lake, present
from store.ledger import Ledger
from store.types import Clip, PalimpsestError, Recording, Seconds, Track, clip_key, slug

BATCH_RECORDINGS, BATCH_CLIPS, BATCH_BYTES = 128, 512, 32 << 20
LOOKED = 100  # recordings between two words of progress
PAGE = 500  # recordings that are compared with the ledger at once

Row = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Item:
    """A recording that is to be cut: its identity and its size in bytes beside what its reader said.

    `seen` tells whether its files have changed since; `again` marks one whose other clips are already in the data set.
    """

    recording: Recording
    id: str
    bytes: int
    seen: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """The recordings of one shard, and all that a worker needs to build it.

    `fatal` are the ids of those whose decoding kills the process, found out by `pipelines.ingest.isolate`.
    """

    id: str
    dataset: str
    shard: str
    url: str
    source: Path
    scratch: Path
    format: ClipFormat
    items: tuple[Item, ...]
    fatal: frozenset[str] = frozenset()


class Batches(Sequence[Batch]):
    """Batches whose recordings lie in a file until one is looked at."""

    def __init__(self, found: _Found, bare: Sequence[tuple[Batch, Sequence[str], str | None]]):
        self._found, self._bare = found, bare
        self.recordings = sum(len(ids) for _, ids, _ in bare)

    def __len__(self) -> int:
        return len(self._bare)

    @overload
    def __getitem__(self, place: int) -> Batch: ...
    @overload
    def __getitem__(self, place: slice) -> list[Batch]: ...
    def __getitem__(self, place: int | slice) -> Batch | list[Batch]:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        batch, ids, arrival = self._bare[place]
        items = (self._found.wanted(identity) for identity in ids)
        return replace(batch, items=tuple(_arrived(item, arrival) for item in items))


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
        arriving: recordings whose files are absent or were still changing.
        refused: name and reason of recordings that cannot even be read.
    """

    batches: Batches
    resumed: int = 0
    known: int = 0
    relabelled: int = 0
    duplicates: int = 0
    skipped: int = 0
    arriving: int = 0
    refused: tuple[tuple[str, str], ...] = ()


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
    settle_s: Seconds | None = None,
    arrival: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Compare the recordings below `source` with the ledger, record what is to be built, and correct what has changed.

    The parameters are those of `pipelines.ingest.ingest`.

    Raises:
        PalimpsestError: `dataset` was ingested with another format or reader.
    """
    digest = format_digest(format, reader)
    claim = _claim(ledger, dataset, reader, source, format, digest)
    shards = ledger.rows("SELECT shard, batch, url FROM shards WHERE dataset = ?", [dataset])
    # A shard that was lost is not finished: its batch is built again. One of nothing but failures has no file.
    there = present(ledger.lake.resolve(row["url"]) for row in shards if row["url"])
    finished = [row for row in shards if not row["url"] or ledger.lake.resolve(row["url"]) in there]
    planned = ledger.rows("SELECT batch FROM batches WHERE dataset = ?", [dataset])
    left = list({row["batch"] for row in planned} - {row["batch"] for row in finished})
    sql = "SELECT * FROM batches WHERE dataset = ? AND list_contains(?, batch) ORDER BY position"
    pending = ledger.rows(sql, [dataset, left])
    held = _Held(ledger, dataset, {row["shard"] for row in finished})
    awaited = {recording for row in pending for recording in row["recordings"]}
    found, counts, refused = _Found(), Counter[str](), []
    with _Identities(ledger.lake, dataset, source) as identities:
        looked = 0
        for recording, item, reason in _look(identities, reader.recordings(source), source, limit, awaited, settle_s):
            looked += 1
            if progress and looked % LOOKED == 0:
                progress(looked, 0)
            if item is not None:
                found.see(item)
            elif reason is None:
                counts["arriving"] += 1
            elif held.quarantine.get(_printable(recording.name), (None, None))[1] == reason and not retry_quarantined:
                counts["skipped"] += 1
            else:
                refused.append(quarantined(dataset, recording, None, reason))
    if looked == 0 and settle_s is None:
        raise PalimpsestError(f"reader {reader.name} finds no recording in {source}: is this the right folder?")
    ledger.append("datasets", claim)
    ledger.append("quarantined", refused)
    for page in found.pages():
        held.turn_to([copies[0].id for copies in page])
        corrections: dict[str, list[Row]] = {"samples": [], "recordings": [], "quarantined": []}
        for item in filter(None, (_compare(copies, held, counts, corrections, format.min_s) for copies in page)):
            failed_as, _ = held.quarantine.get(item.recording.name, (None, None))
            if failed_as == item.id and item.id not in awaited and not retry_quarantined:
                counts["skipped"] += 1
            else:
                found.want(item, _place(_arrived(item, arrival).recording, group))
        counts["relabelled"] += len(corrections["samples"])
        for table, rows in corrections.items():
            ledger.append(table, rows)
    bare: list[tuple[Batch, Sequence[str], str | None]] = []
    taken: set[str] = set()
    committed = {row["batch"] for row in shards}
    for row in pending:
        ids = [identity for identity in row["recordings"] if found.wants(identity) and identity not in taken]
        # A shard that was lost comes back whole or not at all: else rows of the absent would mean other bytes.
        if ids and (ids == row["recordings"] or row["batch"] not in committed):
            bare.append((_batch(ledger.lake, dataset, row["batch"], row["slug"], source, format), ids, row["arrival"]))
            taken.update(ids)
    resumed = len(bare)
    for chunk in found.chunks(taken):
        ends = dict.fromkeys((chunk[0][1], chunk[-1][1]))
        told = "\n".join([dataset, digest, *(told for _, _, told in chunk)])
        identity = hashlib.sha256(told.encode()).hexdigest()[:12]
        name = slug(" ".join(end for end in ends if end) or dataset)
        batch = _batch(ledger.lake, dataset, identity, name, source, format)
        bare.append((batch, [one for one, _, _ in chunk], arrival))
    _record(ledger, bare[resumed:], len(planned))
    return Plan(
        batches=Batches(found, bare),
        resumed=resumed,
        refused=tuple((row["name"], row["reason"]) for row in refused),
        **counts,
    )


def quarantined(dataset: str, recording: Recording, identity: str | None, reason: str | None) -> Row:
    """The ledger's row of a recording that failed, or, without a reason, was mended."""
    return {
        "dataset": dataset,
        "name": _printable(recording.name),
        "recording": identity,
        "source_path": _printable(source_path(recording) or "") or None,
        "reason": reason,
    }


def all_labels(recording: Recording) -> list[str]:
    """The labels of a recording and of its clips, each once."""
    return list(dict.fromkeys([*recording.labels, *(label for clip in recording.clips for label in clip.labels)]))


def format_digest(format: ClipFormat, reader: Reader) -> str:
    """What a data set's samples depend on beside the recordings: the format, and the reader with its parameters.

    Settings that are as they are by default do not count, so that new ones leave it as it was.
    """
    told = [reader.name, str(reader.version), _settings(format), _settings(reader)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def _settings(thing: Any) -> str:
    if not dataclasses.is_dataclass(thing):
        return repr(thing)
    values = [(field, getattr(thing, field.name)) for field in dataclasses.fields(thing)]
    return repr([(field.name, _settings(value)) for field, value in values if value != field.default])


def _claim(ledger: Ledger, dataset: str, reader: Reader, source: Path, format: ClipFormat, digest: str) -> list[Row]:
    """The row, if one is needed, that says what `dataset` is read from and how; refused if its format is another."""
    held = ledger.rows("SELECT * EXCLUDE recorded_at FROM datasets WHERE dataset = ?", [dataset])
    row = held[0] if held else {"dataset": dataset}
    if row.get("format_digest") not in (None, digest):
        raise PalimpsestError(
            f"data set {dataset} was ingested with another format or reader ({row['format_digest']}, now {digest}). "
            "Use --as NAME to ingest into a data set of another name, or restore the recipe's format."
        )
    now = row | {"reader": reader.name, "source": str(source), "format_digest": digest}
    now["format"] = row.get("format") or format.json  # of one digest, but perhaps written before a setting was known
    return [now] if now != row else []


def _look(
    identities: _Identities,
    recordings: Iterable[Recording],
    source: Path,
    limit: int | None,
    awaited: set[str],
    settle_s: Seconds | None,
) -> Iterator[tuple[Recording, Item | None, str | None]]:
    """Every recording with its item, with the reason why it can have none, or, while it is arriving, with neither."""
    awaited = set(awaited)
    for position, recording in enumerate(recordings):
        beyond = limit is not None and position >= limit
        if beyond and not awaited:
            return
        try:
            item = identities.identify(recording, source, settle_s)
        except Unfit as unfit:
            yield recording, None, str(unfit)
            continue
        if item is None:
            yield recording, None, None
        elif not beyond or item.id in awaited:
            awaited.discard(item.id)
            yield recording, item, None


def _compare(
    copies: Sequence[Item], held: _Held, counts: Counter[str], corrections: dict[str, list[Row]], min_s: Seconds
) -> Item | None:
    """The recording that all `copies` are, as far as it is still to be cut; corrections of what is known are noted."""
    row = held.recordings.get(copies[0].id)
    # A copy that sorts first does not take the name.
    item = next((one for one in copies if row and one.recording.name == row["name"]), copies[0])
    counts["duplicates"] += len(copies) - 1
    if row is None:
        return item
    counts["known"] += 1
    item = _arrived(item, row["arrival"])
    wanting = held.correct(item, corrections, min_s)
    if wanting:
        return replace(item, recording=replace(item.recording, clips=wanting), again=True)
    if item.recording.name in held.quarantine:  # what failed is no longer wanted
        corrections["quarantined"].append(quarantined(held.dataset, item.recording, item.id, None))
    return None


class _Found:
    """What a reader found, and what of it is to be cut, in a file that vanishes with its last user."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("", check_same_thread=False)
        self._file.executescript(
            "PRAGMA cache_size = -512;"
            "CREATE TABLE seen (id TEXT, item BLOB);"
            "CREATE INDEX seen_in_order ON seen (id);"  # or all items would be sorted in memory
            "CREATE TABLE todo (id TEXT PRIMARY KEY, place TEXT, clips INT, bytes INT, told TEXT, item BLOB);"
            "CREATE INDEX todo_in_order ON todo (place, id);"
        )

    def see(self, item: Item) -> None:
        """Take note of a recording that was found."""
        self._file.execute("INSERT INTO seen VALUES (?, ?)", (item.id, pickle.dumps(item)))

    def pages(self) -> Iterator[list[list[Item]]]:
        """All that was seen, by id, a page at a time; copies of one recording together, as they were found."""
        rows = self._file.execute("SELECT id, item FROM seen ORDER BY id, rowid")
        alike = ([pickle.loads(item) for _, item in group] for _, group in itertools.groupby(rows, key=itemgetter(0)))
        while page := list(itertools.islice(alike, PAGE)):
            yield page

    def want(self, item: Item, place: str) -> None:
        """Note that `item` is to be cut, and what its shard is sorted by."""
        clips = item.recording.clips
        row = (item.id, place, max(len(clips), 1), item.bytes, f"{item.id} {clips}", pickle.dumps(item))
        self._file.execute("INSERT INTO todo VALUES (?, ?, ?, ?, ?, ?)", row)

    def wants(self, identity: str) -> bool:
        """Whether that recording is to be cut."""
        return self._file.execute("SELECT 1 FROM todo WHERE id = ?", [identity]).fetchone() is not None

    def wanted(self, identity: str) -> Item:
        """The recording of that id that is to be cut."""
        item: Item = pickle.loads(self._file.execute("SELECT item FROM todo WHERE id = ?", [identity]).fetchone()[0])
        return item

    def chunks(self, taken: Container[str]) -> Iterator[list[tuple[str, str, str]]]:
        """All that is to be cut but the `taken`, in order and in shards: id, what it is sorted by, what it is."""
        chunk: list[tuple[str, str, str]] = []
        clips = size = 0
        for identity, place, more, bytes, told in self._file.execute(
            "SELECT id, place, clips, bytes, told FROM todo ORDER BY place, id"
        ):
            if identity in taken:
                continue
            clips, size = clips + more, size + bytes
            if chunk and (len(chunk) == BATCH_RECORDINGS or clips > BATCH_CLIPS or size > BATCH_BYTES):
                yield chunk
                chunk, clips, size = [], more, bytes
            chunk.append((identity, place, told))
        if chunk:
            yield chunk


class _Held:
    """What the ledger knows of a data set, looked up a page at a time."""

    def __init__(self, ledger: Ledger, dataset: str, finished: Container[str]):
        self._ledger, self.dataset, self._finished = ledger, dataset, finished
        failed = ledger.rows("SELECT name, recording, reason FROM quarantine WHERE dataset = ?", [dataset])
        self.quarantine = {row["name"]: (row["recording"], row["reason"]) for row in failed}
        self.samples: dict[str, dict[str, Row]] = {}
        self.recordings: dict[str, Row] = {}

    def turn_to(self, ids: Sequence[str]) -> None:
        """Look up the recordings between the first and the last of `ids`, which are in order."""
        self.samples = {}
        for row in self._between("samples", "key", ids[0], ids[-1]):
            if row["shard"] in self._finished:  # what a kill left half committed is built again, as what was lost is
                self.samples.setdefault(row["recording"], {})[row["key"]] = row
        rows = self._between("recordings", "recording", ids[0], ids[-1])
        self.recordings = {row["recording"]: row for row in rows if row["recording"] in self.samples}

    def _between(self, table: str, column: str, first: str, last: str) -> list[Row]:
        # By a column of the table's key, so that DuckDB reads these rows alone.
        sql = f"SELECT * EXCLUDE recorded_at FROM {table} WHERE dataset = ? AND {column} >= ? AND {column} < ?"
        return self._ledger.rows(sql, [self.dataset, first, f"{last}~"])  # a tilde comes after all that a key holds

    def correct(self, item: Item, corrections: dict[str, list[Row]], min_s: Seconds) -> tuple[Clip, ...]:
        """Note what is now said otherwise of a known recording; returns its clips that have never been cut."""
        recording, rows, wanting = item.recording, self.samples[item.id], []
        held = self.recordings[item.id]
        labels: dict[str, list[str]] = {}
        named = {clip_key(item.id, clip.start_s, clip.end_s) for clip in recording.clips if clip.end_s is not None}
        for clip in recording.clips or (Clip(),):
            keys = _keys(rows, item.id, clip, named) if recording.clips else list(rows)
            for key in keys:
                labels.setdefault(key, []).extend(clip.labels or recording.labels)
            if not keys and (_duration(held) if clip.end_s is None else clip.end_s) - clip.start_s >= min_s:
                wanting.append(clip)
        common = {name: getattr(recording, name) for name in ("domain", "arrival", "split")}
        for key, names in labels.items():
            now = rows[key] | common | {"labels": list(dict.fromkeys(names))}
            if now != rows[key]:
                corrections["samples"].append(now)
        now = held | common | {"labels": all_labels(recording), "name": recording.name}
        now |= {"source_path": source_path(recording), "language": recording.language}
        if now != held:
            corrections["recordings"].append(now)
        return tuple(wanting)


class _Identities:
    """Content ids, remembered by size and time of change so that a second run reads no media."""

    def __init__(self, lake: Lake, dataset: str, source: Path):
        self._checksums = Checksums(source)
        self._path = lake.cache / "identities" / f"{slug(dataset)}.sqlite"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError:
            self._file.close()
            self._path.unlink(missing_ok=True)
            self._open()

    def __enter__(self) -> _Identities:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.commit()
        self._file.close()

    def identify(self, recording: Recording, source: Path, settle_s: Seconds | None) -> Item | None:
        """The recording with its identity, None while it is arriving; a split that its reader leaves open is drawn.

        Raises:
            Unfit: it cannot be read, and why.
        """
        if recording.fault:
            raise Unfit(recording.fault)
        if not recording.tracks:
            raise Unfit("it names neither a file nor a text")
        _check_text(recording)
        if settle_s is not None:
            changed = _changed(recording, source)
            if 0 <= time.time() - changed < settle_s:
                return None
        size, seen = look(recording, source)
        known = self._file.execute("SELECT id FROM known WHERE mark = ?", [seen]).fetchone()
        try:
            if not known:
                self._checksums.check(recording)
            identity = known[0] if known else recording.content_id(source)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise Unfit(f"cannot be read: {_words(error)}") from error
        if not known:
            self._file.execute("INSERT INTO known VALUES (?, ?)", (seen, identity))
            self._new += 1
            if self._new % PAGE == 0:
                self._file.commit()
        split = recording.split or draw_split(recording.group or identity)
        return Item(replace(recording, split=split), identity, size, seen)

    def _open(self) -> None:
        self._new, self._file = 0, sqlite3.connect(self._path)
        self._file.execute("PRAGMA synchronous = OFF")  # a cache: what a power cut spoils is made again
        if self._file.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")
        self._file.execute("CREATE TABLE IF NOT EXISTS known (mark TEXT PRIMARY KEY, id TEXT) WITHOUT ROWID")


def look(recording: Recording, source: Path) -> tuple[int, str]:
    """The size of the recording's files, and what changes with any of them.

    Raises:
        Unfit: one cannot be read, and why.
    """
    shift = recording.shift and replace(recording.shift, babble=())
    size, marks = 0, [f"{source} {shift}"]
    for modality, track in sorted(recording.tracks.items()):
        marks.append(f"{modality} {track.path} {track.member} {track.offset} {track.length} {track.text!r}")
        try:
            for name, bytes, mark in _files(track, source):
                size += track.length or bytes
                marks.append(f"{name} {bytes} {mark}")
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # the last for a name with a null byte
            raise Unfit(f"no such file: {_named(track, source)}") from error
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
            raise Unfit(f"cannot be read: {_named(track, source)} ({_words(error)})") from error
    return size, hashlib.sha256("\n".join(marks).encode(errors="surrogateescape")).hexdigest()[:32]


def _changed(recording: Recording, source: Path) -> float:
    """When the recording's files last changed, in seconds of the epoch; now, while one is absent."""
    changed = 0.0
    for path in (source / track.path for track in recording.tracks.values() if track.path):
        try:
            changed = max([changed, path.stat().st_mtime, *(one.stat().st_mtime for one in _stills(path))])
        except (OSError, ValueError):
            return time.time()
    return changed


def _stills(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if not one.is_dir()) if path.is_dir() else []


def _files(track: Track, source: Path) -> Iterator[tuple[str, int, str]]:
    """Name, size, and what changes with the content, of every file that the track consists of.

    Raises:
        Unfit: one leads out of `source`, is empty, or is no regular file.
        OSError: one is absent or unreadable.
    """
    if track.path is None:
        return
    path = source / track.path
    if not inside(path, source):
        raise Unfit(f"{below(path, source)} leads out of the data set's folder")
    if track.member is not None:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unfit(f"not a regular file: {below(path, source)}")
        members = track.members(source)
        if not members:
            raise FileNotFoundError(path)
        for info in members:
            yield info.filename, info.file_size, f"{info.CRC:08x}"
        return
    for one in _stills(path) if path.is_dir() else [path]:
        name, found = below(one, source), one.stat()
        if one is not path and not inside(one, source):
            raise Unfit(f"{name} leads out of the data set's folder")
        if not stat.S_ISREG(found.st_mode):
            raise Unfit(f"not a regular file: {name}")
        if not found.st_size:
            raise Unfit(f"the file is empty: {name}")
        yield name, found.st_size, str(found.st_mtime_ns)


def _check_text(recording: Recording) -> None:
    """Refuse what neither JSON nor the ledger can hold: bytes of a file system that are no Unicode."""
    told = [recording.name, source_path(recording), recording.domain, recording.arrival, recording.language]
    told += [*all_labels(recording), *(clip.text for clip in recording.clips)]
    told += [track.text for track in recording.tracks.values()]
    if any(text and _printable(text) != text for text in told):
        raise Unfit("its name, path, labels or text are not valid Unicode")


def _named(track: Track, source: Path) -> str:
    name = below(source / (track.path or ""), source)
    return _printable(f"{name}/{track.member}" if track.member else name)


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _printable(name: str) -> str:
    """`name` as it can be stored and shown, whatever bytes a file system had for it."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _duration(held: Row) -> Seconds:
    """How long a known recording lasts, as far as it was measured."""
    quality = json.loads(held["quality"] or "{}")
    lengths = [quality[name] for name in ("video_s", "audio_s", "imu_s") if name in quality]
    return max(lengths, default=math.inf)


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


def scratch(lake: Lake, dataset: str) -> Path:
    """Where an ingest of `dataset` lays out what it needs for a moment."""
    return lake.cache / "scratch" / dataset


def _batch(lake: Lake, dataset: str, batch: str, name: str, source: Path, format: ClipFormat) -> Batch:
    shard = f"{name}-{batch}.tar"
    return Batch(batch, dataset, shard, lake.shard_url(dataset, shard), source, scratch(lake, dataset), format, ())


def _record(ledger: Ledger, planned: Sequence[tuple[Batch, Sequence[str], str | None]], first: int) -> None:
    whole = hashlib.sha256("".join(batch.id for batch, _, _ in planned).encode()).hexdigest()[:12]
    ledger.append(
        "batches",
        [
            {"dataset": batch.dataset, "batch": batch.id, "plan": whole, "position": first + number, "arrival": arrival}
            | {"slug": batch.shard.removesuffix(f"-{batch.id}.tar"), "recordings": list(ids)}
            for number, (batch, ids, arrival) in enumerate(planned)
        ],
    )


def _place(recording: Recording, group: str) -> str:
    if group == "label":
        return " ".join(all_labels(recording))
    return (getattr(recording, group) if group != "none" else None) or ""


def _arrived(item: Item, arrival: str | None) -> Item:
    if arrival is None or item.recording.arrival is not None:
        return item
    return replace(item, recording=replace(item.recording, arrival=arrival))
