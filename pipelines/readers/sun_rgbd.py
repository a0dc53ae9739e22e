"""SUN RGB-D: indoor scenes as four depth cameras saw them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pipelines.media.stills import SUFFIXES
from pipelines.readers import draw_split
from store.types import Modality, PalimpsestError, Recording, Split, Track

SCENES = set(
    """bathroom bedroom classroom computer_room conference_room corridor dining_area dining_room discussion_area
    furniture_store home_office kitchen lab lecture_theatre library living_room office rest_space study_space""".split()
)


@dataclass(frozen=True)
class SunRgbd:
    """Folders with ``scene.txt``, ``image/*.jpg`` and ``depth_bfx/*.png`` or ``depth/*.png`` below ``SUNRGBD/``.

    With ``SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat`` beside it the split is the official one, a tenth of train held
    out as val; without, it is drawn by room. Depth is stored with its bits rotated: see `format` in the recipe.

    Attributes:
        scenes: the 19 `common` scenes of the classification benchmark, or `all`.
        filled: the depth with its holes filled (depth_bfx) where it is there, rather than the camera's own.
    """

    scenes: str = "common"
    filled: bool = True
    name = "sun-rgbd"
    version = 1

    def __post_init__(self) -> None:
        if self.scenes not in ("common", "all"):
            raise ValueError(f"scenes is {self.scenes!r}; it must be common or all")

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a view, in order of path; its domain is the camera.

        Raises:
            PalimpsestError: there is no such folder, or the official split cannot be read.
        """
        if not (root := source / "SUNRGBD").is_dir():
            raise PalimpsestError(f"no SUNRGBD in {source}: give the folder that holds SUNRGBD/")
        official = _official(source / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat")
        for parent, folders, files in os.walk(root):
            folders.sort()
            if "scene.txt" not in files:
                continue
            folders.clear()
            place, view = Path(parent), Path(parent).relative_to(source)
            scene = (place / "scene.txt").read_text(encoding="utf-8", errors="replace").strip()
            if not scene or (self.scenes == "common" and scene not in SCENES):
                continue
            depths = ("depth_bfx", "depth") if self.filled else ("depth",)
            found = {Modality.IMAGE: _first(place, SUFFIXES, "image"), Modality.DEPTH: _first(place, {".png"}, *depths)}
            room = view.parent if "sun3ddata" in view.parts else view  # there, views are frames of one film
            drawn = official.get(view.as_posix(), Split.TRAIN) if official else draw_split(room.as_posix())
            yield Recording(
                view.as_posix(),
                {kind: Track(view / path) for kind, path in found.items() if path},
                (),
                labels=(scene,),
                domain=view.parts[1],
                split=draw_split(room.as_posix(), train=0.9) if official and drawn == Split.TRAIN else drawn,
                group=room.as_posix(),
            )


def _first(place: Path, suffixes: Collection[str], *folders: str) -> str | None:
    for folder in folders:
        files = sorted(os.listdir(place / folder)) if (place / folder).is_dir() else []
        for file in files:
            if file[0] != "." and os.path.splitext(file)[1].lower() in suffixes:
                return f"{folder}/{file}"
    return None


def _official(table: Path) -> dict[str, Split]:
    """Train or test of every view, by its path from SUNRGBD/ on; empty without a table."""
    if not table.is_file():
        return {}
    try:
        lists = import_module("scipy.io").loadmat(table)
    except ImportError as error:
        raise PalimpsestError(
            f"{table} is a MATLAB file: pip install 'palimpsest[depth]' to read SUN RGB-D's official split, "
            "or move it away to have one drawn"
        ) from error
    except Exception as error:  # scipy raises what its parts do, on a damaged file
        raise PalimpsestError(f"{table} cannot be read: {error}") from error
    parts = {"alltrain": Split.TRAIN, "alltest": Split.TEST}
    if missing := parts.keys() - lists.keys():
        raise PalimpsestError(f"{table} has no {', '.join(sorted(missing))}")
    return {
        "SUNRGBD/" + str(cell.item()).partition("SUNRGBD/")[2].strip("/"): split
        for name, split in parts.items()
        for cell in lists[name].ravel()
    }
