"""What a sample costs to read, in CPU microseconds: our indexed read, shuffled, beside stock webdataset, in order.

python -m infra.bench.reading [--samples 500] [--json]
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

from infra.bench.common import arguments, report
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


def main() -> int:
    """Write one shard in a scratch folder and read it in each way."""
    import webdataset

    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, default=500)
    given = parser.parse_args()
    count, rows = given.samples, []

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        rows.append({"what": name, "us/sample": (time.process_time() - start) / count * 1e6})

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.tar"
        with timed("write"):
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
            with timed(name):
                read()
    return report(rows, [], as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
