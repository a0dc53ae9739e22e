"""GRID sentences (Cooke, Barker, Cunningham & Shao 2006): one talking-head video a sentence, one clip a word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers import draw_split, require
from store.types import Clip, Modality, PalimpsestError, Recording, Track

TICKS = 25_000  # alignment units a second
SILENCE = {"sil", "sp"}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Grid:
    """`clips/*.mp4` (or .mpg) with `alignments/*.align`; sentences share a split, so no word's neighbour leaks.

    Attributes:
        words: `all`, or `digits` for the digit slot alone.
    """

    words: str = "all"
    name = "grid"
    version = 1

    def __post_init__(self) -> None:
        if self.words not in ("all", "digits"):
            raise ValueError(f"words is {self.words!r}; it must be all or digits")

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a sentence, in order of name.

        Raises:
            PalimpsestError: a folder is missing, or a line of an alignment cannot be understood.
        """
        alignments = require(source / "alignments", "a GRID folder holds clips/ and alignments/")
        videos = {path.stem: path for path in require(source / "clips", "GRID's videos").iterdir()}
        for alignment in sorted(alignments.glob("*.align")):
            name = alignment.stem
            video = videos.get(name, source / "clips" / f"{name}.mp4")
            clips = tuple(self._clips(alignment))
            tracks = {Modality.VIDEO: Track(video.relative_to(source))}
            yield Recording(name, tracks, clips, split=draw_split(name), group=name, language="en")

    def _clips(self, alignment: Path) -> Iterator[Clip]:
        for number, line in enumerate(alignment.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            try:
                start, end, word = line.split()
                clip = Clip(int(start) / TICKS, int(end) / TICKS, labels=(word,))
            except ValueError as error:
                raise PalimpsestError(f"{alignment} line {number} is {line!r}; it must be: start end word") from error
            if word not in SILENCE and (self.words == "all" or word in DIGITS):
                yield clip
