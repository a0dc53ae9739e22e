"""Commands that read results: report, sql, catalog."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.cli.common import FORMATS, require, show, with_existing_lake, with_lake

if TYPE_CHECKING:
    from store.lake import Lake


@click.command(epilog="Example: palimpsest report samsemo --out samsemo.html")
@click.argument("stream")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Default: into the lake's reports.")
@with_existing_lake
def report(lake: Lake, stream: str, out: Path | None) -> None:
    """Write the report of STREAM, one HTML file: matrix, curves, experts, and the SQL behind each figure."""
    from flows.report import report as write

    click.echo(write(lake, stream, out=out))


@click.command(epilog="Example: palimpsest sql 'FROM stream_summary' --format csv")
@click.argument("query", required=False)
@click.option("--format", "form", type=FORMATS, default="table", show_default=True)
@click.option("--examples", is_flag=True, help="Print useful queries and end.")
@with_lake
def sql(lake: Lake, query: str | None, form: str, examples: bool) -> None:
    """Ask the lake by SQL; any number of sessions at once."""
    if examples:
        click.echo(Path(__file__).with_name("examples.sql").read_text().rstrip())
        return
    if not query:
        raise click.UsageError("no query; `palimpsest sql --examples` prints some")
    require(lake)
    import duckdb

    from store.ledger import Ledger

    try:
        answer = Ledger(lake).query(query)
    except duckdb.Error as error:
        raise click.ClickException(str(error)) from error
    show(answer.column_names, answer.to_pylist(), form)


@click.command(epilog="Example: palimpsest catalog, then: duckdb lake/catalog.duckdb 'FROM task_accuracy'")
@with_existing_lake
def catalog(lake: Lake) -> None:
    """Write the lake's catalog.duckdb, for any DuckDB client."""
    from store.catalog import write_catalog

    click.echo(write_catalog(lake))
