"""Resume: a run that is stopped anywhere and goes on ends as one that was left alone, bit for bit.

python -m infra.bench.resume [--work DIR] [--kills 50] [--every 1] [--ranks-every 10] [--epochs 50] [--json]

A run of 200 steps over two tasks and several epochs learns from synthesised recordings, rehearsing exemplars. It is
left alone once; then, for every step k, what was on the disk after step k goes on in a new process, with 0, 1 and 4
threads reading ahead by turns. The same is done in two processes under torchrun, at every tenth step by default, and
runs that write a checkpoint every 7 steps are killed with SIGKILL at random until there have been so many kills. All
snapshots, all predictions and the losses of every epoch (which follow from the order) must be equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from infra.bench.common import CLI, ROOT, Bound, arguments, fresh, made, note, report

OVERRIDES = ["learner.backbones={audio: tiny, text: tiny}", "learner.memory=20", "learner.batch_size=8"]
WORKERS = (0, 1, 4)


def prepare(folder: Path) -> None:
    """A lake with two languages of recordings, their features cached by a first, short run."""
    source = folder / "recordings"
    subprocess.run([*CLI, "synthesize", "samsemo", "--out", str(source), "--size", "100"], cwd=ROOT, check=True)
    lake = folder / "lake"
    subprocess.run([*CLI, "--lake", str(lake), "ingest", "samsemo", "--source", str(source)], cwd=ROOT, check=True)


def learn(lake_folder: Path, epochs: int, every: int, keep: Path | None, workers: int) -> None:
    """Learn the first two tasks, with a checkpoint after `every` steps; `keep` gets a copy of each that there is."""
    import torch

    from flows import build, stream
    from flows.recipe import load_recipe, override
    from flows.update import resume
    from learner.distributed import join
    from learner.trainer import Settings
    from store.lake import Lake
    from store.ledger import Ledger

    torch.set_num_threads(1)
    build.Settings = partial(Settings, checkpoint_every=every)  # type: ignore[misc, assignment]
    lake = Lake(lake_folder)
    ledger, ranks = Ledger(lake), join()
    recipe = override(load_recipe("samsemo"), [*OVERRIDES, f"learner.epochs={epochs}"])
    one = build.run(recipe, method=None, seed=0, overridden=True)
    with ranks.leader_first():
        stream.seal(ledger, recipe)
        data = stream.load(ledger, recipe, ["audio", "text"])
        row = {"run_id": one.run_id, "stream": recipe.name, "scenario": "x", "method": "x", "seed": 0}
        ledger.append("runs", [{**row, "modalities": ["audio", "text"]}])
    steps = 0

    def copy(done: int, total: int) -> None:
        nonlocal steps
        steps += 1  # what lies there now was written after the step before this one
        if keep is not None and ranks.leads:
            copied(lake.root, keep / str(steps - 1), "ledger", "runs")

    trainer, tasks = resume(lake, ledger, recipe, one, data, lambda *told: None, ranks, workers)
    while len(tasks) < 2:
        number = len(tasks) + 1
        task = trainer.task(number, data.names[number], data.tasks[number])
        trainer.features.prepare(data.shards([number]))
        trainer.learn(task, tasks, copy)
        trainer, tasks = resume(lake, ledger, recipe, one, data, lambda *told: None, ranks, workers)


def copied(lake: Path, place: Path, *parts: str) -> None:
    """Copy some folders of a lake, where it has them."""
    for part in parts:
        if (lake / part).exists():
            shutil.copytree(lake / part, place / part)


def outcome(lake_folder: Path) -> str:
    """A digest of all that a run leaves: the tensors of its snapshots, its predictions, the losses of its epochs."""
    from store.lake import Lake
    from store.ledger import Ledger

    ledger = Ledger(Lake(lake_folder))
    found = [
        ledger.rows(sql)
        for sql in (
            "SELECT snapshot_id, sha256, parent, memory_bytes FROM snapshots ORDER BY ALL",
            "SELECT * EXCLUDE recorded_at FROM predictions ORDER BY ALL",
            "SELECT subject, detail FROM events WHERE kind = 'learned' ORDER BY ALL",
        )
    ]
    assert len(found[0]) == 2, found[0]
    return hashlib.sha256(json.dumps(found, default=str).encode()).hexdigest()


def stands(base: Path, place: Path, at: Path | None) -> Path:
    """A lake in `place` as it was when `at` was kept, or before the run began; shards and cache are those of `base`."""
    fresh(place)
    if at is None:
        copied(base, place, "ledger")
    else:
        copied(at, place, "ledger", "runs")
    for name in ("cache", "shards"):
        (place / name).symlink_to(base / name)
    return place


def torchrun(*given: object) -> int:
    """`learn` in two processes; the exit code."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    code = "import sys; from infra.bench.resume import ranked; ranked(*sys.argv[1:])"
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [*launch, "--no-python", sys.executable, "-c", code, *map(str, given)]
    return subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL).returncode


def ranked(lake: str, epochs: str, every: str, keep: str, workers: str) -> None:
    """`learn` with its arguments as text; an empty `keep` is none."""
    learn(Path(lake), int(epochs), int(every), Path(keep) if keep else None, int(workers))


def main() -> int:
    """Stop at every step, then kill."""
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--every", type=int, default=1, help="stop after every so many steps")
    parser.add_argument("--ranks-every", type=int, default=10, help="the same with two ranks")
    parser.add_argument("--epochs", type=int, default=50, help="50 are 200 steps")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    work, rows = given.work.absolute(), []
    base = made(work / "resume", prepare) / "lake"
    spawn = get_context("forkserver")
    spawn.set_forkserver_preload(["torch", "flows.update", "learner.methods.crossmodal_moe", "faiss", "duckdb"])

    def start(*told: Any) -> Any:
        process = spawn.Process(target=learn, args=told)
        process.start()
        return process

    def finished(*told: Any) -> None:
        process = start(*told)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"learning ended with {process.exitcode}")

    place = work / "resume-lake"
    finished(stands(base, place, None), 1, 50, None, 0)  # makes the features
    for name, ranks, every in (("one process", 1, given.every), ("two ranks", 2, given.ranks_every)):
        kept = fresh(work / "resume-kept")
        kept.mkdir()
        lake = stands(base, place, None)
        if ranks == 1:
            finished(lake, given.epochs, 1, kept, 1)
        elif torchrun(lake, given.epochs, 1, kept, 1):
            raise RuntimeError("two ranks cannot learn here")
        whole, steps, different = outcome(lake), len(list(kept.iterdir())), 0
        for k in range(0, steps, every):
            lake, workers = stands(base, place, kept / str(k)), WORKERS[k // every % len(WORKERS)]
            if ranks == 1:
                finished(lake, given.epochs, 1000, None, workers)
            else:
                torchrun(lake, given.epochs, 1000, "", workers)
            if outcome(lake) != whole:
                different += 1
                note(f"{name}, stopped after step {k}: DIFFERENT")
        rows.append({"what": name, "steps": steps, "stops": len(range(0, steps, every)), "different": different})
        note(f"{name}: {rows[-1]}")
        fresh(kept)
    lake = stands(base, place, None)
    begun = time.monotonic()
    finished(lake, given.epochs, 7, None, 1)
    alone, whole = time.monotonic() - begun, outcome(lake)
    draw, kills, runs, different = random.Random(given.seed), 0, 0, 0
    while kills < given.kills:
        lake = stands(base, place, None)
        while True:
            process = start(lake, given.epochs, 7, None, draw.choice(WORKERS))
            process.join(draw.uniform(0, alone) if kills < given.kills else None)
            if process.exitcode is not None:
                break
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        runs += 1
        different += outcome(lake) != whole
        note(f"{kills} kills, {runs} runs ended, {different} different")
    rows.append({"what": "SIGKILL", "steps": rows[0]["steps"], "stops": kills, "different": different, "runs": runs})
    fresh(place)
    return report(rows, [Bound("different", sum(row["different"] for row in rows), 0)], as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
