"""Prefect: what is deployed, and one real server, `palimpsest serve` and run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from store.lake import Lake
from store.ledger import Ledger

ROOT = Path(__file__).parents[2]


def test_prefect_yaml_deploys_what_serve_serves(lake: Lake) -> None:
    from flows.deployments.serve import deployments

    served = {}
    for one in deployments(lake):
        limit, parameters = one.concurrency_limit, dict(one.parameters)
        assert parameters.pop("lake") == str(lake.root)
        served[f"flows.deployments.flows.{one.flow.fn.__name__}", one.name] = (
            parameters,
            one.cron,
            limit and (limit.limit, limit.collision_strategy.value),
        )
    written = {
        (one["entrypoint"], one["name"]): (
            one.get("parameters", {}),
            next((schedule["cron"] for schedule in one.get("schedules", ())), None),
            tuple(one["concurrency_limit"].values()) if "concurrency_limit" in one else None,
        )
        for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    }
    assert served == written
    assert served["flows.deployments.flows.update", "nightly"] == ({}, "0 3 * * *", (1, "ENQUEUE"))


def test_a_data_set_that_several_streams_read_has_one_deployment_under_its_own_name(lake: Lake) -> None:
    from flows.deployments.serve import deployments

    ingests = [one.name for one in deployments(lake) if one.flow.name == "ingest"]
    assert len(set(ingests)) == len(ingests)
    assert "folder" in ingests and "folder-arrivals" not in ingests


def test_what_is_watched_is_ingested_on_a_schedule_as_arrivals(lake: Lake, tmp_path: Path) -> None:
    from flows.deployments.serve import deployments

    own = tmp_path / "mine.yaml"
    own.write_text((ROOT / "flows" / "recipes" / "folder.yaml").read_text().replace("dataset: folder", "dataset: mine"))
    ingests = {one.name: one for one in deployments(lake, ["folder", str(own)]) if one.flow.name == "ingest"}
    for name, recipe in (("folder", "folder"), ("mine", str(own))):
        one = ingests[name]
        assert one.parameters == {"lake": str(lake.root), "dataset": recipe, "settle_s": 10.0}
        assert one.cron and one.concurrency_limit
        assert one.concurrency_limit.collision_strategy.value == "CANCEL_NEW"  # a slow round is not queued behind
    assert ingests["samsemo"].cron is None


def test_nightly_updates_the_streams_that_were_begun(lake: Lake, learned: Ledger) -> None:
    from flows.deployments.flows import begun

    run = {"scenario": "s", "method": "m", "seed": 0}
    learned.append("runs", [run | {"run_id": "d", "stream": "digits", "trial": False, "config": "{}"}])
    learned.append("runs", [run | {"run_id": "g", "stream": "grid-words", "trial": True, "config": "{}"}])
    assert begun(lake) == [("digits", None), ("toy", "{}")]  # by name where packaged, else as recorded; no trials


class Prefect:
    """A Prefect home of its own, its command line and its server's API."""

    def __init__(self, home: Path, lake: Lake):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.home, self.lake = home, lake
        self.cwd = home.parent / "cwd"  # where a user has a package of the same name as ours
        (self.cwd / "flows").mkdir(parents=True)
        (self.cwd / "flows" / "__init__.py").write_text("raise SystemExit('the wrong flows')")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "PALIMPSEST"))}
        self.env = kept | {"PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"}

    @contextmanager
    def served(self) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
        """`palimpsest serve` and what it said until it was ready; a test that fails leaves none of its processes."""
        code = "from flows.cli import main; main()"
        command = [sys.executable, "-P", "-c", code, "--lake", str(self.lake.root), "serve", "--port", str(self.port)]
        process = subprocess.Popen(
            command, cwd=self.cwd, env=self.env, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        too_long = threading.Timer(240, process.kill)
        too_long.start()
        try:
            assert process.stdout
            said = []
            for line in process.stdout:
                said.append(line.strip())
                if line.strip().endswith("pretrain/tiny"):
                    break
            assert process.poll() is None, said
            yield process, said
        finally:
            too_long.cancel()
            process.kill()
            process.wait()

    def run(self, *words: str) -> str:
        command = [sys.executable, "-P", "-m", "prefect", *words]
        ended = subprocess.run(command, cwd=self.cwd, env=self.env, capture_output=True, text=True, timeout=180)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def ask(self, path: str, body: object = None, method: str | None = None) -> Any:
        """By Prefect's own client, which tries again where the server's database is busy."""
        from prefect.client.base import PrefectHttpxSyncClient

        with PrefectHttpxSyncClient(base_url=f"http://127.0.0.1:{self.port}/api/", timeout=30) as client:
            return client.request(method or ("GET" if body is None else "POST"), path, json=body).json()


@pytest.mark.skipif(sys.platform != "linux", reason="a killed server ends with its parent on Linux alone")
def test_deployments_run_serve_leaves_nothing_behind_and_recovers_what_was_left(
    tmp_path: Path, lake: Lake, folder: Path
) -> None:
    prefect = Prefect(tmp_path / "prefect", lake)
    with prefect.served() as (process, _):
        prefect.run("deployment", "run", "ingest/folder", "--param", f"source={folder}", "--watch")
        (ingested,) = prefect.ask("flow_runs/filter", {})
        assert ingested["state"]["type"] == "COMPLETED"
        assert ingested["state"]["message"] == "2 recordings ingested as 2 samples, 0 there already, 1 quarantined"
        reasons = [one["data"] for one in prefect.ask("artifacts/filter", {}) if one["type"] == "markdown"]
        assert "`broken.wav`" in reasons[0]
        assert prefect.ask("task_runs/count", {}) == 1
        with duckdb.connect(str(lake.catalog), read_only=True) as catalog:
            assert catalog.execute("SELECT count(*), count(DISTINCT shard) FROM samples").fetchall() == [(2, 1)]

        nightly = prefect.ask("deployments/name/update/nightly")
        assert [schedule["schedule"]["cron"] for schedule in nightly["schedules"]] == ["0 3 * * *"]
        # A run whose process is gone, as `kill -9` leaves one: it holds the only slot.
        stuck = prefect.ask(f"deployments/{nightly['id']}/create_flow_run", {})["id"]
        for state in ("PENDING", "RUNNING"):
            prefect.ask(f"flow_runs/{stuck}/set_state", {"state": {"type": state}, "force": False})
        assert prefect.ask(f"deployments/{nightly['id']}")["global_concurrency_limit"]["active_slots"] == 1
        assert f"127.0.0.1:{prefect.port}" in (prefect.home / "profiles.toml").read_text()
        process.send_signal(signal.SIGTERM)
        process.communicate()  # until the last process that holds its output is gone
        assert process.returncode == 0
    assert "127.0.0.1" not in (prefect.home / "profiles.toml").read_text()
    with socket.socket() as server:
        assert server.connect_ex(("127.0.0.1", prefect.port)) != 0

    with prefect.served() as (_, said):
        assert "runs that a killed process left behind, marked as crashed now: 1" in said
        assert prefect.ask(f"flow_runs/{stuck}")["state"]["type"] == "CRASHED"
        assert prefect.ask(f"deployments/{nightly['id']}")["global_concurrency_limit"]["active_slots"] == 0
        prefect.run("deployment", "run", "update/nightly", "--watch")
