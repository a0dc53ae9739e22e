"""UESTC-MMEA-CL: both forms of its lists, and the way from a synthesised one to rows."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from flows.recipe import load_recipe
from pipelines.ingest import ingest
from pipelines.readers import reader
from pipelines.synthesize import synthesize
from pipelines.synthesize.layouts.uestc_mmea import ACTIVITIES
from store.ledger import Ledger
from store.shards import Entry, read_sample
from store.types import Modality, PalimpsestError, Split

DOOR, STAIRS = "27_open_close_door_2022_05_05_16_05_51", "1_upstairs_2020_12_15_15_58_48"
OTHER = STAIRS.replace("_48", "_49")


@pytest.fixture(scope="module")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of three recordings each."""
    return synthesize("uestc-mmea", tmp_path_factory.mktemp("data") / "mmea", size=12, seed=1)


def read(source: Path) -> dict:
    return {one.name: one for one in reader("uestc-mmea").recordings(source)}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("train.txt", f"sensor/27_open_close_door/{DOOR}.csv"),
        ("mydataset_train.txt", f"/media/my disk/mmea/data/27_open_close_door/{DOOR} 418 419 26"),
        ("train.txt", f"video\\27_open_close_door\\{DOOR}.mp4 26\r"),
    ],
)
def test_every_form_of_a_row_names_the_same_recording(tmp_path, name, row):
    (tmp_path / name).write_text(f"{row}\n\nsensor/1_upstairs/{STAIRS}.csv")
    one, other = read(tmp_path).values()
    assert (one.name, one.labels, one.domain, one.split) == (DOOR, ("open_close_door",), "2022-05-05", Split.TRAIN)
    assert one.tracks[Modality.VIDEO].path == Path(f"video/27_open_close_door/{DOOR}.mp4")
    assert one.tracks[Modality.IMU].path == Path(f"sensor/27_open_close_door/{DOOR}.csv")
    assert one.tracks[Modality.IMU].rate_hz == 25
    assert other.labels == ("upstairs",)


def test_frames_stand_for_a_video(tmp_path):
    folder = tmp_path / "data" / "1_upstairs" / STAIRS
    folder.mkdir(parents=True)
    (tmp_path / "val.txt").write_text(STAIRS)
    (one,) = read(tmp_path).values()
    track = one.tracks[Modality.VIDEO]
    assert (tmp_path / track.path, track.rate_hz, one.split) == (folder, 25, Split.VAL)


def test_what_is_tested_is_not_trained_on(tmp_path):
    (tmp_path / "train.txt").write_text(f"{STAIRS}\n{DOOR}\n")
    (tmp_path / "test.txt").write_text(STAIRS)
    assert {name: one.split for name, one in read(tmp_path).items()} == {DOOR: Split.TRAIN, STAIRS: Split.TEST}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("sensor/upstairs/one.csv", "it must be a path such as sensor/1_upstairs"),
        (f"data/1_upstairs/{STAIRS} 400 401 7", "and the label, which is one less than the folder's number"),
    ],
)
def test_a_wrong_row_is_named_and_costs_no_other(tmp_path, row, message):
    (tmp_path / "train.txt").write_text(f"{DOOR}\n{row}\n{OTHER}")
    found = read(tmp_path)
    fault = found.pop("train.txt line 2").fault
    assert fault.startswith(f"train.txt line 2 is {row!r}") and message in fault
    assert list(found) == [DOOR, OTHER]


def test_a_first_row_that_makes_no_sense_is_another_list(tmp_path):
    (tmp_path / "train.txt").write_text(f"n01/1.jpg 0\n{DOOR}\n")
    with pytest.raises(PalimpsestError, match="train.txt line 1 is 'n01/1.jpg 0'; it must be a path such as"):
        read(tmp_path)


def test_a_folder_of_something_else_says_so(tmp_path):
    with pytest.raises(PalimpsestError, match="no train.txt in"):
        read(tmp_path)


def test_from_synthesis_to_rows(synthesised, tmp_path, lake):
    recipe, missing = load_recipe("uestc-mmea"), f"sensor/1_upstairs/{STAIRS}.csv"
    source = shutil.copytree(synthesised, tmp_path / "mmea")
    with open(source / "train.txt", "a") as file:
        file.write(missing)
    done = ingest(lake, reader("uestc-mmea"), source, format=recipe.format, dataset="uestc-mmea", group="label")
    assert [name for name, _ in done.quarantined] == [STAIRS]
    assert f"no such file: {missing}" in dict(done.quarantined)[STAIRS]
    rows = Ledger(lake).rows("SELECT s.*, url FROM samples s JOIN shards USING (dataset, shard)")
    assert Counter((*row["labels"], row["split"]) for row in rows) == {
        (label, split): 1 for label in list(ACTIVITIES)[:4] for split in ("train", "val", "test")
    }
    assert {tuple(row["modalities"]) for row in rows} == {("video", "imu")}
    assert len({row["domain"] for row in rows}) == 3
    for row in rows:
        sample = read_sample(lake.resolve(row["url"]), Entry(row["key"], row["offset"], row["size"], row["checksum"]))
        assert len(sample.imu) == pytest.approx(50 * row["duration_s"], abs=3)
        # Counts became SI: what pulls all the time is 1 g, and no misread row is left.
        if row["labels"] != ["fall"]:
            assert np.median(np.linalg.norm(sample.imu[:, :3], axis=1)) == pytest.approx(9.81, abs=3)
        assert np.abs(sample.imu[:, 3:]).max() < 30


def test_lists_and_files_agree(synthesised):
    assert {path.name for path in (synthesised / "video").iterdir()} == {
        f"{number}_{name}" for number, name in enumerate(list(ACTIVITIES)[:4], start=1)
    }
    for name in ("train.txt", "val.txt", "test.txt"):
        counted = (synthesised / f"mydataset_{name}").read_text()
        assert not counted.endswith("\n")
        plain = (synthesised / name).read_text().split()
        for path, row in zip(plain, counted.split("\n"), strict=True):
            prefix, frames, rows, label = row.split(" ")
            stem = Path(path).with_suffix("")
            assert prefix.endswith(f"data/{stem.relative_to('sensor')}")
            assert int(label) == int(stem.name.split("_")[0]) - 1
            table = np.loadtxt(synthesised / path, delimiter=",", dtype=int)
            assert table.shape == (int(rows), 6) and abs(int(rows) - int(frames)) <= 1
            with av.open(str((synthesised / path.replace("sensor", "video", 1)).with_suffix(".mp4"))) as container:
                assert not container.streams.audio and container.streams.video[0].average_rate == 25
                assert sum(1 for _ in container.decode(video=0)) == int(frames)


def test_any_number_of_workers_writes_the_same_bytes(synthesised, tmp_path):
    again = synthesize("uestc-mmea", tmp_path / "again", size=12, seed=1, workers=2)
    for path in (path for path in synthesised.rglob("*") if path.is_file()):
        assert (again / path.relative_to(synthesised)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("tasks", [16, 8, 4, 2])
def test_the_recipes_cut_all_classes_into_tasks(tasks):
    recipe = load_recipe("uestc-mmea" if tasks == 8 else f"uestc-mmea-{tasks}x{32 // tasks}")
    assert recipe.stream.per_task * tasks == 32
    order = np.random.RandomState(1993).permutation(32)
    assert recipe.stream.order == tuple(list(ACTIVITIES)[place] for place in order)
    first = load_recipe("uestc-mmea")
    assert (recipe.reader, recipe.format, recipe.group) == (first.reader, first.format, first.group)
