"""The index of a stream's samples: what the ledger says, memory-mapped, in pieces, and made again when it changes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from flows import stream
from learner import index as index_module
from learner.index import Index, write_index
from store.ledger import Ledger
from store.types import Modality, Split
from tests.learner.handmade import CLASSES, arrive, make_lake, make_recipe

IMU, TEXT = Modality.IMU, Modality.TEXT
PART = {"modality": "text", "url": "shards/t.tar", "checksum": "beef", "offset": 512, "size": 1024}


def row(number: int, **changes: object) -> dict[str, object]:
    found: dict[str, object] = {"key": f"k{number}", "recording": f"r{number // 2}", "checksum": f"{number:016x}"}
    found |= {"offset": 1024 * number, "size": 1024, "shard": f"s{number // 4}", "url": f"shards/s{number // 4}.tar"}
    found |= {"label": CLASSES[number % 3], "domain": "", "task": 1, "split": "train", "modalities": ["imu"]}
    return found | {"sidecars": [], "also": None} | changes


def batches(rows: list[dict[str, object]], size: int) -> Iterator[pa.RecordBatch]:
    part = pa.struct([(name, pa.int64() if name in ("offset", "size") else pa.string()) for name in PART])
    types = {"offset": pa.int64(), "size": pa.int64(), "task": pa.int32(), "modalities": pa.list_(pa.string())}
    types |= {"sidecars": pa.list_(part), "also": pa.list_(pa.string())}
    schema = pa.schema({name: types.get(name, pa.string()) for name in row(0)})
    for start in range(0, len(rows), size):
        yield pa.RecordBatch.from_pylist(rows[start : start + size], schema)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_rows_come_back_whatever_the_pieces_they_came_in(lake, tmp_path, monkeypatch, size):
    monkeypatch.setattr(index_module, "ROWS", 4)
    rows = [row(number) for number in range(10)]
    rows[3] |= {"modalities": ["imu", "text"], "sidecars": [PART], "domain": "quiet", "split": "test"}
    rows[7] |= {"modalities": [], "task": 0}
    rows[9] |= {"task": 2, "modalities": ["text"]}
    write_index(tmp_path / "index", "hand", batches(rows, size))
    index = Index(tmp_path / "index", lake)
    assert len(index) == 10
    found = list(index.rows(range(10)))
    assert [(e.key, e.recording, e.label, e.shard) for e in found] == [
        (r["key"], r["recording"], r["label"], r["shard"]) for r in rows
    ]
    assert {e.dataset for e in found} == {"hand"}
    assert [(e.entry.offset, e.entry.size, e.entry.checksum) for e in found] == [
        (r["offset"], r["size"], r["checksum"]) for r in rows
    ]
    assert found[3].modalities == (IMU, TEXT) and found[7].modalities == ()
    assert found[3].domain == "quiet"
    assert found[8].url == str(lake.root / "shards/s2.tar")
    (part,) = found[3].sidecars
    assert (part.modality, part.url, part.entry.checksum) == (TEXT, str(lake.root / "shards/t.tar"), "beef")
    keys = [example.key for example in index.select(task=1, split=Split.TRAIN, modalities=[IMU])]
    assert keys == ["k0", "k1", "k2", "k4", "k5", "k6", "k8"]
    assert [e.key for e in index.select(task=2, split=Split.TRAIN, modalities=[IMU])] == []
    assert [e.key for e in index.in_shard("s1")] == ["k4", "k5", "k6", "k7"]
    assert [e.key for e in index.rows([2, 3, 9]).find(["k9", "none", "k8", "k2"])] == ["k9", "k2"]
    some = index.rows([9, 3]) + index.rows([0])
    assert [e.key for e in some[1:]] == ["k3", "k0"]
    assert some.groups == {("ant", ""), ("ant", "quiet")}
    assert some.shards == {"s0", "s2"}


def test_an_index_without_rows_can_be_opened(lake, tmp_path):
    write_index(tmp_path / "index", "hand", iter(()))
    index = Index(tmp_path / "index", lake)
    assert len(index) == 0
    assert len(index.select(task=1, split=Split.TRAIN, modalities=[IMU])) == 0


def test_a_stream_s_index_says_what_the_ledger_says_and_is_made_again_when_that_changes(tmp_path):
    lake = make_lake(tmp_path, labels=CLASSES[:4])
    ledger, recipe = Ledger(lake), make_recipe()
    assert stream.seal(ledger, recipe) == 2
    data = stream.load(ledger, recipe, ["imu", "text"])
    folders = list((lake.cache / "index").iterdir())
    assert len(folders) == 1
    said = ledger.rows('SELECT key, shard FROM sample_index ORDER BY shard, "offset"')
    assert [(e.key, e.shard) for e in data.index.rows(range(len(data.index)))] == [(r["key"], r["shard"]) for r in said]
    sealed = ledger.rows("SELECT key FROM task_samples WHERE task = 2 AND split = 'val' ORDER BY key")
    assert sorted(e.key for e in data.tasks[2][Split.VAL]) == [r["key"] for r in sealed]
    written = (folders[0] / "rows.arrow").stat().st_mtime_ns
    assert len(stream.load(Ledger(lake), recipe, ["imu"]).index) == 40
    assert (folders[0] / "rows.arrow").stat().st_mtime_ns == written
    key = said[0]["key"]
    (sample,) = ledger.rows("SELECT * EXCLUDE recorded_at FROM samples WHERE key = ?", [key])
    ledger.append("samples", [sample | {"labels": ["corrected"]}])
    again = stream.load(ledger, recipe, ["imu", "text"])
    assert again.index.rows(range(40)).find([key])[0].label == "corrected"
    assert data.index.rows(range(40)).find([key])[0].label == "ant"  # who has it open goes on with it


def test_only_the_shards_of_a_task_are_asked_for(tmp_path):
    lake = make_lake(tmp_path, labels=CLASSES[:4])
    arrive(lake, labels=CLASSES[:1], numbers=range(10, 12))
    ledger, recipe = Ledger(lake), make_recipe()
    stream.seal(ledger, recipe)
    data = stream.load(ledger, recipe, ["imu", "text"])
    assert list(data.shards([2])) == ["cat-0-9", "dog-0-9"]
    assert [e.key for e in data.shards([1])["bee-0-9"]] == [e.key for e in data.index.in_shard("bee-0-9")]
    assert np.sum([len(rows) for rows in data.shards([1, 2]).values()]) == 42


def test_a_write_that_is_cut_short_leaves_no_index(lake, tmp_path):
    def cut_short() -> Iterator[pa.RecordBatch]:
        yield from batches([row(number) for number in range(4)], 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_index(tmp_path / "index", "hand", cut_short())
    assert not list(tmp_path.glob("index*"))
    with pytest.raises(FileNotFoundError):
        Index(tmp_path / "index", lake)


@pytest.mark.parametrize("size", [2, 100])
def test_a_shard_is_named_by_its_bytes_alone(lake, tmp_path, monkeypatch, size):
    monkeypatch.setattr(index_module, "ROWS", 3)

    def digest(name: str, rows: list[dict[str, object]]) -> str:
        write_index(tmp_path / name, "hand", batches(rows, size))
        return Index(tmp_path / name, lake).digest("s1")

    rows = [row(number) for number in range(10)]
    first = digest("first", rows)
    assert digest("later", rows[2:]) == first  # whatever lies before it
    assert digest("named", [r | {"label": "x", "task": 3} for r in rows]) == first
    rows[5] |= {"sidecars": [PART]}
    beside = digest("beside", rows)
    rows[6] |= {"checksum": "0" * 16}
    assert len({first, beside, digest("other", rows)}) == 3
