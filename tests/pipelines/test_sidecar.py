"""Sidecars: what is added is read with the sample it belongs to, and nothing that was written changes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipelines.clip import ClipFormat
from pipelines.ingest import ingest
from pipelines.readers import reader
from pipelines.sidecar import add
from store.lake import Lake
from store.ledger import Ledger
from store.shards import Entry, Sidecar, read_sample
from store.types import Modality, PalimpsestError, Sample

FORMAT = ClipFormat(imu_hz=10)


@pytest.fixture
def talks(tmp_path, lake, make_sound) -> Path:
    """Four sounds of 2 s, cut into two clips each, in the lake."""
    source = tmp_path / "talks"
    rows = ["audio,label,start_s,end_s"]
    for number in range(4):
        make_sound(source / f"{number}.wav", seconds=2.0, seed=number)
        rows += [f"{number}.wav,a,0,1", f"{number}.wav,b,1,2"]
    (source / "manifest.csv").write_text("\n".join(rows))
    ingest(lake, reader("folder"), source, format=FORMAT, dataset="talks")
    return source


def write_imu(path: Path, *, seconds: float = 2.0, hz: int = 10) -> None:
    rows = [",".join([str(n), *"00000"]) for n in range(round(seconds * hz))]
    path.write_text("\n".join(rows) + "\n")


def samples(lake: Lake) -> dict[tuple[str, float], Sample]:
    """Every sample with its sidecars, by recording's name and start."""
    rows = Ledger(lake).rows("SELECT i.*, r.name FROM sample_index i JOIN recordings r USING (dataset, recording)")
    found = {}
    for row in rows:
        sidecars = [
            Sidecar(Modality(part["modality"]), lake.resolve(part["url"]), entry(row["key"], part))
            for part in row["sidecars"]
        ]
        found[row["name"], row["start_s"]] = read_sample(lake.resolve(row["url"]), entry(row["key"], row), sidecars)
        assert set(row["modalities"]) == set(found[row["name"], row["start_s"]].modalities)
    return found


def entry(key: str, part: dict) -> Entry:
    return Entry(key, part["offset"], part["size"], part["checksum"])


def shards(lake: Lake) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (lake.root / "shards" / "talks").iterdir()}


def test_tracks_and_texts_found_later_join_the_samples_of_their_time(lake, talks):
    before = shards(lake)
    write_imu(talks / "late.csv")
    more = talks / "more.csv"
    more.write_text(
        "recording,imu,imu_rate_hz,text,start_s,end_s\n"
        "0.wav,late.csv,10,good,0.1,0.6\n0.wav,,,morning,0.7,1.1\n0.wav,,,all,1.2,1.9\n1.wav,,,whole,,\n"
    )
    summary = add(lake, "talks", more)
    assert (summary.recordings, summary.samples, summary.shards, summary.refused) == (2, 4, 1, ())
    found = samples(lake)
    assert [found["0.wav", start].text for start in (0, 1)] == ["good morning", "all"]
    assert [found["1.wav", start].text for start in (0, 1)] == ["whole", "whole"]
    np.testing.assert_allclose(found["0.wav", 0].imu[:, 0], range(10))
    np.testing.assert_allclose(found["0.wav", 1].imu[:, 0], range(10, 20))
    assert found["0.wav", 1].meta["tracks"]["imu"] == {"rate_hz": 10, "length": 10}
    assert found["0.wav", 0].audio is not None
    assert found["2.wav", 0].modalities == (Modality.AUDIO,)
    after = shards(lake)
    assert before.items() <= after.items()
    (name,) = after.keys() - before.keys()
    keys = [s["__key__"] for s in webdataset.WebDataset(str(lake.root / "shards/talks" / name), shardshuffle=False)]
    assert keys == sorted(keys)
    assert len(keys) == 4


def rows(lake: Lake) -> list[dict]:
    return Ledger(lake).rows("SELECT * EXCLUDE recorded_at FROM sidecars ORDER BY ALL")


def test_adding_the_same_again_changes_nothing_and_the_last_correction_wins(lake, talks):
    more = talks / "more.csv"
    more.write_text("recording,text\n0.wav,first\n")
    add(lake, "talks", more)
    before = shards(lake), rows(lake)
    add(lake, "talks", more)
    assert (shards(lake), rows(lake)) == before
    more.write_text("recording,text\n0.wav,second\n")
    add(lake, "talks", more)
    assert samples(lake)["0.wav", 0].text == "second"
    more.write_text("recording,text\n0.wav,first\n")
    add(lake, "talks", more)
    assert samples(lake)["0.wav", 0].text == "first"


def test_another_rate_is_a_correction(lake, talks):
    write_imu(talks / "late.csv", hz=20)
    for rate, last in ((20, 18), (10, 9)):
        (talks / "more.csv").write_text(f"recording,imu,imu_rate_hz\n0.wav,late.csv,{rate}\n")
        add(lake, "talks", talks / "more.csv")
        assert samples(lake)["0.wav", 0].imu[-1, 0] == pytest.approx(last)


def test_pictures_and_depth_join_every_sample_of_the_recording(lake, talks):
    Image.new("RGB", (9, 7), (200, 0, 0)).save(talks / "still.png")
    np.save(talks / "near.npy", np.full((6, 8), 1500, np.uint16))
    (talks / "more.csv").write_text("recording,image,depth\n0.wav,still.png,\n1.wav,,near.npy\n")
    assert add(lake, "talks", talks / "more.csv").refused == ()
    found = samples(lake)
    assert found["0.wav", 1].image is not None
    assert (found["1.wav", 0].depth == 1500).all()


def test_one_recording_under_two_names_gets_both_and_nothing_from_outside_is_read(lake, talks):
    (identity,) = [row["recording"] for row in Ledger(lake).rows("FROM recordings WHERE name = '0.wav'")]
    write_imu(talks / "late.csv")
    write_imu(talks.parent / "outside.csv")
    os.mkfifo(talks / "pipe.csv")
    (talks / "more.csv").write_text(
        f"recording,imu,imu_rate_hz,text\n0.wav,late.csv,10,\n{identity},,,hello\n1.wav,../outside.csv,10,\n"
        "2.wav,pipe.csv,10,\n"
    )
    reasons = dict(add(lake, "talks", talks / "more.csv").refused)
    assert "leads out of" in reasons["1.wav"]
    assert "not a regular file" in reasons["2.wav"]
    assert {"imu", "text"} < set(samples(lake)["0.wav", 0].modalities)


def test_what_ends_early_is_missing_where_it_is_missing(lake, talks):
    write_imu(talks / "short.csv", seconds=0.9)
    (talks / "more.csv").write_text("recording,imu,imu_rate_hz\n0.wav,short.csv,10\n")
    assert add(lake, "talks", talks / "more.csv").samples == 1
    found = samples(lake)
    assert found["0.wav", 0].imu.shape == (9, 6)
    assert found["0.wav", 1].imu is None


def test_what_cannot_be_added_is_named_and_the_rest_is_added(lake, talks):
    (talks / "bad.csv").write_text("a,b\n1,2\n")
    (talks / "more.csv").write_text(
        "recording,imu,text\n0.wav,bad.csv,\n1.wav,gone.csv,\n2.wav,,fine\nnobody.wav,,hello\n"
    )
    summary = add(lake, "talks", talks / "more.csv")
    assert (summary.recordings, summary.samples) == (1, 2)
    reasons = dict(summary.refused)
    assert set(reasons) == {"0.wav", "1.wav", "nobody.wav"}
    assert "no such recording" in reasons["nobody.wav"]
    assert "gone.csv" in reasons["1.wav"]
    assert samples(lake)["2.wav", 0].text == "fine"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("video,text\na,b\n", "a column `recording`"),
        ("recording,label\na,b\n", "one or more of"),
        ("recording,text,start_s\n0.wav,hello,soon\n", "line 2"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(lake, talks, content, words):
    (talks / "more.csv").write_text(content)
    with pytest.raises(PalimpsestError, match=words):
        add(lake, "talks", talks / "more.csv")


def test_an_ingest_after_it_leaves_what_was_added(lake, talks):
    (talks / "more.csv").write_text("recording,text\n0.wav,first\n")
    add(lake, "talks", talks / "more.csv")
    before = shards(lake)
    again = ingest(lake, reader("folder"), talks, format=FORMAT, dataset="talks")
    assert (again.recordings, again.known, again.relabelled) == (0, 4, 0)
    assert shards(lake) == before
    assert samples(lake)["0.wav", 0].text == "first"
