"""Texts to classify in the CSV form of AG News, Yelp, DBpedia, Yahoo and Amazon."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.readers import require
from pipelines.readers.splits import split_of
from pipelines.readers.tables import rows, understood
from store.types import Modality, Recording, Track


@dataclass(frozen=True)
class TextCsv:
    r"""``train.csv`` and ``test.csv``: quoted, no header, ``"label","field","field" ...``, and ``classes.txt``.

    Labels count from 1 and are lines of classes.txt, or call themselves where it is absent; a line break is written
    ``\n``. Fields become one text, a line each. A tenth of train.csv is held out as val.

    Attributes:
        language: of the texts.
    """

    language: str = "en"
    name = "text-csv"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a row, those of train.csv first.

        A row without such a label or without a text has a `fault`.

        Raises:
            PalimpsestError: a table is missing, or its first row is none of these.
        """
        listed = source / "classes.txt"
        classes = listed.read_text(encoding="utf-8-sig", errors="replace").splitlines() if listed.is_file() else []
        wanted = f"a label from 1 {f'to {len(classes)}' if classes else 'on'} and a text"
        for part in ("train", "test"):
            table = require(source / f"{part}.csv", 'rows of "label","title","text" are expected there')
            yield from understood(table, rows(table), partial(self._recording, part, classes), wanted)

    def _recording(self, part: str, classes: Sequence[str], number: int, row: list[str]) -> Recording:
        label, *fields = row
        text = "\n".join(field.strip() for field in fields if field.strip()).replace("\\n", "\n")
        if not label.isdecimal() or not 0 < int(label) <= (len(classes) or int(label)) or not text:
            raise ValueError
        name = f"{part} line {number}"
        return Recording(
            name,
            {Modality.TEXT: Track(text=text)},
            (),
            labels=(classes[int(label) - 1] if classes else label,),
            split=split_of(part, ("train", "test"), name),
            language=self.language,
        )
