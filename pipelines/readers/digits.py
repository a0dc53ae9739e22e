"""Spoken, written and air-drawn digits: recordings of three sources paired by class, the pairs drawn once at ingest.

Pairs stay inside a split and use every image, sound and movement at most once; there are as many as the scarcer of
image and sound allows, and movements accompany a part of them. They are drawn, not recorded together.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers import require
from store.types import Modality, PalimpsestError, Recording, Split, Track

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Pool = dict[tuple[Split, int], list[tuple[str, Track]]]


@dataclass(frozen=True)
class Digits:
    """A folder that holds mnist-t10k, fsdd and imu-digits.

    Attributes:
        seed: which pairs are drawn.
    """

    seed: int = 0
    name = "digits"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """The drawn pairs, by split and digit."""
        images, sounds, movements = _images(source), _sounds(source), _movements(source)
        for split in Split:
            for digit, word in enumerate(WORDS):
                seen, heard, moved = (self._drawn(pool[split, digit]) for pool in (images, sounds, movements))
                for number, (image, sound) in enumerate(zip(seen, heard, strict=False)):
                    tracks = {Modality.IMAGE: image[1], Modality.AUDIO: sound[1]}
                    names = [sound[0], image[0]]
                    if number < len(moved):
                        names.append(moved[number][0])
                        tracks[Modality.IMU] = moved[number][1]
                    yield Recording("+".join(names), tracks, (), labels=(word,), split=split)

    def _drawn(self, pool: list[tuple[str, Track]]) -> list[tuple[str, Track]]:
        return sorted(pool, key=lambda one: hashlib.sha256(f"{self.seed} {one[0]}".encode()).digest())


def spoken(source: Path, folder: str) -> Iterator[tuple[int, str, int, Path]]:
    """Digit, speaker, index and relative path of every ``<digit>_<speaker>_<index>.wav``, in order of name."""
    for path in sorted(require(source / folder / "recordings", "spoken digits lie there").glob("*.wav")):
        if found := re.fullmatch(r"(\d)_(\w+)_(\d+)", path.stem):
            yield int(found[1]), found[2], int(found[3]), path.relative_to(source)


def written(source: Path, folder: str, part: str) -> Iterator[tuple[int, int, int, Track]]:
    """Index, number of images, digit and bytes of every image of ``<part>-images-idx3-ubyte``, packed (.gz) or not.

    Raises:
        PalimpsestError: a file is absent, damaged, or they are of unequal length.
    """
    files = [Path(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    images, labels = (path if (source / path).is_file() else path.with_name(f"{path.name}.gz") for path in files)
    require(source / images, "written digits, as IDX")
    require(source / labels, "the labels of written digits, as IDX")
    try:
        count, height, width = struct.unpack(">3I", Track(images, offset=4, length=12).read(source))
        digits = Track(labels, offset=8).read(source)
    except (OSError, struct.error) as error:
        raise PalimpsestError(f"{source / folder} cannot be read: {error}") from error
    if len(digits) != count or max(digits, default=0) > 9:
        raise PalimpsestError(f"{labels} has {len(digits)} labels for {count} images, or one that is no digit")
    size = height * width
    for index, digit in enumerate(digits):
        yield index, count, digit, Track(images, offset=16 + size * index, length=size, shape=(height, width))


def drawn(source: Path, folder: str) -> Iterator[tuple[Split, int, Path]]:
    """Split, digit and path of every movement: blocks of each digit's recordings in order of time."""
    for digit in range(10):
        found = sorted((source / folder / "data").glob(f"imu_complete_data_{digit}_*.csv"))
        for place, path in enumerate(found):
            yield block_split(place, len(found)), digit, path.relative_to(source)


def fsdd_split(index: int) -> Split:
    """The official test part is index 0-4; 5-9 of the rest are held out for choices."""
    return Split.TEST if index < 5 else Split.VAL if index < 10 else Split.TRAIN


def _sounds(source: Path) -> Pool:
    pool: Pool = defaultdict(list)
    for digit, _, index, path in spoken(source, "fsdd"):
        pool[fsdd_split(index), digit].append((path.stem, Track(path)))
    return pool


def _images(source: Path) -> Pool:
    """The first 7,000 images train, the next 1,000 val, the last 2,000 test."""
    pool: Pool = defaultdict(list)
    for index, count, digit, track in written(source, "mnist-t10k", "t10k"):
        pool[block_split(index, count), digit].append((f"mnist-{index:05d}", track))
    return pool


def _movements(source: Path) -> Pool:
    pool: Pool = defaultdict(list)
    for split, digit, path in drawn(source, "imu-digits"):
        pool[split, digit].append((path.stem[18:], Track(path)))
    return pool


def block_split(place: int, count: int) -> Split:
    """The split of the `place`-th of `count` neighbours: 70 % train, 10 % val, 20 % test, each in one block."""
    share = (place + 0.5) / count
    return Split.TRAIN if share < 0.7 else Split.VAL if share < 0.8 else Split.TEST
