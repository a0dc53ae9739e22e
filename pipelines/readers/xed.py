"""XED: film subtitles with Plutchik's eight emotions, in many languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers import require
from pipelines.readers.digits import block_split
from store.types import Modality, Recording, Track

EMOTIONS = ("neutral", "anger", "anticipation", "disgust", "fear", "joy", "sadness", "surprise", "trust")
PARTS = {"projections": ("Projections", "projections"), "annotated": ("AnnotatedData", "annotated")}
CHOICES = ("all", "first", "single")


@dataclass(frozen=True)
class Xed:
    """``Projections/<language>-projections.tsv``, ``AnnotatedData/<language>-annotated.tsv``: sentence, tab, labels.

    Lines whose labels are no numbers from 0 to 8 are left out, and so is a sentence that came before, in whatever
    language. A language's domain is its code; its lines are split in blocks, 70 % train, 10 % val, 20 % test. The
    projections translate the same films, in an order of their own a language: what is tested in one may train another.

    Attributes:
        emotions: `all` of a line's labels, the `first` of them, or only lines with a `single` one.
        part: `projections`, or what was `annotated` by hand (English and Finnish).
        languages: codes as in the names of the tables; empty for all there are.
    """

    emotions: str = "all"
    part: str = "projections"
    languages: tuple[str, ...] = ()
    name = "xed"
    version = 1

    def __post_init__(self) -> None:
        if self.emotions not in CHOICES or self.part not in PARTS:
            raise ValueError(
                f"emotions is {self.emotions!r} and part {self.part!r}; they must be one of "
                f"{', '.join(CHOICES)} and one of {', '.join(PARTS)}"
            )
        if isinstance(self.languages, str):
            raise ValueError(f"languages is {self.languages!r}; it must be a list, such as [{self.languages}]")
        object.__setattr__(self, "languages", tuple(sorted(self.languages)))  # a recipe gives a list

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a sentence, by language and line.

        Raises:
            PalimpsestError: there is no such folder, or no table of one of the languages.
        """
        folder, ending = PARTS[self.part]
        tables = sorted(require(source / folder, "XED's tables").glob(f"*-{ending}.tsv"))
        for language in self.languages or [path.name.removesuffix(f"-{ending}.tsv") for path in tables]:
            path = require(source / folder / f"{language}-{ending}.tsv", "the recipe names its language")
            rows = [row for row in _rows(path) if self.emotions != "single" or len(row[2]) == 1]
            for place, (number, sentence, labels) in enumerate(rows):
                yield Recording(
                    f"{language} line {number}",
                    {Modality.TEXT: Track(text=sentence)},
                    (),
                    labels=labels[:1] if self.emotions == "first" else labels,
                    domain=language.upper(),
                    split=block_split(place, len(rows)),
                    language=language,
                )


def _rows(path: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    """Line, sentence and emotions of what is one sentence with its labels."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").split("\n"), start=1):
        sentence, tab, labels = line.rstrip("\r").partition("\t")
        if tab and sentence.strip() and re.fullmatch(r"[0-8](\s*,\s*[0-8])*\s*", labels):
            found.append((number, sentence.strip(), tuple(EMOTIONS[int(digit)] for digit in re.findall(r"\d", labels))))
    return found
