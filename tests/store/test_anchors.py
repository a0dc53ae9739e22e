from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from store.anchors import AnchorStore
from store.types import PalimpsestError

WIDTH = 8


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(60, WIDTH)).astype(np.float32)


def rows(count: int, first: int = 0) -> list[dict[str, object]]:
    return [
        {"key": f"k{i}", "recording": f"r{i // 2}", "dataset": "d", "label": "abc"[i % 3], "task": i // 20}
        for i in range(first, first + count)
    ]


@pytest.fixture
def store(vectors: np.ndarray) -> AnchorStore:
    store = AnchorStore()
    store.add(rows(60), {"fused": (range(60), vectors), "audio": (range(0, 60, 3), 4 * vectors[::3])})
    return store


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_search_finds_the_most_similar(store: AnchorStore, vectors: np.ndarray) -> None:
    queries = np.random.default_rng(1).normal(size=(7, WIDTH))
    similarity, ids = store.search("fused", queries, 5)
    exact = unit(queries) @ unit(vectors).T
    np.testing.assert_array_equal(ids, np.argsort(-exact, axis=1)[:, :5])
    np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :5], atol=1e-6)
    assert (similarity.dtype, ids.dtype) == (np.float32, np.int64)


def test_anchors_may_lack_a_space(store: AnchorStore, vectors: np.ndarray) -> None:
    assert store.spaces == ("audio", "fused")
    assert store.ids("audio").tolist() == list(range(0, 60, 3))
    assert set(store.search("audio", vectors[:4], 3)[1].ravel().tolist()) <= set(range(0, 60, 3))
    np.testing.assert_array_equal(store.vectors("audio", [30, 3]), store.vectors("fused", [30, 3]))
    with pytest.raises(KeyError, match="1"):
        store.vectors("audio", [0, 1])
    assert store.labels(np.array([[0, 1], [5, 4]])).tolist() == [["a", "b"], ["c", "b"]]


def test_fewer_anchors_than_asked_for(store: AnchorStore, vectors: np.ndarray) -> None:
    similarity, ids = store.search("audio", vectors[:4], 99)
    assert similarity.shape == ids.shape == (4, 20)
    assert (ids >= 0).all()
    for space, k in (("imu", 5), ("fused", 0)):
        assert [part.shape for part in store.search(space, vectors[:4], k)] == [(4, 0), (4, 0)]


def test_an_answer_does_not_depend_on_its_batch(store: AnchorStore, vectors: np.ndarray) -> None:
    queries = np.repeat(vectors, 3, axis=0) + np.float32(0.3)
    whole, ids = store.search("fused", queries, 9)
    for i in range(0, len(queries), 11):
        one, same = store.search("fused", queries[i : i + 1], 9)
        assert one.tobytes() == whole[i].tobytes()
        assert same.tobytes() == ids[i].tobytes()


def test_a_store_saved_and_loaded_goes_on_bit_for_bit(store: AnchorStore, vectors: np.ndarray, tmp_path: Path) -> None:
    store.remove(keys=["k3"])
    store.save(tmp_path / "anchors")
    loaded = AnchorStore.load(tmp_path / "anchors")
    for each in (store, loaded):
        each.add(rows(10, 60), {"fused": (range(10), vectors[:10] ** 2)})
        each.replace("fused", [7, 2], vectors[40:42])
    assert loaded.table.equals(store.table)
    assert (loaded.version, loaded.nbytes, len(loaded)) == (store.version, store.nbytes, 69)
    for space in store.spaces:
        for one, other in zip(store.search(space, vectors, 20), loaded.search(space, vectors, 20), strict=True):
            assert one.tobytes() == other.tobytes()
    assert store.save(tmp_path / "one") == loaded.save(tmp_path / "two")


def test_an_empty_store_can_be_kept(tmp_path: Path) -> None:
    AnchorStore().save(tmp_path / "x")
    loaded = AnchorStore.load(tmp_path / "x")
    assert (len(loaded), loaded.nbytes, loaded.spaces) == (0, 0, ())
    with pytest.raises(PalimpsestError, match="fused"):
        loaded.knn("fused", np.ones((1, 3)), 5)


def test_damage_is_told(store: AnchorStore, tmp_path: Path) -> None:
    store.save(tmp_path / "x")
    data = bytearray((tmp_path / "x" / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "x" / "tensors.safetensors").write_bytes(data)
    with pytest.raises(PalimpsestError, match="damaged"):
        AnchorStore.load(tmp_path / "x")


def test_replaced_vectors_are_the_ones_found(store: AnchorStore, vectors: np.ndarray) -> None:
    version = store.version
    store.search("fused", vectors, 1)
    store.replace("fused", [8, 5], 3 * vectors[[5, 8]])
    assert store.search("fused", vectors[[5, 8]], 1)[1].ravel().tolist() == [8, 5]
    assert store.version == version + 1
    np.testing.assert_allclose(np.linalg.norm(store.vectors("fused"), axis=1), 1, atol=1e-6)
    with pytest.raises(ValueError, match="takes embeddings"):
        store.replace("fused", [8, 5], np.ones((2, 3)))
    store.replace("fused", store.ids("fused"), np.ones((60, 3)))
    assert store.vectors("fused").shape == (60, 3)


def test_removed_anchors_are_found_no_more_and_their_ids_stay_unused(store: AnchorStore, vectors: np.ndarray) -> None:
    store.search("fused", vectors, 1)
    before = store.nbytes
    assert store.remove(keys=["k0", "none"], recordings=["r2"]) == 3
    assert store.remove(keys=["k0"]) == 0
    assert store.nbytes < before
    assert {0, 4, 5}.isdisjoint(store.ids("fused").tolist() + store.ids("audio").tolist())
    assert {0, 4, 5}.isdisjoint(store.search("fused", vectors, 60)[1].ravel().tolist())
    assert store.rows([59, 1])["key"].to_pylist() == ["k59", "k1"]
    assert store.keep(range(10)) == 50
    assert store.add(rows(1), {}).tolist() == [60]


def test_neighbours_vote_by_similarity() -> None:
    store = AnchorStore()
    angles = np.array([0.0, 0.6, 0.6, 3.0])
    store.add(
        [{"label": label} for label in ("near", "far", "far", "away")],
        {"fused": (range(4), np.stack([np.cos(angles), np.sin(angles)], axis=1))},
    )
    query = np.array([[1.0, 0.0]])
    labels, confidence = store.knn("fused", query, 3)
    weights = np.exp((np.cos(angles[:3]) - 1) / 0.1)
    assert labels.tolist() == ["near"]
    assert confidence == pytest.approx([weights[0] / weights.sum()], rel=1e-5)
    assert store.knn("fused", query, 3, temperature=10.0)[0].tolist() == ["far"]
    shares = store.votes("fused", query, 4, ["unseen", "far", "near"])
    assert shares.shape == (1, 3)
    assert shares[0, 0] == 0
    assert shares[0, 2] > shares[0, 1] > 0
    assert store.votes("imu", query, 4, ["far"]).tolist() == [[0]]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((range(2), np.ones((3, WIDTH))), "takes embeddings"),
        ((range(2), np.ones((2, WIDTH + 1))), "takes embeddings"),
        ((range(2), np.full((2, WIDTH), np.nan)), "finite"),
        (([0, 0], np.ones((2, WIDTH))), "two embeddings"),
    ],
)
def test_what_does_not_fit_is_refused_whole(store: AnchorStore, part: tuple, message: str) -> None:
    version = store.version
    with pytest.raises(ValueError, match=message):
        store.add(rows(2), {"fused": part})
    with pytest.raises(ValueError, match="colour"):
        store.add([{"colour": "red"}], {})
    assert (len(store), store.version) == (60, version)


def test_positions_need_no_order(vectors: np.ndarray) -> None:
    store = AnchorStore()
    store.add(rows(3), {"fused": ([2, 0], vectors[:2])})
    assert store.ids("fused").tolist() == [0, 2]
    np.testing.assert_allclose(store.vectors("fused", [2, 0]), unit(vectors[:2]), rtol=1e-6)


def test_without_faiss_the_error_says_what_to_install(
    store: AnchorStore, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(PalimpsestError, match="palimpsest\\[cpu\\]"):
        store.search("fused", vectors, 1)
