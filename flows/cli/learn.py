"""Commands of the learner: update, compare, evaluate, predict, similar, pretrain."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.cli.common import FORMATS, SET_ASIDE, bars, show, with_existing_lake

if TYPE_CHECKING:
    from store.lake import Lake

FIGURES = """
    SELECT protocol, average_accuracy, last_accuracy, forgetting, bwt, tasks FROM stream_summary
    WHERE run_id = ? AND split = 'test' AND modalities = 'all' ORDER BY protocol"""
MEASURED = ("split", "protocol", "modalities", "step_accuracy", "new_accuracy", "forgetting", "bwt")


@click.command(epilog="Example: palimpsest update samsemo --method finetune --seed 1 --set learner.epochs=3")
@click.argument("stream")
@click.option("--method", help="Another method than the recipe's, such as finetune; then a trial, never promoted.")
@click.option("--seed", default=0, show_default=True, help="Of initialisation and sample order.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe; then a trial.")
@click.option("--retry", is_flag=True, help="Judge a task again that the gate refused.")
@click.option("--workers", default=1, show_default=True, help="Threads that read and decode ahead.")
@with_existing_lake
def update(
    lake: Lake, stream: str, method: str | None, seed: int, overrides: tuple[str, ...], retry: bool, workers: int
) -> None:
    """Learn what is new in STREAM, a recipe's name or its YAML file, and measure what is kept.

    The gate then promotes or refuses. Killed and started again, it goes on where it was. Several processes share the
    work under torchrun: `torchrun --nproc-per-node 2 --no-python palimpsest update samsemo`.
    """
    from flows.update import update as run
    from store.ledger import Ledger

    with bars() as tell:
        summary = run(
            lake, stream, method=method, seed=seed, overrides=overrides, retry=retry, workers=workers, progress=tell
        )
    if int(os.environ.get("RANK", "0")):
        return  # the first of torchrun's processes tells
    news = [("learned", ", ".join(summary.learned) or f"nothing new; {summary.tasks} tasks so far")]
    news += [("promoted", snapshot) for snapshot in summary.promoted]
    news += [("refused", reason) for reason in summary.refused]
    news += [("skipped", reason) for reason in summary.damaged.values()]
    for what, which in [("run", summary.run_id), *news]:
        click.echo(f"{what:8}  {which}")
    figures = Ledger(lake).query(FIGURES, [summary.run_id])
    click.echo()
    show(figures.column_names, figures.to_pylist())
    raise SystemExit(SET_ASIDE if summary.refused or summary.damaged else 0)


@click.command(epilog="Example: palimpsest compare samsemo --methods crossmodal-moe,er,slda --memory 0,200 --workers 2")
@click.argument("stream")
@click.option("--methods", default="", metavar="A,B", help="Default: all there are.")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each, seeds 0, 1 ...")
@click.option("--memory", "memories", default="", metavar="N,N", help="Exemplars in all; default: the recipe's.")
@click.option("--against", metavar="METHOD", help="Hold the others against this one; default: the recipe's.")
@click.option("--protocol", metavar="NAME", help="Whose answers: classifier, agnostic, retrieval or task-aware.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Trials at once.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe, for every trial.")
@click.option("--format", "form", type=FORMATS, default="table", show_default=True)
@with_existing_lake
def compare(
    lake: Lake,
    stream: str,
    methods: str,
    seeds: int,
    memories: str,
    against: str | None,
    protocol: str | None,
    workers: int,
    overrides: tuple[str, ...],
    form: str,
) -> None:
    """Run methods side by side on STREAM, over several seeds, and show one table.

    All are trials, never promoted. What the ledger holds is not run again; killed and started again, it goes on.
    Figures are of the test split, mean ± standard deviation over seeds; the difference is in average accuracy from
    the method held against, with its 95 % bootstrap interval over recordings. `--set learner.baselines.ewc.penalty=10`
    is a setting of one method, `learner.params` those of the recipe's own.
    """
    from flows.compare import TrialsFailedError
    from flows.compare import compare as run

    def tell_all(rows: list[dict[str, Any]]) -> None:
        shown = [_compared(row) for row in rows] if form == "table" else rows
        show(list(shown[0]), shown, form)

    try:
        counts = [int(number) for number in _listed(memories)]
    except ValueError as error:
        raise click.BadParameter(f"{memories!r} is no list of numbers such as 0,200", param_hint="--memory") from error
    try:
        with bars() as tell:
            rows = run(
                lake,
                stream,
                methods=_listed(methods),
                seeds=seeds,
                memories=counts,
                against=against,
                protocol=protocol,
                overrides=overrides,
                workers=workers,
                progress=tell,
            )
    except TrialsFailedError as error:
        tell_all(error.table)
        raise
    tell_all(rows)


def _listed(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _compared(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the comparison for people."""

    def spread(name: str) -> str:
        mean, sd = row[name], row[f"{name}_sd"]
        return "" if mean is None else f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"

    apart = row["difference"]
    return {
        **{name: row[name] for name in ("method", "memory", "seeds")},
        "average": spread("average_accuracy"),
        "last": spread("last_accuracy"),
        "forgetting": spread("forgetting"),
        "bwt": spread("bwt"),
        "bytes": None if row["memory_bytes"] is None else round(row["memory_bytes"]),
        "trained": None if row["trained_parameters"] is None else round(row["trained_parameters"]),
        "seconds": row["seconds"],
        "difference": "" if apart is None else f"{apart:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
        "note": row["note"],
    }


@click.command(epilog="Example: palimpsest evaluate samsemo --method finetune")
@click.argument("stream")
@click.option("--method", help="Of another method than the recipe's.")
@click.option("--seed", default=0, show_default=True, help="Of the run.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Of the run with these settings.")
@click.option("--format", "form", type=FORMATS, default="table", show_default=True)
@with_existing_lake
def evaluate(lake: Lake, stream: str, method: str | None, seed: int, overrides: tuple[str, ...], form: str) -> None:
    """Measure the latest snapshot of STREAM again on every task learned, with the labels of today."""
    from flows.update import evaluate as run

    with bars() as tell:
        found = run(lake, stream, method=method, seed=seed, overrides=overrides, progress=tell)
    rows = sorted(found.rows, key=lambda row: (row["split"] != "test", row["protocol"], row["modalities"]))
    show(MEASURED, [{name: row[name] for name in MEASURED} for row in rows], form)
    for reason in found.damaged.values():
        click.echo(f"skipped   {reason}", err=True)
    raise SystemExit(SET_ASIDE if found.damaged else 0)


@click.command(epilog="Example: palimpsest predict samsemo recordings/one.mp4 --start 1.5 --end 4")
@click.argument("stream")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--start", type=float, metavar="S", help="Seconds from the recording's start.")
@click.option("--end", type=float, metavar="S", help="Without times, a window after the other.")
@click.option("--manifest", type=click.Path(path_type=Path), help="A CSV of recordings, as `ingest folder` reads it.")
@click.option(
    "--names", default="", metavar="A,B", help="Choose among these instead, met or not; by methods that read."
)
@click.option("--format", "form", type=FORMATS, default="table", show_default=True)
@with_existing_lake
def predict(
    lake: Lake,
    stream: str,
    files: tuple[Path, ...],
    start: float | None,
    end: float | None,
    manifest: Path | None,
    names: str,
    form: str,
) -> None:
    """Label FILES with the champion of STREAM.

    Prints label, confidence, how novel it is, and the nearest anchors with the recordings they come from. Where too
    much of it is like nothing that was learnt, a sentence on stderr says so.
    """
    if not files and manifest is None:
        raise click.UsageError("nothing to label: name one or more files, or a --manifest")
    from flows.predict import doubt
    from flows.predict import predict as run

    rows = run(lake, stream, files, start=start, end=end, manifest=manifest, names=_listed(names))
    show(list(rows[0]) if rows else [], rows, form)
    if doubted := doubt(rows):
        click.echo(doubted, err=True)


@click.command(epilog="Example: palimpsest similar samsemo recordings/one.mp4 --by audio --count 3")
@click.argument("stream")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--start", type=float, metavar="S", help="Seconds from the recording's start.")
@click.option("--end", type=float, metavar="S", help="Without times, a window after the other.")
@click.option("--by", metavar="WHAT", help="audio, or 'audio>video': sound asks for pictures. Default: all there is.")
@click.option("--count", type=click.IntRange(min=1), default=5, show_default=True, help="Recordings to show.")
@click.option("--format", "form", type=FORMATS, default="table", show_default=True)
@with_existing_lake
def similar(
    lake: Lake,
    stream: str,
    file: Path,
    start: float | None,
    end: float | None,
    by: str | None,
    count: int,
    form: str,
) -> None:
    """Find the recordings most like FILE among what the champion of STREAM remembers."""
    from flows.similar import similar as run

    rows = run(lake, stream, file, start=start, end=end, by=by, count=count)
    show(list(rows[0]) if rows else [], rows, form)


@click.command(epilog="Example: palimpsest pretrain corpus --out weights")
@click.argument("dataset", default="corpus")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Default: the lake's own backbones.")
@click.option("--steps", default=600, show_default=True, help="Optimiser steps for each backbone.")
@click.option("--seed", default=0, show_default=True, help="The same one on the same shards gives the same weights.")
@with_existing_lake
def pretrain(lake: Lake, dataset: str, out: Path | None, steps: int, seed: int) -> None:
    """Pre-train the tiny backbones on the recordings of DATASET; no label is read."""
    from flows.pretrain import pretrain as run

    with bars() as tell:
        written = run(lake, dataset, out=out, steps=steps, seed=seed, progress=tell)
    click.echo("\n".join(map(str, written)))
