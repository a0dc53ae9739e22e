"""What several commands share: the lake they work on, progress bars, and printing rows."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from store.lake import Lake

FORMATS = click.Choice(["table", "csv", "json"])
SET_ASIDE = 3  # exit code: done, but recordings went to quarantine, or the gate refused a task


def with_lake(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the lake as its first argument; its --lake and --debug go before those of `palimpsest` itself."""

    @click.option("--lake", "lake_folder", metavar="DIR", hidden=True)
    @click.option("--debug", is_flag=True, hidden=True)
    @click.pass_context
    @functools.wraps(function)
    def command(ctx: click.Context, /, *, lake_folder: str | None, debug: bool, **arguments: Any) -> None:
        from pathlib import Path

        from store.lake import Lake

        ctx.meta["debug"] = debug
        function(Lake(Path(lake_folder or ctx.find_root().params["lake"])), **arguments)

    return command


def with_existing_lake(function: Callable[..., None]) -> Callable[..., None]:
    """`with_lake` for a command that only makes sense on a lake that is there, and must not make one by mistake."""

    @functools.wraps(function)
    def on_existing(lake: Lake, **arguments: Any) -> None:
        require(lake)
        function(lake, **arguments)

    return with_lake(on_existing)


def require(lake: Lake) -> None:
    """Refuse to go on where there is no lake."""
    if not lake.ledger.is_dir():
        raise click.ClickException(
            f"there is no lake in {lake.root}: name one with --lake or PALIMPSEST_LAKE, or begin one with "
            "`palimpsest ingest` or `palimpsest demo`"
        )


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on a terminal's stderr: the block calls ``tell(what, done, total)``, and each `what` gets a bar.

    A total of 0 is one that is not known yet.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        names: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in names:
                names[what] = progress.add_task(what, total=total or None)
            progress.update(names[what], completed=done, total=total or None)

        yield tell


def show(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], form: str = "table") -> None:
    """Print `rows` as an aligned table, as CSV with a header line, or as a JSON list of objects."""
    if form == "json":
        import json

        click.echo(json.dumps(rows, default=_plain, ensure_ascii=False, indent=2))
    elif form == "csv":
        import csv

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row[name] for name in columns] for row in rows)
    else:
        cells = [list(columns), *([_cell(row[name]) for name in columns] for row in rows)]
        widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
        cells.insert(1, ["-" * width for width in widths])
        for line in cells:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _plain(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else str(value)


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case float() | Decimal():
            return f"{value:.4g}"
        case list():
            return ";".join(map(str, value))
        case _:
            return str(value)
