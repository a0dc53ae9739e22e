"""From index rows to samples: read one by one, in a WebDataset pipeline, or ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import webdataset as wds
from torch.utils.data import IterableDataset

from store.lake import Lake
from store.shards import Entry, Sidecar, read_sample
from store.types import DamagedSampleError, Modality, PalimpsestError, Sample

T = TypeVar("T")
R = TypeVar("R")
READ_AHEAD = 2  # items a worker


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a stream's index: where a sample lies and what the ledger says of it.

    Attributes:
        label: its class.
        also: further labels.
    """

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
    also: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """All of its labels, the one that is its class first."""
        return (self.label, *self.also)

    @property
    def urls(self) -> list[str]:
        """Of the shard, then of each sidecar."""
        return [self.url, *(part.url for part in self.sidecars)]

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
            also=tuple((row["labels"] or [])[1:]),
        )


class Damage:
    """The samples that could not be read while learning: named, skipped, and at most so many.

    Args:
        limit: one more ends the run.

    Attributes:
        reasons: what is wrong with each, by key.
    """

    def __init__(self, limit: int = 0):
        self.limit = limit
        self.reasons: dict[str, str] = {}

    def read(self, example: Example, copies: Mapping[str, Path] = MappingProxyType({})) -> Sample | None:
        """The example's sample, or None where its bytes are absent or damaged.

        Args:
            example: which.
            copies: of shards, by their URLs, to be read in their place as long as they are there and intact.

        Raises:
            PalimpsestError: there are more of them than the limit.
        """
        near = [copies[url] for url in example.urls if url in copies]
        if near:
            url, *others = (str(copies.get(url, url)) for url in example.urls)
            sidecars = [replace(part, url=url) for part, url in zip(example.sidecars, others, strict=True)]
            try:
                return read_sample(url, example.entry, sidecars)
            except DamagedSampleError:
                sample = self.read(example)
                if sample is not None:  # the copies are not what lies there
                    for copy in near:
                        copy.unlink(missing_ok=True)
                return sample
        try:
            return read_sample(example.url, example.entry, example.sidecars)
        except DamagedSampleError as error:
            self.reasons[example.key] = str(error)
            if len(self.reasons) > self.limit:
                told = "\n".join(self.reasons.values())
                raise PalimpsestError(
                    f"{told}\n{len(self.reasons)} samples are damaged, and the recipe lets {self.limit} be skipped "
                    "(learner.max_damaged)."
                ) from error
            return None


def ahead(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """``map(function, items)``, in order, with `workers` threads computing ahead of what is asked for; 0 for none.

    At most a few results a worker wait, so memory is bounded; what goes wrong is raised where its result is due.
    """
    if not workers:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    left = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="ahead") as pool:
        try:
            while True:
                room = READ_AHEAD * workers - len(waiting)
                waiting.extend(pool.submit(function, item) for item in islice(left, room))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


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
