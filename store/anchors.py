"""The anchor store: reference embeddings of past samples, and beside them who and what they are.

B queries, D width of a space, k neighbours, r strangers, C classes, n anchors. The vectors are the truth. A small space
is searched by comparing with each of them; a larger one has an index that names candidates, and these are then compared
exactly. A store that was saved and loaded answers bit for bit as before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store.index import CHUNK, Index, Vectors, best, gpus, nearest
from store.lake import SUMS, file_sha256, new_folder, write_sums
from store.types import PalimpsestError

EXACT = 16_384  # anchors up to which a space needs no index
MAX_BYTES = 16 << 30  # of a space's vectors as floats; beyond it keeps 6 bits a number
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


@dataclass(slots=True)
class _Space:
    """One space: ids int64 ``[n]``, ascending; unit vectors ``[n, D]``; an index once it is large and was searched."""

    ids: np.ndarray
    vectors: Vectors
    index: Index | None = None


@dataclass(frozen=True, slots=True)
class Relations:
    """What each query is related to: its k nearest anchors, nearest first, then r strangers.

    Attributes:
        ids: int64 ``[B, k + r]``.
        vectors: unit length, float32 ``[B, k + r, D]``.
        similarities: cosines, float32 ``[B, k + r]``.
    """

    ids: np.ndarray
    vectors: np.ndarray
    similarities: np.ndarray


class AnchorStore:
    """Anchors in named spaces (``audio``, ``video``, ``fused`` ...); an anchor may lack any of them.

    Args:
        exact: how many anchors of a space are searched by comparing with each.
        max_bytes: of a space's vectors as floats; a larger space is kept as 6 bits a number, and its vectors and
            similarities are as good as that.

    Attributes:
        version: counts the changes; a checkpoint notes it.
        table: who the anchors are, by ascending anchor id, columns as in `SCHEMA`.
    """

    def __init__(self, *, exact: int = EXACT, max_bytes: int = MAX_BYTES) -> None:
        self.exact, self.max_bytes = exact, max_bytes
        self.version = 0
        self.table = SCHEMA.empty_table()
        self._next = 0
        self._spaces: dict[str, _Space] = {}
        self._writable = True

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def spaces(self) -> tuple[str, ...]:
        """The names of the spaces that hold an anchor."""
        return tuple(sorted(name for name, space in self._spaces.items() if len(space.ids)))

    @property
    def nbytes(self) -> int:
        """Bytes kept of past data: vectors, ids and the table; an index can be made again."""
        return sum(s.ids.nbytes + s.vectors.nbytes for s in self._spaces.values()) + self.table.nbytes

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
            ValueError: a row has an unknown column, embeddings do not fit their space or are not finite, or the store
                is open for reading.
        """
        self._check_writable()
        if unknown := {name for row in rows for name in row} - set(SCHEMA.names[1:]):
            raise ValueError(f"an anchor has no column {sorted(unknown)}")
        ids = np.arange(self._next, self._next + len(rows))
        added = {}
        for space, (positions, embeddings) in vectors.items():
            if not re.fullmatch(r"\w[\w-]*", space):
                raise ValueError(f"{space!r} is no name for a space")
            order = np.argsort(positions)
            chosen = ids[np.asarray(positions, np.int64)[order]]
            if len(np.unique(chosen)) != len(chosen):
                raise ValueError(f"space {space} has two embeddings for one anchor")
            added[space] = chosen, self._unit(space, embeddings, len(chosen))[order]
        new = pa.Table.from_pylist([{**row, "anchor": i} for i, row in zip(ids.tolist(), rows, strict=True)], SCHEMA)
        self.table = pa.concat_tables([self.table, new]).combine_chunks()
        for space, (chosen, unit) in added.items():
            self._grow(space, chosen, unit)
        self._next += len(rows)
        self.version += 1
        return ids

    def ids(self, space: str) -> np.ndarray:
        """The ids of the anchors in `space`, int64 ``[n]``, ascending."""
        return self._spaces[space].ids if space in self._spaces else np.empty(0, np.int64)

    def vectors(self, space: str, ids: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """The unit vectors of `ids` in `space`, float32 ``[n, D]``; of all its anchors by default.

        Raises:
            KeyError: an anchor is not in that space.
        """
        held = self._spaces[space] if ids is None else self._spaces.get(space)
        if held is None:
            raise KeyError(f"no anchor has the space {space!r}")
        return held.vectors.take(np.arange(len(held.ids)) if ids is None else _positions(held.ids, ids))

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
        similarity, positions = self._search(self._spaces[space], self._unit(space, queries, len(queries)), k)
        return similarity, self._spaces[space].ids[positions]

    def relations(
        self, queries: Mapping[str, np.ndarray], k: int, strangers: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, Relations]:
        """What queries are related to, for all spaces in one call, as `search` and `vectors` would say.

        Args:
            queries: ``[B, D]`` of any length, by space.
            k: how many of the nearest; all of them where a space holds fewer.
            strangers: ids ``[B, r]`` to compare with besides, by space.

        Returns:
            Relations by space, of those spaces that hold an anchor.

        Raises:
            KeyError: a stranger is not in its space.
            ValueError: queries do not fit their space.
        """
        found = {}
        for space, embeddings in queries.items():
            if not len(self.ids(space)):
                continue
            held, unit = self._spaces[space], self._unit(space, embeddings, len(embeddings))
            similarity, positions = self._search(held, unit, min(k, len(held.ids)))
            if strangers and space in strangers:
                others = _positions(held.ids, strangers[space])
                similarity = np.concatenate([similarity, held.vectors.similarities(unit, others)], axis=1)
                positions = np.concatenate([positions, others], axis=1)
            vectors = held.vectors.take(positions.ravel()).reshape(*positions.shape, -1)
            found[space] = Relations(held.ids[positions], vectors, similarity)
        return found

    def replace(self, space: str, ids: Sequence[int] | np.ndarray, vectors: np.ndarray) -> None:
        """Give anchors other embeddings ``[n, D]`` in `space`, after drift or a fresh encoding; ids stay.

        Given ids and vectors for all its anchors, a space may change its width.

        Raises:
            KeyError: an anchor is not in that space.
            ValueError: the embeddings do not fit the space or are not finite, or the store is open for reading.
        """
        self._check_writable()
        positions = _positions(self.ids(space), ids)
        whole = len(np.unique(positions)) == len(self.ids(space)) == len(positions)
        unit = self._unit(space, vectors, len(positions), any_width=whole)
        if not len(positions):
            return
        held = self._spaces[space]
        if whole:
            held.vectors, held.index = self._sized(Vectors(unit[np.argsort(positions)])), None
        else:
            held.vectors.put(positions, unit)
            named = held.ids[positions]
            if held.index is not None and held.index.remove(named, held.ids, held.vectors):
                held.index.add(named, held.vectors.take(positions))
            else:
                held.index = None
        self.version += 1

    def carry(self, space: str, move: Callable[[np.ndarray], np.ndarray]) -> None:
        """Move all anchors of `space`: `move` maps vectors ``[m, D]`` to others of that width, some at a time.

        Raises:
            ValueError: what `move` gives does not fit the space or is not finite, or the store is open for reading.
        """
        self._check_writable()
        if not len(self.ids(space)):
            return
        held = self._spaces[space]
        former = held.vectors

        def moved(part: np.ndarray) -> np.ndarray:
            return self._unit(space, move(former.take(part)), len(part))

        held.index = None
        if former.ranges is not None:  # what moves may leave them
            held.vectors = Vectors.coded(len(held.ids), moved)
        else:
            for start in range(0, len(held.ids), CHUNK):
                part = np.arange(start, min(start + CHUNK, len(held.ids)))
                former.put(part, moved(part))
        self.version += 1

    def remove(self, *, keys: Iterable[str] = (), recordings: Iterable[str] = ()) -> int:
        """Remove the anchors with these sample keys or of these recordings; returns how many."""
        there = pc.or_kleene(
            pc.is_in(self.table["key"], pa.array(list(keys), pa.string())),
            pc.is_in(self.table["recording"], pa.array(list(recordings), pa.string())),
        )
        return self.keep(np.asarray(self.table["anchor"].filter(pc.invert(there))))

    def keep(self, ids: Sequence[int] | np.ndarray) -> int:
        """Remove all anchors but `ids`; returns how many.

        Raises:
            ValueError: the store is open for reading.
        """
        self._check_writable()
        before, ids = len(self), np.asarray(ids, np.int64)
        self.table = self.table.filter(np.isin(self.table["anchor"].to_numpy(), ids)).combine_chunks()
        if len(self) == before:
            return 0
        for held in self._spaces.values():
            mask = np.isin(held.ids, ids)
            gone, held.ids = held.ids[~mask], held.ids[mask]
            held.vectors.keep(mask)
            if held.index is not None and not held.index.remove(gone, held.ids, held.vectors):
                held.index = None
        self.version += 1
        return before - len(self)

    def save(self, folder: Path) -> str:
        """Write the store as one checked folder, in one step; returns the SHA-256 that names its content.

        `rows.parquet` is the table; each space has `<space>.ids.npy` and `<space>.vectors.npy`, `<space>.ranges.npy` if
        its vectors are codes, and `<space>.faiss` if it is large. `state.json` says how long each file is, `SHA256SUMS`
        what is in it.
        """
        with new_folder(folder) as aside:
            pq.write_table(self.table, aside / "rows.parquet")
            spaces = {}
            for name, held in sorted(self._spaces.items()):
                np.save(aside / f"{name}.ids.npy", held.ids)
                np.save(aside / f"{name}.vectors.npy", held.vectors.rows)
                if held.vectors.ranges is not None:
                    np.save(aside / f"{name}.ranges.npy", held.vectors.ranges)
                index = self._index(held)
                if index is not None:
                    index.save(aside / f"{name}.faiss")
                spaces[name] = {"trained": index.trained if index else 0}
            sizes = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
            state = {"version": self.version, "next": self._next, "spaces": spaces, "sizes": sizes}
            (aside / "state.json").write_text(json.dumps(state))
            return write_sums(aside)

    @classmethod
    def load(cls, folder: Path, sha256: str | None = None, **options: int) -> AnchorStore:
        """The store in `folder`, every byte of it checked.

        Args:
            folder: where `save` wrote it.
            sha256: what `save` returned, to make sure of it.
            options: as for a new store.

        Raises:
            PalimpsestError: the folder is absent, damaged, or not the one that `sha256` names.
        """
        return cls._read(folder, sha256, mapped=False, **options)

    @classmethod
    def open(cls, folder: Path, sha256: str | None = None, **options: int) -> AnchorStore:
        """The store in `folder` for reading: vectors stay on disk and are mapped into memory, to be shared by readers.

        Of the vectors only the sizes are checked. A writer may put another store in its place meanwhile: this one stays
        as it was when it was opened.

        Raises:
            PalimpsestError: the folder is absent, incomplete, or not the one that `sha256` names.
        """
        return cls._read(folder, sha256, mapped=True, **options)

    @classmethod
    def _read(cls, folder: Path, sha256: str | None, *, mapped: bool, **options: int) -> AnchorStore:
        while True:
            sums, store, fault = _text(folder / SUMS), cls(**options), None
            try:
                store._fill(folder, sums, mapped=mapped)
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                fault = error
            if _text(folder / SUMS) != sums:  # a writer has come between: not all files were of one store
                continue
            if fault is None and (sha256 is None or hashlib.sha256(sums.encode()).hexdigest() == sha256):
                return store
            why = fault or "these are others than the snapshot's"
            raise PalimpsestError(f"the anchors in {folder} are absent or damaged: {why}. Restore them from a backup.")

    def _fill(self, folder: Path, sums: str, *, mapped: bool) -> None:
        """Become what `folder` holds.

        Raises:
            OSError, ValueError, KeyError, RuntimeError: it is absent or damaged.
        """
        expected = {name: sha for sha, name in (line.split("  ", 1) for line in sums.splitlines())}
        if file_sha256(folder / "state.json") != expected["state.json"]:
            raise ValueError("state.json is damaged")
        state = json.loads((folder / "state.json").read_bytes())
        for name, size in state["sizes"].items():
            whole = (folder / name).stat().st_size == size
            if (
                not whole
                or not (mapped and name.endswith(".vectors.npy"))
                and file_sha256(folder / name) != expected[name]
            ):
                raise ValueError(f"{name} is damaged")
        self.version, self._next, self._writable = state["version"], state["next"], not mapped
        self.table = pq.read_table(folder / "rows.parquet", schema=SCHEMA).combine_chunks()
        for name, about in state["spaces"].items():
            rows = np.load(folder / f"{name}.vectors.npy", mmap_mode="r")
            ranges = np.load(folder / f"{name}.ranges.npy") if f"{name}.ranges.npy" in expected else None
            index = None
            if f"{name}.faiss" in expected and (mapped or not gpus()):  # a GPU has its own soon
                index = Index.load(folder / f"{name}.faiss", about["trained"])
            vectors = Vectors(np.asarray(rows) if mapped else np.array(rows), ranges)
            self._spaces[name] = _Space(np.load(folder / f"{name}.ids.npy"), vectors, index)

    def _grow(self, space: str, ids: np.ndarray, unit: np.ndarray) -> None:
        if (held := self._spaces.get(space)) is None:
            self._spaces[space] = _Space(ids, self._sized(Vectors(unit)))
            return
        held.ids = np.concatenate([held.ids, ids])
        held.vectors.append(unit)
        if held.index is not None:
            held.index.add(ids, unit)
        held.vectors = self._sized(held.vectors)

    def _sized(self, vectors: Vectors) -> Vectors:
        fits = vectors.ranges is not None or vectors.nbytes <= self.max_bytes
        return vectors if fits else Vectors.coded(len(vectors), vectors.take)

    def _index(self, held: _Space) -> Index | None:
        if len(held.ids) <= self.exact:
            return None
        if held.index is None or held.index.outgrown:
            held.index = Index.made(held.ids, held.vectors)
        return held.index

    def _search(self, held: _Space, unit: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Similarities and positions ``[B, k]`` of the nearest; k is at most n."""
        if (index := self._index(held)) is None or k > index.most:
            return nearest(held.vectors, unit, k)
        candidates = index.search(unit, k)
        positions = np.where(candidates < 0, -1, np.searchsorted(held.ids, candidates))
        return best(held.vectors.similarities(unit, positions), positions, k)

    def _check_writable(self) -> None:
        if not self._writable:
            raise ValueError("this anchor store is open for reading; load it to change it")

    def _unit(self, space: str, vectors: np.ndarray, rows: int, *, any_width: bool = False) -> np.ndarray:
        vectors = np.asarray(vectors, np.float32)
        held = None if any_width else self._spaces.get(space)
        width = held.vectors.width if held else vectors.shape[-1]
        if vectors.shape != (rows, width):
            raise ValueError(f"space {space} takes embeddings [{rows}, {width}], not {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            raise ValueError(f"embeddings for space {space} are not finite")
        return np.ascontiguousarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _positions(sorted_ids: np.ndarray, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where `ids` lie among `sorted_ids`, in their shape."""
    ids = np.asarray(ids, np.int64)
    positions = np.searchsorted(sorted_ids, ids)
    if not len(sorted_ids) and ids.size or (sorted_ids.take(positions, mode="clip") != ids).any():
        raise KeyError(f"no anchor {sorted(set(ids.ravel().tolist()) - set(sorted_ids.tolist()))[:5]} here")
    return positions


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
