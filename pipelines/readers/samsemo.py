"""SAMSEMO: film utterances in five languages with emotions, in the official layout, its archives packed or unpacked."""

from __future__ import annotations

import csv
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers import require
from pipelines.readers.tables import named_rows, understood
from store.types import Clip, Modality, Recording, Split, Track

SPLITS = {"train": Split.TRAIN, "valid": Split.VAL, "test": Split.TEST}
COLUMNS = ("utterance_id", "language", "aggregated_emotions", "transcript")
FIVE = ("anger", "happiness", "neutral", "sadness", "surprise")  # those of the official training code
EMOTIONS = {"any": (), "seven": (*FIVE, "disgust", "fear"), "five": FIVE}
ABSENT = {"", "nan", "none"}
Tracks = dict[Modality, Track]


@dataclass(frozen=True)
class Samsemo:
    """`samsemo.tsv`, `splits/` and, below `data/`, an mp4 or a folder of audio.wav and image_*.jpg an utterance.

    Media are read where they lie, in `data/<LANG>.zip` too; ready-made features are not read at all. Of rows with one
    utterance_id the first counts. An utterance that no split lists goes with its film.

    Attributes:
        emotions: `all` that the annotators agreed on, or the `first` of them.
        among: which emotions there are: the `five` of the official training code, all `seven`, or `any` that the table
            names (`other` too). Utterances that are left without one of the five or seven are left out.
        splits: `official`, or drawn by `film`.
    """

    emotions: str = "all"
    among: str = "any"
    splits: str = "official"
    name = "samsemo"
    version = 1

    def __post_init__(self) -> None:
        choices = {"emotions": ("all", "first"), "among": tuple(EMOTIONS), "splits": ("official", "film")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}; it must be {' or '.join(allowed)}")

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording an utterance, in the order of samsemo.tsv; its domain is the language, its group the film.

        A row that names no utterance or no language has a `fault`.

        Raises:
            PalimpsestError: the table or one of its columns is missing.
        """
        table = require(source / "samsemo.tsv", "SAMSEMO's table lies at the root of its folder")
        splits = _splits(source) if self.splits == "official" else {}
        films = {_film(name): split for name, split in splits.items()}
        places = _places(source)
        seen: set[str] = set()
        # Quoted CSV where all of the table is that, and otherwise quotation marks as they are.
        quoting = csv.QUOTE_MINIMAL if _quoted(table) else csv.QUOTE_NONE
        found = named_rows(table, COLUMNS, delimiter="\t", quoting=quoting)
        for row in understood(table, found, _named, "an utterance_id, a language and their cells", headed=True):
            if isinstance(row, Recording):
                yield row
                continue
            name, language = row["utterance_id"], row["language"].upper()
            emotions = self._emotions(row["aggregated_emotions"])
            if name in seen or (self.among != "any" and not emotions):
                continue
            seen.add(name)
            yield Recording(
                name,
                places.get(name) or {Modality.VIDEO: _expected(source, language, name)},
                (Clip(text=row["transcript"].strip() or None),),
                labels=emotions,
                domain=language,
                split=splits.get(name, films.get(_film(name))),
                group=_film(name),
                language=language.lower(),
            )

    def _emotions(self, cell: str) -> tuple[str, ...]:
        named = dict.fromkeys(re.findall(r"[a-z]+", cell.lower()))
        kept = tuple(name for name in named if name not in ABSENT and name in (EMOTIONS[self.among] or named))
        return kept if self.emotions == "all" else kept[:1]


def _expected(source: Path, language: str, name: str) -> Track:
    """Where the mp4 of an utterance that has no media would be, for the message that says so."""
    archive = Path("data", f"{language}.zip")
    return (
        Track(archive, f"{name}.mp4") if (source / archive).is_file() else Track(Path("data", language, f"{name}.mp4"))
    )


def _film(utterance: str) -> str:
    return utterance.rsplit("_", 1)[0]


def _named(_: int, row: dict[str, str]) -> dict[str, str]:
    if not row or not row["utterance_id"] or not row["language"]:
        raise ValueError
    return row


def _quoted(table: Path) -> bool:
    """Whether every row has the header's width once quotation marks are taken for CSV's own."""
    with open(table, encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file, delimiter="\t", strict=True)
        try:
            width = len(next(rows, []))
            return all(len(row) in (0, width) for row in rows)
        except csv.Error:
            return False


def _splits(source: Path) -> dict[str, Split]:
    return {
        name: split
        for part, split in SPLITS.items()
        for path in sorted((source / "splits").glob(f"{part}_split_*.txt"))
        for name in path.read_text(encoding="utf-8-sig", errors="replace").split()
    }


def _places(source: Path) -> dict[str, Tracks]:
    """Tracks by utterance, wherever they lie: files before archives, an mp4 before its extracted sound and stills."""
    places: dict[str, Tracks] = {}
    for path in sorted((source / "data").glob("*.zip")):
        places |= _utterances(_packed(path), path.relative_to(source))
    walked = os.walk(source / "data")
    return places | _utterances((Path(parent).relative_to(source).as_posix(), files) for parent, _, files in walked)


def _packed(archive: Path) -> Iterable[tuple[str, list[str]]]:
    """The archive's files by folder; none of a damaged one, whose utterances are then looked for and refused."""
    folders: dict[str, list[str]] = {}
    try:
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                folder, _, file = name.rpartition("/")
                folders.setdefault(folder, []).append(file)
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return ()
    return folders.items()


def _utterances(folders: Iterable[tuple[str, list[str]]], archive: Path | None = None) -> dict[str, Tracks]:
    def track(folder: str, name: str) -> Track:
        inside = f"{folder}/{name}" if folder else name
        return Track(Path(inside)) if archive is None else Track(archive, inside)

    videos: dict[str, Tracks] = {}
    stills: dict[str, Tracks] = {}
    for folder, files in folders:
        tracks = {Modality.AUDIO: track(folder, "audio.wav")} if "audio.wav" in files else {}
        if any(name.startswith("image_") for name in files):
            tracks[Modality.VIDEO] = track(folder, "")
        if tracks:
            stills[folder.rpartition("/")[2]] = tracks
        videos |= {name[:-4]: {Modality.VIDEO: track(folder, name)} for name in files if name.endswith(".mp4")}
    return stills | videos
