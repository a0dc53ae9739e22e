from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store.anchors import AnchorStore
from store.lake import Lake
from store.ledger import Ledger
from store.snapshots import list_snapshots, load_anchors, load_snapshot, load_tree, save_snapshot, save_tree
from store.types import Modality, PalimpsestError

DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64".split()


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other) or isinstance(one, str)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            same(left, right)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()
    else:
        assert one == other or math.isnan(one) and math.isnan(other)


def tree() -> dict[str, Any]:
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    return {
        "model": {"router.weight": grid, "transposed": grid.T, "strided": grid[:, ::2], "scalar": np.array(2.5)},
        "arrays": [np.array([0, 1], dtype=dtype) for dtype in DTYPES],
        "empty": [{}, [], "", np.empty((0, 4), np.float32)],
        "rng": {"state": 2**127 + 12345, "negative": -(2**90)},
        "json": [None, True, 1, 0.1, 1e300, math.inf, math.nan, "grün \ud800", {"": {"": 0}}],
        "a/b": np.zeros(1),
        "a": {"b": np.ones(1), "__metadata__": np.ones(2)},
        "__metadata__": np.ones(3),
        "nan": np.array([np.nan, -0.0, np.inf]),
        Modality.AUDIO: 1,
    }


def test_a_tree_comes_back_as_it_went_in(tmp_path: Path) -> None:
    save_tree(tmp_path / "x", tree())
    found = load_tree(tmp_path / "x")
    same(tree(), found)
    found["model"]["router.weight"][0, 0] = 7  # a loaded array can be trained on


def test_the_hash_names_the_content(tmp_path: Path) -> None:
    one, two = save_tree(tmp_path / "one", tree()), save_tree(tmp_path / "two", tree())
    other = save_tree(tmp_path / "one", tree() | {"a": {"b": np.full(1, 2.0)}})
    assert one == two != other
    assert load_tree(tmp_path / "one")["a"]["b"] == 2


STRANGE = [
    *[(1, 2), {1: 2}, {None: 1}, {1, 2}, b"x", {"$tensor": "x"}, np.float32(1), np.float64(1)],
    *[np.array([object()]), np.array(["x"]), np.zeros(2, "M8[s]"), np.zeros(2, np.complex128)],
]


@pytest.mark.parametrize("value", STRANGE)
def test_what_would_not_come_back_is_refused_by_its_path(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="state/optimiser/1"):
        save_tree(tmp_path / "x", {"optimiser": [0, value]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "SHA256SUMS"])
def test_damage_is_told(tmp_path: Path, name: str) -> None:
    save_tree(tmp_path / "x", tree())
    whole = (tmp_path / "x" / name).read_bytes()
    for position in (0, len(whole) // 2, -1):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        (tmp_path / "x" / name).write_bytes(damaged)
        with pytest.raises(PalimpsestError, match="damaged"):
            load_tree(tmp_path / "x")
    (tmp_path / "x" / name).unlink()
    with pytest.raises(PalimpsestError, match="no complete state"):
        load_tree(tmp_path / "x")


def keep(lake: Lake, after_task: int, weights: float, **options: Any) -> str:
    return save_snapshot(
        lake,
        Ledger(lake),
        run_id="r",
        after_task=after_task,
        tree={"weights": np.full(2, weights)},
        parent=options.get("parent"),
        parameters=10,
        trained_parameters=2,
        memory_bytes=3,
    )


def test_a_snapshot_is_recorded_and_found(lake: Lake) -> None:
    first = keep(lake, 1, 0.5)
    second = keep(lake, 2, 1.5, parent=first)
    assert (first, second) == ("r/001", "r/002")
    assert load_snapshot(lake, second)["weights"].tolist() == [1.5, 1.5]
    ledger = Ledger(lake)
    ledger.append("runs", [{"run_id": "r", "stream": "s", "method": "m"}])
    ledger.append("promotions", [{"promotion": "s/000001", "stream": "s", "snapshot_id": first, "verdict": "promoted"}])
    rows = list_snapshots(ledger, "s")
    assert [(r["snapshot_id"], r["parent"], r["path"], r["verdict"], r["method"]) for r in rows] == [
        ("r/001", None, "runs/r/snapshots/001", "promoted", "m"),
        ("r/002", "r/001", "runs/r/snapshots/002", None, "m"),
    ]
    assert list_snapshots(ledger, "other") == []


def test_a_recorded_snapshot_stays_as_it_is(lake: Lake) -> None:
    keep(lake, 1, 0.5)
    assert keep(lake, 1, 9.0) == "r/001"
    assert load_snapshot(lake, "r/001")["weights"].tolist() == [0.5, 0.5]
    assert Ledger(lake).query("FROM snapshots").num_rows == 1


def test_a_folder_whose_row_is_missing_is_written_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ledger, "append", killed)
        keep(lake, 1, 9.0)
    keep(lake, 1, 0.5)
    assert load_snapshot(lake, "r/001")["weights"].tolist() == [0.5, 0.5]
    assert Ledger(lake).query("FROM snapshots").num_rows == 1


@pytest.mark.parametrize("name", ["r/001", "../../etc/001", "r/../001", "/001", "../001", "r/x", "r", ""])
def test_an_unknown_snapshot_is_told_and_stays_in_the_lake(lake: Lake, name: str) -> None:
    with pytest.raises(PalimpsestError):
        load_snapshot(lake, name)


def test_anchors_lie_beside_the_snapshot_that_names_them(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, anchors = Ledger(lake), AnchorStore()
    anchors.add([{"key": "k"}], {"fused": ([0], np.ones((1, 3)))})
    append = Ledger.append

    def checks(self: Ledger, table: str, rows: list[dict[str, Any]]) -> None:
        assert len(AnchorStore.load(lake.run("run") / "anchors" / "001")) == 1  # complete before the row appears
        append(self, table, rows)

    monkeypatch.setattr(Ledger, "append", checks)
    about = {"run_id": "run", "after_task": 1, "parent": None, "parameters": 1, "trained_parameters": 1}
    name = save_snapshot(lake, ledger, tree={"x": 1}, memory_bytes=1, anchors=anchors, **about)
    tree = load_snapshot(lake, name)
    for mapped in (False, True):
        found = load_anchors(lake, name, tree, mapped=mapped)
        assert found.table.equals(anchors.table)
        np.testing.assert_array_equal(found.vectors("fused"), anchors.vectors("fused"))
    anchors.remove(keys=["k"])
    anchors.save(lake.run("run") / "anchors" / "001")
    with pytest.raises(PalimpsestError, match="others than the snapshot's"):
        load_anchors(lake, name, tree)
