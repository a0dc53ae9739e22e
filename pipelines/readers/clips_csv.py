"""Clips of online videos listed in a CSV: VGGSound and Kinetics, as cut and stored by the usual download scripts."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from pipelines.readers import require
from pipelines.readers.splits import PARTS, split_of
from pipelines.readers.tables import rows
from store.types import Modality, PalimpsestError, Recording, Track

SOUNDS = (".wav", ".flac")
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
        """One recording a row; one whose clip was never fetched is found missing.

        Raises:
            PalimpsestError: there is no table, or a line of it is no such row.
        """
        table = require(source / "vggsound.csv", "VGGSound's table")
        places = _places(source)
        for number, row in rows(table):
            try:
                video, start, label, part = row
                stem = f"{video}_{int(float(start)):06d}"
            except (ValueError, OverflowError) as error:
                raise PalimpsestError(f"{table} line {number} is {row}; it must be: id,start,label,split") from error
            path = places.get(stem, f"{stem}.mp4")
            yield _recording(table, number, stem, path, video, label, part, ("train", "test"))


@dataclass(frozen=True)
class Kinetics:
    """Clips ``<split>/<label>/<id>_<start>_<end>.mp4``, times in 6 digits, and tables ``*.csv``.

    Columns are label, youtube_id, time_start, time_end, split, with a header or without. Rows without a label, as in
    the test part, are left out. Without test rows val is tested; a tenth of the training videos is held out as val
    where there is none to choose by.
    """

    name = "kinetics"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a row, tables by name; one whose clip was never fetched is found missing.

        Raises:
            PalimpsestError: there is no table, or a line of it is no such row.
        """
        tables = sorted(source.glob("*.csv"))
        if not tables:
            raise PalimpsestError(f"no csv file in {source}: Kinetics lists its clips in train.csv, val.csv, test.csv")
        parts = {row[4] for table in tables for _, row in rows(table) if row[0] and row[4:5] and row[4] in PARTS}
        places = _places(source)
        for table in tables:
            for number, row in rows(table):
                if row[:2] == ["label", "youtube_id"] or row[0] == "":
                    continue
                try:
                    label, video, start, end, part = row[:5]
                    stem = f"{video}_{int(float(start)):06d}_{int(float(end)):06d}"
                except (ValueError, OverflowError) as error:
                    columns = "label,youtube_id,time_start,time_end,split"
                    raise PalimpsestError(f"{table} line {number} is {row}; it must be: {columns}") from error
                path = places.get(stem, f"{part}/{label}/{stem}.mp4")
                yield _recording(table, number, stem, path, video, label, part, parts)


def _recording(
    table: Path, number: int, stem: str, path: str, video: str, label: str, part: str, parts: Collection[str]
) -> Recording:
    if part not in PARTS or not label or PurePath(stem).name != stem:
        raise PalimpsestError(f"{table} line {number} needs a video id, a label, and a split: {', '.join(PARTS)}")
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
