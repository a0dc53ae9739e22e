"""The flows that people deploy: each calls the plain function of its name and says in its state what came of it."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, ParamSpec, cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from flows.recipe import Recipe, load_recipe, names
from pipelines.crew import AHEAD, build_alone, follow_parent
from pipelines.ingest import Built, build_shard
from pipelines.plan import Batch
from store.lake import Lake
from store.ledger import Ledger
from store.types import PalimpsestError, Seconds, slug

P = ParamSpec("P")
Runner = Literal["processes", "threads", "dask"]
PROGRESS_EVERY: Seconds = 2.0
NAMED = 100  # of recordings that failed


@task(
    task_run_name="{name}",
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=lambda task, run, state: _infrastructure(state),
    cache_policy=NO_CACHE,
    persist_result=False,
)
def shard(name: str, batch: bytes) -> Built:
    """Build the shard `name` of a pickled batch; Prefect and Dask would look into every recording of a plain one."""
    return build_shard(pickle.loads(batch))


def plainly(function: Callable[P, State[Any]]) -> Callable[P, State[Any]]:
    """Let an error that a user can cause end the run as Failed with its message, without a traceback.

    The run ends with the process that serves it, however that one dies, so that it never outlives its slot.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        follow_parent()
        try:
            return function(*args, **kwargs)
        except (PalimpsestError, OSError) as error:
            get_run_logger().error(str(error))
            return Failed(message=str(error))

    # Prefect looks for the names in annotations elsewhere than in this module.
    vars(run)["__signature__"] = inspect.signature(function, eval_str=True)
    return run


@flow
@plainly
def ingest(
    dataset: str,
    source: str | None = None,
    lake: str | None = None,
    workers: int | None = None,
    limit: int | None = None,
    as_name: str | None = None,
    retry_quarantined: bool = False,
    shards: str | None = None,
    settle_s: float | None = None,
    runner: Runner = "processes",
    dask: str | None = None,
) -> State[Any]:
    """Turn the recordings of a data set into shards and catalog rows, a task a shard.

    Recordings that cannot be read go to quarantine; the run is Completed all the same, and an artifact names them.

    Args:
        dataset: a packaged recipe's name, or the path of a recipe of one's own.
        source: the folder of recordings; by default as told to `palimpsest source`.
        lake: where shards and rows go.
        workers: processes or threads, or how many a Dask cluster elsewhere has; by default one a core.
        limit: look at the first recordings only.
        as_name: the data set's name in the lake, when it is not the recipe's.
        retry_quarantined: try again what failed before.
        shards: an fsspec URL to write shards under, instead of the lake's own.
        settle_s: leave files that changed within so many seconds for the next run; this one is then an arrival.
        runner: where shards are built; the bytes are the same everywhere.
        dask: address of a Dask scheduler whose workers have source and shards in reach; without it a local cluster.
    """
    from flows.ingest import ingest as run

    tell = _progress(dataset)
    summary = run(
        _lake(lake),
        dataset,
        source=source,
        workers=workers,
        limit=limit,
        as_name=as_name,
        retry_quarantined=retry_quarantined,
        shards=shards,
        settle_s=settle_s,
        progress=lambda done, total: tell("recordings" if total else "looking", done, total),
        run=lambda batches: _build(batches, runner, workers, dask),
    )
    rows = [f"| {name} | {value} |" for name, value in asdict(summary).items() if name != "quarantined"]
    reasons = [f"- `{name}`: {reason}" for name, reason in summary.quarantined]
    text = ["| | |", "|---|---|", *rows, *(["", "In quarantine now:", "", *reasons[:NAMED]] if reasons else [])]
    text += [f"- and {len(reasons) - NAMED:,} more"] if len(reasons) > NAMED else []
    create_markdown_artifact("\n".join(text), key=_key("ingest", summary.dataset), description="What ingest did")
    message = f"{summary.recordings} recordings ingested as {summary.samples} samples, {summary.known} there already"
    return Completed(message=message + (f", {len(reasons)} quarantined" if reasons else ""))


@flow
@plainly
def update(
    stream: str | None = None,
    method: str | None = None,
    seed: int = 0,
    overrides: list[str] | None = None,
    retry: bool = False,
    lake: str | None = None,
) -> State[Any]:
    """Learn what is new in a stream, measure what is kept, promote or refuse; without a name, in all streams begun.

    One stream's error does not keep the others from learning; the run is Failed when there was any.
    """
    from flows.update import update as run

    where, logger = _lake(lake), get_run_logger()
    done, failed = [], []
    for name, config in [(stream, None)] if stream else begun(where):
        try:
            recipe = load_recipe(name) if config is None else Recipe.model_validate_json(config)
            summary = run(
                where,
                recipe,
                method=method,
                seed=seed,
                overrides=overrides or (),
                retry=retry,
                progress=_progress(recipe.name),
            )
        except Exception as error:
            logger.error("%s: %s", name, error, exc_info=not isinstance(error, PalimpsestError))
            failed.append(f"{name}: {error}")
            continue
        news = [f"learned {', '.join(summary.learned) or 'nothing new'}"]
        news += [f"promoted {snapshot}" for snapshot in summary.promoted]
        news += [f"refused {reason}" for reason in summary.refused]
        news += [f"skipped {reason}" for reason in summary.damaged.values()]
        text = "\n".join(f"- {line}" for line in news)
        create_markdown_artifact(text, key=_key("update", recipe.name), description="What update did")
        done.append(f"{recipe.name}: {'; '.join(news)}")
    if failed:
        return Failed(message="\n".join([*failed, *done]))
    return Completed(message="\n".join(done) or "no stream has been begun: `palimpsest update STREAM` begins one")


@flow
@plainly
def evaluate(stream: str, method: str | None = None, seed: int = 0, lake: str | None = None) -> State[Any]:
    """Measure the latest snapshot of a stream on every task again."""
    from flows.update import evaluate as run

    found = run(_lake(lake), stream, method=method, seed=seed, progress=_progress(stream))
    figures = [row for row in found.rows if row["split"] == "test" and row["modalities"] == "all"]
    news = [f"{row['protocol']}: {row['step_accuracy']:.1%}" for row in figures]
    news += [f"skipped {reason}" for reason in found.damaged.values()]
    return Completed(message="; ".join(news))


@flow
@plainly
def report(stream: str, out: str | None = None, lake: str | None = None) -> State[Any]:
    """Write the report of a stream, one HTML file."""
    from flows.report import report as run

    path = run(_lake(lake), stream, out=Path(out) if out else None)
    create_link_artifact(path.as_uri(), key=_key("report", stream), description="The stream's report")
    return Completed(message=str(path))


@flow
@plainly
def pretrain(
    dataset: str = "corpus", steps: int = 600, seed: int = 0, out: str | None = None, lake: str | None = None
) -> State[Any]:
    """Pre-train the tiny backbones on the recordings of a data set; no label is read."""
    from flows.pretrain import pretrain as run

    folder = Path(out) if out else None
    written = run(_lake(lake), dataset, out=folder, steps=steps, seed=seed, progress=_progress(dataset))
    return Completed(message=", ".join(map(str, written)))


def begun(lake: Lake) -> list[tuple[str, str | None]]:
    """The lake's streams that have more than trials, each with its recorded recipe where that was a user's own file."""
    rows = Ledger(lake).rows(
        "SELECT stream, config FROM runs WHERE NOT trial "
        "QUALIFY row_number() OVER (PARTITION BY stream ORDER BY recorded_at DESC) = 1 ORDER BY stream"
    )
    return [(row["stream"], None if row["stream"] in names() else row["config"]) for row in rows]


def _build(
    batches: Sequence[Batch], runner: Runner, workers: int | None = None, dask: str | None = None
) -> Iterator[Built]:
    """Build the batches, in order and a few ahead; those that a worker took along when it died are built alone."""
    left, jobs = iter(batches), deque[tuple[Batch, PrefectFuture[Built] | None]]()
    workers = workers or len(os.sched_getaffinity(0))
    ended = not batches
    while not ended:
        pool, death = _pool(runner, min(workers, len(batches)), dask)
        with pool:
            ahead = AHEAD * workers
            try:
                while not ended:
                    for batch in itertools.islice(left, ahead - len(jobs)):
                        jobs.append((batch, None))  # before it is handed to a pool that may be broken by now
                        jobs[-1] = batch, pool.submit(shard, {"name": batch.shard, "batch": pickle.dumps(batch)})
                    if jobs:
                        yield cast(Any, jobs[0][1]).result()
                        jobs.popleft()
                    ended = not jobs
            except death:
                get_run_logger().warning("a worker died; the shards that it held are built again, one by one")
                for batch, future in jobs:
                    yield _survived(future, death) or build_alone(build_shard, batch)
                jobs.clear()


def _survived(future: PrefectFuture[Built] | None, death: type[Exception]) -> Built | None:
    try:
        return None if future is None else cast(Any, future).result()
    except death:
        return None


def _pool(runner: Runner, workers: int, dask: str | None) -> tuple[TaskRunner[Any], type[Exception]]:
    """A task runner, and what its futures raise when their worker died."""
    if runner == "threads":
        return ThreadPoolTaskRunner(max_workers=workers), BrokenExecutor
    if runner == "processes":
        return ProcessPoolTaskRunner(max_workers=workers, initializer=follow_parent), BrokenExecutor
    try:
        from dask import config
        from distributed import KilledWorker
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise PalimpsestError("the runner dask needs the extra `scale`: pip install 'palimpsest[scale]'") from error
    if dask:
        return DaskTaskRunner(address=dask), KilledWorker
    config.set({"distributed.scheduler.allowed-failures": 0})  # a shard whose worker died is built alone
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=local), KilledWorker


def _infrastructure(state: State[Any]) -> bool:
    """Whether a failure may pass by itself: one of disk or network, not of our code."""
    return isinstance(state.result(raise_on_failure=False), OSError)


def _lake(folder: str | None) -> Lake:
    return Lake(Path(folder or os.environ.get("PALIMPSEST_LAKE") or "lake"))


def _progress(title: str) -> Callable[[str, int, int], None]:
    """A progress bar in Prefect's interface, moved every few seconds; each new step is logged."""
    artifact = cast(UUID, create_progress_artifact(0.0, description=title))
    logger, step, moved = get_run_logger(), "", 0.0

    def tell(what: str, done: int, total: int) -> None:
        nonlocal step, moved
        if what != step:
            step = what
            logger.info("%s: %s", title, what)
        if done == total or time.monotonic() - moved > PROGRESS_EVERY:
            moved = time.monotonic()
            share = 100 * done / total if total else 0.0
            update_progress_artifact(artifact, share, description=f"{title}: {what}")

    return tell


def _key(*parts: str) -> str:
    return slug(" ".join(parts))
