"""The anchor store: reference embeddings of past samples, a FAISS index a space, beside them who and what they are.

B queries, D width of a space, k neighbours, C classes, n anchors. The arrays are the truth and the index is made from
them, so a store that was saved and loaded answers bit for bit as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.snapshots import load_tree, save_tree
from store.types import PalimpsestError

SCHEMA = pa.schema(
    {
        "anchor": pa.int64(),
        "key": pa.string(),
        "dataset": pa.string(),
        "recording": pa.string(),
        "label": pa.string(),
        "domain": pa.string(),
        "task": pa.int64(),
    }
)


class AnchorStore:
    """Anchors in named spaces (``audio``, ``video``, ``fused`` ...); an anchor may lack any of them.

    Attributes:
        version: counts the changes; a checkpoint notes it.
        table: who the anchors are, by ascending anchor id, columns as in `SCHEMA`.
    """

    def __init__(self) -> None:
        self.version = 0
        self.table = SCHEMA.empty_table()
        self._next = 0
        self._ids: dict[str, np.ndarray] = {}  # int64 [n], ascending
        self._vectors: dict[str, np.ndarray] = {}  # float32 [n, D], unit length
        self._indexes: dict[str, Any] = {}

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def spaces(self) -> tuple[str, ...]:
        """The names of the spaces that hold an anchor."""
        return tuple(sorted(space for space, ids in self._ids.items() if len(ids)))

    @property
    def nbytes(self) -> int:
        """Bytes kept of past data: vectors, ids and the table; the index can be made again."""
        arrays = [*self._ids.values(), *self._vectors.values()]
        return sum(array.nbytes for array in arrays) + self.table.nbytes

    def add(
        self, rows: Sequence[Mapping[str, Any]], vectors: Mapping[str, tuple[Sequence[int] | np.ndarray, np.ndarray]]
    ) -> np.ndarray:
        """Add an anchor a row.

        Args:
            rows: mappings with the columns of `SCHEMA` but ``anchor``; absent ones are null.
            vectors: per space the positions in `rows` that have it, and their embeddings ``[n, D]`` of any length.

        Returns:
            The new ids, int64 ``[len(rows)]``; an id is never given twice.

        Raises:
            ValueError: a row has an unknown column, or embeddings do not fit their space or are not finite.
        """
        if unknown := {name for row in rows for name in row} - set(SCHEMA.names[1:]):
            raise ValueError(f"an anchor has no column {sorted(unknown)}")
        ids = np.arange(self._next, self._next + len(rows))
        added = {}
        for space, (positions, embeddings) in vectors.items():
            order = np.argsort(positions)
            chosen = ids[np.asarray(positions, np.int64)[order]]
            if len(np.unique(chosen)) != len(chosen):
                raise ValueError(f"space {space} has two embeddings for one anchor")
            added[space] = chosen, self._unit(space, embeddings, len(chosen))[order]
        new = pa.Table.from_pylist([{**row, "anchor": i} for i, row in zip(ids.tolist(), rows, strict=True)], SCHEMA)
        self.table = pa.concat_tables([self.table, new]).combine_chunks()
        for space, (chosen, unit) in added.items():
            former = self._vectors.get(space, np.empty((0, unit.shape[1]), np.float32))
            self._ids[space] = np.concatenate([self.ids(space), chosen])
            self._vectors[space] = np.concatenate([former, unit])
        self._next += len(rows)
        self._changed(added)
        return ids

    def ids(self, space: str) -> np.ndarray:
        """The ids of the anchors in `space`, int64 ``[n]``, ascending."""
        return self._ids.get(space, np.empty(0, np.int64))

    def vectors(self, space: str, ids: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """The unit vectors of `ids` in `space`, float32 ``[n, D]``; of all its anchors by default.

        Raises:
            KeyError: an anchor is not in that space.
        """
        if ids is None:
            return self._vectors[space].copy()
        return self._vectors[space][_positions(self.ids(space), ids)]

    def rows(self, ids: Sequence[int] | np.ndarray) -> pa.Table:
        """The rows of `ids`, in their order.

        Raises:
            KeyError: there is no such anchor.
        """
        return self.table.take(_positions(self.table["anchor"].to_numpy(), ids))

    def labels(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The labels of `ids`, an object array of strings in the shape of `ids`."""
        ids = np.asarray(ids)
        labels = self.rows(ids.ravel())["label"].to_pylist()
        return np.array(labels, dtype=object).reshape(ids.shape)

    def search(self, space: str, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` anchors nearest to each query, nearest first.

        Args:
            space: where to look.
            queries: ``[B, D]`` of any length.
            k: how many; all of them where the space holds fewer.

        Returns:
            Cosine similarities, float32 ``[B, k]``, and anchor ids, int64 ``[B, k]``.

        Raises:
            ValueError: the queries do not fit the space.
        """
        k = min(k, len(self.ids(space)))
        if k <= 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        unit = self._unit(space, queries, len(queries))
        with _deterministic() as faiss:
            if space not in self._indexes:
                self._indexes[space] = _index(faiss, self._ids[space], self._vectors[space])
            similarity, ids = self._indexes[space].search(unit, k)
        return similarity, ids

    def votes(
        self, space: str, queries: np.ndarray, k: int, labels: Sequence[str], *, temperature: float = 0.1
    ) -> np.ndarray:
        """What share of the nearest anchors' votes each label gets; a vote weighs exp(similarity / temperature).

        Returns:
            float32 ``[B, C]`` in the order of `labels`; rows sum to 1, or less where other labels are near.
        """
        similarity, ids = self.search(space, queries, k)
        shares = np.zeros((len(queries), len(labels)), np.float32)
        if not ids.size:
            return shares
        weights = np.exp((similarity - similarity[:, :1]) / temperature)  # [B, k]
        weights /= weights.sum(axis=1, keepdims=True)
        columns = {label: column for column, label in enumerate(labels)}
        named = np.array([columns.get(label, -1) for label in self.labels(ids).ravel()]).reshape(ids.shape)
        query, neighbour = np.nonzero(named >= 0)
        np.add.at(shares, (query, named[query, neighbour]), weights[query, neighbour])
        return shares

    def knn(
        self, space: str, queries: np.ndarray, k: int, *, temperature: float = 0.1
    ) -> tuple[np.ndarray, np.ndarray]:
        """The label with most of the nearest anchors' votes; of equals the first in the alphabet.

        Returns:
            Labels, an object array ``[B]``, and their share of the votes, float32 ``[B]``.

        Raises:
            PalimpsestError: the space holds no anchor.
        """
        if not len(self.ids(space)):
            raise PalimpsestError(f"no anchor has the space {space!r}; there are {', '.join(self.spaces) or 'none'}.")
        labels = sorted(set(self.table["label"].to_pylist()) - {None})
        shares = self.votes(space, queries, k, labels, temperature=temperature)
        return np.array(labels, dtype=object)[shares.argmax(axis=1)], shares.max(axis=1)

    def replace(self, space: str, ids: Sequence[int] | np.ndarray, vectors: np.ndarray) -> None:
        """Give anchors other embeddings ``[n, D]`` in `space`, after drift or a fresh encoding; ids stay.

        Given ids and vectors for all its anchors, a space may change its width.

        Raises:
            KeyError: an anchor is not in that space.
            ValueError: the embeddings do not fit the space or are not finite.
        """
        positions = _positions(self.ids(space), ids)
        whole = len(np.unique(positions)) == len(self.ids(space)) == len(positions)
        unit = self._unit(space, vectors, len(positions), any_width=whole)
        if whole:
            self._vectors[space] = np.empty_like(unit)
        self._vectors[space][positions] = unit
        self._changed([space])

    def remove(self, *, keys: Iterable[str] = (), recordings: Iterable[str] = ()) -> int:
        """Remove the anchors with these sample keys or of these recordings; returns how many."""
        there = pc.or_kleene(
            pc.is_in(self.table["key"], pa.array(list(keys), pa.string())),
            pc.is_in(self.table["recording"], pa.array(list(recordings), pa.string())),
        )
        return self._keep(np.asarray(self.table["anchor"].filter(pc.invert(there))))

    def keep(self, ids: Sequence[int] | np.ndarray) -> int:
        """Remove all anchors but `ids`; returns how many."""
        return self._keep(np.asarray(ids, np.int64))

    def state(self) -> dict[str, Any]:
        """The store as a tree for `store.snapshots.save_tree`, by itself or inside a checkpoint."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA) as writer:
            writer.write_table(self.table)
        return {
            "version": self.version,
            "next": self._next,
            "rows": np.frombuffer(sink.getvalue(), np.uint8),
            "spaces": {name: {"ids": ids, "vectors": self._vectors[name]} for name, ids in sorted(self._ids.items())},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> AnchorStore:
        """The store that `state` describes."""
        store = cls()
        store.version, store._next = state["version"], state["next"]
        store.table = pa.ipc.open_stream(pa.py_buffer(state["rows"].tobytes())).read_all().combine_chunks()
        store._ids = {space: part["ids"].copy() for space, part in state["spaces"].items()}
        store._vectors = {space: part["vectors"].copy() for space, part in state["spaces"].items()}
        return store

    def save(self, folder: Path) -> str:
        """Write the store as one checked folder, in one step; returns the SHA-256 that names its content."""
        return save_tree(folder, self.state())

    @classmethod
    def load(cls, folder: Path) -> AnchorStore:
        """The store in `folder`.

        Raises:
            PalimpsestError: the folder is absent or damaged.
        """
        return cls.from_state(load_tree(folder))

    def _keep(self, ids: np.ndarray) -> int:
        before = len(self)
        self.table = self.table.filter(np.isin(self.table["anchor"].to_numpy(), ids)).combine_chunks()
        if len(self) == before:
            return 0
        for space in self._ids:
            mask = np.isin(self._ids[space], ids)
            self._ids[space], self._vectors[space] = self._ids[space][mask], self._vectors[space][mask]
        self._changed(self._ids)
        return before - len(self)

    def _changed(self, spaces: Iterable[str]) -> None:
        self.version += 1
        for space in spaces:
            self._indexes.pop(space, None)

    def _unit(self, space: str, vectors: np.ndarray, rows: int, *, any_width: bool = False) -> np.ndarray:
        vectors = np.asarray(vectors, np.float32)
        width = self._vectors[space].shape[1] if space in self._vectors and not any_width else vectors.shape[-1]
        if vectors.shape != (rows, width):
            raise ValueError(f"space {space} takes embeddings [{rows}, {width}], not {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            raise ValueError(f"embeddings for space {space} are not finite")
        return np.ascontiguousarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _positions(sorted_ids: np.ndarray, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    ids = np.asarray(ids, np.int64)
    positions = np.searchsorted(sorted_ids, ids)
    if not len(sorted_ids) and len(ids) or (sorted_ids.take(positions, mode="clip") != ids).any():
        raise KeyError(f"no anchor {sorted(set(ids.tolist()) - set(sorted_ids.tolist()))[:5]} here")
    return positions


def _index(faiss: ModuleType, ids: np.ndarray, vectors: np.ndarray) -> Any:
    """The index for so many anchors: exact up to the sizes one machine holds."""
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
    index.add_with_ids(vectors, ids)
    return index


@contextlib.contextmanager
def _deterministic() -> Iterator[ModuleType]:
    """FAISS on one thread, each query by itself: a figure depends neither on threads nor on what shares its batch."""
    try:
        import faiss
    except ImportError as error:
        raise PalimpsestError(
            "FAISS is not installed: `pip install 'palimpsest[cpu]'`, or `palimpsest[gpu]` for NVIDIA GPUs."
        ) from error
    threads, threshold = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = 1 << 30
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(threads)
        faiss.cvar.distance_compute_blas_threshold = threshold
