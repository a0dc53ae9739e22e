"""Every case of `faults.py`, ingested in one run of two workers beside good neighbours, and what became of each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import webdataset

import pipelines.ingest
from pipelines.clip import ClipFormat
from pipelines.ingest import ingest
from pipelines.readers import reader
from store.lake import Lake
from store.ledger import Ledger
from store.shards import Entry, read_sample
from store.types import PalimpsestError, Sample
from tests.pipelines import faults
from tests.pipelines.faults import FAULTS

ROOT = Path(__file__).parents[2]
FORMAT = ClipFormat(frames=8, frame_size=(32, 32), image_size=(32, 32), depth_size=(16, 16))
WALL_S, MEMORY = 120, 1500 << 20
SCRIPT = """
import json, resource, sys
from pathlib import Path
from pipelines.clip import ClipFormat
from pipelines.ingest import ingest
from pipelines.readers import folder
from store.lake import Lake
from tests.pipelines import faults

class Folder(folder.Folder):
    def recordings(self, source):
        yield from super().recordings(source)
        faults.change(source)

if __name__ == "__main__":
    source, lake, format = sys.argv[1:]
    format = ClipFormat.from_json(format)
    done = ingest(Lake(lake), Folder(), Path(source), format=format, dataset="faults", workers=2)
    status = Path("/proc/self/status")  # ru_maxrss of a new process begins with its parent's
    lines = status.read_text().splitlines() if status.exists() else []
    own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    memory = 1024 * max(*own, 0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    print(json.dumps({"quarantined": done.quarantined, "recordings": done.recordings, "memory": memory}))
"""


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """All cases, ingested once: the summary, reasons and samples by recording, and the lake."""
    folder = tmp_path_factory.mktemp("faults")
    source, lake = folder / "source", Lake(folder / "lake")
    source.mkdir()
    made = faults.make_all(source)
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(source), str(lake.root), FORMAT.json],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=WALL_S,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    summary = json.loads(process.stdout)
    samples = defaultdict(list)
    rows = Ledger(lake).rows("SELECT s.*, h.url FROM samples s JOIN shards h USING (dataset, shard)")
    for row in rows:
        entry = Entry(row["key"], row["offset"], row["size"], row["checksum"])
        sample = read_sample(lake.resolve(row["url"]), entry)
        samples[sample.meta["name"]].append(sample)
    return SimpleNamespace(
        folder=folder,
        source=source,
        lake=lake,
        made=made,
        samples=samples,
        summary=summary,
        reasons=dict(summary["quarantined"]),
        urls=sorted({lake.resolve(row["url"]) for row in rows}),
    )


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.verdict == "refused"])
def test_refused_with_a_reason(run, name):
    fault = FAULTS[name]
    if not run.made.names[name]:
        pytest.skip("root reads what it may not")
    for recording in run.made.names[name]:
        reason = run.reasons.get(recording)
        assert reason, f"{recording} was taken"
        assert re.search(fault.says, reason), f"{recording}: {reason}"
        assert "Traceback" not in reason and "cannot be decoded (" not in reason, f"{recording}: {reason}"
        assert len(reason) < 500


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.verdict == "good"])
def test_taken_and_mended(run, name):
    for recording in run.made.names[name]:
        assert recording not in run.reasons, f"{recording}: {run.reasons[recording]}"
        assert FAULTS[name].holds(run.samples[recording]), recording


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.verdict == "caught"])
def test_caught_or_without_effect(run, name):
    fates = [fate(run, recording, run.made.whole[name]) for recording in run.made.names[name]]
    damaged = [caught for caught in fates if caught is not None]
    assert sum(damaged) >= FAULTS[name].least * len(damaged), f"{sum(damaged)} of {len(damaged)} are caught"


def fate(run, recording: str, whole: str) -> bool | None:
    """Whether damage was caught: refused, or owned to by the quality columns; None where no sample shows any."""
    (intact,) = run.samples[whole]
    if recording in run.reasons:
        return True
    (sample,) = run.samples[recording]
    if any(sample.meta["quality"].get(f"{track}_errors") for track in ("video", "audio", "image")):
        return True
    return None if content(sample) == content(intact) else False


def content(sample: Sample) -> tuple:
    sound, imu = (None if signal is None else signal.tobytes() for signal in (sample.audio, sample.imu))
    return sample.frames, sound, imu, sample.image


def test_every_good_neighbour_is_in_exactly_once(run):
    assert len(run.made.neighbours) == len(FAULTS)
    assert {name: len(run.samples[name]) for name in run.made.neighbours} == dict.fromkeys(run.made.neighbours, 1)
    assert {label for name in run.made.neighbours for label in run.samples[name][0].meta["labels"]} == {"good"}


def test_nothing_is_lost_and_nothing_is_in_twice(run):
    names = {name for names in run.made.names.values() for name in names} | {*run.made.whole.values()}
    names |= set(run.made.neighbours)
    assert run.samples.keys() | run.reasons.keys() == names
    assert not run.samples.keys() & run.reasons.keys()
    assert run.summary["recordings"] == len(run.samples)


def test_the_shards_are_read_by_stock_webdataset(run):
    keys = [one["__key__"] for one in webdataset.WebDataset(run.urls, shardshuffle=False).decode("pil")]
    assert sorted(keys) == sorted(sample.key for samples in run.samples.values() for sample in samples)


def test_nothing_was_written_or_run_outside_the_lake(run):
    assert {path.name for path in run.folder.iterdir()} == {"source", "lake", "outside.wav", "outside.png"}
    assert not [path for path in run.folder.rglob("*") if path.name.startswith(("slip", "pickle-was"))][1:]


def test_no_bomb_takes_the_memory(run):
    assert run.summary["memory"] < MEMORY


def test_a_second_run_decodes_nothing(run, monkeypatch):
    grown = list((run.source / "files-that-grow").iterdir())  # tried again, for they are others now
    monkeypatch.setattr(pipelines.ingest, "cut_all", None)
    again = ingest(run.lake, reader("folder"), run.source, format=FORMAT, dataset="faults")
    assert (again.recordings, len(again.quarantined)) == (0, len(grown))
    assert (again.skipped, again.known) == (len(run.reasons) - len(grown), len(run.samples))


@pytest.mark.parametrize("kind", ["mp4", "wav", "png"])
def test_a_mended_file_is_taken_when_it_is_tried_again(tmp_path, lake, kind):
    column, write = faults.WHOLE[kind]
    path = write(tmp_path / f"a.{kind}")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "manifest.csv").write_text(f"{column}\na.{kind}\n")

    def again(**options):
        return ingest(lake, reader("folder"), tmp_path, format=FORMAT, dataset="mended", **options)

    assert [name for name, _ in again().quarantined] == [path.name]
    assert (again().skipped, again().quarantined) == (1, ())
    assert [name for name, _ in again(retry_quarantined=True).quarantined] == [path.name]
    path.write_bytes(whole)
    assert (again(retry_quarantined=True).recordings, again().known) == (1, 1)
    assert [row["reason"] for row in Ledger(lake).rows("SELECT reason FROM quarantined")] == [None]


@pytest.mark.parametrize("name", faults.MANIFESTS)
def test_a_manifest_that_cannot_be_trusted_ends_the_run(tmp_path, lake, name):
    data, says = faults.MANIFESTS[name]
    (tmp_path / "manifest.csv").write_bytes(data)
    with pytest.raises(PalimpsestError, match=says):
        ingest(lake, reader("folder"), tmp_path, format=FORMAT, dataset="none")


def test_the_table_for_people_holds_every_case_with_its_verdict():
    lines = (ROOT / "pipelines" / "FAULTS.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    table = {name: verdict for name, verdict, _ in rows[1:]}
    cases = {name: fault.verdict for name, fault in FAULTS.items()} | dict.fromkeys(faults.MANIFESTS, "stops")
    assert len(rows) - 1 == len(table)
    assert table == cases
