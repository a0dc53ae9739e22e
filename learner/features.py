"""Frozen trunk features: computed once a shard, cached within the bound of the lake's cache, else computed as needed.

Each shard and backbone has a folder in the cache with the hidden states at the first adapter, their lengths and the
pooled output of the whole frozen backbone, under a name that tells weights, preprocessing and the samples' checksums.
Features are computed in padded batches of one size and kept in one precision, so a sample's are the same bits whether
they come from a cold cache, a warm one or none.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch

from learner.backbones.base import Backbone, frozen_dim
from learner.batch import Batch
from learner.index import Rows
from learner.loader import Damage, Example, ahead
from store import cache
from store.lake import Lake, new_folder
from store.types import Modality, Sample

COMPUTE_BATCH = 32
MAX_OPEN, MAX_ROWS = 16_384, 2_000_000  # shards of a modality that are kept open, and samples in them
Progress = Callable[[int], None]
T = TypeVar("T")


class Features(NamedTuple):
    """One modality of some samples: lengths ``[n]``, tokens float16 ``[n, N, W]``, pooled float32 ``[n, Q]``."""

    length: np.ndarray
    tokens: np.ndarray
    pooled: np.ndarray


@dataclass(frozen=True, slots=True)
class _Opened:
    """The cached features of a shard, and each key's row; damaged samples have none."""

    features: Features
    rows: dict[str, int]


class TrunkFeatures:
    """The features of one set of backbones in one lake.

    Args:
        lake: holds the cache.
        backbones: the frozen backbone of each modality.
        trunk: the block of each backbone that the first adapter sits beside; None keeps the stem's output.
        device: where they are computed.
        damage: takes note of samples that cannot be read.
        workers: threads that read and decode ahead.
    """

    def __init__(
        self,
        lake: Lake,
        backbones: Mapping[Modality, Backbone],
        trunk: Mapping[Modality, int | None],
        device: torch.device,
        damage: Damage | None = None,
        workers: int = 0,
    ):
        self.lake, self.backbones, self.trunk, self.device = lake, dict(backbones), dict(trunk), device
        self.damage, self.workers = damage or Damage(), workers
        self._open: dict[tuple[Modality, str], _Opened] = {}
        self._rows = 0  # in all of them
        self._folders: dict[str, dict[Modality, Path]] = {}  # of the shards that `prepare` found or made
        self._copies: set[Path] = set()  # of shards that `prepare` is about to read
        self._lock = threading.Lock()

    def folder(self, modality: Modality, shard: str, digest: str) -> Path:
        """Where the features of one modality of a shard lie whose samples have that digest (`Index.digest`)."""
        backbone = self.backbones[modality]
        name = f"{backbone.name}-{backbone.digest[:12]}-at-{self.trunk[modality]}"
        return self.lake.cache / "trunk" / name / f"{Path(shard).stem[:60]}-{digest[:12]}"

    def prepare(self, shards: Mapping[str, Rows], progress: Progress = lambda done: None) -> None:
        """Compute what the cache lacks of `shards`, each named with *all* its examples in shard order.

        What does not fit into the cache's bound is left out, and computed as it is needed. Shards with damage are read
        again: they may have been mended.
        """
        missing: dict[str, tuple[Rows, dict[Modality, Path]]] = {}
        for shard, examples in shards.items():
            if shard in self._folders:
                progress(len(examples))
                continue
            digest = examples.source.digest(shard)
            folders = {m: self.folder(m, shard, digest) for m in self.backbones}
            if all(folder.exists() and not (folder / "damaged").exists() for folder in folders.values()):
                self._folders[shard] = folders
                for folder in folders.values():
                    cache.used(folder)
                progress(len(examples))
            else:
                missing[shard] = (examples, folders)
        room = self._trim() if missing else 0
        for shard, copies, grown in ahead(self._fetch, missing.items(), min(1, self.workers)):
            examples, folders = missing[shard]
            self._compute(examples, folders, copies)
            self._folders[shard] = folders
            self._copies.difference_update(copies.values())
            progress(len(examples))
            room -= grown + sum(map(cache.size, folders.values()))
            if room < 0:
                room = self._trim()
            if room < 0:
                break

    def batch(self, examples: Sequence[Example], labels: Sequence[int], groups: Sequence[int]) -> Batch:
        """The examples' features as one batch on the CPU, padded to the longest of them; damaged ones are left out."""
        found = [(self._cached(example), example) for example in examples]
        unread = [example for opened, example in found if opened is None]
        fresh = self._read(unread) if unread else {}
        intact = [
            i
            for i, (opened, example) in enumerate(found)
            if (example.key in fresh if opened is None else example.key in opened[0].rows)
        ]
        tokens, masks, pooled = {}, {}, {}
        for at, (modality, backbone) in enumerate(self.backbones.items()):
            rows = []
            for i in intact:
                opened, example = found[i]
                if opened is None:
                    rows.append((fresh[example.key][at], 0))
                else:
                    rows.append((opened[at].features, opened[at].rows[example.key]))
            length = np.array([features.length[row] for features, row in rows], np.int64)
            h = np.zeros((len(rows), max(1, length.max(initial=0)), self._width(modality)), np.float32)
            for i, (features, row) in enumerate(rows):
                h[i, : length[i]] = features.tokens[row, : length[i]]
            tokens[modality] = torch.from_numpy(h)
            masks[modality] = torch.arange(h.shape[1]) < torch.from_numpy(length)[:, None]
            out = [features.pooled[row] for features, row in rows]
            pooled[modality] = torch.from_numpy(
                np.stack(out) if out else np.empty((0, frozen_dim(backbone)), np.float32)
            )
        return Batch(
            tokens,
            masks,
            pooled,
            torch.tensor([labels[i] for i in intact], dtype=torch.int64),
            torch.tensor([groups[i] for i in intact], dtype=torch.int64),
            tuple(examples[i] for i in intact),
        )

    def encode(self, samples: Sequence[Sample]) -> Batch:
        """Samples that lie in no shard (files to predict) as one batch on the device; labels are -1."""
        tokens, masks, pooled = {}, {}, {}
        for modality in self.backbones:
            found = _joined([self._run(modality, self._patches(modality, part)) for part in _pieces(samples)])
            tokens[modality] = torch.from_numpy(found.tokens.astype(np.float32))
            masks[modality] = torch.arange(found.tokens.shape[1]) < torch.from_numpy(found.length)[:, None]
            pooled[modality] = torch.from_numpy(found.pooled)
        unknown = torch.full((len(samples),), -1)
        return Batch(tokens, masks, pooled, unknown, unknown).to(self.device)

    def _width(self, modality: Modality) -> int:
        """W of `Batch.tokens`."""
        return self.backbones[modality].dim * (1 if self.trunk[modality] is None else 2)

    def _trim(self) -> int:
        """Keep the cache within its bound; what this run has found or is about to read stays."""
        ours = {folder for folders in self._folders.values() for folder in folders.values()}
        return cache.trim(self.lake, spare=ours | self._copies)

    def _fetch(self, item: tuple[str, tuple[Rows, dict[Modality, Path]]]) -> tuple[str, dict[str, Path], int]:
        """Bring what is remote of a shard near, while the one before it is computed.

        Returns:
            The shard, the copies by URL, and the bytes by which the cache has grown.
        """
        shard, (examples, _) = item
        remote = {url for example in examples for url in example.urls if "://" in url}
        copies = {url: cache.copy_of(self.lake, url) for url in sorted(remote)}
        self._copies.update(copies.values())
        grown = 0
        for url in copies:
            with suppress(FileNotFoundError):  # reading it says which sample lacks it
                grown += cache.fetch(self.lake, url)
        return shard, copies, grown

    def _compute(
        self, examples: Sequence[Example], folders: Mapping[Modality, Path], copies: Mapping[str, Path]
    ) -> None:
        parts: dict[Modality, list[Features]] = {modality: [] for modality in folders}
        keys: list[str] = []
        with ExitStack() as stack:
            made = {modality: stack.enter_context(new_folder(target)) for modality, target in folders.items()}
            files = {modality: stack.enter_context(TemporaryFile(dir=folder)) for modality, folder in made.items()}
            for names, patches in ahead(partial(self._decoded, copies=copies), _pieces(examples), self.workers):
                keys += names
                for modality, one in patches.items():
                    found = self._run(modality, one)
                    files[modality].write(found.tokens.tobytes())  # a shard's do not all fit into memory
                    parts[modality].append(found._replace(tokens=found.tokens[:0]))
            for modality, folder in made.items():
                found, backbone = _joined(parts[modality]), self.backbones[modality]
                np.save(folder / "length.npy", found.length)
                np.save(folder / "pooled.npy", found.pooled)
                shape = (len(keys), backbone.tokens, self._width(modality))
                _copy_tokens(files[modality], shape, max(1, found.length.max(initial=0)), folder / "tokens.npy")
                (folder / "keys.txt").write_text("\n".join(keys))
                if len(keys) < len(examples):
                    (folder / "damaged").touch()

    def _cached(self, example: Example) -> list[_Opened] | None:
        """The opened features of the example's shard by modality; None where the cache lacks any of them."""
        folders = self._folders.get(example.shard)
        if folders is None:
            return None
        try:
            return [
                self._open.get((modality, example.shard)) or self._opened(modality, example.shard, folder)
                for modality, folder in folders.items()
            ]
        except FileNotFoundError:  # another run needed the room
            self._folders.pop(example.shard, None)
            return None

    def _opened(self, modality: Modality, shard: str, folder: Path) -> _Opened:
        with self._lock:
            if opened := self._open.get((modality, shard)):  # another thread was faster
                return opened
            if len(self._open) >= MAX_OPEN or (self._rows >= MAX_ROWS and len(self._open) >= len(self.backbones)):
                self._rows -= len(self._open.pop(next(iter(self._open))).rows)
            length = np.load(folder / "length.npy")
            tokens, pooled = _mapped(folder / "tokens.npy"), _mapped(folder / "pooled.npy")
            rows = {key: i for i, key in enumerate((folder / "keys.txt").read_text().split())}
            opened = self._open[modality, shard] = _Opened(Features(length, tokens, pooled), rows)
            self._rows += len(rows)
        return opened

    def _read(self, examples: Sequence[Example]) -> dict[str, list[Features]]:
        """The features of examples that the cache lacks, by key and modality; damaged samples are left out."""
        found: dict[str, list[Features]] = {}
        for piece in _pieces(examples):
            keys, patches = self._decoded(piece, {})
            computed = [self._run(modality, patches[modality]) for modality in self.backbones]
            for i, key in enumerate(keys):
                found[key] = [Features(*(column[i : i + 1] for column in features)) for features in computed]
        return found

    def _decoded(
        self, examples: Sequence[Example], copies: Mapping[str, Path]
    ) -> tuple[list[str], dict[Modality, list[np.ndarray | None]]]:
        """The keys of the examples that are intact, and their patches by modality."""
        samples = [sample for example in examples if (sample := self.damage.read(example, copies)) is not None]
        return [sample.key for sample in samples], {m: self._patches(m, samples) for m in self.backbones}

    def _patches(self, modality: Modality, samples: Sequence[Sample]) -> list[np.ndarray | None]:
        backbone = self.backbones[modality]
        return [backbone.patches(sample) if modality in sample.modalities else None for sample in samples]

    @torch.inference_mode()
    def _run(self, modality: Modality, patches: Sequence[np.ndarray | None]) -> Features:
        backbone, n = self.backbones[modality], len(patches)
        at_once = getattr(backbone, "at_once", COMPUTE_BATCH)
        if n > at_once:
            return _joined([self._run(modality, patches[i : i + at_once]) for i in range(0, n, at_once)])
        width = next((p.shape[1] for p in patches if p is not None), None)
        if width is None:
            return Features(
                np.zeros(n, np.int64),
                np.zeros((n, backbone.tokens, self._width(modality)), np.float16),
                np.zeros((n, frozen_dim(backbone)), np.float32),
            )
        signal = np.zeros((at_once, backbone.tokens, width), np.float32)
        length = np.zeros(at_once, np.int64)
        for i, p in enumerate(patches):
            if p is not None:
                signal[i, : len(p)], length[i] = p, len(p)
        mask = (torch.arange(backbone.tokens) < torch.from_numpy(length)[:, None]).to(self.device)
        x = torch.from_numpy(signal).to(self.device)
        h = backbone.stem(x, mask)
        trunk = h
        for depth, block in enumerate(backbone.blocks):
            entering = block.attend(h, mask)
            h = entering + block.feed(entering)
            if depth == self.trunk[modality]:
                trunk = torch.cat([entering, h], 2)
        pooled = backbone.pool(h, mask)
        if frozen_dim(backbone) > backbone.pooled_dim:
            pooled = torch.cat([pooled, backbone.summary(x, mask)], 1)  # type: ignore[attr-defined]
        return Features(length[:n], trunk[:n].half().cpu().numpy(), pooled[:n].float().cpu().numpy())


def _copy_tokens(file: BinaryIO, shape: tuple[int, int, int], longest: int, target: Path) -> None:
    """Write the float16 states ``[n, N, W]`` that `file` holds as an array file ``[n, longest, W]``."""
    n, N, W = shape
    file.seek(0)
    with open(target, "wb") as out:
        header = {"descr": "<f2", "fortran_order": False, "shape": (n, int(longest), W)}
        np.lib.format.write_array_header_1_0(out, header)
        for _ in range(n):
            out.write(file.read(2 * N * W)[: 2 * longest * W])


def _mapped(path: Path) -> np.ndarray:
    """An array file, memory-mapped; unlike `numpy.memmap` it holds no descriptor, of which a process has few."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    with pa.memory_map(str(path)) as mapped:
        return np.frombuffer(mapped.read_buffer(), dtype, math.prod(shape), start).reshape(shape)


def _pieces(items: Sequence[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), COMPUTE_BATCH):
        yield list(items[start : start + COMPUTE_BATCH])


def _joined(parts: Sequence[Features]) -> Features:
    return Features(*(np.concatenate(column) for column in zip(*parts, strict=True)))
