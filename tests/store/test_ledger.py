from __future__ import annotations

import datetime as dt
import multiprocessing
import os
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from store import ledger as module
from store.lake import Lake
from store.ledger import TABLES, Ledger

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def ledger(lake: Lake) -> Ledger:
    return Ledger(lake)


def files(lake: Lake, table: str) -> list[Path]:
    return [path for path in (lake.ledger / table).iterdir() if not path.name.startswith("_schema")]


def test_every_table_and_view_can_be_asked_before_the_first_row(ledger: Ledger) -> None:
    views = [row["view_name"] for row in ledger.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal")]
    assert set(TABLES) < set(views)
    assert {"task_accuracy", "accuracy_matrix", "stream_summary", "modality_ablation", "lineage"} < set(views)
    for view in views:
        assert ledger.query(f"FROM {view}").num_rows == 0


def test_rows_come_back_with_their_types_and_time(ledger: Ledger) -> None:
    before = dt.datetime.now(dt.UTC)
    row = {"dataset": "d", "key": "k", "labels": ["a", "b's"], "start_s": 0.25, "offset": 2**40}
    ledger.append("samples", [row])
    (found,) = ledger.rows("FROM samples")
    assert before <= found["recorded_at"] <= dt.datetime.now(dt.UTC)
    assert {name: value for name, value in found.items() if value is not None} == row | {
        "recorded_at": found["recorded_at"]
    }
    table = ledger.query("FROM samples")
    assert [table.schema.field(name).type for name in ("offset", "start_s")] == [pa.int64(), pa.float64()]


def test_the_row_recorded_last_wins(ledger: Ledger) -> None:
    ledger.append("samples", [{"dataset": "d", "key": k, "split": "train"} for k in "ab"])
    ledger.append("samples", [{"dataset": "d", "key": "a", "split": "test"}])
    assert ledger.rows("SELECT key, split FROM samples ORDER BY key") == [
        {"key": "a", "split": "test"},
        {"key": "b", "split": "train"},
    ]
    ledger.append("samples", [{"dataset": "d", "key": "b", "split": split} for split in ("val", "test")])
    assert ledger.rows("SELECT split FROM samples WHERE key = 'b'") == [{"split": "test"}]


def test_appending_again_doubles_nothing(lake: Lake, ledger: Ledger) -> None:
    rows = [{"dataset": "d", "key": str(i)} for i in range(5)]
    ledger.append("samples", rows)
    Ledger(lake).append("samples", reversed(rows))
    assert ledger.query("FROM samples").num_rows == 5
    assert len(files(lake, "samples")) == 1
    ledger.append("samples", [])
    assert len(files(lake, "samples")) == 1


def test_unknown_columns_and_missing_keys_are_refused(lake: Lake, ledger: Ledger) -> None:
    with pytest.raises(KeyError, match="colour"):
        ledger.append("samples", [{"dataset": "d", "key": "k"}, {"dataset": "d", "key": "l", "colour": "red"}])
    with pytest.raises(KeyError, match="key"):
        ledger.append("samples", [{"dataset": "d"}])
    assert files(lake, "samples") == []


def test_values_are_bound(ledger: Ledger) -> None:
    ledger.append("streams", [{"stream": "it's; DROP VIEW runs"}])
    assert ledger.query("FROM streams WHERE stream = ?", ["it's; DROP VIEW runs"]).num_rows == 1
    assert ledger.query("FROM streams WHERE stream = $name", {"name": "other"}).num_rows == 0
    with pytest.raises(duckdb.Error, match="nowhere"):
        ledger.query("FROM nowhere")


@pytest.mark.parametrize("name", ["it's", "a [1] b", "{x,y}*"])
def test_a_lake_may_have_any_name(tmp_path: Path, name: str) -> None:
    ledger = Ledger(Lake(tmp_path / name))
    ledger.append("streams", [{"stream": "s"}])
    assert ledger.query("FROM streams").num_rows == 1


def test_compaction_keeps_every_row_in_few_files(lake: Lake, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 10)
    most = 0
    for i in range(35):
        ledger.append("events", [{"event": f"e{i % 30}", "kind": str(i), "seconds": i / 2}])
        most = max(most, len(files(lake, "events")))
    assert most <= 10
    assert ledger.rows("SELECT event, kind, seconds FROM events ORDER BY kind::INTEGER") == [
        {"event": f"e{i % 30}", "kind": str(i), "seconds": i / 2} for i in range(5, 35)
    ]
    assert pa.parquet.read_table(lake.ledger / "events").schema.equals(TABLES["events"].schema)


def test_a_column_added_later_is_null_in_former_rows(
    lake: Lake, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.append("streams", [{"stream": "former"}])
    spec = TABLES["streams"]
    wider = module.Table(spec.name, spec.key, spec.schema.append(pa.field("colour", pa.string())))
    monkeypatch.setitem(TABLES, "streams", wider)
    later = Ledger(lake)
    assert later.rows("SELECT stream, colour FROM streams") == [{"stream": "former", "colour": None}]
    later.append("streams", [{"stream": "new", "colour": "red"}])
    assert later.rows("SELECT colour FROM streams ORDER BY stream") == [{"colour": None}, {"colour": "red"}]


def _write(lake: Lake, writer: int) -> None:
    module.MAX_FILES = 8  # of this process: compaction runs all the time
    ledger = Ledger(lake)
    for i in range(40):
        ledger.append("events", [{"event": f"{writer}-{i % 30}", "kind": str(i)}])
    os._exit(0)  # what libraries of the parent do at exit is no business of its fork


def test_four_processes_append_beside_a_reader(lake: Lake, ledger: Ledger) -> None:
    writers = [FORK.Process(target=_write, args=(lake, writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    seen = [0]
    while any(writer.is_alive() for writer in writers):
        seen.append(ledger.rows("SELECT count(*) AS n FROM events")[0]["n"])
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert seen == sorted(seen)
    assert ledger.rows("SELECT count(*) AS n, min(kind::INTEGER) AS oldest FROM events") == [{"n": 120, "oldest": 10}]
    assert len(files(lake, "events")) <= 9


def test_what_a_killed_writer_left_aside_is_swept(lake: Lake) -> None:
    ledger = Ledger(lake)
    left = lake.ledger / "events" / ".x.parquet.1234.tmp"
    left.write_bytes(b"half")
    ledger.sweep()
    assert not left.exists()
    assert ledger.rows("FROM events") == []
