"""Any recordings, by a manifest: one row a clip, a path a modality; rows of the same files are clips of one recording.

Columns of `manifest.csv` or `manifest.parquet`, all optional: video, audio, imu, image, depth (paths below the folder),
text (the text itself), label (several by ;), domain, split (train, val or test), start_s, end_s, imu_rate_hz.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.types import Clip, Modality, PalimpsestError, Recording, Split, Track

FILES = (Modality.VIDEO, Modality.AUDIO, Modality.IMU, Modality.IMAGE, Modality.DEPTH)
COLUMNS = {*FILES, Modality.TEXT, "label", "domain", "split", "start_s", "end_s", "imu_rate_hz"}
SPLITS = {"train": Split.TRAIN, "val": Split.VAL, "valid": Split.VAL, "validation": Split.VAL, "test": Split.TEST}
Row = dict[str, str]


@dataclass(frozen=True)
class Folder:
    """A folder with a manifest."""

    name = "folder"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """The manifest's recordings in the order of their first rows.

        Raises:
            PalimpsestError: there is no manifest, or a cell of it cannot be understood; the message names the row.
        """
        manifest = next((p for p in (source / "manifest.csv", source / "manifest.parquet") if p.is_file()), None)
        if manifest is None:
            raise PalimpsestError(f"no manifest.csv or manifest.parquet in {source}")
        yield from read_manifest(manifest)


def read_manifest(manifest: Path) -> Iterator[Recording]:
    """The recordings that `manifest`, a CSV or Parquet file of any name, lists; paths are relative to its folder.

    Raises:
        PalimpsestError: a cell of it cannot be understood; the message names the row.
    """
    groups: dict[tuple[str, ...], list[tuple[int, Row]]] = {}
    for number, row in enumerate(_rows(manifest), start=2 if manifest.suffix == ".csv" else 1):
        files = tuple(row.get(modality, "") for modality in FILES)
        groups.setdefault(files if any(files) else (row.get("text", ""),), []).append((number, row))
    for files, rows in groups.items():
        yield _recording(manifest.name, files, rows)


def _recording(manifest: str, files: tuple[str, ...], rows: list[tuple[int, Row]]) -> Recording:
    number, row = rows[0]
    for other, later in rows[1:] if any(files) else ():  # rows that name nothing are refused at ingest
        for column in ("domain", "split", "imu_rate_hz"):
            if later.get(column, "") != row.get(column, ""):
                raise PalimpsestError(f"{manifest} rows {number} and {other} are one recording with two {column}s")
    rate = _number(manifest, number, row, "imu_rate_hz")
    if len(files) == len(FILES):
        tracks = {m: Track(Path(path)) for m, path in zip(FILES, files, strict=True) if path}
        if Modality.IMU in tracks:
            tracks[Modality.IMU] = Track(Path(row["imu"]), rate_hz=rate)
        name, clips = "+".join(filter(None, files)), tuple(_clip(manifest, n, r) for n, r in rows)
    else:
        tracks = {Modality.TEXT: Track(text=files[0])} if files[0] else {}
        name = f"text-{hashlib.sha256(files[0].encode()).hexdigest()[:12]}" if files[0] else f"row {number}"
        clips = tuple(Clip(labels=_labels(r)) for _, r in rows)
    split = row.get("split", "").lower()
    if split and split not in SPLITS:
        raise PalimpsestError(f"{manifest} row {number}: split is {split!r}; it must be train, val or test")
    whole = len(clips) == 1 and clips[0] == Clip(labels=clips[0].labels)
    return Recording(
        name,
        tracks,
        () if whole else clips,
        labels=clips[0].labels if whole else (),
        domain=row.get("domain") or None,
        split=SPLITS.get(split),
    )


def _clip(manifest: str, number: int, row: Row) -> Clip:
    start, end = (_number(manifest, number, row, column) for column in ("start_s", "end_s"))
    return Clip(start or 0.0, end, _labels(row), row.get("text") or None)


def _labels(row: Row) -> tuple[str, ...]:
    return tuple(label.strip() for label in row.get("label", "").split(";") if label.strip())


def _number(manifest: str, number: int, row: Row, column: str) -> float | None:
    cell = row.get(column, "")
    try:
        value = float(cell) if cell else None
    except ValueError:
        value = math.nan
    if value is not None and (not math.isfinite(value) or value < 0):
        raise PalimpsestError(f"{manifest} row {number}: {column} is {cell!r}; it must be a number, 0 or more")
    return value


def _rows(manifest: Path) -> Iterator[Row]:
    if manifest.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(manifest)
        columns, rows = table.column_names, iter(table.to_pylist())
        yield from (_cells(row) for row in _known(manifest, columns, rows))
        return
    with open(manifest, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        yield from (_cells(row) for row in _known(manifest, reader.fieldnames or (), reader))


def _known(manifest: Path, columns: Any, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if not COLUMNS & set(columns):
        raise PalimpsestError(f"{manifest} has none of the columns {', '.join(sorted(COLUMNS))}")
    return rows


def _cells(row: dict[str, Any]) -> Row:
    absent = (None, "")
    return {
        key: (";".join(map(str, value)) if isinstance(value, list) else str(value)).strip()
        for key, value in row.items()
        if key in COLUMNS and value not in absent and value == value  # noqa: PLR0124 - a float NaN stands for no value
    }
