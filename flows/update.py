"""Learn what is new, measure what is kept, promote or refuse."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

from flows import build, stream
from flows.gate import judge
from flows.recipe import Recipe, load_recipe, override
from learner.data import Task
from learner.distributed import Ranks, join
from learner.trainer import Trainer
from store import champions
from store.catalog import write_catalog
from store.lake import Lake, lock, sweep
from store.ledger import Ledger
from store.snapshots import snapshot_id
from store.types import PalimpsestError, Split

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class UpdateSummary:
    """What an update did.

    Attributes:
        learned: tasks learnt just now.
        tasks: tasks of the stream.
        promoted: snapshots that passed the gate just now.
        refused: reasons of the gate, where it refused.
        damaged: what is wrong with each sample that was skipped, by key.
    """

    stream: str
    run_id: str
    tasks: int
    learned: list[str] = field(default_factory=list)
    promoted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        rows: of the view ``step_summary``, for the run's last snapshot.
        damaged: what is wrong with each sample that was skipped, by key.
    """

    rows: list[dict[str, Any]]
    damaged: dict[str, str]


def update(
    lake: Lake,
    name: str | Recipe,
    *,
    method: str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    retry: bool = False,
    workers: int = 1,
    progress: Progress = lambda what, done, total: None,
) -> UpdateSummary:
    """Bring a run of stream `name` up to date: resume its checkpoint, else go on from its last snapshot, else start.

    Under `torchrun` all processes share every step; the first one writes.

    Args:
        lake: holds everything.
        name: a recipe.
        method: another than the recipe's, which makes the run a trial.
        seed: of initialisation and sample order; another than 0 makes the run a trial.
        overrides: ``key=value`` settings of the recipe, which make the run a trial.
        retry: judge a refused challenger again.
        workers: threads that read and decode ahead; any number gives the same result.
        progress: told what goes on, how far it is and how far it will go.

    Raises:
        PalimpsestError: there is nothing to learn from, or another update of the stream is running.
    """
    recipe = name if isinstance(name, Recipe) else load_recipe(name)
    recipe = override(recipe, overrides)
    one = build.run(recipe, method=method, seed=seed, overridden=bool(overrides))
    ledger, ranks = Ledger(lake), join()
    with ExitStack() as stack:
        if ranks.leads:
            # What may be promoted takes its stream for itself; a trial shares nothing but the sealed tasks.
            what, guarded = ("trial", one.run_id) if one.trial else ("stream", recipe.name)
            try:
                stack.enter_context(lock(lake, f"update-{guarded}"))
            except BlockingIOError as error:
                raise PalimpsestError(
                    f"another update of {what} {guarded} is running in {lake.root}: wait for it"
                ) from error
            sweep(lake.run(one.run_id))
        summary = _update(lake, ledger, recipe, one, ranks, workers, retry, progress)
    if ranks.leads:
        write_catalog(lake)
    return summary


def evaluate(
    lake: Lake,
    name: str | Recipe,
    *,
    method: str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Measure the last snapshot of a run again, on every task that it has learnt, with the labels of today.

    Raises:
        PalimpsestError: the run has learnt nothing yet.
    """
    recipe = override(name if isinstance(name, Recipe) else load_recipe(name), overrides)
    one = build.run(recipe, method=method, seed=seed, overridden=bool(overrides))
    ledger = Ledger(lake)
    if not ledger.rows("SELECT 1 FROM snapshots WHERE run_id = ?", [one.run_id]):
        raise PalimpsestError(f"run {one.run_id} has learnt nothing yet: run `palimpsest update {recipe.name}`")
    data = stream.load(ledger, recipe, build.modalities(ledger, recipe, one))
    trainer, tasks = resume(lake, ledger, recipe, one, data, progress)
    trainer.measure(tasks)
    damaged = trainer.features.damage.reasons
    _record_damage(ledger, one, damaged)
    rows = ledger.rows("FROM step_summary WHERE run_id = ? AND after_task = ?", [one.run_id, len(tasks)])
    return Evaluation(rows, damaged)


def _update(
    lake: Lake,
    ledger: Ledger,
    recipe: Recipe,
    one: build.Run,
    ranks: Ranks,
    workers: int,
    retry: bool,
    progress: Progress,
) -> UpdateSummary:
    summary = UpdateSummary(recipe.name, one.run_id, ranks.told(stream.seal(ledger, recipe) if ranks.leads else 0))
    modalities = build.modalities(ledger, recipe, one)
    if not modalities:
        raise PalimpsestError(
            f"data set {recipe.dataset} has none of the modalities that the recipe names backbones for: "
            f"{', '.join(recipe.learner.backbones)}"
        )
    with ranks.leader_first():
        data = stream.load(ledger, recipe, modalities)
        if ranks.leads:
            _record(ledger, recipe, one, modalities, "running")
    trainer, tasks = resume(lake, ledger, recipe, one, data, progress, ranks, workers)
    summary.damaged = trainer.features.damage.reasons
    for number, name in list(data.names.items())[: summary.tasks]:  # what others seal meanwhile is of the next update
        if number > len(tasks):
            if not len(data.tasks[number][Split.TRAIN]):
                raise PalimpsestError(
                    f"task {number} {name} has nothing that run {one.run_id} can learn from: its samples lack "
                    f"{', '.join(modalities)}, and a run keeps those it began with. Rename the stream for a new run."
                )
            _prepare(trainer, data, [number], progress)
            tasks.append(trainer.task(number, name, data.tasks[number], data.labels[number]))
            trainer.learn(tasks[-1], tasks[:-1], partial(progress, f"task {number}/{summary.tasks} {name}"))
            summary.learned.append(name)
            if not ranks.leads:  # it has only shared the steps: take up what the first one made of them
                trainer, tasks = resume(lake, ledger, recipe, one, data, progress, ranks, workers)
        passed = one.trial or (ranks.leads and _pass_gate(lake, ledger, recipe, one, number, retry, summary))
        if not ranks.told(passed):
            break
    if ranks.leads:
        _record_damage(ledger, one, summary.damaged)
        _record(ledger, recipe, one, modalities, "refused" if summary.refused else "done")
    return summary


def resume(
    lake: Lake,
    ledger: Ledger,
    recipe: Recipe,
    one: build.Run,
    data: stream.StreamData,
    progress: Progress,
    ranks: Ranks | None = None,
    workers: int = 1,
) -> tuple[Trainer, list[Task]]:
    """A trainer at the run's last snapshot, and the tasks that it has learnt."""
    done = ledger.rows("SELECT snapshot_id FROM snapshots WHERE run_id = ? ORDER BY after_task", [one.run_id])
    snapshot = done[-1]["snapshot_id"] if done else None
    learnt = range(1, len(done) + 1)
    past = reduce(operator.add, (data.tasks[number][Split.TRAIN] for number in learnt), data.index.rows([]))
    trainer = build.trainer(lake, ledger, recipe, one, snapshot=snapshot, find=past.find, ranks=ranks, workers=workers)
    _prepare(trainer, data, learnt, progress)
    tasks = [trainer.task(n, data.names[n], data.tasks[n], data.labels[n]) for n in learnt]
    return trainer, tasks


def _prepare(trainer: Trainer, data: stream.StreamData, tasks: Sequence[int], progress: Progress) -> None:
    """Have the frozen features of `tasks` in the cache; the ranks share the work."""
    shards = data.shards(tasks)
    mine = dict(list(shards.items())[trainer.ranks.rank :: trainer.ranks.world])
    total, ready = sum(map(len, mine.values())), 0

    def tell(count: int) -> None:
        nonlocal ready
        ready += count
        progress("frozen features", ready, total)

    trainer.features.prepare(mine, tell)
    trainer.features.prepare(shards)  # the others' share, which they have mostly done by now


def _record_damage(ledger: Ledger, one: build.Run, damaged: Mapping[str, str]) -> None:
    """Keep in the ledger what was skipped, so that no figure hides it."""
    rows = [
        {"event": f"damaged {one.run_id} {key}", "kind": "damaged", "subject": one.run_id, "detail": reason}
        for key, reason in damaged.items()
    ]
    ledger.append("events", rows)


def _pass_gate(
    lake: Lake, ledger: Ledger, recipe: Recipe, one: build.Run, number: int, retry: bool, summary: UpdateSummary
) -> bool:
    """Judge the snapshot after task `number` where that is still open; False where the stream must stop there."""
    snapshot = snapshot_id(one.run_id, number)
    last = ledger.rows(
        "SELECT verdict, reason FROM promotions WHERE snapshot_id = ? ORDER BY promotion DESC LIMIT 1", [snapshot]
    )
    if last and last[0]["verdict"] != champions.REFUSED:
        return True
    if last and not retry:
        summary.refused.append(f"{snapshot}: {last[0]['reason']}; it waits for `--retry`")
        return False
    in_use = champions.champion(ledger, recipe.name)
    if in_use and in_use.rpartition("/")[0] != one.run_id and int(in_use.rpartition("/")[2]) > number:
        return True  # a new run knows less than what is in use until it has caught up: it is judged from there on
    verdict = judge(ledger, one.run_id, number, recipe.gate)
    figures: dict[str, Any] = {"reason": verdict.reason, "figures": verdict.figures}
    if not verdict.passed:
        champions.refuse(lake, ledger, recipe.name, snapshot, **figures)
        summary.refused.append(f"{snapshot}: {verdict.reason}")
        return False
    champions.promote(lake, ledger, recipe.name, snapshot, expected=in_use, **figures)
    summary.promoted.append(snapshot)
    return True


def _record(ledger: Ledger, recipe: Recipe, one: build.Run, modalities: list[str], status: str) -> None:
    row = {"run_id": one.run_id, "stream": recipe.name, "scenario": recipe.stream.scenario, "digest": one.digest}
    config = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    settings = {"method": one.settings.method, "seed": one.settings.seed, "trial": one.trial}
    ledger.append("runs", [{**row, **settings, "modalities": modalities, "config": config, "status": status}])
