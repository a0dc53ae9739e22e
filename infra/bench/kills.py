"""Kills: an ingest that is killed again and again ends as one that was left alone.

python -m infra.bench.kills [--work DIR] [--kills 50] [--workers 4] [--recordings 160] [--seed 0] [--json]

`palimpsest ingest` runs on short clips, is killed with SIGKILL at a seeded moment, and is started again until it ends;
then from nothing, until there have been so many kills. By turns the whole process group, the driver alone or one worker
is hit, after a drawn time or just after a drawn number of files has appeared in the lake. Of every lake that ends:
shards byte for byte, every table of the ledger but for run ids and times, no file left aside, no process left.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.bench.common import (
    ROOT,
    Bound,
    arguments,
    descendants,
    fresh,
    ingest_command,
    made,
    note,
    report,
    with_tail,
    write_recipe,
)  # fmt: skip

TIMES = {"recorded_at", "arrival", "seconds", "run_id"}
TARGETS = ("group", "driver", "worker")
PATIENCE_S = 10.0


def make_clips(folder: Path, count: int) -> None:
    """Short videos with sound, all different, each in so many clips that a shard holds few of them."""
    one, clips = folder / "one.mp4", 32
    inputs = "-f lavfi -i testsrc2=s=160x120:r=25 -f lavfi -i sine=f=440:r=16000 -t 8".split()
    coded = ["-c:v", "libx264", "-g", "25", "-pix_fmt", "yuv420p", "-c:a", "aac"]
    subprocess.run(["ffmpeg", "-v", "error", *inputs, *coded, str(one)], check=True)
    template = one.read_bytes()
    one.unlink()
    rows = ["video,label,start_s,end_s"]
    for number in range(count):
        (folder / f"{number:04d}.mp4").write_bytes(with_tail(template, number))
        rows += [f"{number:04d}.mp4,{number % 7},{i / 4},{(i + 1) / 4}" for i in range(clips)]
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")


@dataclass
class Tally:
    """What has happened."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TARGETS, 0))
    lakes: int = 0
    starts: int = 0
    faults: int = 0

    def fault(self, text: str) -> None:
        """Note that something is not as it must be."""
        self.faults += 1
        note(f"FAULT: {text}")


def killed(command: list[str], draw: random.Random, tally: Tally, longest: float, lake: Path) -> bool:
    """Start `command` and kill it at a drawn moment; False where it ended well all the same."""
    target, number = TARGETS[sum(tally.kills.values()) % len(TARGETS)], draw.randint(1, 20)
    moment = draw.uniform(0.1, longest) if draw.random() < 0.5 else None
    delay = draw.uniform(0, 0.03)
    tally.starts += 1
    with _started(command) as process:
        begun, seen = time.monotonic(), _files(lake)
        while process.poll() is None and time.monotonic() - begun < (moment or longest):
            if moment is None and _files(lake) - seen >= number:
                time.sleep(delay)
                break
            time.sleep(0.002)
        hit = process.poll() is None
        if hit:
            _kill(process, target, draw)
            tally.kills[target] += 1
            note(f"{target} killed after {time.monotonic() - begun:.1f} s")
        try:
            words, _ = process.communicate(timeout=PATIENCE_S + 10 * longest)
        except subprocess.TimeoutExpired:
            tally.fault(f"hangs after the kill of its {target}")
            return True
        if process.returncode > 0 and not (hit and target == "worker"):  # without a worker a driver may give up
            tally.fault(f"ended with {process.returncode}: {words[-300:]}")
        if not _gone(process.pid):
            tally.fault(f"processes left after the kill of its {target}")
        return process.returncode != 0


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, of which nothing outlives the block."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=ROOT, text=True, process_group=0, **pipes) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _kill(process: subprocess.Popen[str], target: str, draw: random.Random) -> None:
    workers = [pid for pid in descendants(process.pid) if b"spawn_main" in _read(f"/proc/{pid}/cmdline")]
    with suppress(ProcessLookupError):
        if target == "group":
            os.killpg(process.pid, signal.SIGKILL)
        elif target == "worker" and workers:
            os.kill(draw.choice(workers), signal.SIGKILL)
        else:
            process.kill()


def _gone(group: int) -> bool:
    """Whether all processes of `group` have ended, or do so soon."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _files(lake: Path) -> int:
    return sum(1 for folder in ("ledger", "shards") for _ in (lake / folder).glob("*/*"))


def contents(lake: Path) -> dict[str, Any]:
    """All that must be equal: the shards' hashes and the rows of every table."""
    from store.lake import Lake
    from store.ledger import TABLES, Ledger

    ledger, shards = Ledger(Lake(lake)), lake / "shards"
    held: dict[str, Any] = {
        str(path.relative_to(shards)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(shards.rglob("*"))
        if path.is_file() and path.suffix != ".tmp"
    }
    for name, table in TABLES.items():
        columns = ", ".join(f'"{column}"' for column in table.schema.names if column not in TIMES)
        held[name] = ledger.rows(f"SELECT {columns} FROM {name} ORDER BY ALL")
    return held


def compare(lake: Path, whole: dict[str, Any], tally: Tally) -> None:
    """Note what differs in a lake that has ended."""
    found = contents(lake)
    for name in sorted(found.keys() | whole.keys()):
        if found.get(name) != whole.get(name):
            tally.fault(f"{name} differs")
    for path in lake.rglob("*.tmp"):
        tally.fault(f"left aside: {path.relative_to(lake)}")


def main() -> int:
    """Kill until there have been enough, and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--recordings", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    work, draw, tally = given.work.absolute(), random.Random(given.seed), Tally()
    source = made(work / f"kills-{given.recordings}", lambda folder: make_clips(folder, given.recordings))
    recipe, lake = write_recipe(work / "kills.yaml", frames=4), fresh(work / "kills-lake")
    command = ingest_command(lake, recipe, source, given.workers)
    begun = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    alone = time.monotonic() - begun
    whole = contents(lake)
    shards = len(whole["shards"])
    note(f"left alone: {alone:.1f} s, {len(whole['samples'])} samples in {shards} shards")
    while (count := sum(tally.kills.values())) < given.kills:
        fresh(lake)
        while count < given.kills and killed(command, draw, tally, alone, lake):
            count = sum(tally.kills.values())
        if count >= given.kills:
            tally.starts += 1
            with _started(command) as process:
                words = process.communicate()[0]
            if process.returncode:
                tally.fault(f"ended with {process.returncode}: {words[-300:]}")
        compare(lake, whole, tally)
        tally.lakes += 1
        note(f"{count} kills, {tally.starts} starts, {tally.lakes} lakes ended, {tally.faults} faults")
    fresh(lake)
    row: dict[str, Any] = {"kills": sum(tally.kills.values())} | {
        f"of the {name}": n for name, n in tally.kills.items()
    }
    row |= {"starts": tally.starts, "lakes ended": tally.lakes, "shards": shards, "seconds": time.monotonic() - begun}
    return report([row], [Bound("faults", tally.faults, 0)], as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
