"""Flat learning: what a step and a class of `comm` cost at task 2 and at task 20.

python -m infra.bench.modalities [--work DIR] [--tasks 20] [--rounds 40] [--json]

Pictures, movements and depths come by turns, two tasks of a modality at a time and two new classes a task. What was
there before task 2 and before the last then learns from batches of it, by turns; both know the modality already.
"""

from __future__ import annotations

import io
import sys
import time
from typing import TYPE_CHECKING, Any

from infra.bench.common import Bound, arguments, fresh, note, report

if TYPE_CHECKING:
    import numpy as np

    from store.lake import Lake

MODALITIES = ("image", "imu", "depth")
TRAIN, HELD_OUT = 16, 2  # samples of a class, and in val and test each
PEAK = 1.05


def modality_of(task: int) -> str:
    """Of a task, the first being 1; two in a row have the same."""
    return MODALITIES[(task - 1) // 2 % len(MODALITIES)]


def prepare(lake: Lake, tasks: int) -> None:
    """Fill a lake with samples of two classes a task."""
    import numpy as np
    from PIL import Image

    from store.ledger import Ledger
    from store.shards import write_shard
    from store.types import Sample

    ledger, random = Ledger(lake), np.random.default_rng(0)

    def signal(modality: str, kind: np.ndarray) -> Any:
        noisy = kind + random.normal(0, 0.5, kind.shape)
        if modality == "imu":
            return noisy.reshape(-1, 6).astype(np.float32)
        if modality == "depth":
            return (3000 + 800 * noisy.reshape(16, 18)).clip(1, 9000).astype(np.uint16)
        buffer = io.BytesIO()
        Image.fromarray((128 + 40 * noisy.reshape(16, 18)).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    for task in range(1, tasks + 1):
        modality = modality_of(task)
        for label in labels_of(task):
            kind = random.normal(0, 1, 16 * 18)
            splits = ["train"] * TRAIN + ["val"] * HELD_OUT + ["test"] * HELD_OUT
            samples = [
                Sample(
                    f"{label}{i:02d}-0000000-0001000",
                    {"start_s": 0.0, "duration_s": 1.0, "tracks": {modality: {"rate_hz": 50}}},
                    **{modality: signal(modality, kind)},
                )
                for i in range(len(splits))
            ]
            written = write_shard(lake.shard_url("bench", f"{label}.tar"), samples)
            ledger.append("shards", [{"dataset": "bench", "shard": label, "url": written.url, "samples": len(samples)}])
            rows = []
            for sample, split, entry in zip(samples, splits, written.entries, strict=True):
                of = {"dataset": "bench", "key": sample.key, "recording": sample.key.split("-")[0], "split": split}
                lies = {"shard": label, "offset": entry.offset, "size": entry.size, "checksum": entry.checksum}
                rows.append({**of, **lies, "labels": [label], "modalities": [modality]})
            ledger.append("samples", rows)


def labels_of(task: int) -> list[str]:
    """The classes of a task."""
    return [f"t{task:02d}{name}" for name in "ab"]


def main() -> int:
    """Learn all tasks, then measure both snapshots by turns; print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    import torch

    from flows import build, stream
    from flows.recipe import GateSpec, LearnerSpec, ReaderSpec, Recipe, StreamSpec
    from flows.update import update
    from store.lake import Lake
    from store.ledger import Ledger
    from store.types import Modality

    torch.set_num_threads(1)
    lake = Lake(fresh(given.work.absolute() / "modalities-lake"))
    prepare(lake, given.tasks)
    recipe = Recipe(
        name="bench",
        dataset="bench",
        reader=ReaderSpec(name="folder"),
        stream=StreamSpec(
            scenario="modality-incremental",
            tasks=[{"name": str(task), "labels": labels_of(task)} for task in range(1, given.tasks + 1)],
        ),
        learner=LearnerSpec(
            backbones={Modality(m): "canonical" for m in MODALITIES}, method="comm", epochs=1, batch_size=16
        ),
        gate=GateSpec(max_forgetting=1.0),
    )
    note(f"{given.tasks} tasks")
    run_id = update(lake, recipe).run_id
    ledger = Ledger(lake)
    one, data = build.run(recipe, method=None, seed=0, overridden=False), stream.load(ledger, recipe, MODALITIES)
    steps = {}
    for number in (2, given.tasks):
        trainer = build.trainer(lake, ledger, recipe, one, snapshot=f"{run_id}/{number - 1:03d}")
        trainer.features.prepare(data.shards([number]))
        task = trainer.task(number, data.names[number], data.tasks[number])
        steps[number] = trainer, trainer.method.begin_task(task), task.train.batch(range(16))

    def step(number: int) -> float:
        trainer, groups, batch = steps[number]
        begun = time.process_time()
        terms = trainer.method.loss(batch, None, torch.Generator())
        torch.stack(list(terms.values())).sum().backward()
        taken = time.process_time() - begun
        for group in groups:
            for parameter in group["params"]:
                parameter.grad = None
        return taken

    seconds = dict.fromkeys(steps, 0.0)
    for turn in range(given.rounds + 2):
        for number in steps:
            taken = step(number)
            seconds[number] += taken if turn >= 2 else 0.0  # the first ones warm up
    sizes = {row["after_task"]: row for row in ledger.rows("SELECT after_task, memory_bytes FROM snapshots")}
    spaces = steps[given.tasks][0].method.spaces  # type: ignore[attr-defined]
    classes = 2 * (given.tasks - 1)
    rows = [
        {
            "task": number,
            "modality": modality_of(number),
            "CPU ms a step": 1e3 * seconds[number] / given.rounds,
            "KiB kept before it": sizes[number - 1]["memory_bytes"] / 1024,
        }
        for number in steps
    ]
    means = sum(space.counts.nbytes + space.means.nbytes + space.owner.nbytes for space in spaces)
    rows.append({"task": "KiB a modality", "KiB kept before it": spaces[0].scatter.nbytes / 1024})
    rows.append({"task": "KiB a class", "KiB kept before it": means / classes / 1024})
    ratio = seconds[given.tasks] / seconds[2]
    return report(rows, [Bound(f"CPU of a step at task {given.tasks} / at task 2", ratio, PEAK)], as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
