"""Frozen trunk features, computed once a shard and cached: training and evaluation never decode twice.

Each shard and backbone has a folder in the cache with the hidden states below the first adapter, their lengths and the
pooled output of the whole frozen backbone. Features are computed in fixed padded batches and always read back from the
cache, so a cold and a warm cache give identical bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import webdataset as wds

from learner.backbones.base import Backbone, through
from learner.batch import Batch
from learner.loader import Example, pipeline
from store.lake import Lake, new_folder
from store.types import Modality, Sample

COMPUTE_BATCH = 32
MAX_OPEN = 256  # memory maps, each of which holds a file descriptor
Progress = Callable[[int], None]


class TrunkFeatures:
    """The cached features of one set of backbones in one lake.

    Args:
        lake: holds the cache.
        backbones: the frozen backbone of each modality.
        trunk: how many blocks of each backbone lie below the first adapter.
        device: where batches are put.
    """

    def __init__(
        self, lake: Lake, backbones: Mapping[Modality, Backbone], trunk: Mapping[Modality, int], device: torch.device
    ):
        self.lake, self.backbones, self.trunk, self.device = lake, dict(backbones), dict(trunk), device
        self._open: dict[Path, tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]] = {}

    def folder(self, modality: Modality, shard: str) -> Path:
        """Where the features of one shard and modality lie; the name tells weights, depth and shard content apart."""
        backbone = self.backbones[modality]
        name = f"{backbone.name}-{backbone.digest[:12]}-{self.trunk[modality]}"
        return self.lake.cache / "trunk" / name / Path(shard).stem

    def prepare(self, shards: Mapping[str, Sequence[Example]], progress: Progress = lambda done: None) -> None:
        """Compute what the cache lacks of `shards`, each named with *all* its examples in shard order."""
        for shard, examples in shards.items():
            missing = [m for m in self.backbones if not self.folder(m, shard).exists()]
            if missing:
                self._compute(shard, examples, missing)
            progress(len(examples))

    def batch(self, examples: Sequence[Example], labels: Sequence[int], groups: Sequence[int]) -> Batch:
        """The examples' features as one batch, padded to the longest of them."""
        tokens, masks, pooled = {}, {}, {}
        for modality, backbone in self.backbones.items():
            rows = [self._row(modality, example) for example in examples]
            longest = max(1, max(int(length[i]) for length, _, _, i in rows))
            h = np.zeros((len(rows), longest, backbone.dim), np.float32)
            for at, (length, states, _, i) in enumerate(rows):
                h[at, : length[i]] = states[i, : length[i]]
            lengths = torch.tensor([int(length[i]) for length, _, _, i in rows])
            tokens[modality] = torch.from_numpy(h).to(self.device)
            masks[modality] = (torch.arange(longest) < lengths[:, None]).to(self.device)
            pooled[modality] = torch.from_numpy(np.stack([out[i] for _, _, out, i in rows])).float().to(self.device)
        return Batch(
            tokens,
            masks,
            pooled,
            torch.tensor(labels, device=self.device),
            torch.tensor(groups, device=self.device),
            tuple(example.key for example in examples),
        )

    def encode(self, samples: Sequence[Sample]) -> Batch:
        """Samples that lie in no shard (files to predict) as one batch; labels are -1."""
        tokens, masks, pooled = {}, {}, {}
        pieces = [samples[i : i + COMPUTE_BATCH] for i in range(0, len(samples), COMPUTE_BATCH)]
        for modality in self.backbones:
            parts = [self._run(modality, piece) for piece in pieces]
            length, h, out = (np.concatenate(column) for column in zip(*parts, strict=True))
            tokens[modality] = torch.from_numpy(h.astype(np.float32)).to(self.device)
            masks[modality] = (torch.arange(h.shape[1]) < torch.from_numpy(length)[:, None]).to(self.device)
            pooled[modality] = torch.from_numpy(out).to(self.device)
        unknown = torch.full((len(samples),), -1, device=self.device)
        return Batch(tokens, masks, pooled, unknown, unknown, tuple(sample.key for sample in samples))

    def _row(self, modality: Modality, example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        folder = self.folder(modality, example.shard)
        if folder not in self._open:
            if len(self._open) >= MAX_OPEN:
                self._open.pop(next(iter(self._open)))
            length, pooled = np.load(folder / "length.npy"), np.load(folder / "pooled.npy")
            states = np.load(folder / "tokens.npy", mmap_mode="r")
            keys = (folder / "keys.txt").read_text().split()
            self._open[folder] = (length, states, pooled, {key: i for i, key in enumerate(keys)})
        length, states, pooled, index = self._open[folder]
        return length, states, pooled, index[example.key]

    def _compute(self, shard: str, examples: Sequence[Example], missing: Sequence[Modality]) -> None:
        parts: dict[Modality, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = defaultdict(list)
        for samples in pipeline(examples, wds.filters.batched(COMPUTE_BATCH, collation_fn=list)):
            for modality in missing:
                parts[modality].append(self._run(modality, samples))
        for modality in missing:
            length, h, out = (np.concatenate(column) for column in zip(*parts[modality], strict=True))
            with new_folder(self.folder(modality, shard)) as folder:
                np.save(folder / "length.npy", length)
                np.save(folder / "tokens.npy", h[:, : max(1, length.max())])
                np.save(folder / "pooled.npy", out)
                (folder / "keys.txt").write_text("\n".join(example.key for example in examples))

    @torch.inference_mode()
    def _run(self, modality: Modality, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lengths ``[n]``, trunk states float16 ``[n, N, D]`` and pooled outputs float32 ``[n, P]``."""
        backbone, longest = self.backbones[modality], self.backbones[modality].tokens
        patches = [backbone.patches(sample) if modality in sample.modalities else None for sample in samples]
        width = next((len(p[0]) for p in patches if p is not None), None)
        n = len(samples)
        if width is None:
            return (
                np.zeros(n, np.int64),
                np.zeros((n, longest, backbone.dim), np.float16),
                np.zeros((n, backbone.pooled_dim), np.float32),
            )
        x = np.zeros((COMPUTE_BATCH, longest, width), np.float32)
        length = np.zeros(COMPUTE_BATCH, np.int64)
        for i, p in enumerate(patches):
            if p is not None:
                x[i, : len(p)], length[i] = p, len(p)
        mask = (torch.arange(longest) < torch.from_numpy(length)[:, None]).to(self.device)
        h = backbone.stem(torch.from_numpy(x).to(self.device), mask)
        trunk = h
        for depth, block in enumerate(backbone.blocks, 1):
            h = through(block, h, mask)
            if depth == self.trunk[modality]:
                trunk = h
        pooled = backbone.pool(h, mask)
        return length[:n], trunk[:n].half().cpu().numpy(), pooled[:n].float().cpu().numpy()
