"""Worker processes that build shards in order, outlive the death of any of them, and find the recording that kills."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from pipelines.clip import cut_all
from pipelines.plan import Batch, Item
from pipelines.quality import Deadline
from store.types import PalimpsestError, Seconds

AHEAD = 2  # batches under way for each worker
DEATHS = 2  # that a batch is caught in before it is built alone
GRACE_S: Seconds = 60.0  # beyond its time in which a recording may still notice that it is up
_in_pool = False  # whether this process is a worker of ours, which may be ended
T = TypeVar("T")
Build = Callable[[Batch], T]


@dataclass(slots=True)
class _Job(Generic[T]):
    batch: Batch
    future: Future[T]
    deaths: int = 0


def in_order(build: Build[T], batches: Sequence[Batch], workers: int) -> Iterator[T]:
    """What `build` makes of `batches`, in their order; with 1 worker in this process.

    Raises:
        PalimpsestError: processes go on dying although no recording is to blame.
    """
    if workers <= 1 or not batches:
        yield from map(build, batches)
        return
    workers = min(workers, len(batches))
    left, jobs = iter(batches), deque[_Job[T]]()
    pool = _pool(workers)
    try:
        while True:
            for batch in itertools.islice(left, AHEAD * workers - len(jobs)):
                jobs.append(_Job(batch, _submit(pool, build, batch)))
            if not jobs:
                return
            try:
                made = jobs[0].future.result()
            except BrokenProcessPool:
                pool.shutdown()
                pool = _pool(workers)
                for job in jobs:
                    if isinstance(job.future.exception(), BrokenProcessPool):
                        job.deaths += 1
                        if job.deaths < DEATHS:
                            job.future = _submit(pool, build, job.batch)
                if jobs[0].deaths < DEATHS:
                    continue
                made = build_alone(build, jobs[0].batch)
            jobs.popleft()
            yield made
    finally:
        pool.shutdown(cancel_futures=True)


def build_alone(build: Build[T], batch: Batch) -> T:
    """What `build` makes of `batch` in a process of its own; recordings that kill it are found and marked as fatal.

    Raises:
        PalimpsestError: the process goes on dying although no recording is to blame.
    """
    for attempt in range(DEATHS + 1):
        batch = isolate(batch) if attempt else batch
        try:
            with _pool(1) as pool:
                return pool.submit(build, batch).result()
        except BrokenProcessPool as error:
            died = error
    raise PalimpsestError(
        f"the processes that build {batch.shard} go on dying, though each of its recordings can be cut: is there "
        "too little memory? What was done is kept; run the same command again, with fewer --workers."
    ) from died


def isolate(batch: Batch) -> Batch:
    """`batch` with the recordings marked as fatal whose decoding kills the process that does it."""
    fatal, bare = set(batch.fatal), replace(batch, items=())
    left = [item for item in batch.items if item.id not in fatal]
    while left:
        survived = 0
        try:
            with _pool(1) as pool:
                for future in [pool.submit(_attempt, bare, item) for item in left]:
                    future.result()
                    survived += 1
        except BrokenProcessPool:
            fatal.add(left[survived].id)
        left = left[survived + 1 :]
    return replace(batch, fatal=frozenset(fatal))


def follow_parent() -> None:
    """End this worker when the driver dies, however it dies."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def watched(item: Item) -> Iterator[None]:
    """End this worker should `item` take far beyond its time: code that never looks at the clock can be stuck for ever.

    Outside this module's workers nothing is done.
    """
    if not _in_pool:
        yield
        return
    timer = threading.Timer(Deadline.of(item.bytes).limit_s + GRACE_S, os._exit, (1,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _attempt(batch: Batch, item: Item) -> None:
    try:
        with watched(item):
            for _ in cut_all(item.recording, batch.format, batch.source, recording_id=item.id, scratch=batch.scratch):
                pass
    except Exception:  # only death counts here; `build` will meet the error again and give its reason
        return


def _begin() -> None:
    global _in_pool
    _in_pool = True
    follow_parent()


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: decoders and Arrow hold threads that a fork would leave locked.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)


def _submit(pool: ProcessPoolExecutor, build: Build[T], batch: Batch) -> Future[T]:
    try:
        return pool.submit(build, batch)
    except BrokenProcessPool as error:  # it broke since the last look: as if the worker had died with this batch
        failed: Future[T] = Future()
        failed.set_exception(error)
        return failed
