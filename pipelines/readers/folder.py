"""Any recordings: by a manifest, one row a clip and a path a modality, or, without one, every media file there is.

Columns of `manifest.csv` or `manifest.parquet`, all optional: video, audio, imu, image, depth (paths below the folder;
`clips.zip/a.mp4` leads into an archive), text (the text itself), label (several by ;), domain, split (train, val or
test), start_s, end_s, imu_rate_hz. Rows of the same files are clips of one recording.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from store.types import Clip, Modality, PalimpsestError, Recording, Split, Track

FILES = (Modality.VIDEO, Modality.AUDIO, Modality.IMU, Modality.IMAGE, Modality.DEPTH)
TRACKS = (*FILES, Modality.TEXT)
SHARED = ("domain", "split", "imu_rate_hz")  # what all rows of one recording agree on
COLUMNS = {*TRACKS, *SHARED, "label", "start_s", "end_s"}
SPLITS = {"train": Split.TRAIN, "val": Split.VAL, "valid": Split.VAL, "validation": Split.VAL, "test": Split.TEST}
SUFFIXES = {
    Modality.VIDEO: {
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv"),
        *(".3gp", ".mxf", ".ogv"),
    },
    Modality.AUDIO: {
        *(".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus", ".wma", ".aif", ".aiff", ".au", ".caf", ".amr"),
    },
    Modality.IMU: {".csv"},
    Modality.IMAGE: {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"},
    Modality.DEPTH: {".npy"},
}
DEPTH_FOLDER, DEPTH_SUFFIXES = "depth", {".npy", ".png", ".tif", ".tiff"}
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", "~")
MAX_ROW = 1 << 20  # characters of a manifest's row
MAX_PATH = 4096  # bytes
_CONTROL, _BROKEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f]"), re.compile("[\\0\\ud800-\\udfff]")

Row = dict[str, str]


@dataclass(frozen=True)
class Folder:
    """A folder with a manifest, or of media files."""

    name = "folder"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """The manifest's recordings in the order of their first rows, or those that the files make, in order of name.

        Raises:
            PalimpsestError: the manifest as a whole cannot be understood, or there is neither one nor any media file.
        """
        manifest = next((p for p in (source / "manifest.csv", source / "manifest.parquet") if p.is_file()), None)
        if manifest is not None:
            yield from read_manifest(manifest)
            return
        recording = None
        for recording in media_files(source):
            yield recording
        if recording is None:
            raise PalimpsestError(f"no manifest.csv or manifest.parquet in {source}, nor any media file below it")


def media_files(source: Path) -> Iterator[Recording]:
    """The media files below `source`: those of one stem in one folder are one recording, labelled by that folder.

    A folder `depth` belongs to the one it lies in. Hidden and unfinished files, and links to folders, are left out.
    """
    folders = [Path()]
    while folders:
        folder = folders.pop()
        try:
            inner, files = _listing(source / folder)
            stems: dict[str, list[tuple[Modality, Path]]] = {}
            for place in ("", *(name for name in inner if name.lower() == DEPTH_FOLDER)):
                deeper, names = _listing(source / folder / place) if place else ([], files)
                folders += [folder / place / name for name in reversed(deeper)]
                for path in (folder / place / name for name in names):
                    if modality := _modality(path, depth=bool(place)):
                        stems.setdefault(path.stem, []).append((modality, path))
        except OSError as error:
            name = _printable(folder.as_posix())
            yield Recording(name, {}, fault=f"cannot be read: {name} ({error.strerror})")
            continue
        folders += [folder / name for name in reversed(inner) if name.lower() != DEPTH_FOLDER]
        labels = (folder.name,) if folder.name else ()
        for tracks in stems.values():
            one = len({modality for modality, _ in tracks}) == len(tracks)
            for group in [tracks] if one else [[track] for track in tracks]:  # a.jpg and a.png are two recordings
                yield _of_files(dict(group), labels)


def read_manifest(manifest: Path) -> Iterator[Recording]:
    """The recordings that `manifest`, a CSV or Parquet file of any name, lists; paths are relative to its folder.

    One with a row that cannot be understood has a `fault`, which names the row.

    Raises:
        PalimpsestError: the header, or the file as a whole, cannot be understood.
    """
    entries: dict[tuple[str, ...], _Entry] = {}
    for number, row, fault in _rows(manifest):
        files, text = tuple(row.get(modality, "") for modality in FILES), row.get(Modality.TEXT, "")
        key = files if any(files) else (text, "" if text else str(number))
        entry = entries.setdefault(key, _Entry(number, tuple(row.get(column, "") for column in SHARED)))
        try:
            if fault:
                raise ValueError(f"row {number}{fault}")
            entry.add(number, row, timed=any(files))
        except ValueError as error:
            entry.fault = entry.fault or f"{manifest.name} {error}"
    for key, entry in entries.items():
        yield entry.recording(key, manifest.parent)


@dataclass(slots=True)
class _Entry:
    """What the rows of one recording say; kept small, for a manifest may have millions."""

    number: int
    shared: tuple[str, ...]
    clips: list[Clip] = field(default_factory=list)
    fault: str | None = None

    def add(self, number: int, row: Row, *, timed: bool) -> None:
        for column, cell in zip(SHARED, self.shared, strict=True):
            if row.get(column, "") != cell:
                raise ValueError(f"rows {self.number} and {number} are one recording with two {column}s")
        _, split, rate = self.shared
        if split and split.lower() not in SPLITS:
            raise ValueError(f"row {number}: split is {split!r}; it must be train, val or test")
        _number(number, "imu_rate_hz", rate)
        clip = Clip(labels=_labels(number, row))
        if timed:  # a text alone has no times, and is a track
            start, end = (_number(number, column, row.get(column, "")) for column in ("start_s", "end_s"))
            clip = Clip(start or 0.0, end, clip.labels, row.get(Modality.TEXT))
        self.clips.append(clip)

    def recording(self, key: tuple[str, ...], folder: Path) -> Recording:
        domain, split, rate = self.shared
        if len(key) == len(FILES):
            name = "+".join(filter(None, key))
            if self.fault:
                return Recording(_printable(name), {}, fault=self.fault)
            rates = {Modality.IMU: float(rate)} if rate else {}
            places = {m: _place(path, folder) for m, path in zip(FILES, key, strict=True) if path}
            tracks = {m: Track(path, member, rate_hz=rates.get(m)) for m, (path, member) in places.items()}
        else:
            text, name = key[0], f"row {self.number}"
            if self.fault:
                return Recording(name, {}, fault=self.fault)
            tracks = {Modality.TEXT: Track(text=text)} if text else {}
            name = f"text-{hashlib.sha256(text.encode()).hexdigest()[:12]}" if text else name
        whole = len(self.clips) == 1 and self.clips[0] == Clip(labels=self.clips[0].labels)
        return Recording(
            name,
            tracks,
            () if whole else tuple(self.clips),
            labels=self.clips[0].labels if whole else (),
            domain=domain or None,
            split=SPLITS.get(split.lower()),
        )


def _of_files(paths: dict[Modality, Path], labels: tuple[str, ...]) -> Recording:
    name = "+".join(paths[m].as_posix() for m in FILES if m in paths)
    if (told := _printable(name)) != name:
        return Recording(told, {}, fault=f"the name {told} is not UTF-8: rename it")
    return Recording(name, {m: Track(path) for m, path in paths.items()}, (), labels)


def _listing(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of everything else in `folder`, sorted, but for what is hidden, unfinished or a lake."""
    with os.scandir(folder) as entries:
        kept = [e for e in entries if not e.name.startswith(".") and not e.name.lower().endswith(UNFINISHED)]
    inner = [e.name for e in kept if e.is_dir(follow_symlinks=False) and not Path(e, "catalog.duckdb").exists()]
    return sorted(inner), sorted(e.name for e in kept if not e.is_dir())


def _modality(path: Path, *, depth: bool) -> Modality | None:
    suffix = path.suffix.lower()
    if depth and suffix in DEPTH_SUFFIXES:
        return Modality.DEPTH
    return next((modality for modality, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def _place(cell: str, folder: Path) -> tuple[Path, str | None]:
    """The file that a cell names, and which member of it where it is an archive."""
    head, inside, member = cell.partition(".zip/")
    archive = Path(f"{head}.zip")
    return (archive, member) if inside and member and not (folder / archive).is_dir() else (Path(cell), None)


def _labels(number: int, row: Row) -> tuple[str, ...]:
    labels = tuple(" ".join(label.split()) for label in row.get("label", "").split(";") if label.strip())
    if any(map(_CONTROL.search, labels)):
        raise ValueError(f"row {number}: label {row['label']!r} holds a control character")
    return labels


def _number(number: int, column: str, cell: str) -> float | None:
    try:
        value = float(cell) if cell else None
    except ValueError:
        value = math.nan
    rate = column == "imu_rate_hz"
    if value is not None and not (0 <= value < math.inf and (value or not rate)):
        least = " above 0" if rate else ", 0 or more"
        raise ValueError(f"row {number}: {column} is {cell[:40]!r}; it must be a number{least}")
    return value


def _printable(name: str) -> str:
    """`name` with escapes for bytes that are not UTF-8, and no longer than a path can be."""
    return os.fsencode(name)[:MAX_PATH].decode(errors="backslashreplace")


def _rows(manifest: Path) -> Iterator[tuple[int, Row, str]]:
    """Number and cells of every row, and what is wrong with it, if anything."""
    if manifest.suffix == ".parquet":
        yield from _parquet_rows(manifest)
        return
    limit = csv.field_size_limit(MAX_ROW)  # of the whole process, so it is set back
    try:
        with open(manifest, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from _csv_rows(manifest, file)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(manifest: Path, file: TextIO) -> Iterator[tuple[int, Row, str]]:
    lines = _Lines(file)
    reader = csv.reader(lines, strict=True)
    columns = None
    for number in itertools.count(1):
        fault, lines.endless = "", False
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if str(error).startswith(("unexpected end", "field larger")):
                raise PalimpsestError(f"{manifest} row {number}: a quote opens that never closes") from error
            cells, fault = [], f" is no row of a CSV file: {error}"
        if cells is None:
            break
        if lines.endless:
            cells, fault = [], f" is longer than {MAX_ROW >> 20} MiB"
        if columns is None:
            columns = _columns(manifest, cells)
        elif cells or fault:
            yield number, *_row(columns, cells, fault)
    if columns is None:
        raise PalimpsestError(f"{manifest} is empty")


class _Lines:
    """A file's lines, one that has no end left out, so that no row takes more memory than `MAX_ROW`."""

    def __init__(self, file: TextIO):
        self._file, self.endless = file, False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = part = self._file.readline(MAX_ROW)
        if not line:
            raise StopIteration
        while len(part) == MAX_ROW and not part.endswith(("\n", "\r")):
            line, self.endless, part = "\n", True, self._file.readline(MAX_ROW)
        return line


def _parquet_rows(manifest: Path) -> Iterator[tuple[int, Row, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(manifest) as file:
            columns = _columns(manifest, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1024, columns=[c for c in columns if c in COLUMNS]):
                for row in batch.to_pylist():
                    number += 1
                    yield number, *_row(list(row), [_cell(value) for value in row.values()], "")
    except (pa.ArrowException, OSError) as error:
        raise PalimpsestError(f"{manifest} cannot be read as Parquet: {error}") from error


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ";".join(map(str, value))
    return "" if value is None or value != value else str(value)  # noqa: PLR0124 - a float NaN stands for no value


def _columns(manifest: Path, names: Iterable[str]) -> list[str]:
    columns = [name.strip().lower() for name in names]
    if twice := next((column for column in sorted(COLUMNS) if columns.count(column) > 1), None):
        raise PalimpsestError(f"{manifest} has the column {twice} twice: keep one")
    if not set(TRACKS) & set(columns):
        raise PalimpsestError(
            f"{manifest} has none of the columns {', '.join(TRACKS)}: begin it with a row of their names, "
            "parted by commas, in UTF-8"
        )
    return columns


def _row(columns: Sequence[str], cells: Sequence[str], fault: str) -> tuple[Row, str]:
    row = {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if name in COLUMNS and cell.strip()}
    if any(len(cell) > MAX_ROW for cell in row.values()):
        row, fault = {}, f" is longer than {MAX_ROW >> 20} MiB"
    elif len(cells) > len(columns):
        fault = f" has {len(cells)} cells, the header {len(columns)}: put a cell that holds a comma in quotes"
    elif broken := _BROKEN.search("".join(row.values())):
        fault = " holds a NUL byte" if broken[0] == "\0" else " is not UTF-8: save the manifest as UTF-8"
    return row, fault
