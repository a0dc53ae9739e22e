"""Recordings of our own: speech, scenes and motion, rendered and written in the official layouts of data sets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from store.types import PalimpsestError


@dataclass(frozen=True, slots=True)
class Layout:
    """A data set that can be synthesised.

    Attributes:
        writer: ``module:function``, imported on first use; called as ``writer(out, seed=, recordings=, run=)``, where
            `run` calls a list of picklable functions, in any number of processes, and returns their results in order.
        tiny: recordings of the size for tests.
        small: recordings of the size for a demo.
        medium: recordings of the size to learn something from.
    """

    writer: str
    tiny: int
    small: int
    medium: int


SIZES = ("tiny", "small", "medium")
LAYOUTS = {
    "ag-news": Layout("pipelines.synthesize.layouts.streams:ag_news", 120, 2400, 24_000),
    "ave": Layout("pipelines.synthesize.layouts.ave:ave", 84, 420, 2800),
    "clapper": Layout("pipelines.synthesize.layouts.clapper:clapper", 10, 40, 200),
    "corpus": Layout("pipelines.synthesize.layouts.corpus:corpus", 43, 2500, 10_000),
    "esc50": Layout("pipelines.synthesize.layouts.streams:esc50", 20, 200, 1000),
    "imagenet-r": Layout("pipelines.synthesize.layouts.streams:imagenet_r", 48, 800, 4000),
    "kinetics": Layout("pipelines.synthesize.layouts.streams:kinetics", 16, 240, 1600),
    "nyu-depth": Layout("pipelines.synthesize.layouts.rooms:nyu_depth", 48, 288, 2400),
    "samsemo": Layout("pipelines.synthesize.layouts.samsemo:samsemo", 75, 500, 2400),
    "sun-rgbd": Layout("pipelines.synthesize.layouts.rooms:sun_rgbd", 48, 288, 2400),
    "ucf101": Layout("pipelines.synthesize.layouts.streams:ucf101", 24, 200, 1200),
    "uestc-mmea": Layout("pipelines.synthesize.layouts.uestc_mmea:uestc_mmea", 96, 448, 3200),
    "vggsound": Layout("pipelines.synthesize.layouts.streams:vggsound", 16, 240, 1600),
}


def synthesize(layout: str, out: Path, *, seed: int = 0, size: str | int = "small", workers: int = 1) -> Path:
    """Writes a data set of synthesised recordings in the layout its readers expect.

    The same layout, seed and size give the same bytes on one machine, whatever the number of workers.

    Args:
        layout: a name in `LAYOUTS`.
        out: the folder to make; it may exist, but empty.
        seed: every draw follows from it.
        size: `tiny` (tests), `small` (the demo), `medium`, or about how many recordings.
        workers: processes to render with.

    Returns:
        `out`.

    Raises:
        PalimpsestError: the layout or size is unknown, or `out` is in use.
    """
    if layout not in LAYOUTS:
        raise PalimpsestError(f"no layout is called {layout!r}: choose one of {', '.join(sorted(LAYOUTS))}")
    if size in SIZES:
        recordings = int(getattr(LAYOUTS[layout], str(size)))
    elif str(size).isdecimal() and int(size) > 0:
        recordings = int(size)
    else:
        raise PalimpsestError(f"no size is called {size!r}: choose {', '.join(SIZES)} or a number of recordings")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PalimpsestError(f"{out} is not an empty folder: name a new one, or remove it first")
    aside = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise PalimpsestError(f"{out} cannot be made ({error.strerror}): name another folder") from error
    module, function = LAYOUTS[layout].writer.split(":")
    write = partial(getattr(import_module(module), function), aside, seed=seed, recordings=recordings)
    try:
        if workers > 1:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                write(run=partial(_in_pool, pool))
        else:
            write(run=lambda jobs: [job() for job in jobs])
        aside.replace(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def _in_pool(pool: ProcessPoolExecutor, jobs: list[Callable[[], Any]]) -> list[Any]:
    return [future.result() for future in [pool.submit(job) for job in jobs]]
