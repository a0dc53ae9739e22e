"""Methods x memories x seeds on one stream: trials side by side, and one table of what they came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from flows import build, stream
from flows.recipe import Recipe, load_recipe, override
from flows.update import update
from learner.order import generator
from learner.registry import METHODS, exemplars, needs_one_trunk, one_trunk
from pipelines.crew import follow_parent
from store.catalog import write_catalog
from store.lake import Lake
from store.ledger import Ledger
from store.types import PalimpsestError

DRAWS = 2000  # bootstrap resamples
METRICS = ("average_accuracy", "last_accuracy", "forgetting", "bwt")
COSTS = ("memory_bytes", "trained_parameters", "seconds")
NEEDS_MEMORY = "n/a: it rehearses exemplars"
ONE_TRUNK = "n/a: the stream's modalities have trunks of their own"
NOT_TESTED = "n/a: the stream has no test split"
NOT_ASKED = "n/a: it gives no answers of protocol {}"
FAILED = "{} of its seeds failed"
KEEPS_NONE = "it keeps no exemplars: one run a seed for all memories"
UNPAIRED = "no difference: it was measured on other samples than {}, which `palimpsest evaluate` mends"
DIED = "the process of a trial died: is there too little memory for so many --workers?"
SKIPPED = "{} samples skipped as damaged"
_ASKED = "WITH asked AS (SELECT unnest($runs) AS run_id, unnest($memories) AS memory)"
_TESTED = "split = 'test' AND protocol = coalesce($protocol, headline(scenario)) AND modalities = 'all'"
_FIGURES = f"""
    {_ASKED}
    SELECT method, memory, count(*) AS seeds,
        {", ".join(f"avg({name}) AS {name}, stddev_samp({name}) AS {name}_sd" for name in METRICS)},
        {", ".join(f"avg({name}) AS {name}" for name in COSTS)}
    FROM asked JOIN stream_summary USING (run_id) JOIN run_cost USING (run_id) WHERE {_TESTED} GROUP BY ALL
"""
_CREDITS = f"""
    {_ASKED}
    SELECT method, memory, recording, on_task, any_value(samples) AS samples, avg(credit) AS credit
    FROM asked JOIN recording_credit USING (run_id) WHERE {_TESTED} GROUP BY ALL ORDER BY ALL
"""
_DAMAGED = f"""
    {_ASKED}
    SELECT method, memory, count(*) AS samples
    FROM asked JOIN runs USING (run_id) JOIN events ON subject = run_id AND kind = 'damaged' GROUP BY ALL
"""
Progress = Callable[[str, int, int], None]


class TrialsFailedError(PalimpsestError):
    """Some trials failed; `table` is what the others came to."""

    def __init__(self, message: str, table: list[dict[str, Any]]):
        super().__init__(message)
        self.table = table


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the comparison; always a trial, for its memory is set by hand even where the recipe says the same."""

    method: str
    memory: int
    seed: int

    def overrides(self, others: Sequence[str]) -> list[str]:
        """The settings that make it."""
        return [*others, f"learner.memory={self.memory}"]

    def run_id(self, recipe: Recipe, others: Sequence[str]) -> str:
        """The run of this trial."""
        changed = override(recipe, self.overrides(others))
        return build.run(changed, method=self.method, seed=self.seed, overridden=True).run_id


def compare(
    lake: Lake,
    name: str | Recipe,
    *,
    methods: Sequence[str] = (),
    seeds: int = 5,
    memories: Sequence[int] = (),
    against: str | None = None,
    protocol: str | None = None,
    overrides: Sequence[str] = (),
    workers: int = 1,
    progress: Progress = lambda what, done, total: None,
) -> list[dict[str, Any]]:
    """Run what the ledger lacks of methods x memories x seeds, and read the table off the ledger.

    Frozen features are computed once, before any trial. Killed and started again, it goes on where it was.

    Args:
        lake: holds everything.
        name: a recipe.
        methods: of the registry; all where none is named.
        seeds: 0 up to this, the same for every method.
        memories: exemplars in all; the recipe's number where none is given.
        against: the method that the others are held against; the recipe's own where it takes part.
        protocol: whose answers the figures are of; the one that the stream's scenario is judged by where none is named.
        overrides: ``key=value`` settings of the recipe, for every trial.
        workers: trials at once, each in a process of its own; 1 runs them here.
        progress: told what goes on, how far it is and how far it will go.

    Returns:
        A row a method and memory: mean and standard deviation over seeds of the metrics on the test split, mean costs,
        and ``difference`` of average accuracy from the reference at the same memory, with ``low`` and ``high``, the
        ends of its 95 % bootstrap interval over recordings. ``note`` says why figures are absent.

    Raises:
        PalimpsestError: no such method, or nothing to learn from.
        TrialsFailedError: some trials failed; it holds the table of the others, which are kept.
    """
    recipe = name if isinstance(name, Recipe) else load_recipe(name)
    changed = override(recipe, overrides)
    chosen = list(dict.fromkeys([*(methods or METHODS), *([against] if against else [])]))
    asked = [(method, memory) for method in chosen for memory in memories or [changed.learner.memory]]
    unfit = {cell: reason for cell in asked if (reason := _unfit(*cell, changed))}
    cells = {
        (method, memory): 0 if exemplars(method) == "unused" else memory
        for method, memory in asked
        if (method, memory) not in unfit
    }
    trials = {
        trial.run_id(recipe, overrides): trial
        for (method, _), memory in cells.items()
        for trial in (Trial(method, memory, seed) for seed in range(seeds))
    }
    ledger = Ledger(lake)
    stream.seal(ledger, changed)
    failed: dict[Trial, Exception] = {}
    while not failed and (left := _unfinished(ledger, changed.name, trials)):  # all learn what is sealed meanwhile
        _prepare(lake, ledger, changed, left[0], progress)
        failed = _run(lake, recipe, left, overrides, workers, progress)
    write_catalog(lake)
    table = _table(ledger, trials, failed, cells, unfit, asked, against or changed.learner.method, protocol)
    if failed:
        told = "\n".join(f"{t.method}, memory {t.memory}, seed {t.seed}: {_said(error)}" for t, error in failed.items())
        raise TrialsFailedError(
            f"{len(failed)} of {len(trials)} trials failed; the others are kept, and the same command tries again "
            f"what is missing.\n{told}",
            table,
        )
    return table


def _unfit(method: str, memory: int, recipe: Recipe) -> str:
    """Why a method cannot learn the stream with so many exemplars; empty where it can."""
    if exemplars(method) == "needed" and not memory:
        return NEEDS_MEMORY
    return ONE_TRUNK if needs_one_trunk(method) and not one_trunk(recipe.learner.backbones) else ""


def _unfinished(ledger: Ledger, name: str, trials: dict[str, Trial]) -> list[Trial]:
    """The trials that have not learnt all sealed tasks."""
    rows = ledger.rows(
        "SELECT run_id FROM snapshots GROUP BY run_id HAVING count(*) >= (SELECT count(*) FROM tasks WHERE stream = ?)",
        [name],
    )
    done = {row["run_id"] for row in rows}
    return [trial for run_id, trial in trials.items() if run_id not in done]


def _prepare(lake: Lake, ledger: Ledger, recipe: Recipe, trial: Trial, progress: Progress) -> None:
    """Have the frozen features of all tasks in the cache; every trial reads the same."""
    one = build.run(recipe, method=trial.method, seed=trial.seed, overridden=True)
    data = stream.load(ledger, recipe, build.modalities(ledger, recipe, one))
    shards, ready = data.shards(data.names), 0

    def tell(count: int) -> None:
        nonlocal ready
        ready += count
        progress("frozen features", ready, sum(map(len, shards.values())))

    build.features(lake, ledger, recipe, one).prepare(shards, tell)


def _run(
    lake: Lake, recipe: Recipe, trials: Sequence[Trial], overrides: Sequence[str], workers: int, progress: Progress
) -> dict[Trial, Exception]:
    """Learn `trials`; returns those that failed, and of what."""
    failed = {}
    for done, (trial, error) in enumerate(_outcomes(lake, recipe, trials, overrides, workers), 1):
        progress("trials", done, len(trials))
        if error:
            failed[trial] = error
    return failed


def _outcomes(
    lake: Lake, recipe: Recipe, trials: Sequence[Trial], overrides: Sequence[str], workers: int
) -> Iterator[tuple[Trial, Exception | None]]:
    """Each trial as it ends, and what went wrong."""
    jobs = {trial: (lake, recipe, trial, trial.overrides(overrides)) for trial in trials}
    if workers == 1:
        yield from ((trial, _learn(*job)) for trial, job in jobs.items())
        return
    # Spawned, not forked: torch and Arrow hold threads that a fork would leave locked.
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=follow_parent)
    try:
        futures: dict[Future[Exception | None], Trial] = {pool.submit(_learn, *job): t for t, job in jobs.items()}
        for future in as_completed(futures):
            died = isinstance(future.exception(), BrokenProcessPool)  # which ends all that have not finished
            yield futures[future], PalimpsestError(DIED) if died else future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _learn(lake: Lake, recipe: Recipe, trial: Trial, overrides: list[str]) -> Exception | None:
    try:
        update(lake, recipe, method=trial.method, seed=trial.seed, overrides=overrides)
    except Exception as error:  # whatever it is, the others go on
        return error
    return None


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, PalimpsestError) else f"{type(error).__name__}: {error}"


def _table(
    ledger: Ledger,
    trials: dict[str, Trial],
    failed: Collection[Trial],
    cells: dict[tuple[str, int], int],
    unfit: dict[tuple[str, int], str],
    asked: Sequence[tuple[str, int]],
    reference: str,
    protocol: str | None,
) -> list[dict[str, Any]]:
    learnt = {run_id: trial for run_id, trial in trials.items() if trial not in failed}
    bound = {"runs": list(learnt), "memories": [trial.memory for trial in learnt.values()]}
    failures = Counter((trial.method, trial.memory) for trial in failed)
    judged = {**bound, "protocol": protocol}
    figures = {(found["method"], found["memory"]): found for found in ledger.rows(_FIGURES, judged)}
    credits: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for part in ledger.rows(_CREDITS, judged):
        credits.setdefault((part["method"], part["memory"]), []).append(part)
    damaged = {(found["method"], found["memory"]): found["samples"] for found in ledger.rows(_DAMAGED, bound)}
    columns = ("seeds", *(c for name in METRICS for c in (name, f"{name}_sd")), *COSTS, "difference", "low", "high")
    table = []
    for method, memory in asked:
        own, other = ((one, cells.get((one, memory), -1)) for one in (method, reference))
        row = {**dict.fromkeys(columns), **figures.get(own, {}), "method": method, "memory": memory}
        notes = []
        if (method, memory) in unfit:
            notes.append(unfit[method, memory])
        elif own not in figures and not failures[own]:
            notes.append(NOT_ASKED.format(protocol) if protocol else NOT_TESTED)
        elif own[1] != memory:
            notes.append(KEEPS_NONE)
        if failures[own]:
            notes.append(FAILED.format(failures[own]))
        if own in damaged:
            notes.append(SKIPPED.format(damaged[own]))
        if own in credits and other in credits and own != other:
            if _samples(credits[own]) == _samples(credits[other]):
                row |= paired_difference(credits[own], credits[other])
            else:
                notes.append(UNPAIRED.format(reference))
        row["note"] = "; ".join(notes)
        table.append({name: row[name] for name in ("method", "memory", *columns, "note")})
    return table


def _samples(credits: Sequence[dict[str, Any]]) -> set[tuple[str, int, float]]:
    """Of which recordings and tasks how many samples were measured."""
    return {(row["recording"], row["on_task"], row["samples"]) for row in credits}


def paired_difference(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How much higher `ours` is in average accuracy, and the ends of its 95 % percentile bootstrap interval.

    Recordings are drawn again and again with replacement, each with all its samples and in both methods at once.

    Args:
        ours: rows of the view `recording_credit`, averaged over seeds.
        theirs: the same of the reference, on the same recordings.

    Returns:
        ``difference``, ``low`` and ``high``.
    """
    recordings = {name: i for i, name in enumerate(sorted({row["recording"] for row in ours}))}
    tasks = {task: i for i, task in enumerate(sorted({row["on_task"] for row in ours}))}
    credit, samples = np.zeros((2, len(recordings), len(tasks)))
    for sign, rows in ((1, ours), (-1, theirs)):
        for row in rows:
            credit[recordings[row["recording"]], tasks[row["on_task"]]] += sign * row["credit"]
            samples[recordings[row["recording"]], tasks[row["on_task"]]] = row["samples"]

    def difference(times: np.ndarray) -> float:
        """Of the recordings, each taken so many `times`; a task of which none is drawn counts for neither."""
        return float((times @ credit / np.maximum(times @ samples, 1)).sum())

    rng, even = generator("bootstrap"), np.full(len(recordings), 1 / len(recordings))
    drawn = [difference(rng.multinomial(len(recordings), even)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return {"difference": difference(np.ones(len(recordings))), "low": low, "high": high}
