"""The whole loop on recordings made on the spot: five languages, learnt one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable

from flows.ingest import ingest
from flows.update import update
from pipelines.synthesize import synthesize
from store.lake import Lake
from store.ledger import Ledger
from store.types import PalimpsestError

STREAM = "samsemo"
Progress = Callable[[str, int, int], None]


def demo(
    lake: Lake,
    *,
    size: str = "small",
    say: Callable[[str], None] = print,
    progress: Progress = lambda what, done, total: None,
) -> None:
    """Synthesise a small SAMSEMO, ingest it, learn it with and without protection against forgetting, and show it.

    Everything lies in the lake; a second run finds it done.

    Args:
        lake: where to.
        size: of the data set, as `palimpsest synthesize` takes it.
        say: takes the lines for people.
        progress: told what goes on, how far it is and how far it will go.

    Raises:
        PalimpsestError: the lake holds the real data set.
    """
    recordings = lake.root / "recordings" / STREAM
    held = Ledger(lake).rows("SELECT source FROM datasets WHERE dataset = ? AND source IS NOT NULL", [STREAM])
    if held and held[0]["source"] != str(recordings):
        raise PalimpsestError(
            f"{lake.root} holds {STREAM} recordings of your own: give the demo another, `palimpsest --lake DIR demo`"
        )
    say(f"1  recordings in five languages -> {recordings}")
    if not recordings.exists():
        synthesize(STREAM, recordings, size=size, workers=len(os.sched_getaffinity(0)))
    say("2  recordings -> shards and catalog rows")
    summary = ingest(lake, STREAM, source=recordings, progress=lambda done, total: progress("ingest", done, total))
    say(f"   {summary.samples} samples in {summary.shards} shards, {len(summary.quarantined)} recordings in quarantine")
    say("3  one language after the other: cross-modality experts, then plain fine-tuning beside them")
    ours = update(lake, STREAM, progress=progress)
    plain = update(lake, STREAM, method="finetune", progress=progress)
    ledger = Ledger(lake)
    for run in (ours, plain):
        _show(ledger, run.run_id, say)
    where = "" if str(lake.root) == os.path.abspath("lake") else f" --lake {lake.root}"
    say("\nNext:")
    say(f"   palimpsest{where} sql 'from task_accuracy'      every accuracy, by SQL (or: duckdb {lake.catalog})")
    say(f"   palimpsest{where} report {STREAM}               matrix, curves and expert use as a page")
    say(f"   palimpsest{where} predict {STREAM} FILE.mp4     label a recording; see what it reminds the model of")


def _show(ledger: Ledger, run_id: str, say: Callable[[str], None]) -> None:
    wanted = "run_id = ? AND split = 'test' AND protocol = 'classifier' AND modalities = 'all'"
    cells = ledger.rows(f"SELECT * FROM task_accuracy WHERE {wanted} ORDER BY after_task, on_task", [run_id])
    figures = ledger.rows(f"FROM stream_summary WHERE {wanted}", [run_id])[0]
    names = {cell["on_task"]: cell["task_name"] for cell in cells}
    say(f"\n{figures['method']}: test accuracy (%) after learning (row) on (column)")
    say("      " + "".join(f"{name:>6}" for name in names.values()))
    for number, name in names.items():
        row = [cell["accuracy"] for cell in cells if cell["after_task"] == number]
        say(f"{name:>6}" + "".join(f"{100 * accuracy:6.1f}" for accuracy in row))
    average, last, lost = (figures[name] for name in ("average_accuracy", "last_accuracy", "forgetting"))
    say(f"average {average:.1%}, at the end {last:.1%}, forgotten {lost:.1%}")
