"""SAMSEMO: film utterances in five languages with emotions, in the official layout, its archives unpacked."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers import require
from store.types import Clip, Modality, PalimpsestError, Recording, Split, Track

SPLITS = {"train": Split.TRAIN, "valid": Split.VAL, "test": Split.TEST}
COLUMNS = ("utterance_id", "language", "aggregated_emotions", "transcript")


@dataclass(frozen=True)
class Samsemo:
    """`samsemo.tsv`, `splits/` and, below `data/`, an mp4 or a folder of audio.wav and image_*.jpg an utterance.

    Attributes:
        emotions: `all` that the annotators agreed on, or the `first` of them.
    """

    emotions: str = "all"
    name = "samsemo"
    version = 1

    def __post_init__(self) -> None:
        if self.emotions not in ("all", "first"):
            raise ValueError(f"emotions is {self.emotions!r}; it must be all or first")

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording an utterance, in the order of samsemo.tsv; its domain is the language, its group the film.

        Raises:
            PalimpsestError: the table or one of its columns is missing, or a row names no utterance or no language.
        """
        table = require(source / "samsemo.tsv", "SAMSEMO's table lies at the root of its folder")
        splits, places = _splits(source), _places(source)
        with open(table, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
            if missing := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
                raise PalimpsestError(f"{table} has no column {', '.join(missing)}")
            for row in rows:
                if empty := [column for column in COLUMNS[:2] if not row[column]]:
                    raise PalimpsestError(f"{table} line {rows.line_num} has no {' and no '.join(empty)}")
                name, language = row["utterance_id"], row["language"].upper()
                emotions = tuple(re.findall(r"[a-z]+", row["aggregated_emotions"].lower()))
                expected = Path("data", language, f"{name}.mp4")
                yield Recording(
                    name,
                    places.get(name, {Modality.VIDEO: Track(expected)}),
                    (Clip(text=row["transcript"].strip() or None),),
                    labels=emotions if self.emotions == "all" else emotions[:1],
                    domain=language,
                    split=splits.get(name),
                    group=name.rsplit("_", 1)[0],
                    language=language.lower(),
                )


def _splits(source: Path) -> dict[str, Split]:
    return {
        name: split
        for part, split in SPLITS.items()
        for path in sorted((source / "splits").glob(f"{part}_split_*.txt"))
        for name in path.read_text(encoding="utf-8-sig").split()
    }


def _places(source: Path) -> dict[str, dict[Modality, Track]]:
    """Tracks by utterance, wherever the archives were unpacked: the mp4 before its extracted sound and stills."""
    videos: dict[str, dict[Modality, Track]] = {}
    folders: dict[str, dict[Modality, Track]] = {}
    for parent, _, files in os.walk(source / "data"):
        folder = Path(parent).relative_to(source)
        tracks = {Modality.AUDIO: Track(folder / "audio.wav")} if "audio.wav" in files else {}
        if any(name.startswith("image_") for name in files):
            tracks[Modality.VIDEO] = Track(folder)
        if tracks:
            folders[folder.name] = tracks
        for name in files:
            if name.endswith(".mp4"):
                videos[name[:-4]] = {Modality.VIDEO: Track(folder / name)}
    return folders | videos
