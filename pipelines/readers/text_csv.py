"""Texts to classify in the CSV form of AG News, Yelp, DBpedia, Yahoo and Amazon."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers import require
from pipelines.readers.splits import split_of
from pipelines.readers.tables import rows
from store.types import Modality, PalimpsestError, Recording, Track


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

        Raises:
            PalimpsestError: a table is missing, or a row has no such label or no text.
        """
        listed = source / "classes.txt"
        classes = listed.read_text(encoding="utf-8-sig").splitlines() if listed.is_file() else []
        for part in ("train", "test"):
            table = require(source / f"{part}.csv", 'rows of "label","title","text" are expected there')
            for number, (label, *fields) in rows(table):
                known = label.isdecimal() and 0 < int(label) <= (len(classes) or int(label))
                text = "\n".join(field.strip() for field in fields if field.strip()).replace("\\n", "\n")
                if not known or not text:
                    wanted = f"a label from 1 to {len(classes)}" if classes else "a label from 1 on"
                    raise PalimpsestError(f"{table} line {number} needs {wanted} (now {label[:40]!r}) and a text")
                name = f"{part} line {number}"
                yield Recording(
                    name,
                    {Modality.TEXT: Track(text=text)},
                    (),
                    labels=(classes[int(label) - 1] if classes else label,),
                    split=split_of(part, ("train", "test"), name),
                    language=self.language,
                )
