"""UCF101: short films of human actions, sound in about half of the classes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.readers import require
from pipelines.readers.splits import PARTS, split_of
from pipelines.readers.tables import lines
from store.types import Modality, PalimpsestError, Recording, Split, Track


@dataclass(frozen=True)
class Ucf101:
    """``UCF-101/<Class>/v_<Class>_gGG_cCC.avi`` with ``ucfTrainTestlist/``, or ``{train,val,test}/<Class>/*.avi``.

    Films of one group share scene and actors. The lists name no val part: the last ninth of a list's training groups,
    two of 18 in every class, is it.

    Attributes:
        split: which of the three official splits.
    """

    split: int = 1
    name = "ucf101"
    version = 1

    def __post_init__(self) -> None:
        if self.split not in (1, 2, 3):
            raise ValueError(f"split is {self.split!r}; it must be 1, 2 or 3")

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a film, the training list's first; one that a list names and no file holds is found missing.

        Raises:
            PalimpsestError: neither lists nor folders are there, or a line names no film of a known class.
        """
        if (source / "ucfTrainTestlist").is_dir():
            groups = sorted({_group(film.stem) for film in self._listed(source, "train")})
            held = groups[len(groups) - (len(groups) + 8) // 9 :] if len(groups) > 1 else []
            for listed in (Split.TRAIN, Split.TEST):
                for film in self._listed(source, listed):
                    split = Split.VAL if listed == Split.TRAIN and _group(film.stem) in held else listed
                    yield _recording(Path("UCF-101", film), split)
            return
        parts = [part for part in PARTS if (source / part).is_dir()]
        if not parts:
            raise PalimpsestError(f"no ucfTrainTestlist/ and no train/ in {source}: UCF-101/ lies beside the former")
        for part in parts:
            for path in sorted((source / part).glob("*/*.avi")):
                where = path.relative_to(source)
                yield _recording(where, split_of(part, parts, f"{where.parent.name} {_group(where.stem)}"))

    def _listed(self, source: Path, part: str) -> Iterator[PurePosixPath]:
        lists = source / "ucfTrainTestlist"
        classes = {line.split()[-1] for _, line in lines(require(lists / "classInd.txt", "UCF101's classes"))}
        listed = require(lists / f"{part}list0{self.split}.txt", "a split of UCF101")
        for number, line in lines(listed):
            path = PurePosixPath(line.split()[0])
            if len(path.parts) != 2 or path.parts[0] not in classes:
                raise PalimpsestError(
                    f"{listed} line {number} is {line!r}; it must be <Class>/<film>.avi, its class one of classInd.txt"
                )
            yield path


def _recording(path: Path, split: Split) -> Recording:
    label = path.parent.name
    tracks = {Modality.VIDEO: Track(path)}
    return Recording(path.stem, tracks, (), labels=(label,), split=split, group=f"{label} {_group(path.stem)}")


def _group(film: str) -> str:
    found = re.search(r"_g(\d+)_c\d+$", film)
    return found[1] if found else film
