from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
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
    assert loaded.search("fused", np.ones((1, 3)), 5)[1].shape == (1, 0)


@pytest.mark.parametrize("name", ["rows.parquet", "fused.ids.npy", "fused.vectors.npy", "state.json", "SHA256SUMS"])
def test_damage_is_told(store: AnchorStore, tmp_path: Path, name: str) -> None:
    sha256 = store.save(tmp_path / "x")
    data = bytearray((tmp_path / "x" / name).read_bytes())
    data[-2] ^= 1
    (tmp_path / "x" / name).write_bytes(data)
    with pytest.raises(PalimpsestError, match="damaged"):
        AnchorStore.load(tmp_path / "x", sha256)
    (tmp_path / "x" / name).write_bytes(data[:-1])
    with pytest.raises(PalimpsestError, match="damaged"):
        AnchorStore.open(tmp_path / "x", sha256)
    with pytest.raises(PalimpsestError, match="absent"):
        AnchorStore.open(tmp_path / "y")


def test_other_anchors_than_those_asked_for_are_refused(store: AnchorStore, tmp_path: Path) -> None:
    sha256 = store.save(tmp_path / "x")
    store.remove(keys=["k3"])
    store.save(tmp_path / "x")
    for read in (AnchorStore.load, AnchorStore.open):
        with pytest.raises(PalimpsestError, match="others"):
            read(tmp_path / "x", sha256)


def test_a_reader_maps_the_vectors_and_changes_nothing(store: AnchorStore, vectors: np.ndarray, tmp_path: Path) -> None:
    sha256 = store.save(tmp_path / "x")
    reader = AnchorStore.open(tmp_path / "x", sha256)
    for one, other in zip(store.search("fused", vectors, 9), reader.search("fused", vectors, 9), strict=True):
        assert one.tobytes() == other.tobytes()
    maps = Path("/proc/self/maps").read_text()
    assert "x/fused.vectors.npy" in maps
    for change in (
        lambda: reader.add(rows(1, 60), {}),
        lambda: reader.replace("fused", [1], vectors[:1]),
        lambda: reader.carry("fused", lambda former: former),
        lambda: reader.remove(keys=["k1"]),
    ):
        with pytest.raises(ValueError, match="open for reading"):
            change()
    store.remove(keys=["k0"])
    store.save(tmp_path / "x")
    assert reader.search("fused", vectors[:1], 1)[1].tolist() == [[0]]  # as it was when it was opened


def test_a_killed_writer_leaves_the_former_store(store: AnchorStore, tmp_path: Path) -> None:
    sha256 = store.save(tmp_path / "x")
    script = """
import os, sys
from pathlib import Path
from store.anchors import AnchorStore
import store.anchors as anchors
folder = Path(sys.argv[1])
store = AnchorStore.load(folder)
store.remove(keys=["k1"])
write = anchors.np.save
def dies(path, array):
    if path.name == "fused.vectors.npy":
        os._exit(9)
    write(path, array)
anchors.np.save = dies
store.save(folder)
"""
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 2  # what it left aside is not read
    assert len(AnchorStore.load(tmp_path / "x", sha256)) == 60


READER = """
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from store.anchors import AnchorStore
folder, seen = Path(sys.argv[1]), set()
print("ready", flush=True)
while len(seen) < 8:
    mapped = AnchorStore.open(folder)
    for store in (mapped, AnchorStore.load(folder)):
        turn = int(store.table["task"][0].as_py())
        assert len(store) == 40 + turn, (len(store), turn)
        there = store.vectors("fused")
        assert there.shape == (40 + turn, 4) and (there.argmax(axis=1) == turn % 4).all(), turn
        assert store.search("fused", np.eye(4)[[turn % 4]], 3)[0].min() > 0.999
    seen.add(int(mapped.table["task"][0].as_py()))
"""


def test_two_readers_and_a_writer_at_once(tmp_path: Path) -> None:
    """Each version's table, ids and vectors say its number: a reader that mixed two of them would see it."""

    def write(turn: int) -> None:
        store = AnchorStore()
        n = 40 + turn
        store.add([{"task": turn}] * n, {"fused": (range(n), np.eye(4)[[turn % 4] * n])})
        store.save(tmp_path / "x")

    write(0)
    command = [sys.executable, "-c", READER, str(tmp_path / "x")]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"ready\n"
        turn = 0
        while any(reader.poll() is None for reader in readers):
            write(turn := turn + 1)
        for reader in readers:
            assert reader.wait() == 0, reader.communicate()[1].decode()
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


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


COUNT = 3000
KINDS = {"floats": {"exact": 500}, "codes": {"exact": 500, "max_bytes": 100_000}}


def embeddings(count: int, seed: int) -> np.ndarray:
    """Unit vectors of 40 clusters in 24 numbers."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(40, 24))
    return unit(centres[rng.integers(40, size=count)] + rng.normal(scale=0.4, size=(count, 24))).astype(np.float32)


def crowd(first: int, count: int) -> list[dict[str, object]]:
    return [{"key": f"k{i}", "recording": f"r{i // 10}", "label": "ab"[i % 2]} for i in range(first, first + count)]


@pytest.fixture(params=KINDS)
def large(request: pytest.FixtureRequest) -> AnchorStore:
    store = AnchorStore(**KINDS[request.param])
    store.add(crowd(0, COUNT), {"fused": (range(COUNT), embeddings(COUNT, 1))})
    return store


def recall(store: AnchorStore, queries: np.ndarray, k: int = 10) -> float:
    """Against comparing with each of the vectors that the store holds."""
    ids = store.ids("fused")
    true = ids[np.argsort(-queries @ store.vectors("fused").T, axis=1)[:, :k]]
    found = store.search("fused", queries, k)[1]
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, true, strict=True)]))


def test_an_index_finds_nearly_all_and_its_similarities_are_those_of_the_vectors(large: AnchorStore) -> None:
    queries = embeddings(50, 2)
    assert recall(large, queries) > 0.9
    similarity, ids = large.search("fused", queries, 10)
    assert (np.diff(similarity, axis=1) <= 0).all()
    vectors = large.vectors("fused", ids.ravel()).reshape(50, 10, -1)
    np.testing.assert_allclose(similarity, np.einsum("bkd,bd->bk", vectors, queries), atol=1e-5)
    for i in range(0, 50, 7):
        one, same = large.search("fused", queries[i : i + 1], 10)
        assert (one.tobytes(), same.tobytes()) == (similarity[i].tobytes(), ids[i].tobytes())
    everything = large.search("fused", queries[:2], COUNT)[1]
    assert [sorted(row) for row in everything.tolist()] == [list(range(COUNT))] * 2


def test_codes_are_carried_to_wherever_their_space_moves() -> None:
    """The numbers of each axis change their range: what was narrow becomes wide."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(3000, 64)).astype(np.float32) * np.geomspace(0.02, 1, 64, dtype=np.float32) + 0.3
    store = AnchorStore(max_bytes=100_000)
    store.add(rows(3000), {"fused": (range(3000), vectors)})
    rotation = np.linalg.qr(random.normal(size=(64, 64)))[0].astype(np.float32)
    store.carry("fused", lambda former: former @ rotation)
    assert store.nbytes < vectors.nbytes / 2
    cosine = (unit(store.vectors("fused")) * (unit(vectors) @ rotation)).sum(axis=1)
    assert cosine.min() > 0.99


def test_codes_take_a_quarter_and_stay_near(large: AnchorStore) -> None:
    floats = AnchorStore()
    floats.add(crowd(0, COUNT), {"fused": (range(COUNT), embeddings(COUNT, 1))})
    small = large.max_bytes < floats.nbytes
    assert large.nbytes - large.table.nbytes - 8 * COUNT == pytest.approx(24 * COUNT * (0.75 if small else 4), rel=0.01)
    assert np.abs(large.vectors("fused") - floats.vectors("fused")).max() < (0.02 if small else 1e-6)


def test_an_index_grows_without_being_made_anew(large: AnchorStore) -> None:
    queries, more = embeddings(50, 2), embeddings(800, 3)
    large.search("fused", queries, 1)
    index = large._spaces["fused"].index
    large.add(crowd(COUNT, 800), {"fused": (range(800), more)})
    assert (large.search("fused", more, 1)[1].ravel() == np.arange(COUNT, COUNT + 800)).mean() > 0.98
    assert large._spaces["fused"].index is index is not None
    assert recall(large, queries) > 0.9


def test_an_index_follows_removal_and_replacement(large: AnchorStore) -> None:
    queries = embeddings(50, 2)
    large.search("fused", queries, 1)
    gone = {f"k{i}" for i in range(0, 1000, 3)}
    assert large.remove(keys=gone, recordings=["r200"]) == len(gone) + 10
    moved = large.ids("fused")[:200]
    large.replace("fused", moved, embeddings(len(moved), 4))
    assert large._spaces["fused"].index is not None
    assert recall(large, queries) > 0.9
    found = set(large.search("fused", queries, len(large))[1].ravel().tolist())
    assert found == set(large.ids("fused").tolist())
    assert (large.search("fused", embeddings(len(moved), 4), 1)[1].ravel() == moved).mean() > 0.98
    large.carry("fused", lambda former: former[:, ::-1])
    assert recall(large, queries[:, ::-1]) > 0.9
    assert (large.search("fused", embeddings(len(moved), 4)[:, ::-1], 1)[1].ravel() == moved).mean() > 0.98


def test_a_large_store_goes_on_bit_for_bit(large: AnchorStore, tmp_path: Path) -> None:
    queries, options = embeddings(50, 2), {"exact": large.exact, "max_bytes": large.max_bytes}
    large.search("fused", queries, COUNT)
    large.remove(recordings=["r7", "r8"])
    sha256 = large.save(tmp_path / "x")
    loaded = AnchorStore.load(tmp_path / "x", sha256, **options)
    assert loaded.save(tmp_path / "y") == sha256
    mapped = AnchorStore.open(tmp_path / "x", **options)
    for each in (large, loaded):
        each.add(crowd(COUNT, 100), {"fused": (range(100), embeddings(100, 5))})
        each.remove(keys=["k1000", "k3010"])
    for one, other in zip(large.search("fused", queries, 20), loaded.search("fused", queries, 20), strict=True):
        assert one.tobytes() == other.tobytes()
    assert recall(mapped, queries) > 0.9


def test_nothing_of_a_removed_anchor_is_left_on_disk(large: AnchorStore, tmp_path: Path) -> None:
    """Neither its floats or codes, nor its place in the index: the rest, indexed alone, has the same lists."""
    large.search("fused", embeddings(1, 2), 1)
    victims = ["k17", "k1600", f"k{COUNT - 1}"]
    ids = [int(key[1:]) for key in victims]
    patterns = [row.tobytes() for row in large._spaces["fused"].vectors.rows[ids]]
    large.save(tmp_path / "x")
    assert all(pattern in (tmp_path / "x" / "fused.vectors.npy").read_bytes() for pattern in patterns)
    large.remove(keys=victims)
    large.save(tmp_path / "x")
    for path in (tmp_path / "x").iterdir():
        content = path.read_bytes()
        assert not any(pattern in content for pattern in patterns), path.name
        assert not any(key.encode() in content for key in victims), path.name
    index = faiss.read_index(str(tmp_path / "x" / "fused.faiss"))
    packer = index.get_CodePacker()
    for number in range(index.nlist):
        size = index.invlists.list_size(number)
        blocks = -(-size // packer.nvec)
        codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), blocks * packer.block_size)
        for slot in range(size, blocks * packer.nvec):  # behind the end of the list's last block
            assert not packer.unpack_1(codes.reshape(blocks, packer.block_size), slot).any()


def test_an_outgrown_index_is_made_anew() -> None:
    store = AnchorStore(exact=100)
    store.add(crowd(0, 200), {"fused": (range(200), embeddings(200, 1))})
    store.search("fused", embeddings(1, 2), 1)
    index = store._spaces["fused"].index
    store.add(crowd(200, 1800), {"fused": (range(1800), embeddings(1800, 3))})
    assert recall(store, embeddings(50, 2)) > 0.9
    assert store._spaces["fused"].index is not index


@pytest.mark.parametrize("exact", [500, COUNT])
def test_relations_are_what_search_and_vectors_say(exact: int) -> None:
    store = AnchorStore(exact=exact)
    store.add(crowd(0, COUNT), {"fused": (range(COUNT), embeddings(COUNT, 1)), "a-b": ([5], [[1, 2]])})
    queries = {"fused": 3 * embeddings(6, 2), "a-b": np.ones((2, 2)), "imu": np.ones((2, 2))}
    strangers = {"fused": np.random.default_rng(0).integers(COUNT, size=(6, 4))}
    found = store.relations(queries, 5, strangers)
    assert set(found) == {"fused", "a-b"}
    fused = found["fused"]
    similarity, ids = store.search("fused", queries["fused"], 5)
    np.testing.assert_array_equal(fused.ids, np.concatenate([ids, strangers["fused"]], axis=1))
    np.testing.assert_array_equal(fused.vectors, store.vectors("fused", fused.ids.ravel()).reshape(6, 9, -1))
    np.testing.assert_allclose(
        fused.similarities, np.einsum("bkd,bd->bk", fused.vectors, unit(queries["fused"])), atol=1e-6
    )
    assert fused.similarities[:, :5].tobytes() == similarity.tobytes()
    assert found["a-b"].ids.tolist() == [[5], [5]]
    with pytest.raises(KeyError, match="no anchor"):
        store.relations(queries, 5, {"fused": np.full((6, 1), COUNT)})


def test_the_same_answers_beside_other_work() -> None:
    store = AnchorStore(exact=500)
    store.add(crowd(0, COUNT), {"fused": (range(COUNT), embeddings(COUNT, 1))})
    queries = [embeddings(16, seed) for seed in range(20)]
    alone = [store.relations({"fused": one}, 9)["fused"] for one in queries]
    with ThreadPoolExecutor(3) as pool:
        beside = list(pool.map(lambda one: store.relations({"fused": one}, 9)["fused"], queries))
    for one, other in zip(alone, beside, strict=True):
        assert one.ids.tobytes() == other.ids.tobytes()
        assert one.similarities.tobytes() == other.similarities.tobytes()


def test_a_gpu_names_the_candidates_where_faiss_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stood in for by the CPU: this tests our side of it, not FAISS's."""
    asked = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda resources, gpu, index: asked.append(gpu) or index, raising=False
    )
    store = AnchorStore(exact=500)
    store.add(crowd(0, COUNT), {"fused": (range(COUNT), embeddings(COUNT, 1))})
    assert recall(store, embeddings(50, 2)) == 1
    store.add(crowd(COUNT, 10), {"fused": (range(10), embeddings(10, 3))})
    store.remove(keys=["k1"])
    assert recall(store, embeddings(50, 2)) == 1
    assert asked == [0, 0]  # once at first, once after the removal


def test_a_space_has_a_name_that_can_be_a_file() -> None:
    with pytest.raises(ValueError, match="no name"):
        AnchorStore().add(rows(1), {"../x": ([0], np.ones((1, 2)))})
