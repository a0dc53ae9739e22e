"""Updates of a stream: tasks sealed and learnt, killed and resumed, gated, tried, measured again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows import build, stream
from flows.gate import judge
from flows.recipe import GateSpec, Recipe, override
from flows.update import UpdateSummary, evaluate, update
from learner import trainer as trainer_module
from learner.order import generator
from learner.trainer import Settings
from store import champions
from store.lake import Lake
from store.ledger import Ledger
from store.snapshots import load_snapshot, load_tree, save_tree
from store.types import PalimpsestError
from tests.learner.handmade import CLASSES, arrive, copied, damage, ledger, make_lake, make_recipe, same

ROOT = Path(__file__).parents[2]
FAST: dict[str, Any] = {"epochs": 1, "batch_size": 8}
RESUMED = make_recipe(epochs=3, batch_size=4, memory=4)  # 9 steps a task, checkpoints after 3 and 6
TASKS = ("ant+bee", "cat+dog")


class Stopped(Exception):  # noqa: N818 - it is no error
    """What a test stops an update with."""


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint every three steps."""
    monkeypatch.setattr(build, "Settings", partial(Settings, checkpoint_every=3))


def snapshots(lake: Lake, run_id: str) -> list[dict[str, Any]]:
    rows = ledger(lake).rows("SELECT snapshot_id FROM snapshots WHERE run_id = ? ORDER BY after_task", [run_id])
    return [load_snapshot(lake, row["snapshot_id"]) for row in rows]


def predictions(lake: Lake) -> list[dict[str, Any]]:
    return ledger(lake).rows("SELECT * EXCLUDE recorded_at FROM predictions ORDER BY ALL")


def outcome(lake: Lake, run_id: str) -> list[Any]:
    """All that a run left behind, but for the times."""
    rows = ledger(lake).rows("SELECT * EXCLUDE recorded_at FROM snapshots ORDER BY ALL")
    return [snapshots(lake, run_id), predictions(lake), rows]


def average(lake: Lake, run_id: str, split: str = "test") -> dict[str, Any]:
    (row,) = ledger(lake).rows(
        "FROM stream_summary WHERE run_id = ? AND split = ? AND protocol = 'classifier' AND modalities = 'all'",
        [run_id, split],
    )
    return row


def stop_at(task: int, step: int) -> Any:
    """A progress callback that stops the update after that step."""

    def tell(what: str, done: int, total: int) -> None:
        if what.startswith(f"task {task}/") and done == step:
            raise Stopped

    return tell


def test_it_learns_all_tasks_and_then_has_nothing_to_do(here):
    recipe = make_recipe(**FAST)
    told: list[tuple[str, int, int]] = []
    first = update(here, recipe, progress=lambda *about: told.append(about))
    assert (first.tasks, tuple(first.learned), first.refused) == (2, TASKS, [])
    assert first.promoted == [f"{first.run_id}/001", f"{first.run_id}/002"]
    assert champions.champion(ledger(here), "hand") == f"{first.run_id}/002"
    assert ("task 2/2 cat+dog", 2, 2) in told
    assert here.catalog.exists()
    before = outcome(here, first.run_id)
    second = update(here, recipe)
    assert second == UpdateSummary("hand", first.run_id, tasks=2)
    assert same(outcome(here, first.run_id), before)
    (run,) = ledger(here).rows("SELECT * FROM runs")
    assert (run["status"], run["trial"], run["modalities"]) == ("done", False, ["imu", "text"])


@pytest.fixture(scope="module")
def uninterrupted(four: Lake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    lake = copied(four, tmp_path_factory.mktemp("whole"))
    shutil.rmtree(lake.cache)  # a cold cache must not matter either
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "Settings", partial(Settings, checkpoint_every=3))
        summary = update(lake, RESUMED)
    yield outcome(lake, summary.run_id)


@pytest.mark.parametrize(
    ("stops", "last"),
    [
        ([(1, 1), (1, 3), (1, 4)], 4),  # before any checkpoint, right before one is written, and right after it was
        ([(2, 1), (2, 8), (2, 9)], 7),  # right after a snapshot, late in a task that rehearses, and after its last step
    ],
    ids=["first task", "second task"],
)
def test_stopped_and_started_again_it_ends_bit_for_bit_the_same(here, uninterrupted, often, stops, last):
    for stop in stops:
        with pytest.raises(Stopped):
            update(here, RESUMED, progress=stop_at(*stop))
    steps: list[int] = []
    summary = update(
        here, RESUMED, progress=lambda what, done, total: steps.append(done) if what.startswith("task") else None
    )
    assert steps[0] == last  # the step after the checkpoint, not the first
    assert same(outcome(here, summary.run_id), uninterrupted)


def test_stopped_between_steps_it_ends_the_same(here, uninterrupted, often, monkeypatch):
    """Before it was measured; measured but not kept; kept with its checkpoint still there."""

    def stop(*args: Any, **kwargs: Any) -> None:
        raise Stopped

    for where in ("predictions", "save_snapshot", "drop_checkpoint"):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(trainer_module, where, stop)
            update(here, RESUMED)
    summary = update(here, RESUMED)
    assert summary.learned == ["cat+dog"]
    assert same(outcome(here, summary.run_id), uninterrupted)


def test_a_damaged_checkpoint_costs_a_task_and_nothing_else(here, uninterrupted, often):
    with pytest.raises(Stopped):
        update(here, RESUMED, progress=stop_at(2, 8))
    (path,) = here.root.glob("runs/*/checkpoint/tensors.safetensors")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    summary = update(here, RESUMED)
    assert same(outcome(here, summary.run_id), uninterrupted)


def test_killed_it_ends_the_same(here, uninterrupted, often):
    code = f"""
import os, signal
from functools import partial
from flows import build
from flows.update import update
from learner.trainer import Settings
from store.lake import Lake
from tests.learner.handmade import make_recipe

def tell(what, done, total):
    if what.startswith("task 2/") and done == 5:
        os.kill(os.getpid(), signal.SIGKILL)

build.Settings = partial(Settings, checkpoint_every=3)
update(Lake({str(here.root)!r}), make_recipe(epochs=3, batch_size=4, memory=4), progress=tell)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    summary = update(here, RESUMED)  # its lock went with it
    assert summary.learned == ["cat+dog"]
    assert same(outcome(here, summary.run_id), uninterrupted)


def test_two_updates_of_a_stream_at_once_are_refused(here):
    refusals: list[str] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        if not refusals:
            with pytest.raises(PalimpsestError, match="another update of stream hand is running") as error:
                update(here, make_recipe(**FAST))
            refusals.append(str(error.value))

    assert update(here, make_recipe(**FAST), progress=meanwhile).learned == list(TASKS)
    assert str(here.root) in refusals[0]


def manifests(lake: Lake) -> dict[str, str]:
    return {row["task_name"]: row["manifest"] for row in ledger(lake).rows("FROM tasks ORDER BY task")}


def test_later_arrivals_form_further_tasks(here):
    recipe = make_recipe(**FAST)
    update(here, recipe)
    before = manifests(here)
    arrive(here, labels=("ant", "elk"), numbers=range(10, 20))
    summary = update(here, recipe)
    assert summary.learned == ["ant+bee#2", "elk"]
    after = manifests(here)
    assert list(after) == [*TASKS, "ant+bee#2", "elk"]
    assert {name: after[name] for name in before} == before
    learnt = snapshots(here, summary.run_id)[-1]["index"][0]
    assert learnt == ["ant", "bee", "cat", "dog", "elk"]
    arrive(here, labels=("elk",), numbers=range(20, 25), splits=("test",))
    assert update(here, recipe).learned == []  # nothing to learn from yet
    sizes = ledger(here).rows("SELECT task_name, train, val, test FROM tasks WHERE task = 3")
    assert sizes == [{"task_name": "ant+bee#2", "train": 6, "val": 2, "test": 2}]


def test_what_a_killed_seal_left_belongs_to_no_task(tmp_path, monkeypatch):
    """Its task was the first then; before it is sealed again, another arrives that comes before it."""
    lake = make_lake(tmp_path, labels=["bee"])
    recipe = make_recipe(
        stream={"scenario": "class-incremental", "by": "label", "per_task": 1, "order": ["ant", "bee"]}
    )
    append = Ledger.append

    def killed(self: Ledger, table: str, rows: Any) -> None:
        if table == "tasks":
            raise KeyboardInterrupt
        append(self, table, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ledger, "append", killed)
        stream.seal(Ledger(lake), recipe)
    arrive(lake, labels=["ant"])
    assert stream.seal(Ledger(lake), recipe) == 2
    data = stream.load(Ledger(lake), recipe, ["imu", "text"])
    labels = {number: {example.label for rows in data.tasks[number].values() for example in rows} for number in (1, 2)}
    assert labels == {1: {"ant"}, 2: {"bee"}}


def test_another_definition_of_a_stream_that_has_begun_is_refused(here):
    update(here, make_recipe(method="slda"))
    other = make_recipe(method="slda", stream={"scenario": "class-incremental", "by": "label", "per_task": 1})
    with pytest.raises(PalimpsestError, match="stream hand was begun with other tasks.*another `name`"):
        update(here, other)
    assert list(manifests(here)) == list(TASKS)


def test_an_empty_data_set_says_what_to_do(lake):
    with pytest.raises(PalimpsestError, match="holds no samples.*palimpsest ingest hand --source DIR"):
        update(lake, make_recipe())


NAMED = {"tasks": [{"name": label, "labels": [label]} for label in CLASSES[:4]]}


@pytest.mark.parametrize("declared", [{"by": "label"}, NAMED], ids=["by label", "by hand"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_tasks_follows_its_seed(here, seed, declared):
    definition = {"scenario": "class-incremental", "order_seed": seed, **declared}
    recipe = make_recipe(method="slda", stream=definition)
    assert stream.seal(ledger(here), recipe) == 4
    order = [CLASSES[i] for i in generator("tasks", seed).permutation(4)]
    assert list(manifests(here)) == order


def test_tasks_may_be_listed_or_ordered_by_hand(here):
    named = {"tasks": [{"name": "pets", "labels": ["dog", "cat"]}, {"name": "small", "labels": ["bee"]}]}
    one = make_recipe(name="one", stream={"scenario": "class-incremental", **named})
    other = make_recipe(name="other", stream={"scenario": "class-incremental", "by": "label", "order": ["dog", "bee"]})
    assert stream.seal(ledger(here), one) == 2
    assert stream.seal(ledger(here), other) == 4
    rows = ledger(here).rows("SELECT stream, list(task_name ORDER BY task) AS names FROM tasks GROUP BY 1 ORDER BY 1")
    assert [row["names"] for row in rows] == [["pets", "small"], ["dog", "bee", "ant", "cat"]]


FORGETFUL: dict[str, Any] = {"method": "finetune", "epochs": 6}


def test_what_forgets_is_refused_and_the_champion_stays(here):
    strict = make_recipe(gate={"max_forgetting": 0.0, "min_new_accuracy": 0.0}, **FORGETFUL)
    first = update(here, strict)
    assert first.learned == list(TASKS)
    assert first.promoted == [f"{first.run_id}/001"]
    assert len(first.refused) == 1
    assert f"{first.run_id}/002: forgets" in first.refused[0]
    assert champions.champion(ledger(here), "hand") == f"{first.run_id}/001"
    arrive(here, labels=("elk",))
    second = update(here, strict)  # it waits, and what comes after it waits too
    assert (second.learned, second.promoted) == ([], [])
    assert "it waits for `--retry`" in second.refused[0]
    third = update(here, strict, retry=True)
    assert third.promoted == []
    assert "waits" not in third.refused[0]
    assert champions.champion(ledger(here), "hand") == f"{first.run_id}/001"
    verdicts = ledger(here).rows("SELECT verdict, figures FROM promotions ORDER BY promotion")
    assert [row["verdict"] for row in verdicts] == ["promoted", "refused", "refused"]
    assert '"forgetting": ' in verdicts[1]["figures"]
    lenient = strict.model_copy(update={"gate": GateSpec(max_forgetting=1.0)})
    fourth = update(here, lenient, retry=True)
    assert fourth.promoted == [f"{first.run_id}/002", f"{first.run_id}/003"]
    assert fourth.learned == ["elk"]


def measured(book: Ledger, right: dict[tuple[int, int], int]) -> None:
    """Four val predictions a step and task, so many of them right."""
    book.append("runs", [{"run_id": "r", "stream": "s", "method": "m", "seed": 0}])
    for (after, on), hits in right.items():
        row = {"run_id": "r", "after_task": after, "on_task": on, "split": "val", "protocol": "classifier"}
        book.append(
            "predictions",
            [
                row | {"modalities": "all", "key": str(i), "label": "a", "predicted": "a" if i < hits else "b"}
                for i in range(4)
            ],
        )


@pytest.mark.parametrize(
    ("gate", "passed", "reason"),
    [
        ({"max_forgetting": 0.25, "min_new_accuracy": 0.5}, True, "forgets 25.0%, knows 75.0% of the new task"),
        ({"max_forgetting": 0.24}, False, "forgets 25.0%, more than 24.0%"),
        ({"max_forgetting": 1.0, "min_new_accuracy": 0.8}, False, "knows 75.0% of the new task, less than 80.0%"),
    ],
)
def test_the_gate_holds_a_step_against_its_bounds(lake, gate, passed, reason):
    book = ledger(lake)
    measured(book, {(1, 1): 4, (2, 1): 3, (2, 2): 3})
    verdict = judge(book, "r", 2, GateSpec(**gate))
    assert (verdict.passed, verdict.reason) == (passed, reason)
    assert judge(book, "r", 1, GateSpec(max_forgetting=0.0, min_new_accuracy=1.0)).passed


def test_the_gate_never_reads_test(lake):
    book = ledger(lake)
    measured(book, {(1, 1): 4})
    row = {"run_id": "r", "after_task": 1, "on_task": 1, "split": "test", "protocol": "classifier"}
    book.append("predictions", [row | {"modalities": "all", "key": "x", "label": "a", "predicted": "b"}])
    assert judge(book, "r", 1, GateSpec(min_new_accuracy=1.0)).passed


@pytest.mark.parametrize(
    "departure",
    [{"method": "finetune"}, {"seed": 1}, {"overrides": ["learner.epochs=2"]}],
    ids=lambda departure: next(iter(departure)),
)
def test_a_trial_is_never_promoted(here, departure):
    summary = update(here, make_recipe(method="slda", **FAST), **departure)
    assert (summary.learned, summary.promoted, summary.refused) == (list(TASKS), [], [])
    assert champions.champion(ledger(here), "hand") is None
    assert ledger(here).rows("SELECT trial FROM runs") == [{"trial": True}]


@pytest.mark.parametrize("setting", ["learner.epochs=1", "gate.max_forgetting=0.5"])
def test_a_trial_is_a_run_of_its_own(here, setting):
    """Even one that sets what the recipe says anyway leaves the recipe's own run alone."""
    recipe = make_recipe(method="slda", **FAST)
    summary = update(here, recipe)
    update(here, recipe, overrides=[setting])
    rows = ledger(here).rows("SELECT trial FROM runs WHERE run_id = ?", [summary.run_id])
    assert rows == [{"trial": False}]


def test_a_run_is_named_by_all_that_decides_it():
    recipe = make_recipe(**FAST)
    one = build.run(recipe, method=None, seed=0, overridden=False)
    for other in (
        build.run(recipe, method="slda", seed=0, overridden=False),
        build.run(recipe, method=None, seed=1, overridden=False),
        build.run(make_recipe(epochs=2, batch_size=8), method=None, seed=0, overridden=False),
        build.run(make_recipe(params={"alignment": 0.0}, **FAST), method=None, seed=0, overridden=False),
    ):
        assert other.run_id != one.run_id
    assert build.run(make_recipe(**FAST), method=None, seed=0, overridden=False) == one
    # Runs in lakes that there are must be found again.
    lasting = make_recipe(params={"experts": 6})
    names = [build.run(lasting, method=m, seed=0, overridden=bool(m)).run_id for m in (None, "ewc")]
    assert names == ["hand-crossmodal-moe-s0-39551e19", "hand-ewc-s0-c007be27"]


def test_other_methods_have_settings_of_their_own():
    def run(method: str, recipe: Recipe) -> build.Run:
        return build.run(recipe, method=method, seed=0, overridden=False)

    plain = make_recipe(params={"experts": 6}, **FAST)
    tuned = override(plain, ["learner.baselines.ewc.penalty=10"])
    assert run("ewc", tuned).settings.params == {"penalty": 10}
    assert run("ewc", tuned).run_id != run("ewc", plain).run_id
    assert run("crossmodal-moe", tuned) == run("crossmodal-moe", plain)
    assert run("lwf", tuned) == run("lwf", plain)
    with pytest.raises(PalimpsestError, match="learner.baselines names ewcc; there are: crossmodal-moe"):
        run("ewc", override(plain, ["learner.baselines.ewcc.penalty=10"]))


@pytest.mark.parametrize("method", ["crossmodal-moe", "er"])
def test_exemplars_are_kept_within_the_budget_and_of_all_classes(here, method):
    summary = update(here, make_recipe(method=method, memory=5, **FAST))
    kept = [tree["memory"] for tree in snapshots(here, summary.run_id)]
    assert [len(keys) for keys in kept] == [5, 5]
    assert {key[:3] for key in kept[0]} == {"ant", "bee"}
    assert {key[:3] for key in kept[1]} == set(CLASSES[:4])
    train = {row["key"] for row in ledger(here).rows("SELECT key FROM samples WHERE split = 'train'")}
    assert set(kept[1]) <= train


@pytest.mark.parametrize("method", ["slda", "joint"])
def test_references_run_beside(here, method):
    summary = update(here, make_recipe(method=method, epochs=6, lr=5e-3))
    assert summary.promoted == [f"{summary.run_id}/001", f"{summary.run_id}/002"]
    assert average(here, summary.run_id)["last_accuracy"] > 0.5


def test_the_last_snapshot_can_be_measured_again_with_the_labels_of_today(here):
    recipe = make_recipe(method="slda")
    with pytest.raises(PalimpsestError, match="has learnt nothing yet: run `palimpsest update hand`"):
        evaluate(here, recipe)
    update(here, recipe)
    kept = predictions(here)
    rows = evaluate(here, recipe).rows
    assert predictions(here) == kept
    assert {row["after_task"] for row in rows} == {2}

    def accuracy() -> float:
        found = {(row["split"], row["protocol"], row["modalities"]): row for row in evaluate(here, recipe).rows}
        return found["test", "classifier", "all"]["step_accuracy"]

    before = accuracy()
    (sample,) = ledger(here).rows("SELECT * EXCLUDE recorded_at FROM samples WHERE split = 'test' ORDER BY key LIMIT 1")
    mine = [row for row in kept if row["key"] == sample["key"] and row["protocol"] == "classifier"]
    assert {row["predicted"] for row in mine if row["modalities"] == "all"} == {sample["labels"][0]} == {"ant"}
    ledger(here).append("samples", [sample | {"labels": ["bee"]}])
    assert accuracy() == pytest.approx(before - 1 / 4 / 2)  # one of four test samples of one of two tasks


def test_a_corrected_sample_among_the_exemplars_stops_nothing(here):
    recipe = make_recipe(method="er", memory=5, **FAST)
    with pytest.raises(Stopped):
        update(here, recipe, progress=stop_at(2, 1))
    (row,) = ledger(here).rows("SELECT run_id FROM runs")
    key = snapshots(here, row["run_id"])[0]["memory"][0]
    (sample,) = ledger(here).rows("SELECT * EXCLUDE recorded_at FROM samples WHERE key = ?", [key])
    ledger(here).append("samples", [sample | {"split": "val"}])
    assert update(here, recipe).learned == ["cat+dog"]
    assert key not in snapshots(here, row["run_id"])[1]["memory"]


@pytest.mark.parametrize("method", ["crossmodal-moe", "finetune", "slda"])
def test_a_modality_missing_in_most_samples(tmp_path, method):
    rare = lambda label, number: {"imu"} if number > 3 else set()  # noqa: E731
    splits = ("train", "train", "val", "test")
    lake = make_lake(tmp_path, labels=CLASSES[:4], numbers=range(16), lacks=rare, splits=splits)
    summary = update(lake, make_recipe(method=method, epochs=2))
    assert len(summary.promoted) == 2
    subsets = ledger(lake).rows("SELECT modalities, count(*) AS n FROM predictions WHERE split = 'val' GROUP BY ALL")
    counted = {row["modalities"]: row["n"] for row in subsets}
    assert counted["imu"] < counted["text"] == counted["all"]
    assert all(0 <= row["confidence"] <= 1 + 1e-6 for row in predictions(lake))  # NaN is not


def test_a_modality_that_no_sample_has_is_left_out(tmp_path):
    lake = make_lake(tmp_path, ("text",), labels=CLASSES[:2])
    update(lake, make_recipe(modalities=("imu", "text"), **FAST))
    assert ledger(lake).rows("SELECT modalities FROM runs") == [{"modalities": ["text"]}]


def test_arrivals_in_a_modality_that_the_run_lacks_are_refused_and_nothing_is_lost(tmp_path):
    lake = make_lake(tmp_path, ("text",), labels=CLASSES[:2])
    recipe = make_recipe(modalities=("imu", "text"), **FAST)
    first = update(lake, recipe)
    arrive(lake, labels=CLASSES[2:4], modalities=("imu",))
    with pytest.raises(PalimpsestError, match=r"task 2 cat\+dog has nothing .* can learn from: its samples lack text"):
        update(lake, recipe)
    assert champions.champion(ledger(lake), recipe.name) == first.promoted[-1]


def test_other_weights_under_a_run_are_refused(here):
    recipe = make_recipe(**FAST)
    update(here, recipe)
    file = here.backbones / "tiny-imu.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(PalimpsestError, match="was learnt on other backbones"):
        update(here, recipe)
    file.write_bytes(before)
    assert update(here, recipe).learned == []


def test_a_snapshot_of_another_version_is_refused_by_name(here):
    recipe = make_recipe(**FAST)
    last = update(here, recipe).promoted[-1]
    folder = here.root / ledger(here).rows("SELECT path FROM snapshots WHERE snapshot_id = ?", [last])[0]["path"]
    tree = load_tree(folder)
    del tree["method"]["readout"]
    shutil.rmtree(folder)
    save_tree(folder, tree)
    with pytest.raises(PalimpsestError, match=rf"snapshot {last} was written by another version .*readout"):
        evaluate(here, recipe)


def test_a_new_configuration_takes_over_when_it_has_caught_up(here):
    former = update(here, make_recipe(**FAST)).promoted[-1]
    arrive(here, labels=CLASSES[4:6])
    changed = make_recipe(epochs=2, batch_size=8)
    seen: list[str | None] = []
    summary = update(here, changed, progress=lambda *_: seen.append(champions.champion(ledger(here), changed.name)))
    assert set(seen) == {former, f"{summary.run_id}/002"}  # not the one that knew the first task only
    assert champions.champion(ledger(here), changed.name) == f"{summary.run_id}/003"


def test_later_arrivals_are_called_after_their_task(tmp_path):
    lake, order = make_lake(tmp_path, labels=CLASSES[:2]), {"order": list(reversed(CLASSES[:2]))}
    recipe = make_recipe(stream={"scenario": "class-incremental", "by": "label", "per_task": 2, **order}, **FAST)
    first = update(lake, recipe).learned
    arrive(lake, labels=CLASSES[:2], numbers=range(20, 30))
    assert update(lake, recipe).learned == [f"{first[0]}#2"] == ["bee+ant#2"]


def test_the_same_classes_in_one_domain_after_the_other(tmp_path):
    lake = make_lake(tmp_path, labels=CLASSES[:3], domain="EN")
    arrive(lake, labels=CLASSES[:3], domain="DE")
    definition = {"scenario": "domain-incremental", "by": "domain", "order": ["EN", "DE"]}
    summary = update(lake, make_recipe(stream=definition))
    assert summary.learned == ["EN", "DE"]
    tree = snapshots(lake, summary.run_id)[-1]
    assert tree["index"][0] == list(CLASSES[:3])
    assert len(tree["index"][1]) == 6
    assert average(lake, summary.run_id)["last_accuracy"] > 0.8


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_samples_are_skipped_and_told(tmp_path, workers):
    lake = make_lake(tmp_path, labels=CLASSES[:4])
    keys = damage(lake, "train", 2) + damage(lake, "test", 1)
    summary = update(lake, make_recipe(memory=40, **FAST), workers=workers)
    assert summary.learned == list(TASKS)
    assert sorted(summary.damaged) == sorted(keys)
    told = ledger(lake).rows("SELECT subject, detail FROM events WHERE kind = 'damaged' ORDER BY event")
    assert [(row["subject"], keys[i] in row["detail"]) for i, row in enumerate(told)] == [(summary.run_id, True)] * 3
    assert not {row["key"] for row in predictions(lake)} & set(keys)
    again = update(lake, make_recipe(memory=40, **FAST))
    assert (again.learned, sorted(again.damaged)) == ([], sorted(keys))


def test_damage_is_told_when_a_snapshot_is_measured_again(tmp_path):
    lake = make_lake(tmp_path, labels=CLASSES[:4])
    update(lake, make_recipe(method="slda"))
    keys = damage(lake, "test", 2)
    shutil.rmtree(lake.cache)
    assert sorted(evaluate(lake, make_recipe(method="slda")).damaged) == keys
    assert ledger(lake).rows("SELECT count(*) AS n FROM events WHERE kind = 'damaged'") == [{"n": 2}]


@pytest.mark.parametrize("method", ["crossmodal-moe", "slda"])
def test_a_task_without_an_intact_sample_to_calibrate_on_is_learnt(tmp_path, method):
    lake = make_lake(tmp_path, labels=CLASSES[:2])
    keys = damage(lake, "val", 4)
    summary = update(lake, make_recipe(method=method, gate={"max_forgetting": 1.0}, **FAST))
    assert (summary.learned, sorted(summary.damaged)) == (["ant+bee"], keys)


def test_a_task_without_an_intact_sample_to_learn_from_is_named(tmp_path):
    lake = make_lake(tmp_path, labels=CLASSES[:2])
    damage(lake, "train", 12)
    with pytest.raises(PalimpsestError, match=r"none of the 12 training samples of task 1 ant\+bee can be read"):
        update(lake, make_recipe(max_damaged=12, **FAST))


def test_exemplars_that_are_all_damaged_are_not_rehearsed(tmp_path):
    lake = make_lake(tmp_path, labels=CLASSES[:4])
    recipe = make_recipe(memory=2, anchors=10, **FAST)
    with pytest.raises(Stopped):
        update(lake, recipe, progress=stop_at(2, 1))
    (row,) = ledger(lake).rows("SELECT run_id FROM runs")
    keys = snapshots(lake, row["run_id"])[0]["memory"]
    damage(lake, "train", 12, keys)
    shutil.rmtree(lake.cache)
    summary = update(lake, recipe)
    assert sorted(summary.damaged) == sorted(keys)
    losses = ledger(lake).rows("SELECT detail FROM events WHERE kind = 'learned' ORDER BY subject")
    assert not any(name.startswith("rehearsal") for name in json.loads(losses[1]["detail"])["loss"])


def test_too_much_damage_stops_the_update_and_a_mended_shard_lets_it_go_on(tmp_path):
    lake = make_lake(tmp_path, labels=CLASSES[:4])
    intact = {path: path.read_bytes() for path in (lake.root / "shards").rglob("*.tar")}
    key = damage(lake, "train", 1)[0]
    with pytest.raises(PalimpsestError, match=rf"(?s){key}.*1 samples are damaged, and the recipe lets 0 be skipped"):
        update(lake, make_recipe(max_damaged=0, **FAST))
    for path, data in intact.items():
        path.write_bytes(data)
    summary = update(lake, make_recipe(max_damaged=0, **FAST))
    assert (summary.learned, summary.damaged) == (list(TASKS), {})


def test_any_number_of_workers_gives_the_same_run(four, tmp_path):
    found = []
    for workers in (0, 1, 4):
        lake = copied(four, tmp_path / str(workers))
        found.append(outcome(lake, update(lake, RESUMED, workers=workers).run_id))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


@pytest.mark.parametrize(
    ("inside", "part"), [((), "momentum"), (("method",), "momentum"), (("optimizer",), "9999"), (("place",), "when")]
)
def test_a_checkpoint_with_unknown_parts_names_them(here, often, inside, part):
    recipe = make_recipe(epochs=3, batch_size=4)
    with pytest.raises(Stopped):
        update(here, recipe, progress=stop_at(1, 5))
    (row,) = ledger(here).rows("SELECT run_id FROM runs")
    folder = here.run(row["run_id"]) / "checkpoint"
    whole = load_tree(folder)
    assert whole["place"]["size"] == 12
    changed = {**whole, **{name: {**whole[name], part: 1} for name in inside}} if inside else {**whole, part: 1}
    save_tree(folder, changed)
    with pytest.raises(PalimpsestError, match=rf"checkpoint in .*another version: {part} is not in both"):
        update(here, recipe)
    save_tree(folder, whole)
    assert update(here, recipe).learned == list(TASKS)


def test_it_learns_more_and_forgets_less_than_plain_fine_tuning(tmp_path):
    lake = make_lake(tmp_path)
    recipe = make_recipe(epochs=4)
    own = average(lake, update(lake, recipe).run_id)
    plain = average(lake, update(lake, recipe, method="finetune").run_id)
    assert own["average_accuracy"] > plain["average_accuracy"] + 0.2
    assert own["forgetting"] < plain["forgetting"] / 2
    assert plain["forgetting"] > 0.3
