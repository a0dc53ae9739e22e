"""Recordings as they arrive: what is whole is taken, every round an arrival, and a stream learns in that order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import flows.ingest
from flows import stream
from flows.ingest import ingest
from flows.recipe import load_recipe, override
from flows.watch import watch
from pipelines.ingest import IngestSummary
from store.lake import Lake
from store.ledger import Ledger
from store.types import PalimpsestError

ROOT = Path(__file__).parents[2]
Arrive = Callable[..., None]


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def arrive(inbox: Path) -> Arrive:
    """Puts a sound and its manifest row into the inbox; files that arrived `ago` seconds since."""

    def put(name: str, label: str = "a", split: str = "train", ago: float = 3600) -> None:
        wave = np.random.default_rng(sum(name.encode())).uniform(-0.1, 0.1, 4000)
        soundfile.write(inbox / f"{name}.wav", wave, 8000, subtype="PCM_16")
        manifest = inbox / "manifest.csv"
        rows = manifest.read_text() if manifest.exists() else "audio,label,split\n"
        manifest.write_text(f"{rows}{name}.wav,{label},{split}\n")
        for path in (inbox / f"{name}.wav", manifest):
            os.utime(path, (time.time() - ago,) * 2)

    return put


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the time that arrivals bear."""

    def now(time: str) -> None:
        monkeypatch.setattr(flows.ingest, "_now", lambda: time)

    return now


def sealed(lake: Lake, *settings: str) -> dict[str, list[str]]:
    """The names of the stream's tasks after sealing what is there, and the recordings of each."""
    ledger = Ledger(lake)
    stream.seal(ledger, override(load_recipe("folder-arrivals"), settings))
    rows = ledger.rows(
        "SELECT task_name, list_sort(list(name)) AS names FROM task_samples JOIN tasks USING (stream, task) "
        "JOIN samples USING (dataset, key) JOIN recordings USING (dataset, recording) "
        "GROUP BY task, task_name ORDER BY task"
    )
    return {row["task_name"]: [name.removesuffix(".wav") for name in row["names"]] for row in rows}


def test_what_is_still_changing_waits_and_keeps_the_time_when_it_came(
    lake: Lake, inbox: Path, arrive: Arrive, at: Callable[[str], None]
) -> None:
    arrive("first")
    arrive("second", ago=0)
    at("2026-01-01T00:00:00Z")
    summary = ingest(lake, "folder", source=inbox, workers=1, settle_s=60)
    assert (summary.recordings, summary.arriving) == (1, 1)
    os.utime(inbox / "second.wav", (0, 0))
    at("2026-01-02T00:00:00Z")
    assert ingest(lake, "folder", workers=1, settle_s=60).recordings == 1
    at("2026-01-03T00:00:00Z")
    assert ingest(lake, "folder", workers=1, settle_s=60).relabelled == 0
    rows = Ledger(lake).rows("SELECT arrival FROM samples ORDER BY arrival")
    assert [row["arrival"] for row in rows] == ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]


def test_an_ingest_that_does_not_wait_is_no_arrival(lake: Lake, inbox: Path, arrive: Arrive) -> None:
    arrive("first", ago=0)
    assert ingest(lake, "folder", source=inbox, workers=1).recordings == 1
    assert Ledger(lake).rows("SELECT arrival FROM samples") == [{"arrival": None}]


def test_a_stream_learns_arrivals_in_order_of_time(
    lake: Lake, inbox: Path, arrive: Arrive, at: Callable[[str], None]
) -> None:
    arrive("before")
    ingest(lake, "folder", source=inbox, workers=1)
    for day, (name, split) in enumerate([("one", "train"), ("two", "test"), ("three", "train")], 1):
        arrive(name, split=split)
        at(f"2026-01-0{day}T00:00:00Z")
        ingest(lake, "folder", workers=1, settle_s=60)
    first = {
        "earlier": ["before"],
        "2026-01-01T00:00:00Z": ["one"],
        # What brings nothing to learn from is measured with the next that does.
        "2026-01-02T00:00:00Z..2026-01-03T00:00:00Z": ["three", "two"],
    }
    assert sealed(lake) == first
    arrive("four")
    at("2026-01-04T00:00:00Z")
    ingest(lake, "folder", workers=1, settle_s=60)
    assert sealed(lake) == first | {"2026-01-04T00:00:00Z": ["four"]}


def test_a_task_may_be_of_several_arrivals(lake: Lake, inbox: Path, arrive: Arrive, at: Callable[[str], None]) -> None:
    for day in (1, 2, 3):
        arrive(f"day{day}")
        at(f"2026-01-0{day}T00:00:00Z")
        ingest(lake, "folder", source=inbox, workers=1, settle_s=60)
    assert list(sealed(lake, "stream.per_task=2").values()) == [["day1", "day2"], ["day3"]]


@pytest.mark.parametrize("setting", ["stream.order=[x]", "stream.order_seed=1"])
def test_arrivals_have_no_other_order(setting: str) -> None:
    with pytest.raises(PalimpsestError, match="in the order of their times"):
        override(load_recipe("folder-arrivals"), [setting])


@pytest.mark.parametrize(("name", "written"), [("manifest.csv", "audio,label\nfirst.w"), ("rows.parquet", "PAR1")])
def test_a_list_that_is_being_written_is_waited_for(
    lake: Lake, inbox: Path, arrive: Arrive, monkeypatch: pytest.MonkeyPatch, name: str, written: str
) -> None:
    arrive("first")
    whole = (inbox / "manifest.csv").read_text()
    (inbox / name).write_text(written)

    def finish(seconds: float) -> None:
        (inbox / "manifest.csv").write_text(whole)
        if name != "manifest.csv":
            os.utime(inbox / name, (0, 0))

    monkeypatch.setattr(flows.ingest.time, "sleep", finish)
    summary = ingest(lake, "folder", source=inbox, workers=1, settle_s=60)
    assert (summary.recordings, summary.quarantined) == (1, ())


def test_the_watch_says_an_error_once_and_takes_what_comes(lake: Lake, inbox: Path, arrive: Arrive) -> None:
    said: list[str] = []
    told: list[IngestSummary] = []

    class Stop(threading.Event):
        rounds = 0

        def wait(self, timeout: float | None = None) -> bool:
            """What happens between one round and the next."""
            self.rounds += 1
            match self.rounds:
                case 2:
                    inbox.mkdir()
                case 3:
                    arrive("first")
                case 5:
                    arrive("second")
                    arrive("third", ago=0)
                case 6:
                    self.set()
            return self.is_set()

    inbox.rmdir()
    watch(lake, "folder", stop=Stop(), source=inbox, settle_s=60, workers=1, tell=told.append, complain=said.append)
    assert [message.partition(" in ")[0].partition(":")[0] for message in said] == [
        "no such folder",
        "no manifest.csv or manifest.parquet",
    ]
    assert [(summary.recordings, summary.known, summary.arriving) for summary in told] == [(1, 0, 0), (1, 1, 1)]


def test_what_cannot_become_right_by_waiting_is_an_error(lake: Lake) -> None:
    for dataset, message in (("none", "no recipe 'none'"), ("folder", "tell it once")):
        with pytest.raises(PalimpsestError, match=message):
            watch(lake, dataset, stop=threading.Event())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_watch_after_its_round(lake: Lake, inbox: Path, arrive: Arrive, number: int) -> None:
    arrive("first")
    arrive("second")
    words = ["ingest", "folder", "--source", inbox, "--watch", "--every", 3600, "--workers", 2]
    command = [sys.executable, "-c", "from flows.cli import main; main()", "--lake", lake.root, *words]
    with subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("folder: ingested 2 recordings")
        process.send_signal(number)
        assert process.wait(60) == 0
