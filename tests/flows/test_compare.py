"""Comparisons: what runs, what is run again, what the table says, and what may go on side by side."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from flows import build
from flows import compare as comparing
from flows.cli import main
from flows.compare import METRICS, TrialsFailedError, compare, paired_difference
from flows.update import update
from learner.trainer import Settings
from store import champions
from store.lake import Lake
from store.types import PalimpsestError
from tests.learner.handmade import CLASSES, copied, damage, ledger, make_lake, make_recipe

RECIPE = make_recipe(method="er", epochs=3, batch_size=4, memory=4)  # 9 steps a task
LEARN = comparing._learn
ASKED: dict[str, Any] = {"methods": ["er", "simplecil"], "memories": [0, 4], "seeds": 2}


class Stopped(KeyboardInterrupt):  # noqa: N818 - it is no error
    """What a test stops a comparison with."""


def runs(lake: Lake) -> list[dict[str, Any]]:
    """What was learnt, by content, and when."""
    return ledger(lake).rows(
        "SELECT method, seed, trial, after_task, sha256, n.recorded_at FROM snapshots n JOIN runs USING (run_id) "
        "ORDER BY method, seed, after_task"
    )


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name not in ("seconds", "recorded_at")} for row in rows]


@pytest.fixture(scope="module")
def whole(four: Lake, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, list[dict[str, Any]]]:
    """A lake in which the comparison was not disturbed, one trial after the other, and its table."""
    lake = copied(four, tmp_path_factory.mktemp("whole"))
    return lake, compare(lake, RECIPE, **ASKED)


def test_the_table_has_what_the_ledger_says(whole):
    lake, table = whole
    assert [(row["method"], row["memory"], row["seeds"]) for row in table] == [
        ("er", 0, None), ("er", 4, 2), ("simplecil", 0, 2), ("simplecil", 4, 2),
    ]  # fmt: skip
    na, er, simplecil, again = table
    assert na["note"] == "n/a: it rehearses exemplars"
    assert (er["note"], simplecil["note"]) == ("", "")
    assert again["note"].startswith("it keeps no exemplars")
    assert [again[name] for name in METRICS] == [simplecil[name] for name in METRICS]
    (expected,) = ledger(lake).rows(
        "SELECT avg(last_accuracy) AS mean, stddev_samp(last_accuracy) AS sd, sum(memory_bytes) / 2 AS bytes "
        "FROM stream_summary JOIN run_cost USING (run_id) "
        "WHERE method = 'er' AND split = 'test' AND protocol = 'classifier' AND modalities = 'all'"
    )
    found = {"mean": er["last_accuracy"], "sd": er["last_accuracy_sd"], "bytes": er["memory_bytes"]}
    assert found == pytest.approx(expected)
    assert er["trained_parameters"] > simplecil["trained_parameters"] == 0
    # The reference is the recipe's method, which has no run at memory 0; differences are of the very means shown.
    assert [row["difference"] is None for row in table] == [True, True, True, False]
    assert again["difference"] == pytest.approx(again["average_accuracy"] - er["average_accuracy"])
    assert again["low"] <= again["difference"] <= again["high"]


def test_another_protocol_may_be_asked_for(whole):
    lake, table = whole
    how = {**ASKED, "memories": [4]}
    found = compare(lake, RECIPE, **how, protocol="retrieval")
    (expected,) = ledger(lake).rows(
        "SELECT avg(last_accuracy) AS mean FROM stream_summary "
        "WHERE method = 'simplecil' AND split = 'test' AND protocol = 'retrieval' AND modalities = 'all'"
    )
    assert found[1]["last_accuracy"] == pytest.approx(expected["mean"])
    assert found[1]["difference"] is not None
    absent = "n/a: it gives no answers of protocol agnostic"
    assert {row["note"] for row in compare(lake, RECIPE, **how, protocol="agnostic")} == {absent}


def test_what_needs_one_trunk_is_left_out_where_there_is_none(whole):
    lake, _ = whole
    (row,) = compare(lake, RECIPE, methods=["comm"], seeds=1)
    assert (row["seeds"], row["note"]) == (None, "n/a: the stream's modalities have trunks of their own")


def test_trials_are_never_promoted_even_where_they_are_the_recipe_itself(whole):
    lake, _ = whole
    assert champions.champion(ledger(lake), "hand") is None
    assert ledger(lake).rows("SELECT DISTINCT trial FROM runs") == [{"trial": True}]
    assert build.run(RECIPE, method=None, seed=0, overridden=False).trial is False


def test_stopped_inside_a_trial_it_goes_on_from_there(here, whole, monkeypatch):
    monkeypatch.setattr(build, "Settings", partial(Settings, checkpoint_every=3))
    told: list[int] = []

    def tell(what: str, done: int, total: int, stop: int = 0) -> None:
        if what.startswith("task 2/"):
            told.append(done)
            if done == stop:
                raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(comparing, "update", partial(update, progress=partial(tell, stop=5)))
        compare(here, RECIPE, **ASKED)
    kept = runs(here)
    assert [row["after_task"] for row in kept] == [1]
    told.clear()
    monkeypatch.setattr(comparing, "update", partial(update, progress=tell))
    table = compare(here, RECIPE, **ASKED)
    assert told[0] == 4
    assert kept[0] in runs(here)
    assert timeless(runs(here)) == timeless(runs(whole[0]))
    assert timeless(table) == timeless(whole[1])
    told.clear()
    assert compare(here, RECIPE, **ASKED) == table
    assert told == []


def test_side_by_side_they_are_the_same_bits(here, whole):
    table = compare(here, RECIPE, **ASKED, workers=2)
    assert timeless(runs(here)) == timeless(runs(whole[0]))
    assert timeless(table) == timeless(whole[1])


def test_the_command_shows_the_table(whole, tmp_path):
    lake, table = whole
    file = tmp_path / "hand.yaml"
    file.write_text(yaml.safe_dump(RECIPE.model_dump(mode="json")))
    words = ["--lake", str(lake.root), "compare", str(file), "--methods", "er,simplecil", "--seeds", "2"]
    shown = CliRunner().invoke(main, [*words, "--memory", "0,4"]).output.splitlines()
    assert shown[0].split()[:7] == ["method", "memory", "seeds", "average", "last", "forgetting", "bwt"]
    assert f"{table[1]['average_accuracy']:.3f} ± {table[1]['average_accuracy_sd']:.3f}" in shown[3]
    assert shown[2].endswith("n/a: it rehearses exemplars")
    plain = CliRunner().invoke(main, [*words, "--memory", "0 4", "--format", "json"]).output
    assert json.loads(plain)[3]["difference"] == pytest.approx(table[3]["difference"])
    wrong = CliRunner().invoke(main, [*words, "--memory", "few"])
    assert (wrong.exit_code, "no list of numbers" in wrong.output) == (2, True)


def test_one_failed_trial_costs_no_other(here):
    recipe = make_recipe(method="slda", params={"wrong": 1})  # parameters are of the recipe's own method
    with pytest.raises(TrialsFailedError, match=r"1 of 2 trials failed.*\nslda, memory 0, seed 0: .*wrong") as failed:
        compare(here, recipe, methods=["slda", "simplecil"], seeds=1)
    assert [row["method"] for row in runs(here)] == ["simplecil", "simplecil"]
    slda, simplecil = failed.value.table
    assert (slda["seeds"], slda["average_accuracy"], slda["note"]) == (None, None, "1 of its seeds failed")
    assert (simplecil["seeds"], simplecil["average_accuracy"] > 0, simplecil["note"]) == (1, True, "")


def test_a_trial_that_fails_midway_is_not_in_the_table(here, monkeypatch, tmp_path):
    monkeypatch.setattr(comparing, "_learn", partial(fail_in_the_second_task, method="er"))
    file = tmp_path / "hand.yaml"
    file.write_text(yaml.safe_dump(RECIPE.model_dump(mode="json")))
    words = ["--lake", str(here.root), "compare", str(file), "--methods", "er,simplecil", "--seeds", "2"]
    told = CliRunner().invoke(main, [*words, "--format", "json"])
    assert told.exit_code == 1
    assert "2 of 4 trials failed" in told.stderr and "seed 1: IndexError: out of range" in told.stderr
    er, simplecil = json.loads(told.stdout)
    assert (er["average_accuracy"], er["note"]) == (None, "2 of its seeds failed")
    assert (simplecil["seeds"], simplecil["average_accuracy"] > 0) == (2, True)
    assert [row["after_task"] for row in runs(here) if row["method"] == "er"] == [1, 1]


def fail_in_the_second_task(lake: Lake, recipe: Any, trial: Any, overrides: list[str], *, method: str) -> Any:
    def fail(what: str, done: int, total: int) -> None:
        if trial.method == method and what.startswith("task 2/"):
            raise IndexError("out of range")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "update", partial(update, progress=fail))
        return LEARN(lake, recipe, trial, overrides)


def test_a_process_that_dies_costs_no_finished_trial(here, monkeypatch):
    compare(here, RECIPE, methods=["simplecil"], seeds=1)
    monkeypatch.setattr(comparing, "_learn", die)
    with pytest.raises(TrialsFailedError, match=r"memory 4, seed 0: the process of a trial died") as failed:
        compare(here, RECIPE, methods=["er", "simplecil"], seeds=1, workers=2)
    assert [row["seeds"] for row in failed.value.table] == [None, 1]


def die(*job: Any) -> None:
    os._exit(9)


def test_what_was_measured_on_other_samples_is_not_held_against_each_other(tmp_path):
    lake = make_lake(tmp_path, labels=CLASSES[:4])
    recipe, asked = make_recipe(method="slda"), {"seeds": 1}
    (key,) = (row["key"] for row in ledger(lake).rows("SELECT key FROM samples WHERE split = 'test' LIMIT 1"))
    damage(lake, "test", 8, [key])
    compare(lake, recipe, methods=["slda"], **asked)
    damage(lake, "test", 8, [key])  # the same bit again: mended
    slda, simplecil = compare(lake, recipe, methods=["slda", "simplecil"], **asked)
    assert (slda["note"], slda["average_accuracy"] > 0) == ("1 samples skipped as damaged", True)
    assert simplecil["note"].startswith("no difference: it was measured on other samples than slda")
    assert (simplecil["difference"], simplecil["low"]) == (None, None)


def test_a_trial_runs_beside_the_stream_and_once(here):
    refusals: list[str] = []

    def trial(what: str, done: int, total: int) -> None:
        if not refusals and what.startswith("task"):
            with pytest.raises(PalimpsestError, match="another update of trial hand-er-s1") as error:
                update(here, RECIPE, seed=1)
            refusals.append(str(error.value))

    def beside(what: str, done: int, total: int) -> None:
        if not refusals and what.startswith("task"):
            update(here, RECIPE, seed=1, progress=trial)

    assert update(here, RECIPE, progress=beside).promoted
    assert refusals
    assert {(row["seed"], row["trial"]) for row in runs(here)} == {(0, False), (1, True)}


def credits(right: dict[str, float]) -> list[dict[str, Any]]:
    """One task, two samples a recording."""
    return [{"recording": name, "on_task": 1, "samples": 2, "credit": credit} for name, credit in right.items()]


def test_the_bootstrap_draws_recordings_in_pairs():
    half = paired_difference(credits({"a": 2, "b": 1}), credits({"a": 1, "b": 0}))
    assert list(half.values()) == [0.5, 0.5, 0.5]  # the same gain in each recording leaves nothing to chance
    mixed = paired_difference(credits({"a": 2, "b": 0}), credits({"a": 0, "b": 0}))
    assert list(mixed.values()) == [0.5, 0.0, 1.0]
