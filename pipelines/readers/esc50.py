"""ESC-50: environmental sounds of five seconds, fifty classes, in five folds that share no source recording."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.readers import require
from pipelines.readers.tables import named_rows, understood
from store.types import Modality, Recording, Split, Track

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
        """One recording a sound, in the order of the table; a row that lacks a cell has a `fault`.

        Raises:
            PalimpsestError: the table or one of its columns is missing.
        """
        table = require(source / "meta" / "esc50.csv", "ESC-50's table")
        wanted = "a file, one of the folds 1-5 and a category"
        yield from understood(table, named_rows(table, COLUMNS), self._recording, wanted, headed=True)

    def _recording(self, _: int, row: dict[str, str]) -> Recording | None:
        name, fold, category, esc10, group = (row.get(column, "") for column in COLUMNS)
        path = PurePosixPath(name)
        if len(path.parts) != 1 or fold not in ("1", "2", "3", "4", "5") or not category:
            raise ValueError
        if self.esc10 and esc10 != "True":
            return None
        return Recording(
            path.stem,
            {Modality.AUDIO: Track(Path("audio", path))},
            (),
            labels=(category,),
            split={self.fold: Split.TEST, self.fold % 5 + 1: Split.VAL}.get(int(fold), Split.TRAIN),
            group=group,
        )
