"""From index rows to samples: the indexed source that feeds a WebDataset pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import webdataset as wds
from torch.utils.data import IterableDataset

from store.lake import Lake
from store.shards import Entry, Sidecar, read_sample
from store.types import Modality, Sample


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a stream's index: where a sample lies and what the ledger says of it."""

    key: str
    dataset: str
    recording: str
    label: str
    domain: str
    modalities: tuple[Modality, ...]
    shard: str
    url: str
    entry: Entry
    sidecars: tuple[Sidecar, ...] = ()

    @classmethod
    def from_row(cls, row: dict[str, Any], lake: Lake) -> Example:
        """An example from a row of the ledger's `sample_index`."""

        def entry(part: dict[str, Any]) -> Entry:
            return Entry(row["key"], part["offset"], part["size"], part["checksum"])

        return cls(
            key=row["key"],
            dataset=row["dataset"],
            recording=row["recording"],
            label=(row["labels"] or [""])[0],
            domain=row["domain"] or "",
            modalities=tuple(Modality(name) for name in row["modalities"]),
            shard=row["shard"],
            url=lake.resolve(row["url"]),
            entry=entry(row),
            sidecars=tuple(
                Sidecar(Modality(part["modality"]), lake.resolve(part["url"]), entry(part)) for part in row["sidecars"]
            ),
        )


class IndexedSource(IterableDataset[Sample]):
    """Samples in exactly the order of `examples`: one read each, checked against its checksum."""

    def __init__(self, examples: Sequence[Example]):
        self.examples = examples

    def __iter__(self) -> Iterator[Sample]:
        for example in self.examples:
            yield read_sample(example.url, example.entry, example.sidecars)


def pipeline(examples: Sequence[Example], *stages: Callable[[Iterator[Any]], Iterator[Any]]) -> wds.DataPipeline:
    """A `webdataset.DataPipeline` over `examples`; `stages` map an iterator to an iterator."""
    return wds.DataPipeline(IndexedSource(examples), *stages)
