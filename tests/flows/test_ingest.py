"""Ingest by a recipe's name, from a folder that the lake remembers."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from flows import stream
from flows.ingest import ingest
from flows.recipe import load_recipe
from flows.source import get_source, set_source
from store.lake import Lake
from store.ledger import Ledger
from store.shards import read_sample
from store.types import PalimpsestError


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(3):
        wave = np.random.default_rng(number).uniform(-0.1, 0.1, 4000)
        soundfile.write(folder / f"{number}.wav", wave, 8000, subtype="PCM_16")
    (folder / "manifest.csv").write_text("audio,label\n0.wav,a\n1.wav,a\n2.wav,b\n")
    return folder


def test_the_lake_remembers_where_recordings_lie(lake, source):
    assert ingest(lake, "folder", source=source, workers=1).recordings == 3
    again = ingest(lake, "folder", workers=1)
    assert (again.recordings, again.known) == (0, 3)
    assert get_source(lake, "folder") == source


def test_another_name_reads_the_recipes_own_source_when_it_has_none(lake, source):
    set_source(lake, "folder", source)
    assert ingest(lake, "folder", as_name="again", workers=1).recordings == 3


def test_another_name_is_another_data_set(lake, source):
    set_source(lake, "mine", source)
    assert ingest(lake, "folder", as_name="mine", workers=1).dataset == "mine"
    (row,) = Ledger(lake).rows("SELECT DISTINCT dataset FROM samples")
    assert row["dataset"] == "mine"


def test_shards_may_lie_elsewhere(lake, source, tmp_path):
    ingest(lake, "folder", source=source, workers=1, shards=str(tmp_path / "elsewhere"))
    (row,) = Ledger(lake).rows("SELECT url FROM shards")
    assert row["url"].startswith(str(tmp_path / "elsewhere" / "folder"))
    assert not (lake.root / "shards").exists()


def test_a_stream_reads_a_lake_that_was_moved(tmp_path, lake, source):
    ingest(lake, "folder", source=source, workers=1)
    ledger = Ledger(Lake(lake.root.rename(tmp_path / "moved")))
    index = stream.load(ledger, load_recipe("folder"), ["audio"]).index
    examples = index.rows(range(len(index)))
    assert len(index.shards) == 1
    assert [read_sample(example.url, example.entry).key for example in examples] == [e.key for e in examples]
    assert len(examples) == 3


def test_a_name_that_leads_out_of_the_lake_is_refused(lake, source):
    with pytest.raises(PalimpsestError, match="a data set cannot be called '../x'"):
        ingest(lake, "folder", source=source, as_name="../x")
    assert not lake.root.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "tell it once with: palimpsest source folder DIR"),
        ({"source": "/no/such/folder"}, "no such folder"),
    ],
)
def test_without_a_folder_it_says_what_to_do(lake, options, message):
    with pytest.raises(PalimpsestError, match=message):
        ingest(lake, "folder", **options)


def test_a_slip_of_the_hand_is_not_remembered(lake, source, tmp_path):
    ingest(lake, "folder", source=source, workers=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PalimpsestError, match="nor any media file"):
        ingest(lake, "folder", source=tmp_path / "empty", workers=1)
    assert get_source(lake, "folder") == source
