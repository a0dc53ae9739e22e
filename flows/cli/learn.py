"""Commands of the learner: update, evaluate, predict, pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.cli.common import FORMATS, SET_ASIDE, bars, show, with_lake

if TYPE_CHECKING:
    from store.lake import Lake


@click.command()
@click.argument("stream")
@click.option("--method", help="Another method than the recipe's, such as finetune; then a trial, never promoted.")
@click.option("--seed", default=0, show_default=True, help="Of initialisation and sample order.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe; then a trial.")
@click.option("--retry", is_flag=True, help="Try again a task that the gate refused.")
@with_lake
def update(lake: Lake, stream: str, method: str | None, seed: int, overrides: tuple[str, ...], retry: bool) -> None:
    """Learn what is new in STREAM and measure what is kept.

    The gate then promotes or refuses. Killed and started again, it goes on where it was.
    """
    from flows.update import update as run

    with bars() as tell:
        summary = run(lake, stream, method=method, seed=seed, overrides=overrides, retry=retry, progress=tell)
    learned = ", ".join(summary.learned) or "nothing new"
    click.echo(f"{summary.stream}: learned {learned}; run {summary.run_id}, {summary.tasks} tasks so far")
    for snapshot in summary.promoted:
        click.echo(f"  promoted {snapshot}")
    for reason in summary.refused:
        click.echo(f"  refused {reason}")
    raise SystemExit(SET_ASIDE if summary.refused else 0)


@click.command()
@click.argument("stream")
@click.option("--method", help="Another method than the recipe's.")
@click.option("--seed", default=0, show_default=True)
@with_lake
def evaluate(lake: Lake, stream: str, method: str | None, seed: int) -> None:
    """Measure the latest snapshot on every task of STREAM again."""
    from flows.update import evaluate as run

    click.echo(run(lake, stream, method=method, seed=seed))


@click.command()
@click.argument("stream")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--start", type=float, metavar="S", help="Seconds from the recording's start.")
@click.option("--end", type=float, metavar="S")
@click.option("--manifest", type=click.Path(path_type=Path), help="A CSV of recordings, as `ingest folder` reads it.")
@click.option("--format", "form", type=FORMATS, default="table", show_default=True)
@with_lake
def predict(
    lake: Lake,
    stream: str,
    files: tuple[Path, ...],
    start: float | None,
    end: float | None,
    manifest: Path | None,
    form: str,
) -> None:
    """Label FILES with the champion of STREAM.

    Prints label, confidence, and the nearest anchors with the recordings they come from.
    """
    if not files and manifest is None:
        raise click.UsageError("nothing to label: name one or more files, or a --manifest")
    from flows.predict import predict as run

    rows = run(lake, stream, files, start=start, end=end, manifest=manifest)
    show(list(rows[0]) if rows else [], rows, form)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Where the weights go; default: the lake's backbones.")
@click.option("--seed", default=0, show_default=True)
@with_lake
def pretrain(lake: Lake, out: Path | None, seed: int) -> None:
    """Pre-train the tiny backbones on synthesised recordings."""
    from flows.pretrain import pretrain as run

    click.echo(run(lake, out=out, seed=seed))
