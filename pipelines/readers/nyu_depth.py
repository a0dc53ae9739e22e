"""NYU Depth V2 as scenes to recognise: colour and depth of one view, from its raw frames."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers.splits import PARTS, split_of
from store.types import Modality, PalimpsestError, Recording, Track

COMMON = set("bathroom bedroom bookstore classroom dining_room home_office kitchen living_room office".split())


@dataclass(frozen=True)
class NyuDepth:
    """``{train,val,test}/<scene>_<nnnn>/<frame>/{rgb.png,depth.png}``, perhaps below ``raw_data/``.

    Views of one room share its folder. The labelled subset, nyu_depth_v2_labeled.mat, is not read: it is one packed
    file, in which a view is no range of bytes. A unit of depth.png is the format's `depth_factor` in millimetres.

    Attributes:
        classes: `all` scenes, or the usual `ten`: the nine that are common, and `others`.
    """

    classes: str = "all"
    name = "nyu-depth"
    version = 1

    def __post_init__(self) -> None:
        if self.classes not in ("all", "ten"):
            raise ValueError(f"classes is {self.classes!r}; it must be all or ten")

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a view that has colour or depth, by part, room and frame.

        Raises:
            PalimpsestError: there is no part.
        """
        root = Path("raw_data" if (source / "raw_data").is_dir() else "")
        parts = [part for part in PARTS if (source / root / part).is_dir()]
        if not parts:
            raise PalimpsestError(
                f"no train/ in {source / root}: views lie in [raw_data/]{{train,val}}/<scene>_<nnnn>/<frame>/"
                "{rgb.png,depth.png}; nyu_depth_v2_labeled.mat is not read"
            )
        for part in parts:
            for room in _folders(source / root / part):
                scene = re.sub(r"_\d+[a-z]?$", "", room)
                label = scene if self.classes == "all" or scene in COMMON else "others"
                for frame in _folders(source / root / part / room):
                    view = root / part / room / frame
                    files = {Modality.IMAGE: view / "rgb.png", Modality.DEPTH: view / "depth.png"}
                    tracks = {kind: Track(path) for kind, path in files.items() if (source / path).is_file()}
                    if tracks:
                        split = split_of(part, parts, room)
                        yield Recording(view.as_posix(), tracks, (), labels=(label,), split=split, group=room)


def _folders(parent: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
