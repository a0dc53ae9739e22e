"""The metrics against matrices whose figures were worked out by hand; a[t][i] = right answers of four."""

from __future__ import annotations

import json
from math import log
from typing import Any

import pytest

from store.lake import Lake
from store.ledger import Ledger

MATRIX = [[4], [2, 3], [3, 1, 4]]
OTHER = [[4], [4, 4], [4, 4, 4]]


def learned(ledger: Ledger, run_id: str, matrix: list[list[int]], *, seed: int = 0, modalities: str = "all") -> None:
    ledger.append("runs", [{"run_id": run_id, "stream": "s", "scenario": "class", "method": "m", "seed": seed}])
    ledger.append("tasks", [{"stream": "s", "task": i, "task_name": f"task {i}"} for i in range(1, 4)])
    for t, row in enumerate(matrix, 1):
        ledger.append(
            "predictions",
            [
                {
                    "run_id": run_id,
                    "after_task": t,
                    "on_task": i,
                    "split": "test",
                    "protocol": "classifier",
                    "modalities": modalities,
                    "key": f"{i}-{sample}",
                    "label": "right",
                    "predicted": "right" if sample < right else "wrong",
                    "snapshot_id": f"{run_id}/{t:03d}",
                }
                for i, right in enumerate(row, 1)
                for sample in range(4)
            ],
        )


@pytest.fixture
def ledger(lake: Lake) -> Ledger:
    return Ledger(lake)


def summary(ledger: Ledger, run_id: str) -> dict[str, float]:
    (row,) = ledger.rows(
        "SELECT average_accuracy, last_accuracy, forgetting, bwt, tasks FROM stream_summary WHERE run_id = ?", [run_id]
    )
    return row


def test_task_accuracy_counts_right_answers(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX)
    rows = ledger.rows("FROM task_accuracy ORDER BY after_task, on_task")
    assert [(r["after_task"], r["on_task"], r["correct"], r["total"], r["accuracy"]) for r in rows] == [
        (t, i, right, 4, right / 4) for t, row in enumerate(MATRIX, 1) for i, right in enumerate(row, 1)
    ]
    columns = (
        "run_id stream scenario method seed after_task on_task task_name protocol modalities split "
        "accuracy correct total snapshot_id measured_at"
    )
    assert list(rows[-1]) == columns.split()
    assert all((r["task_name"], r["snapshot_id"]) == (f"task {r['on_task']}", f"r/00{r['after_task']}") for r in rows)


def test_summary_of_a_matrix_worked_out_by_hand(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX)
    # A_1 = 1, A_2 = (.5 + .75) / 2 = .625, A_3 = (.75 + .25 + 1) / 3 = 2/3.
    # Best before the end: task 1 1 (not its .5), task 2 .75; at the end .75 and .25.
    assert summary(ledger, "r") == pytest.approx(
        {
            "average_accuracy": (1 + 0.625 + 2 / 3) / 3,
            "last_accuracy": 2 / 3,
            "forgetting": ((1 - 0.75) + (0.75 - 0.25)) / 2,
            "bwt": ((0.75 - 1) + (0.25 - 0.75)) / 2,
            "tasks": 3,
        }
    )


def test_credit_by_recording_adds_up_to_average_accuracy(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX)
    ledger.append("streams", [{"stream": "s", "dataset": "d", "scenario": "class"}])
    samples = [{"dataset": "d", "key": f"{i}-{n}", "recording": f"r{n // 2}"} for i in range(1, 4) for n in range(4)]
    ledger.append("samples", samples)
    rows = ledger.rows("SELECT on_task, recording, samples, credit FROM recording_credit ORDER BY ALL")
    assert [(row["on_task"], row["recording"]) for row in rows] == [(i, r) for i in range(1, 4) for r in ("r0", "r1")]
    # Task 1 was right 2, 2, 2 times in r0 after the three steps, worth 1/3, 1/6 and 1/9 each; and 2, 0, 1 in r1.
    assert [row["credit"] for row in rows[:2]] == pytest.approx([2 * (1 / 3 + 1 / 6 + 1 / 9), 2 / 3 + 1 / 9])
    by_task = ledger.rows("SELECT sum(credit) / sum(samples) AS share FROM recording_credit GROUP BY on_task")
    assert sum(row["share"] for row in by_task) == pytest.approx(summary(ledger, "r")["average_accuracy"])


def test_cost_is_that_of_the_last_snapshot_and_of_all_learning(ledger: Ledger) -> None:
    for task, size in ((1, 30), (2, 20)):
        name = f"r/{task:03d}"
        row = {"snapshot_id": name, "run_id": "r", "after_task": task, "memory_bytes": size, "trained_parameters": 7}
        ledger.append("snapshots", [row])
        ledger.append("events", [{"event": f"learned {name}", "kind": "learned", "subject": name, "seconds": 1.5}])
    expected = {"run_id": "r", "memory_bytes": 20, "trained_parameters": 7, "seconds": 3.0}
    assert ledger.rows("FROM run_cost") == [expected]


def test_steps_are_what_each_task_did(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX)
    steps = ledger.rows("FROM step_summary ORDER BY after_task")
    assert [row["step_accuracy"] for row in steps] == pytest.approx([1, 0.625, 2 / 3])
    assert [row["new_accuracy"] for row in steps] == [1, 0.75, 1]
    assert [(row["forgetting"], row["bwt"]) for row in steps] == [(None, None), (0.5, -0.5), (0.375, -0.375)]


def test_forgetting_and_backward_transfer_differ_where_a_task_improved_first(ledger: Ledger) -> None:
    learned(ledger, "r", [[2], [4, 4], [3, 4, 4]])
    found = summary(ledger, "r")
    assert (found["forgetting"], found["bwt"]) == pytest.approx((0.125, 0.125))


def test_a_task_that_gained_at_the_end_is_forgotten_less_than_nothing(ledger: Ledger) -> None:
    learned(ledger, "r", [[2], [4, 4]])
    found = summary(ledger, "r")
    assert (found["forgetting"], found["bwt"]) == (-0.5, 0.5)


def test_runs_are_summed_up_apart(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX)
    learned(ledger, "q", OTHER, seed=1)
    assert summary(ledger, "q") == {
        "average_accuracy": 1, "last_accuracy": 1, "forgetting": 0, "bwt": 0, "tasks": 3,
    }  # fmt: skip
    assert summary(ledger, "r")["last_accuracy"] == pytest.approx(2 / 3)


def test_after_one_task_nothing_can_be_forgotten(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX[:1])
    assert summary(ledger, "r") == {
        "average_accuracy": 1, "last_accuracy": 1, "forgetting": None, "bwt": None, "tasks": 1,
    }  # fmt: skip


def test_measuring_again_changes_a_figure_and_doubles_none(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX)
    learned(ledger, "r", OTHER)
    assert summary(ledger, "r")["average_accuracy"] == 1
    assert ledger.rows("SELECT sum(total)::INTEGER AS n FROM task_accuracy") == [{"n": 24}]


def test_tasks_not_yet_learned_do_not_count(ledger: Ledger) -> None:
    learned(ledger, "r", [[4, 0, 0], [2, 3, 0], [3, 1, 4]])
    assert summary(ledger, "r")["average_accuracy"] == pytest.approx((1 + 0.625 + 2 / 3) / 3)


def test_the_matrix_has_a_row_a_step(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX)
    rows = ledger.rows("SELECT after_task, accuracy_on_task FROM accuracy_matrix ORDER BY after_task")
    assert [row["accuracy_on_task"] for row in rows] == [[1.0], [0.5, 0.75], [0.75, 0.25, 1.0]]


def test_modality_ablation_is_what_is_lost_against_all(ledger: Ledger) -> None:
    learned(ledger, "r", OTHER)
    learned(ledger, "r", MATRIX, modalities="audio")
    rows = ledger.rows("SELECT modalities, lost_against_all FROM modality_ablation ORDER BY modalities")
    assert [row["modalities"] for row in rows] == ["all", "audio"]
    assert [row["lost_against_all"] for row in rows] == pytest.approx([0, 1 / 3])


def ranked(
    ledger: Ledger, run_id: str, after: int, on: int, hits: list[int | None], precisions: list[float], **row: str
):
    row = {"protocol": "retrieval", "modalities": "audio>video", "split": "test", "snapshot_id": f"{run_id}/1", **row}
    ledger.append(
        "predictions",
        [
            {"run_id": run_id, "after_task": after, "on_task": on, "key": f"{on}-{i}", **row}
            | {"label": "a", "predicted": "a", "hit": hit, "average_precision": precision, "novelty": i / 100}
            for i, (hit, precision) in enumerate(zip(hits, precisions, strict=True))
        ],
    )


def metrics(ledger: Ledger, where: str) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in ledger.rows(f"SELECT metric, value FROM task_metrics WHERE {where}")}


def test_weighted_f1_worked_out_by_hand(ledger: Ledger) -> None:
    ledger.append("runs", [{"run_id": "r", "stream": "s", "scenario": "class", "method": "m", "seed": 0}])
    pairs = [("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", "z"), ("c", "a")]
    cell = {"run_id": "r", "after_task": 2, "on_task": 1, "split": "val", "protocol": "classifier", "modalities": "all"}
    ledger.append("predictions", [cell | {"key": str(i), "label": t, "predicted": p} for i, (t, p) in enumerate(pairs)])
    # F1: a 2*2/(3+3), b 2*1/(2+2), c 0; three, two and one sample.
    (row,) = ledger.rows("FROM task_metrics")
    assert row == pytest.approx({**row, "metric": "weighted_f1", "value": (3 * 2 / 3 + 2 * 1 / 2 + 0) / 6})
    columns = "run_id stream scenario method seed after_task on_task task_name protocol modalities split metric value"
    assert list(row) == columns.split()
    ledger.append("predictions", [cell | {"key": str(i), "label": "a", "predicted": "b"} for i in range(6)])
    assert metrics(ledger, "true") == {"weighted_f1": 0}


def test_weighted_f1_of_sets_worked_out_by_hand(ledger: Ledger) -> None:
    ledger.append("runs", [{"run_id": "r", "stream": "s", "scenario": "class", "method": "m", "seed": 0}])
    sets = [(["a"], ["a"]), (["a", "b"], ["a"]), (["b"], ["a", "b"]), (["c", "a"], []), (["b"], ["b", "z"])]
    cell = {"run_id": "r", "after_task": 1, "on_task": 1, "split": "val", "protocol": "classifier", "modalities": "all"}
    rows = [{"label": t[0], "predicted": "a", "labels": t, "predicted_labels": p} for t, p in sets]
    ledger.append("predictions", [cell | {"key": str(i)} | row for i, row in enumerate(rows)])
    # F1: a 2*2/(3+3), b 2*2/(3+2), c 0; of three, three and one sample.
    assert metrics(ledger, "true") == pytest.approx({"weighted_f1": (3 * 2 / 3 + 3 * 4 / 5 + 0) / 7})


def test_task_aware_figures_come_from_what_is_said_within_the_task(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX)
    assert {row["protocol"] for row in ledger.rows("FROM task_accuracy")} == {
        "classifier"
    }  # of a run before there were
    rows = ledger.rows("SELECT * EXCLUDE recorded_at FROM predictions WHERE after_task = 2 AND on_task = 1")
    ledger.append("predictions", [row | {"predicted_in_task": "right", "labels": ["x"]} for row in rows])
    found = ledger.rows("FROM task_accuracy WHERE after_task = 2 AND on_task = 1")
    assert {row["protocol"]: row["accuracy"] for row in found} == {"classifier": 0.5, "task-aware": 1}
    assert metrics(ledger, "protocol = 'task-aware'") == {"weighted_f1": 1}
    judged = "SELECT headline('task-incremental') AS one, headline('class-incremental') AS other"
    assert ledger.rows(judged) == [{"one": "task-aware", "other": "classifier"}]


def test_recall_and_mean_average_precision_worked_out_by_hand(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX[:1])
    ranked(ledger, "r", 1, 1, [1, 5, 6, None], [1.0, 0.4, 0.2, 0.0])
    assert metrics(ledger, "modalities = 'audio>video'") == pytest.approx(
        {"weighted_f1": 1, "recall@1": 0.25, "recall@5": 0.5, "recall@10": 0.75, "map": 0.4}
    )
    assert set(metrics(ledger, "protocol = 'classifier'")) == {"weighted_f1"}


def test_retrieval_that_was_not_ranked_has_no_recall(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX[:1])
    ledger.append("predictions", [row | {"protocol": "retrieval"} for row in ledger.rows("FROM predictions")])
    assert set(metrics(ledger, "protocol = 'retrieval'")) == {"weighted_f1"}


def test_other_metrics_are_summed_up_as_accuracy_is(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX)
    for after, on, precision in ((1, 1, 1.0), (2, 1, 0.5), (2, 2, 0.7), (2, 3, 0.0)):  # task 3 is not learnt yet
        ranked(ledger, "r", after, on, [1], [precision])
    (row,) = ledger.rows("SELECT average_value, last_value FROM metric_summary WHERE metric = 'map'")
    assert row == pytest.approx({"average_value": (1.0 + 0.6) / 2, "last_value": 0.6})
    (row,) = ledger.rows(
        "SELECT last_value FROM metric_summary WHERE metric = 'weighted_f1' AND protocol = 'classifier'"
    )
    # Each task's samples are all of class right: F1 = 2 right / (right + 4).
    expected = [2 * right / (right + 4) for right in MATRIX[-1]]
    assert row["last_value"] == pytest.approx(sum(expected) / 3)


def told(ledger: Ledger, *details: Any) -> None:
    """A run whose n-th task added n thousand parameters to 100,000, with what its events tell."""
    ledger.append("runs", [{"run_id": "r", "stream": "s", "method": "m", "seed": 0}])
    for task, detail in enumerate(details, 1):
        name = f"r/{task:03d}"
        row = {"snapshot_id": name, "run_id": "r", "after_task": task, "trained_parameters": 7}
        ledger.append("snapshots", [row | {"parameters": 100_000 + 500 * task * (task + 1)}])
        event = {"event": f"learned {name}", "kind": "learned", "subject": name}
        ledger.append("events", [event | {"detail": detail if isinstance(detail, str) else json.dumps(detail)}])
    ledger.append("events", [{"event": "damaged", "kind": "damaged", "subject": "r/001", "detail": "not {json"}])


ROUTED = {
    "backbone_parameters": 90_000,
    "top_k": 2,
    "experts": {"audio-1": 4, "video-0": 4},
    "frozen": {"audio-1": [0], "video-0": [1, 2]},
    "gate_mass": {"video-0": [0.25, 0.25, 0.25, 0.25]},
    "gate_entropy": {"video-0": log(2) / 4},
    "routed": [
        {"on_task": 1, "split": "val", "gate_mass": {"video-0": [0, 1, 0, 0]}, "gate_entropy": {"video-0": 0}},
        {
            "on_task": 2,
            "split": "val",
            "gate_mass": {"video-0": [0.5, 0.5, 0, 0], "audio-1": [0.0, 0.0, 0.25, 0.75]},
            "gate_entropy": {"video-0": log(2), "audio-1": log(2) / 2},
        },
    ],
}


def test_loss_terms_are_told_by_epoch(ledger: Ledger) -> None:
    told(ledger, {"loss": {"classification": [2.0, 1.0]}}, {"loss": {"alignment": [0.5], "empty": []}})
    rows = ledger.rows("SELECT after_task, epoch, term, value FROM loss_terms ORDER BY ALL")
    assert [tuple(row.values()) for row in rows] == [
        (1, 1, "classification", 2.0),
        (1, 2, "classification", 1.0),
        (2, 1, "alignment", 0.5),
    ]


def test_parameters_are_counted_in_all_and_by_task(ledger: Ledger) -> None:
    told(ledger, ROUTED, {})
    rows = ledger.rows("SELECT * EXCLUDE (run_id, stream, method, seed) FROM parameter_count ORDER BY after_task")
    first = {"after_task": 1, "parameters": 101_000, "trained_parameters": 7, "new_parameters": 11_000}
    assert rows[0] == first | {"experts": 8, "frozen_share": 3 / 8}
    second = {"after_task": 2, "parameters": 103_000, "trained_parameters": 7, "new_parameters": 2_000}
    assert rows[1] == second | {"experts": None, "frozen_share": None}


def test_routing_worked_out_by_hand(ledger: Ledger) -> None:
    told(ledger, {}, ROUTED)
    rows = ledger.rows(
        "SELECT after_task, on_task, split, modality, stage, gate_entropy, load_balance FROM routing "
        "ORDER BY split, on_task, modality"
    )
    assert [tuple(row.values())[:5] for row in rows] == [
        (2, 2, "train", "video", 0),
        (2, 1, "val", "video", 0),
        (2, 2, "val", "audio", 1),
        (2, 2, "val", "video", 0),
    ]
    # Of two gates each, in units of ln 2; of four experts, in units of ln 4.
    assert [row["gate_entropy"] for row in rows] == pytest.approx([0.25, 0, 0.5, 1])
    three_to_one = (0.25 * log(4) + 0.75 * log(4 / 3)) / log(4)
    assert [row["load_balance"] for row in rows] == pytest.approx([1, 0, three_to_one, 0.5])


def test_expert_use_has_a_row_an_expert(ledger: Ledger) -> None:
    told(ledger, {}, ROUTED)
    rows = ledger.rows("SELECT expert, gate_mass, frozen FROM expert_use WHERE modality = 'audio' ORDER BY expert")
    assert [tuple(row.values()) for row in rows] == [(0, 0, True), (1, 0, False), (2, 0.25, False), (3, 0.75, False)]
    sums = ledger.rows("SELECT sum(gate_mass) AS mass FROM expert_use GROUP BY split, on_task, modality, stage")
    assert [row["mass"] for row in sums] == pytest.approx([1] * 4)


def test_one_gate_has_no_entropy_and_one_expert_no_balance(ledger: Ledger) -> None:
    told(ledger, {"top_k": 1, "gate_mass": {"video-0": [1.0]}, "gate_entropy": {"video-0": 0.0}})
    assert ledger.rows("SELECT gate_entropy, load_balance FROM routing") == [
        {"gate_entropy": None, "load_balance": None}
    ]


def test_of_what_former_events_do_not_tell_nothing_is_shown(ledger: Ledger) -> None:
    """Ledgers of older versions, of methods with nothing to tell, and of other hands."""
    former = {"gate_mass": {"video-0": [1.0, 3.0], "text-0": [0.0, 0.0]}, "frozen": {"video-0": [1]}}
    told(ledger, former, {}, "no { json", "null", {"loss": 3, "gate_mass": []})
    assert ledger.rows("FROM loss_terms") == []
    rows = ledger.rows("SELECT split, on_task, modality, expert, gate_mass, frozen FROM expert_use ORDER BY expert")
    assert [tuple(row.values()) for row in rows] == [
        ("train", 1, "video", 0, 0.25, False),
        ("train", 1, "video", 1, 0.75, True),
    ]
    assert [row["gate_entropy"] for row in ledger.rows("FROM routing")] == [None]
    counted = ledger.rows("SELECT new_parameters, experts, frozen_share FROM parameter_count ORDER BY after_task")
    assert [row["new_parameters"] for row in counted] == [None, 2000, 3000, 4000, 5000]
    assert {(row["experts"], row["frozen_share"]) for row in counted} == {(None, None)}


def test_one_in_forty_known_samples_lies_beyond_each_bound(ledger: Ledger) -> None:
    ranked(ledger, "r", 1, 1, [1] * 81, [1.0] * 81, split="val", modalities="all")
    ranked(ledger, "r", 1, 2, [1] * 9, [1.0] * 9, split="test", modalities="all")
    ranked(ledger, "q", 1, 1, [1] * 3, [1.0] * 3, split="val", modalities="all")
    cell = {"run_id": "r", "after_task": 1, "on_task": 1, "split": "val", "protocol": "classifier", "modalities": "all"}
    sure = [cell | {"snapshot_id": "r/1", "key": f"1-{i}", "confidence": i / 80} for i in range(81)]
    ledger.append("predictions", sure + [row | {"modalities": "audio"} for row in sure])  # never asked for anchors
    rows = ledger.rows("FROM familiarity ORDER BY samples")
    assert [(row["snapshot_id"], row["modalities"], row["samples"]) for row in rows] == [
        ("q/1", "all", 3),
        ("r/1", "all", 81),
    ]
    assert (rows[1]["novelty_bound"], rows[1]["confidence_bound"]) == pytest.approx((0.78, 0.025))


def test_lineage_leads_from_a_snapshot_to_the_files_it_learned(ledger: Ledger) -> None:
    learned(ledger, "r", MATRIX)
    ledger.append("snapshots", [{"snapshot_id": f"r/{t:03d}", "run_id": "r", "after_task": t} for t in (1, 2)])
    ledger.append("samples", [{"dataset": "d", "key": k, "recording": f"of {k}", "shard": "x.tar"} for k in "abc"])
    ledger.append("shards", [{"dataset": "d", "shard": "x.tar", "url": "/x.tar"}])
    ledger.append("recordings", [{"dataset": "d", "recording": f"of {k}", "source_path": f"{k}.mp4"} for k in "abc"])
    tasks = [("a", 1, "train"), ("b", 2, "train"), ("c", 1, "test")]
    ledger.append(
        "task_samples", [{"stream": "s", "task": t, "dataset": "d", "key": k, "split": p} for k, t, p in tasks]
    )
    found = ledger.rows("SELECT snapshot_id, source_path, shard_url FROM lineage ORDER BY ALL")
    assert [(row["snapshot_id"], row["source_path"]) for row in found] == [
        ("r/001", "a.mp4"),
        ("r/002", "a.mp4"),
        ("r/002", "b.mp4"),
    ]
    assert {row["shard_url"] for row in found} == {"/x.tar"}


def test_what_was_mended_leaves_the_quarantine(ledger: Ledger) -> None:
    ledger.append("quarantined", [{"dataset": "d", "name": n, "reason": "it is empty"} for n in ("a", "b")])
    ledger.append("quarantined", [{"dataset": "d", "name": "a", "reason": None}])
    assert ledger.rows("SELECT name FROM quarantine") == [{"name": "b"}]


def test_identification_is_the_mean_over_samples_beside_what_it_costs(ledger: Ledger) -> None:
    learned(ledger, "r", [[4]])
    columns = {
        "run_id": "r",
        "after_task": 1,
        "on_task": 1,
        "split": "test",
        "protocol": "agnostic",
        "modalities": "all",
    }
    ledger.append(
        "predictions",
        [
            {**columns, "key": f"1-{i}", "label": "right", "predicted": said, "identified": share}
            for i, (said, share) in enumerate([("right", 1.0), ("right", 0.5), ("right", 1.0), ("wrong", 0.0)])
        ],
    )
    (row,) = ledger.rows("FROM modality_identification")
    assert (row["identified"], row["agnostic_loss"]) == (2.5 / 4, 1 - 3 / 4)
