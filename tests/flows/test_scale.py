"""Ingest on Prefect's task runners: the same bytes everywhere, and workers that die take nothing along."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipelines.plan
from flows.ingest import ingest
from pipelines.clip import ClipFormat
from pipelines.plan import Batch, plan
from pipelines.readers import READERS, reader
from store.lake import Lake
from store.ledger import Ledger

RECIPE = """
name: mortal
dataset: mortal
reader: {name: mortal}
stream: {scenario: class-incremental, by: label}
learner: {backbones: {image: tiny}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server of its own."""
    from prefect.settings import PREFECT_HOME, PREFECT_SERVER_ANALYTICS_ENABLED, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with temporary_settings(
        {PREFECT_HOME: tmp_path_factory.mktemp("prefect"), PREFECT_SERVER_ANALYTICS_ENABLED: False}
    ):
        with prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(READERS, "mortal", "tests.flows.mortal:Mortal")
    monkeypatch.setattr(pipelines.plan, "BATCH_RECORDINGS", 2)
    path = tmp_path / "mortal.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def shards(lake: Lake) -> dict[str, str]:
    """The shards that lie there, with their hashes, which are those that the ledger names."""
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in lake.root.glob("shards/*/*.tar")}
    told = {row["shard"]: row["sha256"] for row in Ledger(lake).rows("FROM shards WHERE url IS NOT NULL")}
    assert there == told
    return there


def samples(lake: Lake) -> list[dict[str, object]]:
    return Ledger(lake).rows("SELECT * EXCLUDE recorded_at FROM samples ORDER BY key")


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("runner", ["threads", "processes", "dask"])
def test_every_runner_makes_the_same_shards_and_outlives_its_workers(
    tmp_path: Path, recipe: str, source: Path, runner: str
) -> None:
    if runner == "dask":
        pytest.importorskip("prefect_dask")
    from flows.deployments import flows

    undisturbed, lake = Lake(tmp_path / "undisturbed"), Lake(tmp_path / "lake")
    assert ingest(undisturbed, recipe, source=source, workers=1).shards == 5
    (source / "3.kills").write_text("1")
    (source / "6.kills").write_text("1000")
    options = {"dataset": recipe, "source": str(source), "lake": str(lake.root), "runner": runner, "workers": 2}
    state = flows.ingest(**options, return_state=True)
    assert state.is_completed(), state.message
    if runner != "threads":  # which have no process of their own to be killed
        assert (source / "3.kills").read_text() == "0"
        (failed,) = Ledger(lake).rows("SELECT name, reason FROM quarantined WHERE reason IS NOT NULL")
        assert failed["name"] == "6.png" and "its decoder dies" in failed["reason"]
        lost = {row["shard"] for row in samples(undisturbed) if row["labels"] == ["6"]}
        there = shards(lake)
        assert {name: one for name, one in shards(undisturbed).items() if name not in lost} == {
            name: one for name, one in there.items() if name not in lost
        }
        assert Counter(row["labels"][0] for row in samples(lake)) == Counter("01234578")
        (source / "6.kills").unlink()
        again = ingest(lake, recipe, workers=1, retry_quarantined=True)
        assert (again.samples, again.known, again.quarantined) == (1, 8, ())
        assert Counter(row["labels"][0] for row in samples(lake)) == Counter("012345678")
    else:
        assert (shards(lake), samples(lake)) == (shards(undisturbed), samples(undisturbed))


@pytest.mark.usefixtures("server", "recipe")
def test_batches_are_looked_at_as_they_are_needed_and_results_come_in_their_order(lake: Lake, source: Path) -> None:
    from flows.deployments import flows

    class Watched(Sequence[Batch]):
        """Batches that tell how many of them were looked at."""

        def __init__(self, batches: Sequence[Batch]):
            self.batches, self.seen = batches, 0

        def __len__(self) -> int:
            return len(self.batches)

        def __getitem__(self, place: Any) -> Any:
            one = self.batches[place]
            self.seen += 1
            return one

    work = plan(Ledger(lake), reader("mortal"), source, format=ClipFormat(), dataset="mortal").batches
    watched = Watched(work)
    results = flows._build(watched, "threads", 1)
    first = next(results)
    assert watched.seen < len(work)
    assert [one.batch for one in (first, *results)] == [batch.id for batch in work]
