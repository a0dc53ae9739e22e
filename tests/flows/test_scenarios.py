"""Scenarios beyond classes or domains one after the other: tasks named at test, borders that blur, one pass, sets."""

from __future__ import annotations

from collections import Counter

import pytest

from flows import build, stream
from flows.recipe import Recipe
from flows.update import update
from learner import registry
from learner.registry import METHODS, exemplars, needs_one_trunk
from store.lake import Lake
from store.ledger import Ledger
from store.types import PalimpsestError
from tests.learner.handmade import CLASSES, arrive, copied, ledger, make_lake, make_recipe

BY_LABEL = {"scenario": "class-incremental", "by": "label", "per_task": 2}


def members(lake: Lake) -> dict[tuple[int, str], list[tuple[str, str]]]:
    """Label and key of what each task holds, by task and split."""
    held: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for row in ledger(lake).rows(
        "SELECT task, t.split, labels[1] AS label, key FROM task_samples t JOIN samples USING (dataset, key) "
        "ORDER BY key"
    ):
        held.setdefault((row["task"], row["split"]), []).append((row["label"], row["key"]))
    return held


def learnt(lake: Lake, recipe: Recipe) -> dict[str, float]:
    """Last accuracy on the test split by protocol, all tasks learnt."""
    update(lake, recipe)
    rows = ledger(lake).rows(
        "SELECT protocol, last_accuracy FROM stream_summary WHERE split = 'test' AND modalities = 'all'"
    )
    return {row["protocol"]: row["last_accuracy"] for row in rows}


def test_the_tasks_identity_can_only_help(here):
    found = learnt(here, make_recipe(method="finetune", stream=BY_LABEL | {"scenario": "task-incremental"}))
    assert found["task-aware"] >= found["classifier"]
    answers = ledger(here).rows(
        "SELECT on_task, label, predicted, predicted_in_task FROM predictions WHERE protocol = 'classifier'"
    )
    first, second = set(CLASSES[:2]), set(CLASSES[2:4])
    for row in answers:
        own = first if row["label"] in first else second
        assert row["predicted_in_task"] in own
        assert row["predicted"] == row["predicted_in_task"] or row["predicted"] not in own


def test_task_incremental_needs_tasks_of_labels():
    with pytest.raises(ValueError, match="task-incremental needs tasks made of labels"):
        make_recipe(stream={"scenario": "task-incremental", "by": "domain"})


@pytest.mark.parametrize("method", ["crossmodal-moe", "slda", "finetune", "er"])
def test_classes_that_come_again_are_learnt_on(here, method):
    memory = {"memory": 4} if method == "er" else {}
    found = learnt(here, make_recipe(method=method, stream=BY_LABEL | {"blur": 0.5}, **memory))
    assert found["classifier"] >= 0.25  # of four classes
    assert {label for label, _ in members(here)[1, "train"]} == set(CLASSES[:4])


def test_blur_moves_training_samples_alone_and_loses_none(four, here):
    plain = make_recipe(method="slda", stream=BY_LABEL)
    update(here, plain)
    before = members(here)
    update(here, plain.model_copy(update={"name": "blurred", "stream": plain.stream.model_copy(update={"blur": 0.4})}))
    rows = ledger(here).rows("SELECT task, split, key FROM task_samples WHERE stream = 'blurred' ORDER BY key")
    after: dict[tuple[int, str], list[str]] = {}
    for row in rows:
        after.setdefault((row["task"], row["split"]), []).append(row["key"])
    for (task, split), held in before.items():
        if split != "train":
            assert after[task, split] == [key for _, key in held]
    moved = {key for _, key in before[1, "train"]} - set(after[1, "train"])
    assert 0 < len(moved) < len(before[1, "train"])
    assert moved <= set(after[2, "train"])
    assert Counter(row["key"] for row in rows).most_common(1)[0][1] == 1
    assert len(rows) == sum(map(len, before.values()))


def test_a_blurred_seal_that_was_killed_ends_the_same_and_later_arrivals_change_none_of_it(here, tmp_path, monkeypatch):
    recipe = make_recipe(method="slda", stream=BY_LABEL | {"per_task": 1, "blur": 0.6})
    whole = copied(here, tmp_path / "whole")
    assert stream.seal(ledger(whole), recipe) == 4
    append = Ledger.append

    def killed(self, table, rows):
        if table == "tasks":
            raise KeyboardInterrupt
        append(self, table, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ledger, "append", killed)
        stream.seal(ledger(here), recipe)
    assert stream.seal(ledger(here), recipe) == 4
    before = members(here)
    assert before == members(whole)
    home = {label: task for (task, split), held in before.items() if split == "test" for label, _ in held}
    moved = {(home[label], task) for (task, _), held in before.items() for label, _ in held if home[label] != task}
    assert len(moved) > 4  # not to one neighbour alone
    arrive(here, labels=["ant"], numbers=range(10, 20))
    assert stream.seal(ledger(here), recipe) == 5  # alone it has none to mix with
    after = members(here)
    assert {place: held for place, held in after.items() if place[0] < 5} == before
    assert [label for label, _ in after[5, "train"]] == ["ant"] * 6


def test_a_task_that_blur_leaves_nothing_to_learn_from_is_named(tmp_path):
    lake = make_lake(tmp_path, labels=CLASSES[:4], numbers=range(1))
    with pytest.raises(PalimpsestError, match="a blur of 1.0 leaves task .* of stream hand without training samples"):
        stream.seal(ledger(lake), make_recipe(stream=BY_LABEL | {"per_task": 1, "blur": 1.0}))
    assert not ledger(lake).rows("FROM tasks")


def test_blur_is_a_share_and_never_of_arrivals():
    with pytest.raises(ValueError, match="less than or equal to 1"):
        make_recipe(stream=BY_LABEL | {"blur": 1.5})
    with pytest.raises(ValueError, match="give no `blur`"):
        make_recipe(stream={"scenario": "arrival-incremental", "by": "arrival", "blur": 0.1})


def test_settings_at_their_defaults_name_the_runs_they_named_before():
    recipe = make_recipe()
    assert "blur" not in recipe.stream.model_dump()
    assert "labels" not in recipe.learner.model_dump()
    run = build.run(recipe, method=None, seed=0, overridden=False)
    assert run.digest == build.run(make_recipe(labels="single"), method=None, seed=0, overridden=False).digest
    assert run.digest != build.run(make_recipe(labels="multi"), method=None, seed=0, overridden=False).digest


def test_a_stream_that_began_before_there_was_blur_goes_on(here):
    former = (
        '{"by": "label", "order": [], "order_seed": null, "per_task": 2, "scenario": "class-incremental", "tasks": []}'
    )
    named = {"stream": "hand", "dataset": "hand", "scenario": "class-incremental", "definition": former}
    ledger(here).append("streams", [named])
    recipe = make_recipe(method="slda")
    assert stream.seal(ledger(here), recipe) == 2
    blurred = recipe.model_copy(update={"stream": recipe.stream.model_copy(update={"blur": 0.1})})
    with pytest.raises(PalimpsestError, match="was begun with other tasks"):
        stream.seal(ledger(here), blurred)
    assert build.run(recipe, method=None, seed=0, overridden=False).digest == "6fd5338d"


@pytest.mark.parametrize("method", [name for name in METHODS if name != "joint"])
def test_online_every_sample_enters_one_step(here, monkeypatch, method):
    """But for exemplars that are rehearsed; closed forms take no steps, and `joint` learns all tasks anew each time."""
    seen: list[str] = []
    build_method = registry.method

    def watched(*args):
        one = build_method(*args)
        loss = one.loss

        def told(batch, replay, generator):
            seen.extend(example.key for example in batch.examples)
            return loss(batch, replay, generator)

        one.loss = told
        return one

    monkeypatch.setattr(registry, "method", watched)
    how = {"modalities": ("imu",), "backbone": "canonical"} if needs_one_trunk(method) else {}
    update(here, make_recipe(method=method, epochs=1, memory=4 if exemplars(method) == "needed" else 0, **how))
    train = [key for (_, split), held in members(here).items() for _, key in held if split == "train"]
    assert sorted(seen) == ([] if method in {"slda", "simplecil", "ranpac", "zero-shot"} else sorted(train))


def test_sets_of_labels_are_told_where_a_recipe_asks_for_them(here):
    """Every bee is an ant too, so the best threshold for ants lets all of the first task reach it."""
    bees = ledger(here).rows("SELECT * EXCLUDE recorded_at FROM samples WHERE labels[1] = 'bee'")
    ledger(here).append("samples", [row | {"labels": ["bee", "ant"]} for row in bees])
    update(here, make_recipe(method="slda", labels="multi"))
    rows = ledger(here).rows(
        "SELECT label, labels, predicted_labels FROM predictions "
        "WHERE protocol = 'classifier' AND split = 'val' AND after_task = 1"
    )
    assert {(row["label"], tuple(row["labels"])) for row in rows} == {("ant", ("ant",)), ("bee", ("bee", "ant"))}
    assert all("ant" in row["predicted_labels"] for row in rows)
    (f1,) = ledger(here).rows(
        "SELECT value FROM task_metrics WHERE metric = 'weighted_f1' AND protocol = 'classifier' "
        "AND modalities = 'all' AND split = 'val' AND after_task = 1"
    )
    assert f1["value"] > 0.8  # one label a sample comes to 7/9 at most: it misses half of the ants


def test_where_each_sample_has_one_label_no_sets_are_told(here):
    update(here, make_recipe(method="slda"))
    (row,) = ledger(here).rows("SELECT count(labels) + count(predicted_labels) AS n FROM predictions")
    assert row["n"] == 0
