"""Digits of one kind alone: spoken in English or Arabic, written, or drawn in the air."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers import require
from pipelines.readers.digits import WORDS, block_split, drawn, fsdd_split, spoken, written
from pipelines.readers.speakers import arabic
from pipelines.readers.splits import split_of
from store.types import Modality, Recording, Split, Track


@dataclass(frozen=True)
class Fsdd:
    """``recordings/<digit>_<speaker>_<index>.wav``, English; index 0-4 is tested, 5-9 val; a speaker is a domain."""

    name = "fsdd"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a spoken digit, by name.

        Raises:
            PalimpsestError: there is no such folder.
        """
        for digit, speaker, index, path in spoken(source, ""):
            yield _sound(path, digit, fsdd_split(index), speaker, "en")


@dataclass(frozen=True)
class ArabicDigits:
    """``recordings/<digit>_arabic_<index>.wav``; augmented upstream, so a digit's recordings are split in blocks."""

    name = "arabic-digits"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a spoken digit, by digit and index.

        Raises:
            PalimpsestError: there is no such folder.
        """
        for split, digit, path in arabic(source, ""):
            yield _sound(path, digit, split, None, "ar")


@dataclass(frozen=True)
class Mnist:
    """``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, packed or not, as MNIST and what took its form.

    Of t10k alone the first 70 % train and the last 20 % are tested; else t10k is tested and a tenth of train held out.
    """

    name = "mnist"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording an image, by file and index.

        Raises:
            PalimpsestError: a file is absent or damaged.
        """
        trained = any(source.glob("train-images-idx3-ubyte*"))
        for part in ("train", "t10k") if trained else ("t10k",):
            for index, count, digit, track in written(source, "", part):
                name = f"{part}-{index:05d}"
                split = block_split(index, count)
                if trained:
                    split = split_of(part.replace("t10k", "test"), ("train", "test"), name)
                yield Recording(name, {Modality.IMAGE: track}, (), labels=(WORDS[digit],), split=split)


@dataclass(frozen=True)
class ImuDigits:
    """``data/imu_complete_data_<digit>_<date>_<time>.csv``; a digit's recordings are split in blocks of time."""

    name = "imu-digits"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a movement, by digit and time.

        Raises:
            PalimpsestError: there is no such folder.
        """
        require(source / "data", "digits drawn in the air lie there")
        for split, digit, path in drawn(source, ""):
            yield Recording(path.stem, {Modality.IMU: Track(path)}, (), labels=(WORDS[digit],), split=split)


def _sound(path: Path, digit: int, split: Split, domain: str | None, language: str) -> Recording:
    tracks = {Modality.AUDIO: Track(path)}
    return Recording(path.stem, tracks, (), labels=(WORDS[digit],), domain=domain, split=split, language=language)
