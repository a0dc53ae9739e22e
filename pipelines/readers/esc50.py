"""ESC-50: environmental sounds of five seconds, fifty classes, in five folds that share no source recording."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.readers import require
from pipelines.readers.tables import rows
from store.types import Modality, PalimpsestError, Recording, Split, Track

COLUMNS = ("filename", "fold", "category", "esc10", "src_file")


@dataclass(frozen=True)
class Esc50:
    """``meta/esc50.csv`` with ``audio/``.

    Attributes:
        fold: what is tested, 1 to 5; the fold behind it, or the first behind the last, is val, the others train.
        esc10: the ten classes of ESC-10 alone.
    """

    fold: int = 5
    esc10: bool = False
    name = "esc50"
    version = 1

    def __post_init__(self) -> None:
        if self.fold not in range(1, 6):
            raise ValueError(f"fold is {self.fold!r}; it must be 1 to 5")

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a sound, in the order of the table.

        Raises:
            PalimpsestError: the table or one of its columns is missing, or a row lacks a cell.
        """
        splits = {str(self.fold): Split.TEST, str(self.fold % 5 + 1): Split.VAL}
        table = require(source / "meta" / "esc50.csv", "ESC-50's table")
        header: list[str] = []
        for number, cells in rows(table):
            if not header:
                header = cells
                if missing := [column for column in COLUMNS if column not in header]:
                    raise PalimpsestError(f"{table} has no column {', '.join(missing)}")
                continue
            row = dict.fromkeys(header, "") | dict(zip(header, cells, strict=False))
            path = PurePosixPath(row["filename"])
            if len(path.parts) != 1 or row["fold"] not in ("1", "2", "3", "4", "5") or not row["category"]:
                raise PalimpsestError(f"{table} line {number} must name a file, one of the folds 1-5 and a category")
            if row["esc10"] == "True" or not self.esc10:
                yield Recording(
                    path.stem,
                    {Modality.AUDIO: Track(Path("audio", path))},
                    (),
                    labels=(row["category"],),
                    split=splits.get(row["fold"], Split.TRAIN),
                    group=row["src_file"],
                )
