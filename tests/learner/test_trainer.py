"""Runs of the trainer: what learns, what is frozen, what is kept, and that the same in gives the same out."""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner import registry
from learner.trainer import Trainer
from store.lake import Lake
from store.snapshots import load_anchors, load_snapshot
from store.types import Modality, PalimpsestError
from tests.learner.handmade import CLASSES, SPLITS, copied, make_lake, make_recipe, make_trainer, same

FAST = {"epochs": 2, "batch_size": 6}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake with four classes whose features are cached."""
    lake = make_lake(tmp_path_factory.mktemp("trainer"), labels=CLASSES[:4])
    make_trainer(lake, make_recipe())
    return lake


@pytest.fixture
def here(four: Lake, tmp_path: Path) -> Lake:
    return copied(four, tmp_path)


def learn_all(trainer: Trainer, data: Any) -> list[str]:
    tasks: list[Any] = []
    snapshots = []
    for number, name in data.names.items():
        task = trainer.task(number, name, data.tasks[number])
        snapshots.append(trainer.learn(task, tasks))
        tasks.append(task)
    return snapshots


def digest(trainer: Trainer) -> str:
    found = hashlib.sha256()
    for m, model in trainer.features.backbones.items():
        for name, tensor in model.state_dict().items():  # type: ignore[attr-defined]
            found.update(f"{m} {name}".encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def events(trainer: Trainer) -> list[dict[str, Any]]:
    rows = trainer.ledger.rows(
        "SELECT detail FROM events WHERE kind = 'learned' AND starts_with(subject, ?) ORDER BY subject",
        [trainer.run_id],
    )
    return [json.loads(row["detail"]) for row in rows]


@pytest.mark.parametrize("method", ["crossmodal-moe", "finetune", "joint", "slda"])
def test_learning_leaves_the_backbones_as_they_were(here, method):
    trainer, data = make_trainer(here, make_recipe(method=method, weight_decay=0.1, **FAST))
    before = digest(trainer)
    assert len(learn_all(trainer, data)) == 2
    assert digest(trainer) == before


def test_the_same_run_in_two_lakes_is_the_same_bits_and_another_seed_is_not(four, tmp_path):
    found = []
    for place, seed in (("one", 0), ("two", 0), ("three", 1)):
        lake = copied(four, tmp_path / place)
        torch.rand(len(place))  # what was drawn before must not matter
        trainer, data = make_trainer(lake, make_recipe(memory=4, epochs=1, batch_size=6), seed=seed)
        found.append([load_snapshot(lake, name) for name in learn_all(trainer, data)])
    assert same(found[0], found[1])
    assert not same(found[0][0]["method"], found[2][0]["method"])


def test_frozen_experts_stay_through_later_tasks_and_enough_can_learn(here):
    trainer, data = make_trainer(here, make_recipe(weight_decay=0.1, params={"spare": 3, "freeze": 2}, **FAST))
    first, second = (load_snapshot(here, name)["method"]["network"] for name in learn_all(trainer, data))
    moved = 0
    for name, frozen in first["structure"]["frozen"].items():
        assert len(frozen) == 2
        assert set(frozen) <= set(second["structure"]["frozen"][name])
        assert second["structure"]["experts"][name] - len(frozen) == 3  # of 4 there were, 2 still learnt
        for e in range(first["structure"]["experts"][name]):
            for part in ("down", "up"):
                key = f"encoder.adapters.{name}.experts.{part}.{e}"
                if e in frozen:
                    assert same(first["tensors"][key], second["tensors"][key]), key
                else:
                    moved += not same(first["tensors"][key], second["tensors"][key])
    assert moved


@pytest.mark.parametrize("top_k", [1, 3])
def test_as_many_experts_as_a_sample_uses_can_always_learn(here, top_k):
    params = {"experts": 3, "top_k": top_k, "freeze": 3, "spare": 0}
    trainer, data = make_trainer(here, make_recipe(params=params, **FAST))
    before: dict[str, list[int]] = {}
    for name in learn_all(trainer, data):
        structure = load_snapshot(here, name)["method"]["network"]["structure"]
        for adapter, experts in structure["experts"].items():
            assert experts - len(before.get(adapter, ())) >= top_k
        before = structure["frozen"]
    assert all(before.values())


def test_the_most_used_experts_are_those_frozen(here):
    trainer, data = make_trainer(here, make_recipe(**FAST))
    learn_all(trainer, data)
    told = events(trainer)[0]
    for name, mass in told["gate_mass"].items():
        assert sum(mass) == pytest.approx(1)
        assert told["frozen"][name] == [int(np.argmax(mass))]  # ties go to the first


def test_expert_use_is_told_on_every_task_seen(here):
    trainer, data = make_trainer(here, make_recipe(**FAST))
    learn_all(trainer, data)
    ask = trainer.ledger.rows
    seen = "SELECT DISTINCT split, after_task, on_task FROM expert_use ORDER BY ALL"
    assert [tuple(row.values()) for row in ask(seen)] == [
        *(("train", task, task) for task in (1, 2)),
        *(("val", after, on) for after, on in ((1, 1), (2, 1), (2, 2))),
    ]
    for row in (rows := ask("FROM routing")):
        assert sum(row["gate_mass"]) == pytest.approx(1)
        assert 0 <= row["gate_entropy"] <= 1 and 0 <= row["load_balance"] <= 1
    assert len(rows) == 5 * 2 * 2  # measurements, modalities, stages
    assert {row["after_task"] for row in ask("FROM loss_terms")} == {1, 2}
    first, second = ask("FROM parameter_count ORDER BY after_task")
    trained = sum(parameter.numel() for parameter in trainer.method.modules.parameters())
    assert first["new_parameters"] + second["new_parameters"] == trained
    assert first["frozen_share"] == 1 / 4 and second["frozen_share"] >= 1 / 4


def test_every_term_of_the_loss_is_a_switch(here):
    trainer, data = make_trainer(here, make_recipe(memory=4, **FAST))
    learn_all(trainer, data)
    first, second = (set(detail["loss"]) for detail in events(trainer))
    assert first == {"classification", "alignment"}
    terms = {"classification", "alignment", "distillation", "preservation"}
    assert second == terms | {f"rehearsal {term}" for term in terms}
    off = {"alignment": 0, "distillation": 0, "preservation": 0}
    other, data = make_trainer(here, make_recipe(params=off, **FAST))
    learn_all(other, data)
    assert [set(detail["loss"]) for detail in events(other)] == [{"classification"}, {"classification"}]


def test_preservation_acts_on_the_model_in_both_forms(here):
    found = []
    for relations, weight in (("anchors", 1.0), ("batch", 1.0), ("anchors", 0.0)):
        recipe = make_recipe(params={"relations": relations, "preservation": weight, "distillation": 0.0}, **FAST)
        trainer, data = make_trainer(here, recipe)
        found.append(load_snapshot(here, learn_all(trainer, data)[1])["method"]["network"]["tensors"])
    assert not any(same(one, other) for one, other in combinations(found, 2))


def test_training_lowers_the_loss(here):
    trainer, data = make_trainer(here, make_recipe(epochs=6, batch_size=6, params={"plasticity": 1.0}))
    learn_all(trainer, data)
    for detail in events(trainer):
        by_epoch = detail["loss"]["classification"]
        assert by_epoch[-1] < by_epoch[0]


def test_anchors_are_kept_of_every_class_with_their_samples(here):
    trainer, data = make_trainer(here, make_recipe(anchors=2, **FAST))
    snapshots = learn_all(trainer, data)
    store = load_anchors(here, snapshots[-1], load_snapshot(here, snapshots[-1]))
    labels = store.table["label"].to_pylist()
    assert sorted(labels) == sorted([*CLASSES[:4], *CLASSES[:4]])
    assert store.spaces == ("fused", "imu", "text")
    train = {example.key for task in data.tasks.values() for example in task["train"]}
    assert set(store.table["key"].to_pylist()) <= train


def test_memory_counts_all_that_is_kept_of_the_past(here):
    trainer, data = make_trainer(here, make_recipe(method="er", memory=4, **FAST))
    learn_all(trainer, data)
    (row,) = trainer.ledger.rows("SELECT * FROM snapshots WHERE run_id = ? AND after_task = 2", [trainer.run_id])
    assert len(trainer.memory) == 4
    assert row["memory_bytes"] == trainer.anchors.nbytes + sum(example.entry.size for example in trainer.memory)
    assert 0 < row["trained_parameters"] < row["parameters"]


def test_all_that_is_known_is_predicted_by_both_protocols_and_every_subset(here):
    trainer, data = make_trainer(here, make_recipe(**FAST))
    learn_all(trainer, data)
    rows = trainer.ledger.rows(
        "SELECT after_task, on_task, split, protocol, modalities, count(*) AS n, min(confidence) AS low, "
        "max(confidence) AS high FROM predictions GROUP BY ALL"
    )
    assert len(rows) == 3 * 2 * (3 + 5)
    assert {(row["after_task"], row["on_task"]) for row in rows} == {(1, 1), (2, 1), (2, 2)}
    by = {(row["protocol"], row["modalities"]) for row in rows}
    assert by == {(p, m) for p in ("classifier", "retrieval") for m in ("imu", "text", "all")} | {
        ("retrieval", "imu>text"),
        ("retrieval", "text>imu"),
    }
    assert all(row["n"] == 4 and 0 < row["low"] <= row["high"] <= 1 + 1e-6 for row in rows)


def test_a_sample_is_measured_only_by_what_it_has(tmp_path):
    lake = make_lake(tmp_path, labels=CLASSES[:2], lacks=lambda label, number: {"imu"} if number % 5 == 4 else set())
    trainer, data = make_trainer(lake, make_recipe(**FAST))
    learn_all(trainer, data)
    counted = trainer.ledger.rows(
        "SELECT modalities, split, count(*) AS n FROM predictions WHERE protocol = 'classifier' GROUP BY ALL"
    )
    found = {(row["modalities"], row["split"]): row["n"] for row in counted}
    assert found == {("all", "val"): 4, ("imu", "val"): 4, ("text", "val"): 4, ("all", "test"): 4, ("text", "test"): 4}


@pytest.mark.parametrize("method", ["crossmodal-moe", "finetune", "slda"])
def test_a_modality_met_for_the_first_time_after_training_does_no_harm(tmp_path, method):
    """No training sample has inertial signals, all the others have."""
    train = {number for number in range(10) if SPLITS[number % 5] == "train"}
    lake = make_lake(tmp_path, labels=CLASSES[:2], lacks=lambda label, number: {"imu"} if number in train else set())
    trainer, data = make_trainer(lake, make_recipe(method=method, epochs=4, lr=5e-3))
    task = trainer.task(1, data.names[1], data.tasks[1])
    trainer.method.begin_task(task)
    trainer.method.end_task(task)
    with torch.no_grad():
        for batch in task.test.batches():
            assert trainer.method.predict(batch).isfinite().all()
            assert trainer.method.predict(batch.only([Modality.IMU])).isfinite().all()
    trainer.learn(task)
    assert not trainer.ledger.rows("SELECT 1 FROM predictions WHERE isnan(confidence)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "no-such-method"}, "no method is called 'no-such-method'; there are: crossmodal-moe"),
        ({"params": {"no_such_setting": 1}}, "does not take these parameters.*no_such_setting"),
    ],
)
def test_what_the_recipe_asks_for_must_exist(here, change, message):
    with pytest.raises(PalimpsestError, match=message):
        make_trainer(here, make_recipe(**change))


def test_backbones_must_exist_and_have_weights(tmp_path):
    lake, cpu = Lake(tmp_path / "lake"), torch.device("cpu")
    with pytest.raises(PalimpsestError, match="no backbone is called 'huge-audio'"):
        registry.backbones({"audio": "huge"}, lake, cpu)
    here = make_lake(tmp_path)
    with pytest.raises(PalimpsestError, match="backbone tiny-imu is for imu, the recipe names it for text"):
        registry.backbones({"text": "tiny-imu"}, here, cpu)
    assert list(registry.backbones({"text": "tiny"}, here, cpu)) == [Modality.TEXT]


def test_a_checkpoint_of_transformers_needs_transformers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PalimpsestError, match=r"hub:some/vit needs transformers .*pip install 'palimpsest\[hub\]'"):
        registry.backbones({"image": "hub:some/vit"}, Lake(tmp_path), torch.device("cpu"))
