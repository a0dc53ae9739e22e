"""Scenarios beyond classes or domains one after the other: tasks that are named at test, and borders that blur."""

from __future__ import annotations

from collections import Counter

import pytest

from flows import build
from flows.recipe import Recipe
from flows.update import update
from learner.methods.finetune import Finetune
from store.lake import Lake
from tests.learner.handmade import CLASSES, ledger, make_lake, make_recipe

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


def test_too_much_blur_says_so():
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


def test_online_every_sample_is_learnt_from_once(here, monkeypatch):
    """One epoch is one pass: what enters gradient steps is each training sample of a task, once."""
    seen: list[str] = []
    loss = Finetune.loss

    def watched(self, batch, replay, generator):
        seen.extend(example.key for example in batch.examples)
        return loss(self, batch, replay, generator)

    monkeypatch.setattr(Finetune, "loss", watched)
    update(here, make_recipe(method="finetune", epochs=1))
    held = members(here)
    assert Counter(seen) == Counter(key for task in (1, 2) for _, key in held[task, "train"])


def test_sets_of_labels_are_told_where_a_recipe_asks_for_them(tmp_path):
    lake = make_lake(tmp_path, labels=CLASSES[:4])
    source = ledger(lake).rows("SELECT * FROM samples")
    paired = [row | {"labels": [row["labels"][0], CLASSES[0]]} for row in source if row["labels"][0] == CLASSES[1]]
    ledger(lake).append("samples", paired)
    update(lake, make_recipe(method="slda", labels="multi"))
    rows = ledger(lake).rows(
        "SELECT label, labels, predicted_labels FROM predictions WHERE protocol = 'classifier' AND modalities = 'all'"
    )
    assert {tuple(row["labels"]) for row in rows} >= {(CLASSES[0],), (CLASSES[1], CLASSES[0])}
    assert all(set(row["predicted_labels"]) <= set(CLASSES[:4]) for row in rows)
    assert any(row["predicted_labels"] for row in rows)
    scores = ledger(lake).rows(
        "SELECT value FROM task_metrics WHERE metric = 'weighted_f1' AND protocol = 'classifier' "
        "AND modalities = 'all' AND split = 'test' AND on_task = 1"
    )
    assert scores and all(0 <= row["value"] <= 1 for row in scores)
