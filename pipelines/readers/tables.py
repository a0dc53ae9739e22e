"""Tables of text, read row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from store.types import PalimpsestError


def rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not blank, each with the line it ends in; what is no UTF-8 is replaced.

    Raises:
        PalimpsestError: a cell is beyond all bounds; the message names its line.
    """
    with open(table, encoding="utf-8-sig", errors="replace", newline="") as file:
        found = csv.reader(file)
        try:
            yield from ((found.line_num, row) for row in found if row)
        except csv.Error as error:
            raise PalimpsestError(f"{table} line {found.line_num} cannot be read: {error}") from error
