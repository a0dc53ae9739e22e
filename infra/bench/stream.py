"""A stream of ten million index rows: what its first batch waits for, and what it holds.

python -m infra.bench.stream [--work DIR] [--rows 10000000] [--json]

A ledger is filled with so many samples, all of which lie in one shard of a thousand, and sealed into a task. Then new
processes open the stream, put it in order and read a batch of 64 samples, beginning in the middle of the third epoch;
time and memory count from the start of the process. Afterwards the mapped index is read at random, so that in time all
of it is resident: these are pages of the file, which the system may drop, and only the process's own memory is bounded.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infra.bench.common import Bound, arguments, fresh, measure, note, report

READ = """
import sys, time
from pathlib import Path
from flows import stream
from flows.recipe import load_recipe
from learner.loader import Damage, ahead
from learner.order import Order
from store.lake import Lake
from store.ledger import Ledger
from store.types import Split

lake, recipe = Lake(Path(sys.argv[1])), load_recipe(sys.argv[2])
data = stream.load(Ledger(lake), recipe, ["imu"])
rows, damage = data.tasks[1][Split.TRAIN], Damage()
order = Order(seed=0, task=1, size=len(rows), batch=64)
start = 2 * order.steps + order.steps // 2
read = ahead(lambda step: [damage.read(rows[i]) for i in order.step(step)], range(start, start + 100), 1)
first = next(read)
waited = time.time() - float(sys.argv[3])

def mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

peak, begun = mib("VmHWM"), time.process_time()
count = sum(map(len, read))
print(len(rows), len(first), waited, peak, (time.process_time() - begun) / count * 1e6, mib("RssAnon"))
"""


def fill(lake_folder: Path, recipe_path: Path, count: int) -> dict[str, float]:
    """Make the lake; returns the seconds that sealing and indexing took."""
    from flows import stream
    from flows.recipe import load_recipe
    from store.lake import Lake
    from store.ledger import Ledger
    from store.shards import write_shard
    from store.types import Sample

    lake = Lake(lake_folder)
    ledger, recipe = Ledger(lake), load_recipe(recipe_path)
    random = np.random.default_rng(0)
    meta = {"tracks": {"imu": {"rate_hz": 50}}}
    samples = [Sample(f"{i:04d}", meta, imu=random.normal(size=(100, 6)).astype(np.float32)) for i in range(1000)]
    shard = write_shard(lake.shard_url(recipe.dataset, "one.tar"), samples)
    where = {"dataset": recipe.dataset, "shard": "one.tar"}
    ledger.append("shards", [{**where, "url": lake.relative(shard.url), "samples": count}])
    offsets, sizes, sums = (
        np.array([getattr(entry, name) for entry in shard.entries]) for name in ("offset", "size", "checksum")
    )
    for start in range(0, count, 1_000_000):
        numbers = np.arange(start, min(start + 1_000_000, count))
        at = numbers % len(samples)
        columns: dict[str, Any] = {
            "key": [f"{i:016x}-0000000-0002000" for i in numbers],
            "recording": [f"{i:016x}" for i in numbers],
            "labels": [[f"class{i % 50}"] for i in numbers],
            "split": np.where(numbers % 10 < 8, "train", np.where(numbers % 10 == 8, "val", "test")),
            "modalities": [["imu"]] * len(numbers),
            "offset": offsets[at],
            "size": sizes[at],
            "checksum": sums[at],
        }
        fixed = {name: pa.repeat(value, len(numbers)) for name, value in where.items()}
        ledger.append_table("samples", pa.table({**columns, **fixed}))
        note(f"{numbers[-1] + 1:,} rows in the ledger")
    begun = time.monotonic()
    stream.seal(ledger, recipe)
    sealed = time.monotonic()
    stream.load(ledger, recipe, ["imu"])
    return {"seal, s": sealed - begun, "index, s": time.monotonic() - sealed}


def main() -> int:
    """Fill, then open three times."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    given = parser.parse_args()
    work = given.work.absolute()
    lake, recipe = fresh(work / "stream-lake"), work / "stream.yaml"
    work.mkdir(parents=True, exist_ok=True)
    recipe.write_text(
        "{name: stream, dataset: stream, reader: {name: folder}, learner: {backbones: {imu: tiny}},\n"
        " stream: {scenario: class-incremental, by: label, per_task: 50}}\n"
    )
    once = fill(lake, recipe, given.rows)
    rows = []
    for run in range(3):
        used = measure([sys.executable, "-c", READ, str(lake), str(recipe), str(time.time())])
        train, batch, waited, peak, micros, own = map(float, used.output.split())
        rows.append({"run": run, "rows": int(train), "batch": int(batch), "first batch, s": waited, "MiB": peak})
        rows[-1] |= {"then CPU us/sample": micros, "then own MiB": own} | (once if not run else {})
    fresh(lake)
    best = min(rows, key=lambda row: row["first batch, s"])
    bounds = [
        Bound("seconds to the first batch", best["first batch, s"], 3),
        Bound("MiB until the first batch", best["MiB"], 1024),
        Bound("own MiB after 100 batches", best["then own MiB"], 1024),
    ]
    return report(rows, bounds, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
