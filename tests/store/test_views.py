"""The metrics against matrices whose figures were worked out by hand; a[t][i] = right answers of four."""

from __future__ import annotations

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
