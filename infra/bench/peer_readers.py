"""Other readers on our samples, on one thread; run by `reading`, most with the Python of the peers' own environment.

Each is used as its documentation says, with the fastest of its own encodings that keeps the JPEGs as they are.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

FRAMES = [f"frame{i:03d}.jpg" for i in range(8)]
SIZE = 64


def tensors(frames: list[Image.Image], audio: np.ndarray, imu: np.ndarray) -> dict[str, torch.Tensor]:
    """Frames ``[8, 64, 64, 3]`` in [-1, 1], sound in [-1, 1] and IMU, all float32."""
    scaled = [np.asarray(one.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for one in frames]
    if audio.dtype == np.int16:
        audio = audio.astype(np.float32) / 32768
    video = np.stack(scaled).astype(np.float32) / 127.5 - 1
    return {"video": torch.from_numpy(video), "audio": torch.from_numpy(audio), "imu": torch.from_numpy(imu.copy())}


def webdataset(shard: str, folder: Path) -> dict[str, Callable[[], Iterator[Any]]]:
    """The shard itself, in order; its "pil" decoder for JPEGs, soundfile for WAV since its own asks torchaudio."""
    import webdataset as wds

    def sound(key: str, data: bytes) -> np.ndarray | None:
        return soundfile.read(io.BytesIO(data), dtype="float32")[0] if key.endswith("wav") else None

    def pick(one: dict[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
        return one["__key__"], tensors([one[name] for name in FRAMES], one["audio.wav"], one["imu.npy"])

    plain = wds.WebDataset(shard, shardshuffle=False)
    decoded = wds.WebDataset(shard, shardshuffle=False).decode("pil", sound).map(pick)
    return {"bytes": lambda: iter(plain), "tensors": lambda: iter(decoded)}


def litdata(shard: str, folder: Path) -> dict[str, Callable[[], Iterator[Any]]]:
    """Its optimised chunks, shuffled; PIL, for its own decoder is torchvision's, which asks the CUDA build of torch."""
    from litdata import StreamingDataset, optimize

    if not (folder / "index.json").exists():
        optimize(fn=_same, inputs=list(_members(shard)), output_dir=str(folder), num_workers=1, chunk_bytes="64MB")
    # By default it takes neighbours along with each item, which shuffled costs it 20 times as much.
    dataset = StreamingDataset(str(folder), shuffle=True, batch_decode=False)
    return {"bytes": lambda: iter(dataset), "tensors": lambda: map(_decoded, dataset)}


def _same(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


def mosaicml(shard: str, folder: Path) -> dict[str, Callable[[], Iterator[Any]]]:
    """Its MDS shards, shuffled; PIL, which its own "jpeg" encoding opens them with, too."""
    from streaming import MDSWriter, StreamingDataset

    if not (folder / "index.json").exists():
        columns = {"key": "str", **dict.fromkeys(FRAMES, "bytes"), "audio": "ndarray:int16", "imu": "ndarray:float32"}
        with MDSWriter(out=str(folder), columns={**columns, "json": "json"}) as writer:
            for sample in _members(shard):
                writer.write(sample)
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=1)
    return {"bytes": lambda: iter(dataset), "tensors": lambda: map(_decoded, dataset)}


def _members(shard: str) -> Iterator[dict[str, Any]]:
    import webdataset as wds

    for one in wds.WebDataset(shard, shardshuffle=False):
        yield {
            "key": one["__key__"],
            **{name: one[name] for name in FRAMES},
            "audio": soundfile.read(io.BytesIO(one["audio.wav"]), dtype="int16")[0],
            "imu": np.load(io.BytesIO(one["imu.npy"])),
            "json": json.loads(one["json"]),
        }


def _decoded(one: dict[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
    frames = [Image.open(io.BytesIO(one[name])) for name in FRAMES]
    return one["key"], tensors(frames, one["audio"], one["imu"])


PEERS = {"webdataset": webdataset, "litdata": litdata, "MosaicML streaming": mosaicml}


def main(name: str, shard: str, folder: str) -> None:
    """Prints CPU seconds of a warm pass for bytes and of one for tensors; leaves the first sample's in ``NAME.npz``."""
    torch.set_num_threads(1)
    os.environ["TMPDIR"] = tempfile.tempdir = folder  # in which litdata empties `data` and `chunks`
    Path(folder, name).mkdir(parents=True, exist_ok=True)
    taken = []
    for read in PEERS[name](shard, Path(folder, name)).values():
        for one in read():  # warm
            if isinstance(one, tuple) and one[0] == "000000":
                first = one[1]
        start = time.process_time()
        for _ in read():
            pass
        taken.append(time.process_time() - start)
    np.savez(Path(folder, f"{name}.npz"), **{what: tensor.numpy() for what, tensor in first.items()})
    print(*taken, sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
