"""Commands from nothing to shards: synthesize, source, ingest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.cli.common import SET_ASIDE, bars, with_lake

if TYPE_CHECKING:
    from pipelines.ingest import IngestSummary
    from store.lake import Lake

SECONDS = click.FloatRange(min=0)
NAMED = 20  # of recordings that failed; `palimpsest sql "FROM quarantine"` names all
NOTES = {
    "relabelled": "samples have another label, domain, arrival or split now",
    "duplicates": "recordings have the bytes of another one",
    "skipped": "recordings are in quarantine since earlier; --retry-quarantined tries them again",
    "arriving": "recordings are still arriving",
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
@click.option("--watch", is_flag=True, help="Go on taking recordings as they arrive, until SIGINT or SIGTERM.")
@click.option("--settle", "settle_s", type=SECONDS, metavar="S", help="Leave files that changed S seconds ago or less.")
@click.option("--every", "every_s", type=SECONDS, metavar="S", help="With --watch: look again after so long; 30.")
@with_lake
def ingest(
    lake: Lake,
    dataset: str,
    watch: bool,
    settle_s: float | None,
    every_s: float | None,
    retry_quarantined: bool,
    **options: Any,
) -> None:
    """Turn the recordings of DATASET, a recipe's name or its YAML file, into shards and catalog rows.

    What the lake holds already is skipped. Recordings that cannot be read go to quarantine with a reason while the
    others are ingested; the exit code is then 3.

    With --watch, files are taken as they finish arriving (unchanged for 10 seconds, unless --settle says otherwise);
    all that one look finds is an arrival, which a stream can order by. --settle alone looks once, for a scheduler.
    """
    from flows.ingest import ingest as run
    from flows.watch import stopped_by_signals
    from flows.watch import watch as run_watch

    if watch:
        click.echo("watching; Ctrl-C ends it after the batch that is under way", err=True)
        if retry_quarantined:
            raise click.UsageError("--watch would try what is in quarantine again and again: retry it without")
        with stopped_by_signals() as stop:
            run_watch(
                lake,
                dataset,
                stop=stop,
                settle_s=10.0 if settle_s is None else settle_s,
                every_s=30.0 if every_s is None else every_s,
                tell=_tell,
                complain=lambda message: click.echo(f"{message} (waiting)", err=True),
                **options,
            )
        return
    if every_s is not None:
        raise click.UsageError("--every needs --watch")
    with bars() as tell:
        summary = run(
            lake,
            dataset,
            retry_quarantined=retry_quarantined,
            settle_s=settle_s,
            progress=lambda done, total: tell("recordings" if total else "looking", done, total),
            **options,
        )
    _tell(summary)
    raise SystemExit(SET_ASIDE if summary.quarantined else 0)


def _tell(summary: IngestSummary) -> None:
    click.echo(
        f"{summary.dataset}: ingested {summary.recordings:,} recordings as {summary.samples:,} samples in "
        f"{summary.shards:,} shards; {summary.known:,} were there already"
    )
    for name, note in NOTES.items():
        if count := getattr(summary, name):
            click.echo(f"  {count:,} {note}")
    _name("quarantined", summary.quarantined)


@click.command(epilog="Example: palimpsest add samsemo recordings/samsemo/transcripts.csv")
@click.argument("dataset")
@click.argument("manifest", type=click.Path(path_type=Path, dir_okay=False))
@with_lake
def add(lake: Lake, dataset: str, manifest: Path) -> None:
    """Add tracks found later, such as transcripts or IMU, to samples of DATASET; nothing stored is rewritten.

    MANIFEST is a CSV: `recording` (its name, source path or id) and any of `audio`, `imu`, `image`, `depth` (paths
    relative to it), `imu_rate_hz`, `text` with `start_s` and `end_s`. What cannot be added is listed, and the exit
    code is then 3.
    """
    from pipelines.sidecar import add as run

    with bars() as tell:
        summary = run(lake, dataset, manifest, progress=lambda done, total: tell("recordings", done, total))
    click.echo(
        f"{dataset}: added to {summary.samples:,} samples of {summary.recordings:,} recordings, in "
        f"{summary.shards:,} sidecar shards"
    )
    _name("not added to", summary.refused)
    raise SystemExit(SET_ASIDE if summary.refused else 0)


def _name(what: str, faults: Iterable[tuple[str, str]]) -> None:
    faults = list(faults)
    for name, reason in faults[:NAMED]:
        told = f"  {what} {name}: {reason}"  # a file's name may hold what a terminal obeys
        click.echo("".join(c if c.isprintable() else repr(c)[1:-1] for c in told))
    if len(faults) > NAMED:
        click.echo(f"  and {len(faults) - NAMED:,} more; all that went to quarantine: palimpsest sql 'FROM quarantine'")
