"""What the benchmarks share: processes measured from outside, a table for people, bounds that decide the exit code."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLI = (sys.executable, "-c", "from flows.cli import main; main()")


@dataclass(frozen=True, slots=True)
class Bound:
    """A promise about a figure: at most `limit`, or at least where `most` is False."""

    name: str
    value: float
    limit: float
    most: bool = True

    @property
    def kept(self) -> bool:
        """Whether the figure keeps it."""
        return self.value <= self.limit if self.most else self.value >= self.limit


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its descendants took: wall and CPU seconds, peak resident MiB of it and of the largest."""

    seconds: float
    cpu_s: float
    driver_mib: float
    worker_mib: float
    output: str


def measure(command: Sequence[str], *, codes: Sequence[int] = (0,)) -> Usage:
    """Run `command` to its end.

    Raises:
        RuntimeError: it ends with a code that is not in `codes`; the message is its output.
    """
    peaks: dict[int, float] = {}
    begun = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.05):
                for pid in (process.pid, *descendants(process.pid)):
                    peaks[pid] = max(peaks.get(pid, 0.0), peak_mib(pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - begun
        ended.set()
        watcher.join()
    if process.returncode not in codes:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
    driver = peaks.pop(process.pid, 0.0)
    return Usage(seconds, usage.ru_utime + usage.ru_stime, driver, max(peaks.values(), default=0.0), output)


def descendants(pid: int) -> list[int]:
    """The running processes that `pid` began, and those that they began."""
    children: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    except OSError:  # it has ended
        return []
    return [*children, *(one for child in children for one in descendants(child))]


def peak_mib(pid: int) -> float:
    """The most that `pid` ever held resident since it began its program."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def ingest_command(lake: Path, recipe: Path, source: Path, workers: int) -> list[str]:
    """The command line that ingests `source` by `recipe` into `lake`."""
    return [*CLI, "--lake", str(lake), "ingest", str(recipe), "--source", str(source), "--workers", str(workers)]


def write_recipe(path: Path, **format: Any) -> Path:
    """A recipe of a folder with a manifest."""
    recipe = {
        "name": path.stem,
        "dataset": path.stem,
        "reader": {"name": "folder"},
        "format": format,
        "stream": {"scenario": "class-incremental", "by": "label", "per_task": 1},
        "learner": {"backbones": {"audio": "tiny"}, "method": "slda"},
    }
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def fresh(folder: Path) -> Path:
    """`folder`, absent."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def made(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` unless an earlier run has done so."""
    if not folder.is_dir():
        aside = folder.with_name(f"{folder.name}.tmp")
        fresh(aside).mkdir(parents=True)
        make(aside)
        aside.rename(folder)
    return folder


def with_tail(template: bytes, number: int) -> bytes:
    """An MP4 like `template` with other bytes: a `free` box that every reader skips is put behind it."""
    return template + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")


def arguments(text: str | None) -> argparse.ArgumentParser:
    """The options every benchmark takes."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench-work"), help="where recordings and lakes are kept")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    return parser


def note(text: str) -> None:
    """Tell what is going on, apart from the figures."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def report(rows: Iterable[Mapping[str, Any]], bounds: Iterable[Bound], *, as_json: bool) -> int:
    """Print figures and bounds; returns 1 where a bound is missed."""
    rows, bounds = list(rows), list(bounds)
    if as_json:
        for row in rows:
            print(json.dumps(row))
        for one in bounds:
            print(json.dumps({"bound": one.name, "value": one.value, "limit": one.limit, "kept": one.kept}))
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        cells = [names, *([_cell(row.get(name, "")) for name in names] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for first, *others in cells:
            print(first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True)), sep="  ")
        for one in bounds:
            sign = "<=" if one.most else ">="
            print(f"  {'kept  ' if one.kept else 'MISSED'}  {one.name}: {one.value:.3g} {sign} {one.limit:g}")
    return int(not all(one.kept for one in bounds))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return str(value)
