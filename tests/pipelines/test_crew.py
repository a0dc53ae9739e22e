"""Workers that die: what they had in hand is built by others, and a recording that kills is set apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import pipelines.plan
from pipelines.clip import ClipFormat
from pipelines.ingest import ingest
from pipelines.readers import reader
from store.lake import Lake
from store.ledger import Ledger
from store.types import PalimpsestError, Recording

FORMAT = ClipFormat(frames=2, frame_size=(16, 16))

MODULE = '''
import multiprocessing, os, signal, threading
from pathlib import Path
import pipelines.crew, pipelines.quality
from store.types import Recording

CLIPS = Recording.clips
if multiprocessing.parent_process() is not None:
    pipelines.crew.GRACE_S, pipelines.quality.LIMIT_S = 0.0, 2.0

class Killer(Recording):
    """Dies with the worker that looks at its clips, `times` times."""

    @property
    def clips(self):
        tally = Path(self.language)
        if multiprocessing.parent_process() is not None and len(tally.read_bytes()) < int(self.group):
            with open(tally, "ab") as file:
                file.write(b"x")
            if self.domain == "hang":
                threading.Event().wait()
            os.kill(os.getpid(), signal.SIGKILL)
        return CLIPS.__get__(self)

    @clips.setter
    def clips(self, value):
        CLIPS.__set__(self, value)
'''


class Deadly:
    """The recordings of a folder, one of which kills."""

    name, version = "deadly", 1

    def __init__(self, kind: type[Recording], tally: Path, times: int, end: str):
        self.kind, self.tally, self.times, self.end = kind, tally, times, end

    def __repr__(self) -> str:
        return self.name

    def recordings(self, source: Path):
        for found in reader("folder").recordings(source):
            if found.name == "4.wav":
                known = {name: getattr(found, name) for name in Recording.__slots__}
                known |= {"group": str(self.times), "language": str(self.tally), "domain": self.end}
                found = self.kind(**known)
            yield replace(found, split="train")


@pytest.fixture
def talks(tmp_path, make_sound) -> Path:
    for number in range(8):
        make_sound(tmp_path / "talks" / f"{number}.wav", seed=number)
    rows = "".join(f"{number}.wav,a\n" for number in range(8))
    (tmp_path / "talks" / "manifest.csv").write_text("audio,label\n" + rows)
    return tmp_path / "talks"


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    """Ingest the talks with 2 workers, one of which dies `times` times over one recording."""
    (tmp_path / "deadly_recordings.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pipelines.plan, "BATCH_RECORDINGS", 2)
    import deadly_recordings

    def run(lake: Lake, talks: Path, times: int, end: str = "die"):
        tally = tmp_path / f"tally-{times}"
        tally.write_bytes(b"")
        reader = Deadly(deadly_recordings.Killer, tally, times, end)
        return ingest(lake, reader, talks, format=FORMAT, dataset="talks", workers=2)

    return run


def left(lake: Lake) -> tuple[dict[str, bytes], list[dict]]:
    shards = {path.name: path.read_bytes() for path in (lake.root / "shards").rglob("*.tar")}
    return shards, Ledger(lake).rows("SELECT * EXCLUDE recorded_at FROM samples ORDER BY key")


def test_shards_of_a_worker_that_dies_are_built_by_another(tmp_path, talks, deadly):
    summaries = {times: deadly(Lake(tmp_path / str(times)), talks, times) for times in (0, 1, 3)}
    assert {(one.recordings, one.quarantined) for one in summaries.values()} == {(8, ())}
    ends = [shards.values() for shards, _ in (left(Lake(tmp_path / str(times))) for times in (0, 1, 3))]
    assert sum(len(one) for one in ends[0]) > 0
    # The tally's path is part of the samples' JSON, and nothing else may differ.
    assert len({tuple(len(shard) for shard in end) for end in ends}) == 1


@pytest.mark.parametrize("end", ["die", "hang"])
def test_a_recording_that_kills_or_hangs_is_set_apart_and_its_neighbours_are_kept(lake, talks, deadly, end):
    summary = deadly(lake, talks, 1000, end)
    assert summary.recordings == 7
    assert [(name, "its decoder dies" in reason) for name, reason in summary.quarantined] == [("4.wav", True)]
    _, samples = left(lake)
    assert len({row["recording"] for row in samples}) == len(samples) == 7


def test_workers_that_die_whatever_they_do_end_the_run_with_advice(lake, talks, deadly, monkeypatch):
    monkeypatch.setattr("pipelines.crew.isolate", lambda batch: batch)
    with pytest.raises(PalimpsestError, match="too little memory"):
        deadly(lake, talks, 1000)
    assert len(left(lake)[1]) % 2 == 0  # what was built before is kept, whole shards of it
