"""UESTC-MMEA-CL (Xu et al. 2023): everyday activities seen from glasses that feel their motion, official layout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers import require
from store.types import Hertz, Modality, PalimpsestError, Recording, Split, Track

RATE: Hertz = 25.0  # of frames and of sensor rows alike
LISTS = {Split.TRAIN: "train.txt", Split.VAL: "val.txt", Split.TEST: "test.txt"}
_ROW = re.compile(r"(?P<path>.+?)(?: \d+ \d+)?(?: (?P<label>\d+))?")
_STEM = re.compile(r"(?P<folder>(?P<number>\d+)_(?P<activity>\w+?))_(?P<day>\d{4}(?:_\d\d){2})(?:_\d\d){3}")


@dataclass(frozen=True)
class UestcMmea:
    """Three lists, `video/<N>_<class>/<stem>.mp4` and `sensor/<N>_<class>/<stem>.csv`.

    A list is `train.txt` or `mydataset_train.txt` (and so on); its rows are a path below any prefix, with or without
    the counts of frames and sensor rows and the label. Frames in `data/<N>_<class>/<stem>/img_000001.jpg` stand for an
    mp4 that is not there. Labels are activities, as the folders spell them; a domain is a day of recording.
    """

    name = "uestc-mmea"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a row, by list: train, val, test; a stem in several lists belongs to the last of them.

        Raises:
            PalimpsestError: there is no list, or a row of one cannot be understood or contradicts itself.
        """
        lists = {split: _list(source, name) for split, name in LISTS.items()}
        if not any(lists.values()):
            require(
                source / "train.txt", "a UESTC-MMEA-CL folder holds train.txt, val.txt, test.txt, video/ and sensor/"
            )
        places = {stem: split for split, path in lists.items() for stem in (_stems(path) if path else ())}
        for split in LISTS:
            for stem, place in places.items():
                if place == split:
                    yield _recording(source, stem, split)


def _list(source: Path, name: str) -> Path | None:
    return next((path for path in (source / name, source / f"mydataset_{name}") if path.is_file()), None)


def _stems(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not (line := line.strip()):
                continue
            row = _ROW.fullmatch(line)
            stem = re.split(r"[/\\]", row["path"])[-1].removesuffix(".csv").removesuffix(".mp4") if row else ""
            name = _STEM.fullmatch(stem)
            if row is None or name is None:
                raise PalimpsestError(
                    f"{path} line {number} is {line[:120]!r}; it must be a path such as "
                    "sensor/1_upstairs/1_upstairs_2020_12_15_15_58_48.csv, "
                    "or one without its ending, the numbers of frames and sensor rows, and the label"
                )
            expected = int(name["number"]) - 1
            if row["label"] and int(row["label"]) != expected:
                raise PalimpsestError(f"{path} line {number} says {row['label']}, but {name['folder']} is {expected}")
            yield stem


def _recording(source: Path, stem: str, split: Split) -> Recording:
    name = _STEM.fullmatch(stem)
    assert name
    return Recording(
        stem,
        _tracks(source, name["folder"], stem),
        labels=(name["activity"],),
        domain=name["day"].replace("_", "-"),
        split=split,
    )


def _tracks(source: Path, folder: str, stem: str) -> dict[Modality, Track]:
    video, stills = Track(Path("video", folder, f"{stem}.mp4")), Track(Path("data", folder, stem), rate_hz=RATE)
    filmed = (source / "video" / folder / f"{stem}.mp4").is_file() or not (source / "data" / folder / stem).is_dir()
    sensor = Track(Path("sensor", folder, f"{stem}.csv"), rate_hz=RATE)
    return {Modality.VIDEO: video if filmed else stills, Modality.IMU: sensor}
