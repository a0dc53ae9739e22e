"""What a sample costs to read, in CPU microseconds: our indexed read, shuffled, beside stock webdataset, in order.

python -m infra.bench.reading [samples]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import simplejpeg

from store.shards import read_sample, write_shard
from store.types import Sample


def samples(count: int) -> Iterator[Sample]:
    """Clips of 10 s as ingest writes them: 8 frames of 224 x 224, mono sound at 16 kHz, IMU at 100 Hz."""
    random = np.random.default_rng(0)
    for i in range(count):
        picture = np.kron(random.integers(0, 256, (14, 14, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
        sound = random.integers(-8000, 8000, 160_000, np.int16)
        yield Sample(
            key=f"{i:06d}",
            meta={"key": f"{i:06d}", "tracks": {"audio": {"rate_hz": 16000}}},
            frames=[simplejpeg.encode_jpeg(np.ascontiguousarray(np.roll(picture, 4 * j, 0))) for j in range(8)],
            audio=sound,
            imu=random.normal(size=(1000, 6)).astype(np.float32),
        )


@contextmanager
def timed(name: str, count: int) -> Iterator[None]:
    """Print what the block took, a sample."""
    start = time.process_time()
    yield
    print(f"{name:32} {(time.process_time() - start) / count * 1e6:8.0f} us")


def main(count: int = 500) -> None:
    """Write one shard in a scratch folder and read it in each way."""
    import webdataset

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.tar"
        with timed("write", count):
            shard = write_shard(str(path), samples(count))
        order = np.random.default_rng(1).permutation(count)

        def indexed() -> None:
            for i in order:
                read_sample(shard.url, shard.entries[i])

        def stock() -> None:
            for _ in webdataset.WebDataset(str(path), shardshuffle=False):
                pass

        ways: dict[str, Callable[[], None]] = {"indexed, shuffled, checksummed": indexed, "webdataset, in order": stock}
        for name, read in ways.items():
            read()  # warm
            with timed(name, count):
                read()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
