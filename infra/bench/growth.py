"""Flat cost: what a recording costs in a data set of 1,000 and in one of 20,000.

python -m infra.bench.growth [--work DIR] [--sizes 1000 20000] [--workers 2] [--media wav|mp4] [--json]

Small recordings with a manifest: a quarter of a second of sound, or a video of ten frames. Per size, each by a process
of its own: ingest, the same again, and again after another 100 have come. A run's fixed cost is that of an ingest of
one recording; the cost of a recording is what lies above it. Peak resident memory is that of the driver and of the
largest worker.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from infra.bench.common import (
    Bound,
    arguments,
    fresh,
    ingest_command,
    made,
    measure,
    note,
    report,
    with_tail,
    write_recipe,
)

MORE = 100
SLACK = 1.10
LABELS = 10


def recordings(folder: Path, media: str) -> Iterator[bytes]:
    """The bytes of small recordings, all different, without end."""
    if media == "wav":
        path, random = folder / "one.wav", np.random.default_rng(0)
        for _ in itertools.count():
            soundfile.write(path, random.integers(-8000, 8000, 4000, np.int16), 16000)
            yield path.read_bytes()
    path = folder / "one.mp4"
    source = ["-f", "lavfi", "-i", "testsrc2=s=64x64:r=25", "-frames:v", "10", "-pix_fmt", "yuv420p"]
    subprocess.run(["ffmpeg", "-v", "error", *source, str(path)], check=True)
    template = path.read_bytes()
    for number in itertools.count():
        yield with_tail(template, number)


def make_recordings(folder: Path, count: int, media: str) -> None:
    """`count` files in folders of a thousand."""
    for number, data in enumerate(itertools.islice(recordings(folder, media), count)):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.{media}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (folder / f"one.{media}").unlink()


def name_first(folder: Path, count: int, media: str) -> None:
    """Let the manifest name the first `count` recordings."""
    track = "audio" if media == "wav" else "video"
    rows = (f"{i // 1000:03d}/{i:06d}.{media},{i % LABELS}\n" for i in range(count))
    (folder / "manifest.csv").write_text(f"{track},label\n" + "".join(rows))


def main() -> int:
    """Ingest every size from nothing, again, and with more; print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=[1000, 20000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--media", choices=["wav", "mp4"], default="wav")
    given = parser.parse_args()
    work, media, (few, many) = given.work.absolute(), given.media, given.sizes
    total = many + MORE
    source = made(work / f"growth-{media}-{total}", lambda folder: make_recordings(folder, total, media))
    recipe = write_recipe(work / "growth.yaml")
    lake = work / "growth-lake"
    taken: dict[tuple[str, int], Any] = {}
    for size in (1, few, many):
        fresh(lake)
        for what, count in (("ingest", size), ("again", size), ("100 more", size + MORE)):
            note(f"{what}, {size} recordings")
            name_first(source, count, media)
            taken[what, size] = measure(ingest_command(lake, recipe, source, given.workers))
        fresh(lake)
    rows = []
    for (what, size), one in taken.items():
        base = taken[what, 1]
        each = {"ms/recording": one.seconds - base.seconds, "CPU ms/recording": one.cpu_s - base.cpu_s}
        rows.append(
            {"run": what, "recordings": size, "seconds": one.seconds, "CPU s": one.cpu_s}
            | {name: taken / size * 1e3 if size > 1 else "" for name, taken in each.items()}
            | {"driver MiB": one.driver_mib, "worker MiB": one.worker_mib}
        )
    figure = {(row["run"], row["recordings"]): row for row in rows}
    bounds = [
        Bound(f"{what}, {name} at {many} / at {few}", figure[what, many][name] / figure[what, few][name], SLACK)
        for what, names in {
            "ingest": ("ms/recording", "CPU ms/recording", "driver MiB", "worker MiB"),
            "again": ("driver MiB",),
            "100 more": ("driver MiB",),
        }.items()
        for name in names
    ]
    return report(rows, bounds, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
