"""Images in a folder a class, as ImageNet and ImageNet-R lie, with their splits as folders, as file lists, or drawn."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.media.stills import SUFFIXES
from pipelines.readers import draw_split
from pipelines.readers.splits import PARTS, split_of
from store.types import Modality, PalimpsestError, Recording, Track

_WORDNET = r"(n\d{8})\s+(.+)"
NAMES = {"classes.txt": r"([\w.-]+)\s+(.+)", "README.txt": _WORDNET, "LOC_synset_mapping.txt": _WORDNET}


@dataclass(frozen=True)
class ImageFolder:
    """``<class>/<image>``, or ``{train,val,test}/<class>/<image>``.

    Lists ``{train,val,test}.txt`` choose among the images: a path a line, and perhaps a number behind it. Without a
    test part, val is tested and a tenth of train held out; without any, 70 % of the images train, by hash. A class is
    called as its folder is, or as a line ``<folder> <name>`` of classes.txt says, or for WordNet ids one of README.txt
    or LOC_synset_mapping.txt.

    Attributes:
        domain: `none`, or `style` for what stands before the last _ of a file's name (ImageNet-R's renditions).
    """

    domain: str = "none"
    name = "image-folder"
    version = 1

    def __post_init__(self) -> None:
        if self.domain not in ("none", "style"):
            raise ValueError(f"domain is {self.domain!r}; it must be none or style")

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording an image, by part, class and name.

        Raises:
            PalimpsestError: there is neither a list nor a folder of a class.
        """
        names = class_names(source)
        lists = [part for part in PARTS if (source / f"{part}.txt").is_file()]
        parts = lists or [part for part in PARTS if (source / part).is_dir()]
        for part in parts or [""]:
            for path in _listed(source, part) if lists else _found(source, part):
                yield Recording(
                    path.as_posix(),
                    {Modality.IMAGE: Track(path)},
                    (),
                    labels=(names.get(path.parent.name, path.parent.name),),
                    domain=path.stem.rpartition("_")[0] or None if self.domain == "style" else None,
                    split=split_of(part, parts, path.as_posix()) if part else draw_split(path.as_posix()),
                )


def class_names(source: Path) -> dict[str, str]:
    """What folders are called, where a file of the data set says so; of two classes of one name each keeps both."""
    table = next((source / name for name in NAMES if (source / name).is_file()), None)
    lines = table.read_text(encoding="utf-8-sig", errors="replace").splitlines() if table else []
    found = [re.match(NAMES[table.name], line) for line in lines] if table else []
    called = {row[1]: row[2].strip() for row in found if row}
    taken = Counter(called.values())
    return {folder: name if taken[name] == 1 else f"{name} ({folder})" for folder, name in called.items()}


def _found(source: Path, part: str) -> Iterator[Path]:
    classes = sorted(entry.name for entry in os.scandir(source / part) if entry.is_dir() and entry.name[0] != ".")
    if not classes:
        raise PalimpsestError(f"{source / part} holds no folder of a class: images lie in <class>/<image>")
    for name in classes:
        for file in sorted(os.listdir(source / part / name)):
            if os.path.splitext(file)[1].lower() in SUFFIXES:
                yield Path(part, name, file)


def _listed(source: Path, part: str) -> Iterator[Path]:
    """The images of a list; of a path that begins elsewhere, class and name count."""
    with open(source / f"{part}.txt", encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not (row := re.sub(r"\s+\d+$", "", line.strip())):
                continue
            path = PurePosixPath(row)
            if len(path.parts) < 2 or ".." in path.parts:
                raise PalimpsestError(f"{file.name} line {number} is {row!r}; it must be a path <class>/<image>")
            if path.is_absolute() or not (source / path.parts[0]).is_dir():
                path = PurePosixPath(*(part,) * (source / part).is_dir(), *path.parts[-2:])
            yield Path(path)
