"""Ingest as recordings arrive: the ordinary ingest, again and again; every round that finds something is an arrival."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from flows.ingest import ingest
from flows.recipe import load_recipe
from flows.source import get_source
from pipelines.ingest import IngestSummary
from store.lake import Lake
from store.types import PalimpsestError, Seconds

INTERRUPTED = 130


def watch(
    lake: Lake,
    dataset: str,
    *,
    stop: threading.Event,
    source: Path | str | None = None,
    as_name: str | None = None,
    settle_s: Seconds = 10.0,
    every_s: Seconds = 30.0,
    tell: Callable[[IngestSummary], None] = lambda summary: None,
    complain: Callable[[str], None] = lambda message: None,
    **options: Any,
) -> None:
    """Bring a data set up to date with its recordings as they arrive, until `stop` is set.

    What a user can mend, such as a folder that is not there yet, is said once and tried again.

    Args:
        lake: where the data set's shards and rows go.
        dataset: a packaged recipe's name, or the path of a recipe of one's own.
        stop: ends the watch, after the round that is under way.
        source: the folder of recordings; None reads from the one that the lake remembers.
        as_name: the data set's name in the lake, when it is not the recipe's.
        settle_s: a file has arrived when it has not changed for so long.
        every_s: from the end of a round to the next one.
        tell: called with the summary of each round that did something.
        complain: called with the message of an error, once until it changes.
        **options: of `flows.ingest.ingest`.

    Raises:
        PalimpsestError: there is no such recipe, or the lake does not know the source.
    """
    own = load_recipe(dataset).dataset
    if source is None:
        get_source(lake, as_name or own, own)
    said = None
    while not stop.is_set():
        try:
            summary = ingest(lake, dataset, source=source, as_name=as_name, settle_s=settle_s, **options)
        except (PalimpsestError, OSError) as error:
            if said != (said := str(error)):
                complain(said)
        else:
            said = None
            if summary.recordings or summary.relabelled or summary.quarantined:
                tell(summary)
        stop.wait(every_s)


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets while the block runs; a second one ends the process at once.

    Processes started meanwhile do not hear SIGINT: one from the keyboard goes to them too, and would end their batch.
    """
    stop = threading.Event()
    told, tell = socket.socketpair()
    tell.setblocking(False)

    def listen() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        while told.recv(1):
            if stop.is_set():
                os._exit(INTERRUPTED)  # as good as `kill -9`, which loses nothing
            stop.set()

    resource_tracker.ensure_running()  # by the first worker, it would unblock SIGINT
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # A handler runs in this thread, which may wait for a shard: what listens is woken at once.
    former = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    waker = signal.set_wakeup_fd(tell.fileno())
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(waker)
        tell.close()
        listener.join()
        told.close()
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
