"""Commands from nothing to shards: synthesize, source, ingest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.cli.common import SET_ASIDE, bars, with_lake

if TYPE_CHECKING:
    from store.lake import Lake

NOTES = {
    "relabelled": "samples have another label, domain, arrival or split now",
    "duplicates": "recordings have the bytes of another one",
    "skipped": "recordings are in quarantine since earlier; --retry-quarantined tries them again",
}


@click.command(epilog="Example: palimpsest synthesize samsemo --out recordings/samsemo")
@click.argument("layout")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where to write it.")
@click.option("--seed", default=0, show_default=True, help="Every draw follows from it.")
@click.option("--size", default="small", show_default=True, help="tiny, small, medium, or a number of recordings.")
def synthesize(layout: str, out: Path, seed: int, size: str) -> None:
    """Write recordings of our own in an official LAYOUT, as samsemo."""
    from pipelines.synthesize import synthesize as write

    click.echo(write(layout, out, seed=seed, size=size))


@click.command(epilog="Example: palimpsest source samsemo recordings/samsemo")
@click.argument("dataset")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@with_lake
def source(lake: Lake, dataset: str, folder: Path) -> None:
    """Tell the lake once where the recordings of DATASET lie."""
    from flows.source import set_source

    set_source(lake, dataset, folder)
    click.echo(f"{dataset}: {folder.absolute()}")


@click.command(epilog="Example: palimpsest ingest samsemo --source recordings/samsemo")
@click.argument("dataset")
@click.option("--source", type=click.Path(path_type=Path), help="The recordings; default: as told to `source`.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that decode; default: one per core.")
@click.option("--limit", type=click.IntRange(min=1), help="Take only the first so many recordings.")
@click.option("--as", "as_name", metavar="NAME", help="Keep it under another name, such as for another format.")
@click.option("--retry-quarantined", is_flag=True, help="Try the recordings in quarantine again.")
@click.option("--shards", metavar="URL", help="Where shards go, such as s3://bucket/prefix; default: into the lake.")
@with_lake
def ingest(
    lake: Lake,
    dataset: str,
    source: Path | None,
    workers: int | None,
    limit: int | None,
    as_name: str | None,
    retry_quarantined: bool,
    shards: str | None,
) -> None:
    """Turn the recordings of DATASET, a recipe's name or its YAML file, into shards and catalog rows.

    What the lake holds already is skipped. Recordings that cannot be read go to quarantine with a reason while the
    others are ingested; the exit code is then 3.
    """
    from flows.ingest import ingest as run

    with bars() as tell:
        summary = run(
            lake,
            dataset,
            source=source,
            workers=workers,
            limit=limit,
            as_name=as_name,
            retry_quarantined=retry_quarantined,
            shards=shards,
            progress=lambda done, total: tell("recordings", done, total),
        )
    click.echo(
        f"{summary.dataset}: ingested {summary.recordings:,} recordings as {summary.samples:,} samples in "
        f"{summary.shards:,} shards; {summary.known:,} were there already"
    )
    for name in ("relabelled", "duplicates", "skipped"):
        if count := getattr(summary, name):
            click.echo(f"  {count:,} {NOTES[name]}")
    for name, reason in summary.quarantined:
        click.echo(f"  quarantined {name}: {reason}")
    raise SystemExit(SET_ASIDE if summary.quarantined else 0)
