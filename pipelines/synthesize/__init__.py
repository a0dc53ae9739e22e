"""Recordings of our own: speech, scenes and motion, rendered and written in the official layouts of data sets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipelines.synthesize.layouts import SIZES, corpus, samsemo
from store.types import PalimpsestError

LAYOUTS: dict[str, Callable[..., None]] = {"corpus": corpus, "samsemo": samsemo}


def synthesize(layout: str, out: Path, *, seed: int = 0, size: str = "small", workers: int = 1) -> Path:
    """Writes a data set of synthesised recordings in the layout its readers expect.

    The same layout, seed and size give the same bytes on one machine, whatever the number of workers.

    Args:
        layout: a name in `LAYOUTS`.
        out: the folder to make; it may exist, but empty.
        seed: every draw follows from it.
        size: `tiny` (tests), `small` (the demo) or `medium`.
        workers: processes to render with.

    Returns:
        `out`.

    Raises:
        PalimpsestError: the layout or size is unknown, or `out` is in use.
    """
    if layout not in LAYOUTS:
        raise PalimpsestError(f"no layout is called {layout!r}: choose one of {', '.join(sorted(LAYOUTS))}")
    if size not in SIZES:
        raise PalimpsestError(f"no size is called {size!r}: choose one of {', '.join(SIZES)}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PalimpsestError(f"{out} is not an empty folder: name a new one, or remove it first")
    aside = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise PalimpsestError(f"{out} cannot be made ({error.strerror}): name another folder") from error
    try:
        if workers > 1:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                LAYOUTS[layout](aside, seed=seed, size=size, run=partial(_in_pool, pool))
        else:
            LAYOUTS[layout](aside, seed=seed, size=size, run=lambda jobs: [job() for job in jobs])
        aside.replace(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def _in_pool(pool: ProcessPoolExecutor, jobs: list[Callable[[], Any]]) -> list[Any]:
    return [future.result() for future in [pool.submit(job) for job in jobs]]
