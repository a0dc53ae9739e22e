"""Ingest a data set by its recipe's name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pipelines.ingest
from flows.recipe import load_recipe
from flows.source import get_source, set_source
from pipelines.ingest import Batch, Built, IngestSummary, Progress
from pipelines.readers import reader
from store.lake import Lake
from store.types import PalimpsestError


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
        progress: called with recordings done and recordings to do.
        run: builds the batches instead of local processes, such as a Prefect task runner.

    Raises:
        PalimpsestError: there is no such recipe or folder, the data set's name leads out of the lake, or it
            has another format.
    """
    recipe = load_recipe(dataset)
    name = pipelines.ingest.checked_name(as_name or recipe.dataset)
    if shards is not None:
        lake = Lake(lake.root, shards)
    folder = set_source(lake, name, source) if source is not None else get_source(lake, name)
    if workers is not None and workers < 1:
        raise PalimpsestError(f"workers is {workers}; it must be 1 or more")
    return pipelines.ingest.ingest(
        lake,
        reader(recipe.reader.name, **recipe.reader.parameters),
        folder,
        format=recipe.format,
        dataset=name,
        group=recipe.group,
        workers=workers or len(os.sched_getaffinity(0)),
        limit=limit,
        retry_quarantined=retry_quarantined,
        progress=progress,
        run=run,
    )
