"""UESTC-MMEA-CL (Xu et al. 2023): everyday activities seen from glasses that feel their motion, official layout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers import require
from pipelines.readers.tables import lines, understood
from store.types import Hertz, Modality, Recording, Split, Track

RATE: Hertz = 25.0  # of frames and of sensor rows alike
LISTS = {Split.TRAIN: "train.txt", Split.VAL: "val.txt", Split.TEST: "test.txt"}
ROW = (
    "a path such as sensor/1_upstairs/1_upstairs_2020_12_15_15_58_48.csv, or one without its ending, "
    "the numbers of frames and sensor rows, and the label, which is one less than the folder's number"
)
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

        A row that cannot be understood or contradicts itself has a recording with a `fault`, before all others.

        Raises:
            PalimpsestError: there is no list, or the first row of one is none.
        """
        lists = {split: _list(source, name) for split, name in LISTS.items()}
        if not any(lists.values()):
            require(
                source / "train.txt", "a UESTC-MMEA-CL folder holds train.txt, val.txt, test.txt, video/ and sensor/"
            )
        found = [
            (one, split) for split, path in lists.items() if path for one in understood(path, lines(path), _stem, ROW)
        ]
        yield from (one for one, _ in found if isinstance(one, Recording))
        places = {one: split for one, split in found if isinstance(one, str)}
        for split in LISTS:
            for stem, place in places.items():
                if place == split:
                    yield _recording(source, stem, split)


def _list(source: Path, name: str) -> Path | None:
    return next((path for path in (source / name, source / f"mydataset_{name}") if path.is_file()), None)


def _stem(_: int, line: str) -> str:
    row = _ROW.fullmatch(line)
    stem = re.split(r"[/\\]", row["path"])[-1].removesuffix(".csv").removesuffix(".mp4") if row else ""
    name = _STEM.fullmatch(stem)
    if row is None or name is None or int(row["label"] or int(name["number"]) - 1) != int(name["number"]) - 1:
        raise ValueError
    return stem


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
