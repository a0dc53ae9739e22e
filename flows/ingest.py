"""Ingest a data set by its recipe's name."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pipelines.ingest
from flows.recipe import load_recipe
from flows.source import get_source
from pipelines.ingest import Built, IngestSummary
from pipelines.plan import Batch, Progress
from pipelines.readers import reader
from pipelines.variants import Varied
from store.lake import Lake
from store.types import PalimpsestError, Seconds

LISTS = (".csv", ".json", ".parquet", ".tsv", ".txt")  # what names the recordings of a data set
PATIENCE: Seconds = 60.0


def ingest(
    lake: Lake,
    dataset: str,
    *,
    source: Path | str | None = None,
    workers: int | None = None,
    limit: int | None = None,
    as_name: str | None = None,
    retry_quarantined: bool = False,
    shards: str | None = None,
    settle_s: Seconds | None = None,
    progress: Progress | None = None,
    run: Callable[[Sequence[Batch]], Iterable[Built]] | None = None,
) -> IngestSummary:
    """Bring a data set up to date with its recordings, as its recipe says.

    Args:
        lake: where the data set's shards and rows go.
        dataset: a packaged recipe's name, or the path of a recipe of one's own.
        source: the folder of recordings, remembered by the lake; None reads from the one remembered.
        workers: processes; None for one a core.
        limit: look at the first recordings only.
        as_name: the data set's name in the lake, when it is not the recipe's.
        retry_quarantined: try again what failed before.
        shards: an fsspec URL to write shards under, instead of the lake's own.
        settle_s: take what has finished arriving, and leave files that changed within so many seconds for later. What
            is new bears the time of this run as its arrival, which a stream can order by.
        progress: called with recordings done and recordings to do.
        run: builds the batches instead of local processes, such as a Prefect task runner.

    Raises:
        PalimpsestError: there is no such recipe or folder, the data set's name leads out of the lake, or it
            has another format.
    """
    recipe = load_recipe(dataset)
    name = pipelines.ingest.checked_name(as_name or recipe.dataset)
    if shards is not None:
        lake = replace(lake, shards_url=shards)
    folder = get_source(lake, name, recipe.dataset) if source is None else Path(source).expanduser().absolute()
    if workers is not None and workers < 1:
        raise PalimpsestError(f"workers is {workers}; it must be 1 or more")
    if settle_s is not None and folder.is_dir():
        _await_lists(folder, settle_s)
    found = reader(recipe.reader.name, **recipe.reader.parameters)
    return pipelines.ingest.ingest(
        lake,
        Varied(found, recipe.variants, recipe.variant_seed) if recipe.variants else found,
        folder,
        format=recipe.format,
        dataset=name,
        group=recipe.group,
        workers=workers or len(os.sched_getaffinity(0)),
        limit=limit,
        retry_quarantined=retry_quarantined,
        settle_s=settle_s,
        arrival=None if settle_s is None else _now(),
        progress=progress,
        run=run,
    )


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _await_lists(source: Path, settle_s: Seconds) -> None:
    """Wait until the lists of recordings in `source` are whole: unchanged for so long, or CSV that ends with a line."""
    patience = time.monotonic() + max(PATIENCE, 2 * settle_s)
    for path in sorted(path for path in source.iterdir() if path.suffix in LISTS):
        while not _whole(path, settle_s):
            if time.monotonic() > patience:
                raise PalimpsestError(f"{path} changes all the time; write it aside and rename it")
            time.sleep(min(0.2, settle_s))


def _whole(path: Path, settle_s: Seconds) -> bool:
    try:
        if time.time() - path.stat().st_mtime >= settle_s:
            return True
        if path.suffix != ".csv":
            return False
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"
    except OSError:  # empty, or gone for a moment
        return not path.exists()
