"""What an anchor space is made of: its vectors, as floats or as codes, and an index that says which may be near.

B queries, D width, n vectors, c candidates a query. FAISS runs on one thread and takes each query by itself, so a
figure depends neither on threads nor on what shares its batch.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from store.types import PalimpsestError

PROBED = 1 / 4  # of all inverted lists, a query, at most
TUNED_ON, TUNED_AT, SPARED = 128, 32, 0.003  # queries, neighbours, and the recall given for probing fewer
OVERSAMPLED, FEWEST = 4, 64  # candidates for each neighbour wanted, and at all
OUTGROWN = 8  # an index that has become so many times as large is trained anew
GPU_MOST = 2048  # neighbours that FAISS finds on a GPU
CHUNK = 65_536  # vectors decoded, moved or encoded at a time
_FAISS = threading.RLock()  # what follows is set for the whole process


@contextlib.contextmanager
def deterministic(*, apart: bool = True) -> Iterator[ModuleType]:
    """FAISS on one thread, and each query `apart` from its batch, which matrix products would not do.

    Raises:
        PalimpsestError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise PalimpsestError(
            "FAISS is not installed: `pip install 'palimpsest[cpu]'`, or `palimpsest[gpu]` for NVIDIA GPUs."
        ) from error
    with _FAISS:
        threads, threshold = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
        faiss.omp_set_num_threads(1)
        faiss.cvar.distance_compute_blas_threshold = 1 << 30 if apart else 20
        try:
            yield faiss
        finally:
            faiss.omp_set_num_threads(threads)
            faiss.cvar.distance_compute_blas_threshold = threshold


class Vectors:
    """Vectors by position: floats, or codes of 6 bits a number where floats would be too large.

    Args:
        rows: float32 ``[n, D]``, or codes uint8 ``[n, 3 D / 4]``; grown in place, so the array must own its memory.
        ranges: of the codes, float32 ``[2, D]``: the least of each number, and how far it reaches from there.
    """

    def __init__(self, rows: np.ndarray, ranges: np.ndarray | None = None):
        self.rows, self.ranges = rows, ranges
        self._codec: Any = None if ranges is None else _codec(ranges)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """D."""
        return int(self.rows.shape[1] if self.ranges is None else self.ranges.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors."""
        return self.rows.nbytes + (0 if self.ranges is None else self.ranges.nbytes)

    def take(self, positions: np.ndarray) -> np.ndarray:
        """The vectors at `positions` ``[n]``, float32 ``[n, D]``."""
        rows = self.rows.take(positions, axis=0)
        return rows if self._codec is None else self._codec.decode(rows)

    def similarities(self, queries: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Inner products of each query ``[B, D]`` with its own `positions`, float32 ``[B, c]``; -inf for -1."""
        found = np.empty(positions.shape, np.float32)
        rows, at = self.rows, np.ascontiguousarray(positions, np.int64)
        if self._codec is not None:
            rows, at = self.take(at.ravel()), np.where(at < 0, -1, np.arange(at.size).reshape(at.shape))
        queries = np.ascontiguousarray(queries, np.float32)
        with deterministic() as faiss:
            pointers = (faiss.swig_ptr(array) for array in (found, queries, np.asarray(rows), at))
            faiss.fvec_inner_products_by_idx(*pointers, self.width, *at.shape)
        return found

    def append(self, vectors: np.ndarray) -> None:
        """Grow by `vectors` ``[m, D]``, in place."""
        rows, n = self._encoded(vectors), len(self.rows)
        self.rows.resize((n + len(rows), self.rows.shape[1]), refcheck=False)  # realloc moves pages, it copies none
        self.rows[n:] = rows

    def put(self, positions: np.ndarray, vectors: np.ndarray) -> None:
        """Write `vectors` ``[m, D]`` at `positions` ``[m]``."""
        self.rows[positions] = self._encoded(vectors)

    def keep(self, mask: np.ndarray) -> None:
        """Drop all but those in `mask`, boolean ``[n]``, in place."""
        stay = np.flatnonzero(mask)
        for start in range(0, len(stay), CHUNK):
            part = stay[start : start + CHUNK]  # none lies before the place it moves to
            self.rows[start : start + len(part)] = self.rows[part]
        self.rows.resize((len(stay), self.rows.shape[1]), refcheck=False)

    @classmethod
    def coded(cls, count: int, take: Callable[[np.ndarray], np.ndarray]) -> Vectors:
        """As codes, `count` vectors of which `take` gives those at positions ``[m]``.

        Their ranges are those of a sample; what lies beyond is cut.
        """
        sample = take(_sample(count, CHUNK))
        with deterministic() as faiss:
            codec = faiss.ScalarQuantizer(sample.shape[1], faiss.ScalarQuantizer.QT_6bit)
            codec.train(sample)
            ranges = faiss.vector_to_array(codec.trained).reshape(2, -1)
        vectors = cls(np.empty((count, codec.code_size), np.uint8), ranges)
        for start in range(0, count, CHUNK):
            part = np.arange(start, min(start + CHUNK, count))
            vectors.rows[part] = vectors._encoded(take(part))
        return vectors

    def _encoded(self, vectors: np.ndarray) -> np.ndarray:
        if self._codec is None:
            return vectors
        with deterministic():
            codes: np.ndarray = self._codec.compute_codes(np.ascontiguousarray(vectors, np.float32))
        return codes


class Index:
    """Says which vectors may be near: more than are asked for, to be compared exactly.

    Inverted lists of 4-bit product-quantiser codes in fast-scan layout (Andre et al. 2015), a sixteenth to a thirtieth
    of the vectors' bytes, trained once on a seeded sample and grown in place; or all vectors on a GPU, if there is one.

    Attributes:
        lists: a FAISS index.
        trained: how many vectors there were when it was made.
    """

    def __init__(self, lists: Any, trained: int, *, on_gpu: bool = False):
        self.lists, self.trained, self.on_gpu = lists, trained, on_gpu

    @classmethod
    def made(cls, ids: np.ndarray, vectors: Vectors) -> Index:
        """An index over `vectors`, called by `ids` int64 ``[n]``."""
        if gpus():
            with contextlib.suppress(RuntimeError):  # it is larger than the GPU's memory
                return cls(_flat_on_gpu(vectors), len(vectors), on_gpu=True)._filled(ids, vectors)
        index = cls(_trained(vectors), len(vectors))._filled(ids, vectors)
        index._tune(ids, vectors)
        return index

    def _filled(self, ids: np.ndarray, vectors: Vectors) -> Index:
        for start in range(0, len(ids), CHUNK):
            part = np.arange(start, min(start + CHUNK, len(ids)))
            self.add(ids[part], vectors.take(part))
        return self

    def _tune(self, ids: np.ndarray, vectors: Vectors) -> None:
        """Probe no more lists than it takes to find nearly what `PROBED` of them find."""
        queries = vectors.take(_sample(len(vectors), TUNED_ON))
        true = ids[nearest(vectors, queries, TUNED_AT)[1]]

        def recall(probed: int) -> float:
            self.lists.nprobe = probed
            found = self.search(queries, TUNED_AT)
            return float(np.mean([np.isin(wanted, there) for wanted, there in zip(true, found, strict=True)]))

        probed = self.lists.nprobe
        enough = recall(probed) - SPARED
        while probed > 1 and recall(probed // 2) >= enough:
            probed //= 2
        self.lists.nprobe = probed

    @property
    def most(self) -> int:
        """How many candidates it can name."""
        return GPU_MOST if self.on_gpu else sys.maxsize

    @property
    def outgrown(self) -> bool:
        """Whether it holds so many more than it was trained on that it should be made anew."""
        return not self.on_gpu and bool(self.lists.ntotal > OUTGROWN * self.trained)

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Take in `vectors` float32 ``[m, D]``, called by `ids`."""
        with deterministic(apart=False):
            self.lists.add_with_ids(_padded(vectors, self.lists.d), ids)

    def remove(self, ids: np.ndarray, known: np.ndarray, vectors: Vectors) -> bool:
        """Forget `ids`, to the last bit; `known` and `vectors` are what stays. False where it cannot."""
        if self.on_gpu:
            return False
        with deterministic() as faiss:
            lists = self.lists.invlists
            before = np.array([lists.list_size(i) for i in range(lists.nlist)])
            self.lists.remove_ids(faiss.IDSelectorBatch(ids))
            after = np.array([lists.list_size(i) for i in range(lists.nlist)])
            # A list's last block keeps codes of the dead behind its end: those left in it are written anew.
            tails = [
                faiss.rev_swig_ptr(lists.get_ids(i), int(after[i]))[after[i] - after[i] % self.lists.bbs :].copy()
                for i in np.flatnonzero(after < before).tolist()
                if after[i] % self.lists.bbs
            ]
            if tails:
                again = np.concatenate(tails)
                self.lists.remove_ids(faiss.IDSelectorBatch(again))
                self.add(again, vectors.take(np.searchsorted(known, again)))
        return True

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Ids of candidates for the `k` nearest of each query ``[B, D]``, int64 ``[B, c]`` with k <= c <= n.

        At least `k` of a row are ids, the rest may be -1.
        """
        count = min(max(OVERSAMPLED * k, FEWEST), self.lists.ntotal, self.most)
        queries = _padded(queries, self.lists.d)
        with deterministic():
            found: np.ndarray = self.lists.search(queries, count)[1]
            if len(short := np.flatnonzero((found[:, :k] < 0).any(axis=1))):  # too few in the lists nearby
                usual, self.lists.nprobe = self.lists.nprobe, self.lists.nlist
                found[short] = self.lists.search(queries[short], count)[1]
                self.lists.nprobe = usual
        return found

    def save(self, path: Path) -> None:
        """Write it to `path`, if it is not made again as fast."""
        if not self.on_gpu:
            with deterministic() as faiss:
                faiss.write_index(self.lists, str(path))

    @classmethod
    def load(cls, path: Path, trained: int) -> Index:
        """The index that `save` wrote."""
        with deterministic() as faiss:
            return cls(faiss.read_index(str(path)), trained)


def _trained(vectors: Vectors) -> Any:
    """Empty inverted lists, as many as the square root of the vectors' number, trained on 40 vectors a list."""
    lists = 2 ** round(np.log2(len(vectors)) / 2)
    sample = vectors.take(_sample(len(vectors), 40 * lists))
    part = (
        4 if sample.shape[1] > 256 else 2 if sample.shape[1] > 64 else 1
    )  # the fewer numbers, the less do the codes' errors average out
    width = sample.shape[1] + -sample.shape[1] % part
    with deterministic(apart=False) as faiss:
        index = faiss.index_factory(width, f"IVF{lists},PQ{width // part}x4fs", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter = 6
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # it would only warn
        index.train(_padded(sample, width))
        index.nprobe = max(1, round(PROBED * lists))
    return index


def _flat_on_gpu(vectors: Vectors) -> Any:
    with deterministic() as faiss:
        flat = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.IndexFlatIP(vectors.width))
        return faiss.IndexIDMap(flat)


def _codec(ranges: np.ndarray) -> Any:
    with deterministic() as faiss:
        codec = faiss.ScalarQuantizer(ranges.shape[1], faiss.ScalarQuantizer.QT_6bit)
        faiss.copy_array_to_vector(np.ascontiguousarray(ranges, np.float32).ravel(), codec.trained)
    return codec


def _padded(vectors: np.ndarray, width: int) -> np.ndarray:
    """`vectors` with zeros behind, which change no inner product."""
    return np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, width - vectors.shape[1]))), np.float32)


def _sample(size: int, count: int) -> np.ndarray:
    """Positions of `count` out of `size`, ascending; all where there are fewer."""
    return np.sort(np.random.default_rng(0).permutation(size)[:count])


def gpus() -> int:
    """How many GPUs FAISS sees."""
    with deterministic() as faiss:
        return int(faiss.get_num_gpus())


def nearest(vectors: Vectors, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest of all `vectors`, compared with each: similarities and positions ``[B, k]``, nearest first."""
    parts = []
    step = CHUNK if vectors.ranges is not None else max(1, len(vectors))
    for start in range(0, len(vectors), step):
        rows = vectors.rows
        if vectors.ranges is not None:
            rows = vectors.take(np.arange(start, min(start + step, len(vectors))))
        with deterministic() as faiss:
            found, at = faiss.knn(queries, rows, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        parts.append((found, at + start))
    similarity, positions = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return best(similarity, positions, k)


def best(similarity: np.ndarray, names: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` most similar of each row, most similar first, with their `names`."""
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(names, order, 1)
