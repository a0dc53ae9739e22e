"""What a sample costs to read, in CPU microseconds, by turns with other readers: its bytes, its tensors, its features.

python -m infra.bench.reading [--samples 200] [--rounds 5] [--json]

Bytes are a sample's 11 members in this process's memory, in shuffled order but for the straight read and webdataset.
They are unchecked, as other readers leave them; the learner takes only what is checked, which has a row of its own.
Tensors are what a backbone takes: frames of 64 x 64, sound and IMU as float32; ours are made of checked samples.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch

from flows import stream
from flows.recipe import Recipe
from infra.bench.common import ROOT, Bound, arguments, measure, note, report
from learner import registry
from learner.features import COMPUTE_BATCH, TrunkFeatures
from learner.modules.encoder import first_adapters
from learner.pictures import pixels
from store.lake import Lake
from store.ledger import Ledger
from store.shards import Entry, members, read_bytes, read_sample, write_shard
from store.types import Modality, Sample

PEERS = ("webdataset", "litdata", "MosaicML streaming")
STRAIGHT, BYTES, CHECKED = "straight read", "ours", "ours, checked"
MODALITIES = (Modality.VIDEO, Modality.AUDIO, Modality.IMU)
WIDTH, HEIGHT = 398, 224


def picture(random: np.random.Generator) -> np.ndarray:
    """Noise as smooth as film, so that its JPEGs are as large as those of filmed frames, some 16 kB."""
    far = np.hypot(np.fft.fftfreq(HEIGHT)[:, None] * HEIGHT, np.fft.rfftfreq(WIDTH) * WIDTH).clip(1)
    noise = np.fft.irfft2(np.fft.rfft2(random.normal(size=(4, HEIGHT, WIDTH))) / far**1.9, (HEIGHT, WIDTH))
    noise /= noise.std((1, 2), keepdims=True)
    colours = (128 + 45 * noise[0] + 12 * noise[1:]).clip(0, 255)
    return np.ascontiguousarray(colours.transpose(1, 2, 0), np.uint8)


def samples(count: int) -> Iterator[Sample]:
    """Clips of 10 s: 8 frames, mono sound at 16 kHz, IMU at 100 Hz."""
    random = np.random.default_rng(0)
    pictures = [picture(random) for _ in range(16)]
    for i in range(count):
        moving = (np.roll(pictures[i % 16], 3 * (i + j), 1) for j in range(8))
        yield Sample(
            key=f"{i:06d}",
            meta={"key": f"{i:06d}", "tracks": {"audio": {"rate_hz": 16000}}},
            frames=[simplejpeg.encode_jpeg(frame, 90) for frame in moving],
            audio=random.integers(-8000, 8000, 160_000, np.int16),
            imu=random.normal(size=(1000, 6)).astype(np.float32),
        )


def tensors(url: str, entry: Entry) -> dict[str, torch.Tensor]:
    """One sample as a backbone takes it."""
    sample = read_sample(url, entry)
    assert sample.audio is not None and sample.imu is not None
    video = np.stack([pixels(frame, 64) for frame in sample.frames])
    found = {"video": video, "audio": sample.audio.astype(np.float32) / 32768, "imu": sample.imu}
    return {name: torch.from_numpy(array) for name, array in found.items()}


def peers(work: Path) -> dict[str, str]:
    """The Python of each peer that is there: this one for webdataset, for the others that of their own environment."""
    found = {"webdataset": sys.executable}
    python = work / "peers/bin/python"
    for name, module in {"litdata": "litdata", "MosaicML streaming": "streaming"}.items():
        try:
            measure([str(python), "-c", f"import {module}"])
            found[name] = str(python)
        except (OSError, RuntimeError):
            note(f"{name} is absent")
    return found


def features(lake: Lake, url: str, entries: tuple[Entry, ...], order: np.ndarray) -> Callable[[], None]:
    """A pass over the samples' features from the lake's warm cache, in batches."""
    backbones = registry.backbones(dict.fromkeys(MODALITIES, "tiny"), lake, torch.device("cpu"))
    cached = TrunkFeatures(lake, backbones, first_adapters(backbones, 2), torch.device("cpu"))
    ledger = Ledger(lake)
    of = {"dataset": "bench", "shard": "bench", "labels": ["x"], "split": "train", "modalities": list(MODALITIES)}
    ledger.append("samples", [{**asdict(entry), **of} for entry in entries])
    ledger.append("shards", [{"dataset": "bench", "shard": "bench", "url": url}])
    by_label = {"scenario": "class-incremental", "by": "label", "per_task": 1}
    settings = {"reader": {"name": "folder"}, "stream": by_label, "learner": {"backbones": {"video": "tiny"}}}
    recipe = Recipe.model_validate({"name": "bench", "dataset": "bench", **settings})
    index = stream.load(ledger, recipe, MODALITIES).index
    examples = index.in_shard("bench")
    cached.prepare({"bench": examples})

    def read() -> None:
        for start in range(0, len(order), COMPUTE_BATCH):
            chosen = [examples[i] for i in order[start : start + COMPUTE_BATCH]]
            assert len(cached.batch(chosen, [0] * len(chosen), [0] * len(chosen)).examples) == len(chosen)

    return read


def apart(one: dict[str, torch.Tensor], file: Path) -> int:
    """How many steps of 255 a peer's pixels lie from ours at most; all else is equal."""
    other = np.load(file)
    for name, tensor in one.items():
        assert other[name].shape == tensor.shape and other[name].dtype == np.float32
        assert name == "video" or np.array_equal(other[name], tensor)
    return round(float(np.abs(other["video"] - one["video"].numpy()).max()) * 127.5)


def main() -> int:
    """Write one shard in a scratch folder and read it in each way, by turns."""
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        shard = write_shard(str(folder / "bench.tar"), samples(given.samples))
        url, order = shard.url, np.random.default_rng(1).permutation(given.samples)
        entries = [shard.entries[i] for i in order]

        def straight() -> None:
            with open(url, "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass

        def indexed() -> None:
            for entry in entries:
                assert len(list(members(memoryview(bytes(read_bytes(url, entry)))))) == 11

        note("features")
        ours: dict[tuple[str, str], Callable[[], Any]] = {
            ("bytes", STRAIGHT): straight,
            ("bytes", BYTES): indexed,
            ("bytes", CHECKED): lambda: [read_sample(url, entry) and None for entry in entries],
            ("tensors", CHECKED): lambda: [tensors(url, entry) and None for entry in entries],
            ("features", CHECKED): features(Lake(folder / "lake"), url, shard.entries, order),
        }
        there = peers(work)
        for number in range(given.rounds):
            note(f"round {number + 1} of {given.rounds}")
            for what, read in ours.items():
                read()  # warm
                start = time.process_time()
                read()
                taken[what].append(time.process_time() - start)
            for peer, python in there.items():
                output = measure([python, str(ROOT / "infra/bench/peer_readers.py"), peer, url, name]).output
                for kind, seconds in zip(("bytes", "tensors"), output.splitlines()[-1].split("\t"), strict=True):
                    taken[kind, peer].append(float(seconds))
        differ = max(apart(tensors(url, shard.entries[0]), folder / f"{peer}.npz") for peer in there)

    def times(one: tuple[str, str], other: tuple[str, str]) -> float:
        """How many times as long `one` takes, by the median of the rounds."""
        return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))

    best = min((("tensors", peer) for peer in there), key=lambda one: statistics.median(taken[one]))
    stock, mine = ("bytes", "webdataset"), ("tensors", CHECKED)
    rows: list[dict[str, Any]] = []
    for kind in ("bytes", "tensors", "features"):
        for reader in (STRAIGHT, BYTES, CHECKED, *PEERS):
            one = (kind, reader)
            if one in taken:
                row = {"what": kind, "reader": reader, "us/sample": statistics.median(taken[one]) / given.samples * 1e6}
                bases = {"webdataset's bytes": stock}
                if kind != "bytes":
                    bases = {"best peer's tensors": best, "our tensors": mine}
                rows.append(row | {f"{base} / it": times(other, one) for base, other in bases.items()})
            elif reader in PEERS and kind != "features":
                rows.append({"what": kind, "reader": reader, "us/sample": "absent"})
    least = {"most": False}
    bounds = [
        Bound("bytes: webdataset / ours", times(stock, ("bytes", BYTES)), 8, **least),
        Bound("bytes: ours / straight read", times(("bytes", BYTES), ("bytes", STRAIGHT)), 1.5),
        Bound(f"tensors: best peer ({best[1]}) / ours", times(best, mine), 1.3, **least),
        Bound("tensors: steps of 255 between ours and a peer's pixels", differ, 1),
        Bound("best peer's tensors / our features", times(best, ("features", CHECKED)), 20, **least),
    ]
    return report(rows, bounds, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
