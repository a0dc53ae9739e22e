"""A reader whose recordings can kill the process that decodes them: as often as a file beside them says."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from store.types import Modality, Recording, Track


class MortalTrack(Track):
    """An image; while ``NAME.kills`` holds a number above 0, reading it in a worker process counts down and kills."""

    __slots__ = ()

    def read(self, source: Path) -> bytes:
        kills = (source / str(self.path)).with_suffix(".kills")
        if multiprocessing.parent_process() and kills.exists() and (left := int(kills.read_text())):
            kills.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return Track.read(self, source)


@dataclass(frozen=True)
class Mortal:
    """The images of a folder."""

    name = "mortal"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """Each image as a recording."""
        for path in sorted(source.glob("*.png")):
            yield Recording(path.name, {Modality.IMAGE: MortalTrack(path.relative_to(source))}, labels=(path.stem,))
