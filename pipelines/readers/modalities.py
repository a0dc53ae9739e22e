"""Concepts met each through one modality: digits written, spoken or drawn in the air, colours mouthed, rooms measured.

What other readers find is put together. No concept comes twice: a class tells its modality, and nothing else does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.readers import Reader
from pipelines.readers.digit_sets import ArabicDigits, Fsdd, ImuDigits, Mnist
from pipelines.readers.grid import Grid
from pipelines.readers.nyu_depth import NyuDepth
from store.types import Modality, PalimpsestError, Recording, Track

# folder, what reads it, the modality that is kept, the concepts
_PARTS: tuple[tuple[str, Reader, Modality, tuple[str, ...]], ...] = (
    ("mnist-t10k", Mnist(), Modality.IMAGE, ("zero", "one", "two")),
    ("fsdd", Fsdd(), Modality.AUDIO, ("three", "four", "five")),
    ("imu-digits", ImuDigits(), Modality.IMU, ("six", "seven")),
    ("grid-s1", Grid(), Modality.VIDEO, ("blue", "green", "red", "white")),
    ("arabic-digits", ArabicDigits(), Modality.AUDIO, ("eight", "nine")),
    ("nyu-depth", NyuDepth(), Modality.DEPTH, ("bathroom", "bedroom", "kitchen", "living_room")),
)


@dataclass(frozen=True)
class Modalities:
    """A folder that holds mnist-t10k, fsdd, imu-digits, grid-s1, arabic-digits and nyu-depth; any may be absent.

    Attributes:
        most: recordings of a concept in one split, the first of them; talking heads, who say several, are all kept.
    """

    most: int = 400
    name = "modalities"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """Those of the folders that are there, folder after folder.

        Raises:
            PalimpsestError: none is.
        """
        folders = [folder for folder, *_ in _PARTS]
        if not any((source / folder).is_dir() for folder in folders):
            raise PalimpsestError(f"no {', '.join(folders)} in {source}: it must hold some of these folders")
        for folder, reader, modality, concepts in _PARTS:
            if not (source / folder).is_dir():
                continue
            met: Counter[tuple[object, ...]] = Counter()
            for one in reader.recordings(source / folder):
                clips = tuple(clip for clip in one.clips if set(clip.labels) & set(concepts))
                if modality not in one.tracks or not (clips or set(one.labels) & set(concepts)):
                    continue
                if not clips:
                    met[one.split, one.labels] += 1
                    if met[one.split, one.labels] > self.most:
                        continue
                yield _within(replace(one, clips=clips), folder, modality)


def _within(one: Recording, folder: str, modality: Modality) -> Recording:
    """`one`, found in `folder`, with nothing but `modality`."""
    track: Track = one.tracks[modality]
    moved = replace(track, path=Path(folder) / track.path) if track.path is not None else track
    group = f"{folder}/{one.group}" if one.group is not None else None
    return replace(one, name=f"{folder}/{one.name}", tracks={modality: moved}, group=group, mute=True)
