"""Tables of text, read row by row; a row that cannot be understood loses no other."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from store.types import PalimpsestError, Recording

Row = TypeVar("Row")
Found = TypeVar("Found")
MAX_SHOWN = 120  # characters of a row in a message


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not blank, stripped, each with its number; what is no UTF-8 is replaced."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        yield from ((number, line.strip()) for number, line in enumerate(file, start=1) if line.strip())


def rows(table: Path, **dialect: Any) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not blank, each with the line it ends in; what is no UTF-8 is replaced.

    A line with a cell beyond all bounds is a row without cells.

    Raises:
        PalimpsestError: a quote opens that never closes; the message names its line.
    """
    with open(table, encoding="utf-8-sig", errors="replace", newline="") as file:
        found = csv.reader(file, **dialect)
        while True:
            line = found.line_num + 1
            try:
                row = next(found, None)
            except csv.Error as error:
                if found.line_num > line:
                    raise PalimpsestError(f"{table} line {line}: a quote opens that never closes") from error
                yield line, []
                continue
            if row is None:
                return
            if row:
                yield found.line_num, row


def named_rows(table: Path, columns: Collection[str], **dialect: Any) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows below a header, cells by column, those that a row lacks empty; a row beyond all bounds is empty.

    Raises:
        PalimpsestError: one of `columns` is missing, or a quote opens that never closes.
    """
    found = rows(table, **dialect)
    _, header = next(found, (0, []))
    if missing := [column for column in columns if column not in header]:
        raise PalimpsestError(f"{table} has no column {', '.join(missing)}")
    bare = dict.fromkeys(header, "")
    for number, cells in found:
        yield number, bare | dict(zip(header, cells, strict=False)) if cells else {}


def understood(
    table: Path,
    found: Iterable[tuple[int, Row]],
    read: Callable[[int, Row], Found | None],
    wanted: str,
    *,
    headed: bool = False,
) -> Iterator[Found | Recording]:
    """What `read` makes of every row, None left out; a recording with a `fault` stands for one that it refuses.

    Args:
        table: where the rows are from.
        found: rows with their lines.
        read: takes line and row; a ValueError or OverflowError refuses it.
        wanted: what a row must be, for the message.
        headed: a header was there, so that even the first row may be wrong.

    Raises:
        PalimpsestError: the first row is refused, and no header says that this is the table it should be.
    """
    for number, row in found:
        try:
            one = read(number, row)
        except (ValueError, OverflowError) as error:
            what = repr(row)[:MAX_SHOWN] if row else "too long"
            if not headed:
                raise PalimpsestError(f"{table} line {number} is {what}; it must be {wanted}") from error
            name = f"{table.name} line {number}"
            yield Recording(name, {}, fault=f"{name} is {what}; it must be {wanted}")
            continue
        headed = True
        if one is not None:
            yield one
