"""Clips of online videos listed in a CSV: VGGSound and Kinetics, as cut and stored by the usual download scripts."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from pipelines.readers import require
from pipelines.readers.splits import PARTS, split_of
from pipelines.readers.tables import named_rows, rows, understood
from store.types import Modality, PalimpsestError, Recording, Track

SOUNDS = (".wav", ".flac")
COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")  # of Kinetics
SUFFIXES = (".mp4", ".mkv", ".webm", *SOUNDS)


@dataclass(frozen=True)
class VggSound:
    """``vggsound.csv`` (video id, start in seconds, label, split; no header), clips ``<id>_<start as 6 digits>.mp4``.

    Clips lie in the folder itself, in one of its folders, or as .wav where only the sound was kept. A tenth of the
    training videos is held out as val.
    """

    name = "vggsound"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a row; one whose clip was never fetched is found missing, a line that is no row has a `fault`.

        Raises:
            PalimpsestError: there is no table, or its first line is no such row.
        """
        table = require(source / "vggsound.csv", "VGGSound's table")
        places = _places(source)

        def read(_: int, row: list[str]) -> Recording:
            video, start, label, part = row
            stem = f"{video}_{int(float(start)):06d}"
            return _recording(stem, places.get(stem, f"{stem}.mp4"), video, label, part, ("train", "test"))

        yield from understood(table, rows(table), read, f"id,start,label,split, the last of {', '.join(PARTS)}")


@dataclass(frozen=True)
class Kinetics:
    """Clips ``<split>/<label>/<id>_<start>_<end>.mp4``, times in 6 digits, and tables ``*.csv``.

    Columns are label, youtube_id, time_start, time_end, split, in any order below a header. Tables without the first
    two and rows without a label, as in the test part, are left out. Without test rows val is tested; a tenth of the
    training videos is held out as val where there is none to choose by.
    """

    name = "kinetics"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a row, tables by name; one whose clip was never fetched is found missing.

        A row that cannot be understood has a `fault`.

        Raises:
            PalimpsestError: there is no table, or one lacks times or split.
        """
        headers = {table: next(rows(table), (0, []))[1] for table in sorted(source.glob("*.csv"))}
        tables = [table for table, header in headers.items() if {"label", "youtube_id"} <= {*header}]
        if not tables:
            raise PalimpsestError(
                f"no csv file with columns label and youtube_id in {source}: "
                "Kinetics lists its clips in train.csv, val.csv, test.csv"
            )
        every = (row for table in tables for _, row in named_rows(table, COLUMNS))
        parts = {row["split"] for row in every if row and row["label"] and row["split"] in PARTS}
        places = _places(source)

        def read(_: int, row: dict[str, str]) -> Recording | None:
            if row and not row["label"]:
                return None
            label, video, start, end, part = (row.get(column, "") for column in COLUMNS)
            stem = f"{video}_{int(float(start)):06d}_{int(float(end)):06d}"
            return _recording(stem, places.get(stem, f"{part}/{label}/{stem}.mp4"), video, label, part, parts)

        wanted = f"{','.join(COLUMNS)}, the last of {', '.join(PARTS)}"
        for table in tables:
            yield from understood(table, named_rows(table, COLUMNS), read, wanted, headed=True)


def _recording(stem: str, path: str, video: str, label: str, part: str, parts: Collection[str]) -> Recording:
    if part not in PARTS or not video or not label or PurePath(stem).name != stem:
        raise ValueError
    modality = Modality.AUDIO if path.endswith(SOUNDS) else Modality.VIDEO
    split = split_of(part, parts, video)
    return Recording(stem, {modality: Track(Path(path))}, (), labels=(label,), split=split, group=video)


def _places(source: Path) -> dict[str, str]:
    """Where every clip lies, by its name: a film rather than a sound."""
    places: dict[str, str] = {}
    for parent, folders, files in os.walk(source):
        folders.sort()
        for file in sorted(files):
            stem, suffix = os.path.splitext(file)
            if suffix in SUFFIXES and (stem not in places or places[stem].endswith(SOUNDS) > (suffix in SOUNDS)):
                places[stem] = os.path.relpath(os.path.join(parent, file), source)
    return places
