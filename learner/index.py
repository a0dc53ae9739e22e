"""The index of a stream's samples: memory-mapped columns, so that ten million rows cost no more to open than ten.

A row says where a sample lies, what the ledger says of it, and which task and split it belongs to. Rows are sorted by
shard and offset; names that many rows share are numbered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learner.loader import Example
from store.lake import Lake, new_folder
from store.shards import Entry, Sidecar
from store.types import Modality, Split

LAYOUT = 2  # of an index folder; counted up when it changes
ROWS = 1 << 16  # a record batch
_SPLITS = tuple(Split)
_MODALITIES = tuple(Modality)
_PART = pa.struct(
    [(name, pa.string()) for name in ("modality", "url", "checksum")] + [("offset", pa.int64()), ("size", pa.int64())]
)
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "recording": pa.string(),
        "checksum": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "shard": pa.int32(),
        "label": pa.int32(),
        "domain": pa.int32(),
        "task": pa.int32(),  # 0 for samples of no sealed task
        "split": pa.int8(),
        "modalities": pa.uint8(),  # a bit for each, in the order of `Modality`
        "sidecars": pa.list_(_PART),
        "also": pa.list_(pa.string()),  # labels beyond the first; null where there are none
    }
)


def write_index(folder: Path, dataset: str, batches: Iterable[pa.RecordBatch]) -> None:
    """Write the index of a data set in one step.

    Args:
        folder: where to.
        dataset: its name.
        batches: columns of `SCHEMA`, but with ``shard``, ``url``, ``label``, ``domain`` and ``split`` as strings, and
            ``modalities`` as lists of strings; sorted by shard and offset.
    """
    names: dict[str, dict[str, int]] = {"shard": {}, "label": {}, "domain": {}}
    urls: dict[str, str] = {}
    starts: list[int] = []
    digests: list[Any] = []
    count = 0
    with new_folder(folder) as aside:
        with pa.OSFile(str(aside / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            for batch in _even(batches):
                columns = {name: batch[name].combine_chunks() for name in batch.column_names}
                coded = {name: _numbers(columns[name], numbering) for name, numbering in names.items()}
                first = np.flatnonzero(np.diff(coded["shard"], prepend=len(starts) - 1))
                starts += (count + first).tolist()
                urls |= dict(
                    zip(columns["shard"].take(first).to_pylist(), columns["url"].take(first).to_pylist(), strict=True)
                )
                texts, edges = _texts(columns["checksum"], columns["sidecars"]), [*first.tolist(), len(batch)]
                if edges[0]:  # the rest of the shard before
                    digests[-1].update("".join(texts[: edges[0]]).encode())
                digests += [hashlib.sha256("".join(texts[start:end]).encode()) for start, end in pairwise(edges)]
                coded["split"] = _numbers(columns["split"], {name: i for i, name in enumerate(_SPLITS)})
                coded["modalities"] = _bits(columns["modalities"])
                columns |= {name: pa.array(values) for name, values in coded.items()}
                arrays = [columns[field.name].cast(field.type) for field in SCHEMA]
                writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
                count += len(batch)
        described = {"dataset": dataset, "rows": count, "starts": starts, "urls": list(urls.values())}
        described["digests"] = [digest.hexdigest() for digest in digests]
        described |= {name: list(numbering) for name, numbering in names.items()}
        (aside / "names.json").write_text(json.dumps(described))


class Index:
    """An index that `write_index` wrote, memory-mapped.

    Args:
        folder: where it lies.
        lake: its shards' URLs are relative to it.
    """

    def __init__(self, folder: Path, lake: Lake):
        described = json.loads((folder / "names.json").read_text())
        self.dataset: str = described["dataset"]
        self.shards: list[str] = described["shard"]
        self.labels: list[str] = described["label"]
        self.domains: list[str] = described["domain"]
        self._digests: list[str] = described["digests"]
        self._urls = [lake.resolve(url) for url in described["urls"]]
        self._starts = np.array([*described["starts"], described["rows"]], np.int64)
        self._lake = lake
        with pa.memory_map(str(folder / "rows.arrow")) as source:
            reader = pa.ipc.open_file(source)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> np.ndarray:
        """One of the columns of numbers, ``[rows]``."""
        parts = [batch[name].to_numpy() for batch in self._batches]
        return np.concatenate(parts) if parts else np.empty(0, SCHEMA.field(name).type.to_pandas_dtype())

    def rows(self, positions: Sequence[int] | np.ndarray) -> Rows:
        """The samples at `positions`."""
        return Rows(self, np.asarray(positions, np.uint32))

    def select(self, *, task: int, split: Split, modalities: Iterable[Modality]) -> Rows:
        """The samples of a sealed task and split that have any of `modalities`, in shard order."""
        wanted = np.uint8(sum(1 << _MODALITIES.index(modality) for modality in modalities))
        found = (self._tasks == task) & (self._splits == _SPLITS.index(split)) & (self._bits & wanted != 0)
        return self.rows(np.flatnonzero(found))

    def in_shard(self, shard: str) -> Rows:
        """All samples of a shard, in shard order."""
        number = self._numbers[shard]
        return self.rows(range(self._starts[number], self._starts[number + 1]))

    def digest(self, shard: str) -> str:
        """Names the bytes of all samples of a shard, and of their sidecars."""
        return self._digests[self._numbers[shard]]

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """The rows of the samples with these keys, ascending; what is not there is left out."""
        wanted = pa.array(keys, pa.string())
        found = [at * ROWS + np.flatnonzero(pc.is_in(batch["key"], wanted)) for at, batch in enumerate(self._batches)]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def example(self, row: int) -> Example:
        """The sample at `row`."""
        batch, at = self._batches[row // ROWS], row % ROWS
        values = {name: column[at].as_py() for name, column in zip(SCHEMA.names, batch.columns, strict=True)}
        sidecars = tuple(
            Sidecar(
                Modality(part["modality"]),
                self._lake.resolve(part["url"]),
                Entry(values["key"], part["offset"], part["size"], part["checksum"]),
            )
            for part in values["sidecars"] or ()
        )
        return Example(
            key=values["key"],
            dataset=self.dataset,
            recording=values["recording"],
            label=self.labels[values["label"]],
            domain=self.domains[values["domain"]],
            modalities=tuple(m for i, m in enumerate(_MODALITIES) if values["modalities"] >> i & 1),
            shard=self.shards[values["shard"]],
            url=self._urls[values["shard"]],
            entry=Entry(values["key"], values["offset"], values["size"], values["checksum"]),
            sidecars=sidecars,
            also=tuple(values["also"] or ()),
        )

    @cached_property
    def _tasks(self) -> np.ndarray:
        return self.column("task")

    @cached_property
    def _splits(self) -> np.ndarray:
        return self.column("split")

    @cached_property
    def _bits(self) -> np.ndarray:
        return self.column("modalities")

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {shard: number for number, shard in enumerate(self.shards)}


class Rows(Sequence[Example]):
    """Some samples of an index, read when they are asked for."""

    def __init__(self, source: Index, positions: np.ndarray):
        self.source, self.positions = source, positions

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> Rows: ...
    def __getitem__(self, at: int | slice) -> Example | Rows:
        if isinstance(at, slice):
            return Rows(self.source, self.positions[at])
        return self.source.example(int(self.positions[at]))

    def __iter__(self) -> Iterator[Example]:
        return map(self.source.example, self.positions.tolist())

    def __add__(self, other: Rows) -> Rows:
        """The samples of both, these first."""
        return Rows(self.source, np.concatenate([self.positions, other.positions]))

    def find(self, keys: Sequence[str]) -> list[Example]:
        """Those with these keys, in the order of `keys`; what is not among them is left out."""
        rows = np.intersect1d(self.source.find(keys), self.positions)
        found = {example.key: example for example in Rows(self.source, rows)}
        return [found[key] for key in keys if key in found]

    @property
    def groups(self) -> set[tuple[str, str]]:
        """The pairs of label and domain that occur."""
        index = self.source
        pairs = index.column("label").astype(np.int64) * len(index.domains) + index.column("domain")
        found = np.unique(pairs[self.positions])
        return {(index.labels[one // len(index.domains)], index.domains[one % len(index.domains)]) for one in found}

    @property
    def shards(self) -> set[str]:
        """The shards that they lie in."""
        return {self.source.shards[i] for i in np.unique(self.source.column("shard")[self.positions])}


def _even(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in pieces of `ROWS`, so that a row's piece follows from its number."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        while sum(map(len, held)) >= ROWS:
            table = pa.Table.from_batches(held)
            yield table.slice(0, ROWS)
            held = table.slice(ROWS).to_batches()
    if sum(map(len, held)):
        yield pa.Table.from_batches(held)


def _texts(checksums: pa.Array, sidecars: pa.ListArray) -> list[str]:
    """What names the bytes of each sample and of its sidecars."""
    texts: list[str] = pc.binary_join_element_wise(checksums, "", "\n").to_pylist()
    rows = pc.list_parent_indices(sidecars).to_pylist()
    for row, part in zip(rows, pc.list_flatten(sidecars).to_pylist(), strict=True):
        texts[row] += f"{part['modality']} {part['checksum']}\n"
    return texts


def _numbers(column: pa.Array, numbering: dict[str, int]) -> np.ndarray:
    """The number of each value, int32; new values are numbered as they come."""
    encoded = pc.fill_null(column, "").dictionary_encode()
    codes = [numbering.setdefault(value, len(numbering)) for value in encoded.dictionary.to_pylist()]
    return np.array(codes, np.int32)[encoded.indices.to_numpy()]


def _bits(column: pa.ListArray) -> np.ndarray:
    """Lists of modalities as one number each, uint8."""
    rows = pc.list_parent_indices(column).to_numpy()
    names = _numbers(pc.list_flatten(column), {name: i for i, name in enumerate(_MODALITIES)})
    return np.bincount(rows, 1 << names, minlength=len(column)).astype(np.uint8)
