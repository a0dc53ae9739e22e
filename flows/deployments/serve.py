"""`palimpsest serve`: every deployment from one process, beside a Prefect server that is already there or its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import prefect
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.settings import PREFECT_API_URL, load_current_profile, temporary_settings, update_current_profile
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType

from flows.deployments import flows
from flows.recipe import names
from store.lake import Lake, lock
from store.types import PalimpsestError, Seconds

NIGHTLY = "0 3 * * *"
START_WITHIN: Seconds = 120.0
STOP_WITHIN: Seconds = 20.0


def serve(lake: Lake, *, port: int = 4200) -> None:
    """Serve `deployments(lake)` until SIGINT or SIGTERM.

    Runs come from the Prefect server at ``PREFECT_API_URL`` where that is set; else from one on a loopback port, which
    is started and stopped here, and named in the active Prefect profile meanwhile, for `prefect deployment run`.

    Args:
        lake: what every run works on unless told otherwise.
        port: of the server of its own.

    Raises:
        PalimpsestError: the lake is served already, or there is no server and none can be started.
    """
    # A user's own ./flows must not stand before ours in the processes that runs start in.
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ.setdefault("DO_NOT_TRACK", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what was started is stopped; Prefect sets its own
    try:
        with lock(lake, "serve"), contextlib.suppress(KeyboardInterrupt), _server(port) as url:
            print(f"lake {lake.root}, Prefect at {url.removesuffix('/api')}", flush=True)
            if dead := recover(lake):
                print(f"{dead} runs of a process that was killed are marked as crashed", flush=True)
            served = deployments(lake)
            for one in served:
                print(f"  prefect deployment run {one.flow_name}/{one.name}", flush=True)
            prefect.serve(*served, print_starting_message=False)
    except BlockingIOError as error:
        raise PalimpsestError(f"the lake {lake.root} is served already, by another `palimpsest serve`") from error


def deployments(lake: Lake) -> list[RunnerDeployment]:
    """An ingest of each packaged recipe, the nightly update, and the flows that take a stream's name."""
    root = {"lake": str(lake.root)}
    one = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    by_module = EntrypointType.MODULE_PATH  # by file path, flows.py itself would be imported as `flows`
    return [
        *(
            flows.ingest.to_deployment(name, parameters={**root, "dataset": name}, entrypoint_type=by_module)
            for name in names()
        ),
        flows.update.to_deployment(
            "nightly", cron=NIGHTLY, concurrency_limit=one, parameters=root, entrypoint_type=by_module
        ),
        flows.evaluate.to_deployment("stream", parameters=root, entrypoint_type=by_module),
        flows.report.to_deployment("stream", parameters=root, entrypoint_type=by_module),
        flows.pretrain.to_deployment("tiny", parameters=root, entrypoint_type=by_module),
    ]


def recover(lake: Lake) -> int:
    """Mark as crashed the runs on `lake` whose process is gone, which would hold their concurrency slot for good.

    A run that outlived a killed `serve` goes on: its process still names it in its environment.

    Returns:
        How many there were.
    """
    states = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    served = DeploymentFilterName(any_=[*names(), "nightly", "stream", "tiny"])
    alive = _runs_alive()
    with get_client(sync_client=True) as client:
        open_runs = client.read_flow_runs(
            deployment_filter=DeploymentFilter(name=served),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=states)),
        )
        dead = [run for run in open_runs if run.parameters.get("lake") == str(lake.root) and str(run.id) not in alive]
        for run in dead:
            client.set_flow_run_state(run.id, Crashed(message="its process was killed"), force=True)
    return len(dead)


def _runs_alive() -> set[str]:
    alive = set()
    for process in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            for variable in process.read_bytes().split(b"\0"):
                if variable.startswith(b"PREFECT__FLOW_RUN_ID="):
                    alive.add(variable.partition(b"=")[2].decode())
    return alive


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
            [*command, "--analytics-off"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
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


@contextlib.contextmanager
def _named_in_profile(url: str) -> Iterator[None]:
    """Write `url` into the active Prefect profile for as long as the block runs, unless it says so already."""
    if "PREFECT_API_URL" in os.environ:
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
