"""A data set's layout on disk, one file a data set: each reader yields recordings and touches no media."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from store.types import PalimpsestError, Recording, Split


class Reader(Protocol):
    """What every reader offers; its dataclass fields are the parameters a recipe may set."""

    @property
    def name(self) -> str:
        """What recipes call it."""

    @property
    def version(self) -> int:
        """Raised when the same files would be read differently."""

    def recordings(self, source: Path) -> Iterator[Recording]:
        """The recordings below `source`, always in the same order."""


READERS = {
    "arabic-digits": "pipelines.readers.digit_sets:ArabicDigits",
    "ave": "pipelines.readers.ave:Ave",
    "digits": "pipelines.readers.digits:Digits",
    "digits-speakers": "pipelines.readers.speakers:DigitsSpeakers",
    "esc50": "pipelines.readers.esc50:Esc50",
    "folder": "pipelines.readers.folder:Folder",
    "fsdd": "pipelines.readers.digit_sets:Fsdd",
    "grid": "pipelines.readers.grid:Grid",
    "image-folder": "pipelines.readers.image_folder:ImageFolder",
    "imu-digits": "pipelines.readers.digit_sets:ImuDigits",
    "kinetics": "pipelines.readers.clips_csv:Kinetics",
    "mnist": "pipelines.readers.digit_sets:Mnist",
    "modalities": "pipelines.readers.modalities:Modalities",
    "nyu-depth": "pipelines.readers.nyu_depth:NyuDepth",
    "samsemo": "pipelines.readers.samsemo:Samsemo",
    "sun-rgbd": "pipelines.readers.sun_rgbd:SunRgbd",
    "text-csv": "pipelines.readers.text_csv:TextCsv",
    "ucf101": "pipelines.readers.ucf101:Ucf101",
    "uestc-mmea": "pipelines.readers.uestc_mmea:UestcMmea",
    "vggsound": "pipelines.readers.clips_csv:VggSound",
    "xed": "pipelines.readers.xed:Xed",
}


def reader(name: str, /, **parameters: Any) -> Reader:
    """The reader called `name`, imported on first use.

    Raises:
        PalimpsestError: there is no such reader, or it takes no such parameter.
    """
    if name not in READERS:
        raise PalimpsestError(f"no reader is called {name!r}; there are {', '.join(READERS)}")
    module, kind = READERS[name].split(":")
    try:
        made: Reader = getattr(import_module(module), kind)(**parameters)
    except (TypeError, ValueError) as error:
        raise PalimpsestError(f"reader {name}: {error}") from error
    return made


def draw_split(group: str, *, train: float = 0.7, val: float = 0.1) -> Split:
    """The split of everything that belongs to `group`: by its hash, so it never depends on what else is there."""
    place = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32
    return Split.TRAIN if place < train else Split.VAL if place < train + val else Split.TEST


def require(path: Path, what: str) -> Path:
    """`path`, which must be there.

    Raises:
        PalimpsestError: it is not.
    """
    if not path.exists():
        raise PalimpsestError(f"no {path.name} in {path.parent}: {what}")
    return path
