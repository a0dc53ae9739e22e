"""A lake made by hand: a few small signals whose classes are easy to tell apart, and untrained backbones."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from flows import build, stream
from flows.recipe import GateSpec, LearnerSpec, ReaderSpec, Recipe, StreamSpec
from learner.backbones.tiny import SPECS, TinyBackbone
from learner.trainer import Trainer
from store.lake import Lake, put
from store.ledger import Ledger
from store.shards import write_shard
from store.types import Sample

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
SPLITS = ("train", "train", "val", "train", "test")
Lacks = Callable[[str, int], set[str]]


def signals(label: str, number: int, modalities: Sequence[str], domain: str = "") -> dict[str, Any]:
    """What a sample of class `label` looks like; the same (label, number, domain) gives the same signals."""
    rng = np.random.default_rng([*f"{domain}/{label}".encode(), number])
    kind = CLASSES.index(label)
    found: dict[str, Any] = {}
    if "imu" in modalities:
        steps = 48 + 8 * (number % 3)
        wave = np.sin(2 * np.pi * (0.02 + 0.03 * kind) * np.arange(steps) + rng.uniform(0, 6.3))
        found["imu"] = (rng.normal(0, 0.5, (steps, 6)) + 6 * wave[:, None] * (np.arange(6) == kind)).astype(np.float32)
    if "text" in modalities:
        found["text"] = " ".join(f"{label}{rng.choice(list('xyz'))}" for _ in range(2 + number % 3))
    if "image" in modalities:
        picture = rng.normal(110, 25, (64, 64, 3))
        picture[8 * kind : 8 * kind + 20, :, kind % 3] += 110
        found["image"] = png(picture)
    return found


def png(picture: np.ndarray) -> bytes:
    """Pixels as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def arrive(
    lake: Lake,
    *,
    labels: Sequence[str] = CLASSES,
    numbers: Sequence[int] = range(10),
    modalities: Sequence[str] = ("imu", "text"),
    domain: str = "",
    lacks: Lacks = lambda label, number: set(),
    splits: Sequence[str] = SPLITS,
    dataset: str = "hand",
) -> None:
    """Commit a shard of samples a label, as an ingest does; `lacks` says what is missing in a sample."""
    ledger = Ledger(lake)
    for label in labels:
        samples = []
        for number in numbers:
            recording = f"{domain}{label}{number:03d}"
            there = [m for m in modalities if m not in lacks(label, number)]
            found = signals(label, number, there, domain)
            meta = {"start_s": 0.0, "duration_s": 1.0, "tracks": {name: {"rate_hz": 50} for name in there}}
            samples.append(Sample(f"{recording}-0000000-0001000", meta, **found))
        shard = f"{domain}{label}-{min(numbers)}-{max(numbers)}"
        written = write_shard(lake.shard_url(dataset, f"{shard}.tar"), samples)
        rows, recordings = [], []
        for number, sample, entry in zip(numbers, samples, written.entries, strict=True):
            of = {
                "dataset": dataset,
                "recording": sample.key.split("-")[0],
                "labels": [label],
                "domain": domain or None,
            }
            of["split"] = splits[number % len(splits)]
            index = {"shard": shard, "offset": entry.offset, "size": entry.size, "checksum": entry.checksum}
            rows.append(of | index | {"key": sample.key, "modalities": list(sample.modalities)})
            recordings.append(of | {"source_path": f"{label}/{number}.txt"})
        ledger.append("samples", rows)
        ledger.append("recordings", recordings)
        ledger.append("shards", [{"dataset": dataset, "shard": shard, "url": written.url, "samples": len(samples)}])


def damage(lake: Lake, split: str, count: int, only: Collection[str] = ()) -> list[str]:
    """Flip a byte in the middle of so many samples, or of `only` some of them; returns their keys."""
    rows = Ledger(lake).rows("SELECT * FROM sample_index WHERE split = ? ORDER BY key LIMIT ?", [split, count])
    rows = [row for row in rows if not only or row["key"] in only]
    for row in rows:
        path = Path(lake.resolve(row["url"]))
        data = bytearray(path.read_bytes())
        data[row["offset"] + row["size"] // 2] ^= 1
        path.write_bytes(data)
    return [row["key"] for row in rows]


def weights(lake: Lake, *modalities: str) -> None:
    """Untrained weights for the tiny backbones; the same in every lake."""
    for modality in modalities:
        torch.manual_seed(len(modality))
        state = TinyBackbone(SPECS[f"tiny-{modality}"]).state_dict()
        put(lake.backbones / f"tiny-{modality}.safetensors", save({name: t.half() for name, t in state.items()}))


def make_lake(folder: Path, modalities: Sequence[str] = ("imu", "text"), **arrival: Any) -> Lake:
    """A lake with backbones and a first arrival."""
    lake = Lake(folder / "lake")
    weights(lake, *modalities)
    arrive(lake, modalities=modalities, **arrival)
    return lake


def copied(lake: Lake, folder: Path) -> Lake:
    """A lake of one's own with the samples, backbones and cached features of `lake`, where nothing was learnt."""
    other = Lake(folder / "lake")
    for name in ("backbones", "cache", "ledger/samples", "ledger/recordings", "ledger/shards"):
        if (lake.root / name).exists():
            shutil.copytree(lake.root / name, other.root / name)
    return other


@cache
def ledger(lake: Lake) -> Ledger:
    """One connection a lake: it sees every new row, and opening another takes a while."""
    return Ledger(lake)


def make_recipe(
    *,
    modalities: Sequence[str] = ("imu", "text"),
    stream: Mapping[str, Any] = {"scenario": "class-incremental", "by": "label", "per_task": 2},  # noqa: B006
    gate: Mapping[str, Any] = {"max_forgetting": 1.0},  # noqa: B006
    name: str = "hand",
    backbone: str = "tiny",
    **learner: Any,
) -> Recipe:
    """A recipe of the lake's data set that learns in moments."""
    settings = {"epochs": 2, "batch_size": 8, "anchors": 3, **learner}
    return Recipe(
        name=name,
        dataset="hand",
        reader=ReaderSpec(name="folder"),
        stream=StreamSpec(**stream),
        learner=LearnerSpec(backbones=dict.fromkeys(modalities, backbone), **settings),
        gate=GateSpec(**gate),
    )


TAUGHT = make_recipe(modalities=("text", "image"), method="crossmodal-moe", epochs=2)


def make_trainer(lake: Lake, recipe: Recipe, device: str = "cpu", **settings: Any) -> tuple[Trainer, stream.StreamData]:
    """A fresh trainer of the recipe's run with its features ready, and the sealed tasks that it can learn."""
    ledger = Ledger(lake)
    stream.seal(ledger, recipe)
    one = build.run(recipe, method=None, seed=0, overridden=False)
    one = replace(one, settings=replace(one.settings, **settings))
    modalities = build.modalities(ledger, recipe, one)
    data = stream.load(ledger, recipe, modalities)
    named = {"run_id": one.run_id, "stream": recipe.name, "scenario": recipe.stream.scenario, "digest": one.digest}
    how = {"method": one.settings.method, "seed": one.settings.seed, "trial": one.trial}
    ledger.append("runs", [{**named, **how, "modalities": modalities}])
    trainer = build.trainer(lake, ledger, recipe, one, snapshot=None)
    trainer.features.prepare(data.shards(data.names))
    return trainer, data


def same(one: Any, other: Any) -> bool:
    """Whether two trees of arrays and plain values are equal bit for bit."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
