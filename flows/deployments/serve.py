"""`palimpsest serve`: every deployment from one process, beside a Prefect server that is already there or its own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.runner import Runner
from prefect.settings import PREFECT_API_URL, load_current_profile, temporary_settings, update_current_profile
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType

from flows.deployments import flows
from flows.recipe import datasets, load_recipe
from store.lake import Lake, lock
from store.types import PalimpsestError, Seconds

NIGHTLY = "0 3 * * *"
ARRIVALS = "*/5 * * * *"
SETTLE: Seconds = 10.0
START_WITHIN: Seconds = 120.0
STOP_WITHIN: Seconds = 10.0
POLL_EVERY: Seconds = 2.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """A flow under a name that people run, with the parameters that it has then."""

    flow: Flow[Any, Any]
    name: str
    parameters: dict[str, Any]
    cron: str | None = None
    concurrency_limit: ConcurrencyLimitConfig | None = None


def serve(lake: Lake, *, port: int = 4200, watch: Sequence[str] = ()) -> None:
    """Serve `deployments(lake, watch)` until SIGINT or SIGTERM.

    Runs come from the Prefect server at ``PREFECT_API_URL`` where that is set; else from one on a loopback port, which
    is started and stopped here, and named in the active Prefect profile meanwhile, for `prefect deployment run`.

    Args:
        lake: what every run works on unless told otherwise.
        port: of the server of its own.
        watch: data sets that are ingested every five minutes, each a recipe's name or path.

    Raises:
        PalimpsestError: the lake is served already, or there is no server and none can be started.
    """
    served = deployments(lake, watch)
    os.environ["PYTHONSAFEPATH"] = "1"  # a user's own ./flows must not stand before ours in the processes started here
    os.environ.setdefault("DO_NOT_TRACK", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # while starting up; then `_run` listens
    try:
        with lock(lake, "serve"), _server(port) as url:
            print(f"lake {lake.root}, Prefect at {url.removesuffix('/api')}", flush=True)
            if dead := recover(lake, served):
                print(f"runs that a killed process left behind, marked as crashed now: {dead}", flush=True)
            asyncio.run(_run(served))
    except BlockingIOError as error:
        raise PalimpsestError(f"the lake {lake.root} is served already, by another `palimpsest serve`") from error


def deployments(lake: Lake, watch: Sequence[str] = ()) -> list[Deployment]:
    """An ingest of each data set, the nightly update, and the flows that take a stream's name.

    The data sets that `watch` names are ingested on a schedule too: what has finished arriving by then is an arrival.

    Raises:
        PalimpsestError: `watch` names a data set that there is no recipe for.
    """
    root = {"lake": str(lake.root)}
    one = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    skip = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    ingests = {name: Deployment(flows.ingest, name, {**root, "dataset": name}) for name in datasets()}
    for told in watch:
        name, recipe = load_recipe(told).dataset, str(Path(told).absolute()) if Path(told).is_file() else told
        parameters = {**root, "dataset": recipe, "settle_s": SETTLE}
        ingests[name] = Deployment(flows.ingest, name, parameters, cron=ARRIVALS, concurrency_limit=skip)
    return [
        *ingests.values(),
        Deployment(flows.update, "nightly", root, cron=NIGHTLY, concurrency_limit=one),
        Deployment(flows.evaluate, "stream", root),
        Deployment(flows.report, "stream", root),
        Deployment(flows.pretrain, "tiny", root),
    ]


async def _run(served: Sequence[Deployment]) -> None:
    """Register the deployments and run what is asked of them until a signal comes; runs under way are cancelled."""
    runner = Runner(query_seconds=POLL_EVERY)
    for one in served:
        # Given as objects: a run's process then has this one's path. Prefect's own loading puts the working directory
        # first, and a user's ./flows with it.
        await runner.aadd_flow(
            one.flow,
            one.name,
            parameters=one.parameters,
            cron=one.cron,
            concurrency_limit=one.concurrency_limit,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        print(f"  prefect deployment run {one.flow.name}/{one.name}", flush=True)
    running = asyncio.create_task(runner.start())
    await asyncio.sleep(0)  # in which Prefect sets its own handler of SIGTERM, which leaves runs behind

    def stop() -> None:
        if runner.started:
            stopping.append(asyncio.ensure_future(runner.astop()))
        else:
            running.cancel()

    stopping: list[asyncio.Future[None]] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await asyncio.gather(*stopping)


def recover(lake: Lake, served: Sequence[Deployment]) -> int:
    """Mark as crashed the runs on `lake` whose process is gone, which would hold their concurrency slot for good.

    A run ends with the `serve` that started it, and only one serves a lake, so at its start none can be alive.

    Returns:
        How many there were.
    """
    states = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    names = DeploymentFilterName(any_=[one.name for one in served])
    with get_client(sync_client=True) as client:
        open_runs = client.read_flow_runs(
            deployment_filter=DeploymentFilter(name=names),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=states)),
        )
        dead = [run for run in open_runs if run.parameters.get("lake") == str(lake.root)]
        for run in dead:
            client.set_flow_run_state(run.id, Crashed(message="its process was killed"), force=True)
    return len(dead)


@contextlib.contextmanager
def _server(port: int) -> Iterator[str]:
    """The URL of a server that answers: the one set, or one of our own while the block runs."""
    own = f"http://127.0.0.1:{port}/api"
    url = PREFECT_API_URL.value()
    if url and url != own:  # a killed `serve` leaves its own in the profile
        if not _healthy(url):
            raise PalimpsestError(
                f"no Prefect server answers at {url}. Start it, or unset PREFECT_API_URL "
                "(`prefect config unset PREFECT_API_URL`) to have one started here."
            )
        yield url
        return
    with _named_in_profile(own), temporary_settings({PREFECT_API_URL: own}):
        if _healthy(own):
            yield own
            return
        with _started(own, port):
            yield own


@contextlib.contextmanager
def _started(url: str, port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        # In a session of its own: an interrupt from the keyboard must leave it to the last requests of those it serves.
        server = subprocess.Popen(
            [*command, "--analytics-off"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            deadline = time.monotonic() + START_WITHIN
            while not _healthy(url):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    said = "\n".join(log.read().strip().splitlines()[-5:])
                    raise PalimpsestError(f"the Prefect server does not start on port {port}; it says:\n{said}")
                time.sleep(0.2)
            yield
        finally:
            server.terminate()
            try:
                server.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that started it dies, however it dies; Linux alone can."""
    with contextlib.suppress(AttributeError):  # at once, lest the next `serve` take it for a server that stays
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def _named_in_profile(url: str) -> Iterator[None]:
    """Write `url` into the active Prefect profile for as long as the block runs, unless that is said already."""
    if "PREFECT_API_URL" in os.environ or load_current_profile().settings.get(PREFECT_API_URL) == url:
        yield
        return
    update_current_profile({PREFECT_API_URL: url})
    try:
        yield
    finally:
        if load_current_profile().settings.get(PREFECT_API_URL) == url:
            update_current_profile({PREFECT_API_URL: None})


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
