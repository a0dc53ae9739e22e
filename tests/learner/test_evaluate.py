from __future__ import annotations

import pytest

from learner.evaluate import SHOWN, searches, subsets
from store.types import Modality
from tests.learner.handmade import CLASSES, make_lake, make_recipe, make_trainer

V, A, T, I = Modality.VIDEO, Modality.AUDIO, Modality.TEXT, Modality.IMU  # noqa: E741


@pytest.mark.parametrize(
    ("modalities", "names"),
    [
        ([A], ["all"]),
        ([V, A], ["video", "audio", "all"]),
        ([V, A, T], ["video", "audio", "text", "video+audio", "video+text", "audio+text", "all"]),
        ([V, A, T, I], ["video", "audio", "text", "imu", "all"]),
    ],
)
def test_modality_sets_measured(modalities, names):
    found = dict(subsets(modalities))
    assert list(found) == names
    assert found["all"] == tuple(modalities)


@pytest.mark.parametrize(
    ("name", "chosen", "aligned", "asked"),
    [
        ("all", [V, A], True, [("all", "fused", "fused")]),
        ("all", [A], True, [("all", "fused", "fused")]),
        ("video+audio", [V, A], True, [("video+audio", "fused", "fused")]),
        ("audio", [A], False, [("audio", "audio", "audio")]),
        (
            "audio",
            [A],
            True,
            [("audio", "audio", "audio"), ("audio>video", "audio", "video"), ("audio>text", "audio", "text")],
        ),
    ],
)
def test_where_a_modality_set_is_looked_for(name, chosen, aligned, asked):
    assert list(searches(name, chosen, [V, A, T], aligned=aligned)) == asked


@pytest.mark.parametrize(
    ("method", "params", "across"),
    [("crossmodal-moe", {}, True), ("crossmodal-moe", {"alignment": 0.0}, False), ("slda", {}, False)],
)
def test_what_retrieval_writes_agrees_with_the_anchors(tmp_path, method, params, across):
    lake = make_lake(tmp_path, labels=CLASSES[:2], lacks=lambda label, number: {"imu"} if number == 4 else set())
    trainer, data = make_trainer(lake, make_recipe(method=method, params=params, epochs=1))
    trainer.learn(trainer.task(1, data.names[1], data.tasks[1]))
    rows = trainer.ledger.rows("FROM predictions WHERE protocol = 'retrieval'")
    label_of = dict(
        zip(trainer.anchors.table["key"].to_pylist(), trainer.anchors.table["label"].to_pylist(), strict=True)
    )
    for row in rows:
        assert len(row["nearest"]) == SHOWN
        assert (row["hit"] == 1) == (label_of[row["nearest"][0]] == row["label"])
        assert row["hit"] is None or row["average_precision"] >= 1 / row["hit"] / 3  # of three anchors a label
        assert 0 < row["average_precision"] <= 1 and -1e-6 < row["novelty"] <= 2
    crossing = {"imu>text", "text>imu"}
    assert {row["modalities"] for row in rows} == {"imu", "text", "all"} | (crossing if across else set())
    asked = {way: {row["key"] for row in rows if row["modalities"] == way} for way in ("imu", "text", *crossing)}
    assert not across or asked["imu>text"] == asked["imu"] < asked["text"] == asked["text>imu"]
    (other,) = trainer.ledger.rows(
        "SELECT count(novelty) + count(hit) AS n FROM predictions WHERE protocol <> 'retrieval'"
    )
    assert other["n"] == 0
