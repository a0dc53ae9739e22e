"""Synthesised sets of one stream each: written in official layouts, read by their readers, brought into a lake."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from flows.recipe import load_recipe
from pipelines.ingest import ingest
from pipelines.readers import reader
from pipelines.synthesize import synthesize
from pipelines.synthesize.depth import CAMERAS, SCENES, view
from store.lake import Lake
from store.ledger import Ledger
from store.types import Modality

# Classes and domains of the smallest of each layout, and what modalities its samples have.
EXPECTED = {
    "ag-news": (4, 0, {"text"}),
    "esc50": (4, 0, {"audio"}),
    "imagenet-r": (4, 6, {"image"}),
    "kinetics": (4, 0, {"video+audio"}),
    "nyu-depth": (4, 0, {"image+depth"}),
    "sun-rgbd": (4, 4, {"image+depth"}),
    "ucf101": (4, 0, {"video+audio", "video"}),
    "vggsound": (4, 0, {"video+audio"}),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The smallest data set in a layout, made once."""
    home = tmp_path_factory.mktemp("tiny")
    return functools.cache(lambda name: synthesize(name, home / name, size="tiny", seed=3))


def _ingested(lake: Lake, name: str, source: Path) -> list[dict]:
    recipe = load_recipe(name)
    found = reader(recipe.reader.name, **recipe.reader.parameters)
    done = ingest(lake, found, source, format=recipe.format, dataset=name, group=recipe.group)
    assert done.quarantined == ()
    return Ledger(lake).rows("SELECT s.*, h.url FROM samples s JOIN shards h USING (dataset, shard)")


@pytest.mark.parametrize("name", EXPECTED)
def test_every_recording_becomes_a_sample_with_its_label(name: str, tiny: Callable[[str], Path], lake: Lake) -> None:
    source = tiny(name)
    rows = _ingested(lake, name, source)
    recipe = load_recipe(name)
    read = list(reader(recipe.reader.name, **recipe.reader.parameters).recordings(source))
    classes, domains, modalities = EXPECTED[name]
    assert len(rows) == len(read) or name == "ag-news"  # two reports may say the same
    assert len({row["labels"][0] for row in rows}) == classes
    assert len({row["domain"] for row in rows} - {None}) == domains
    assert {"+".join(row["modalities"]) for row in rows} == modalities
    per_split = Counter(row["split"] for row in rows)
    assert per_split["test"] >= classes and per_split["train"] > per_split["val"]
    labels = {row["labels"][0] for row in rows if row["split"] == "train"}
    assert labels >= {row["labels"][0] for row in rows if row["split"] == "test"}


def _digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", ["ucf101", "sun-rgbd"])
def test_same_seed_same_bytes_with_any_number_of_workers(
    name: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    again = synthesize(name, tmp_path / name, size="tiny", seed=3, workers=2)
    assert _digests(again) == _digests(tiny(name))


def test_another_seed_makes_others(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    other = _digests(synthesize("imagenet-r", tmp_path / "other", size="tiny", seed=4))
    held = _digests(tiny("imagenet-r"))
    assert other.keys() == held.keys() and not {k for k in held if k.endswith("jpg") and held[k] == other[k]}


def test_films_are_avi_with_sound_in_every_other_class(tiny: Callable[[str], Path]) -> None:
    source = tiny("ucf101")
    for label, sound in (("ApplyEyeMakeup", ["mp3float"]), ("ApplyLipstick", [])):
        path = sorted((source / "UCF-101" / label).iterdir())[0]
        with av.open(str(path)) as film:
            video = film.streams.video[0]
            assert (film.format.name, video.codec_context.name, video.average_rate) == ("avi", "mpeg4", 25)
            assert (video.width, video.height) == (320, 240)
            assert [stream.codec_context.name for stream in film.streams.audio] == sound


def test_sounds_are_five_seconds_at_44_khz(tiny: Callable[[str], Path]) -> None:
    source = tiny("esc50")
    with open(source / "meta" / "esc50.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["filename"] for row in rows} == {path.name for path in (source / "audio").iterdir()}
    for row in rows[::7]:
        info = soundfile.info(source / "audio" / row["filename"])
        assert (info.samplerate, info.channels, info.frames, info.subtype) == (44_100, 1, 220_500, "PCM_16")


def _members(lake: Lake, ending: str) -> list[tuple[dict, bytes]]:
    """What is known of every sample in the lake, and one of its members."""
    members: dict[str, bytes] = {}
    for path in lake.root.rglob("*.tar"):
        with tarfile.open(path) as shard:
            members |= {member.name: shard.extractfile(member).read() for member in shard}
    metas = [json.loads(data) for name, data in members.items() if name.endswith(".json")]
    assert metas
    return [(meta, members[f"{meta['key']}.{ending}"]) for meta in metas]


def _depths(lake: Lake) -> list[tuple[dict, np.ndarray]]:
    return [(meta, np.load(io.BytesIO(data))) for meta, data in _members(lake, "depth.npy")]


def _nearest(depth: np.ndarray) -> np.ndarray:
    rows, columns = (((np.arange(64) + 0.5) * size / 64).astype(int) for size in depth.shape)
    return depth[rows[:, None], columns]


class TestRooms:
    def test_depth_of_a_shard_is_the_files_millimetres(self, lake: Lake, tiny: Callable[[str], Path]) -> None:
        source = tiny("nyu-depth")
        _ingested(lake, "nyu-depth", source)
        for meta, depth in _depths(lake):
            image = Image.open(source / meta["name"] / "depth.png")
            assert image.mode == "I;16" and np.array_equal(depth, _nearest(np.asarray(image)))
            assert 500 < np.median(depth[depth > 0]) < 8000

    def test_rotated_depth_comes_out_as_it_was_seen(self, lake: Lake, tiny: Callable[[str], Path]) -> None:
        source = tiny("sun-rgbd")
        _ingested(lake, "sun-rgbd", source)
        for meta, depth in _depths(lake):
            (path,) = (source / meta["name"] / "depth_bfx").iterdir()
            stored = np.asarray(Image.open(path)).astype(int)
            assert np.array_equal(depth, _nearest(np.minimum(stored >> 3 | (stored & 7) << 13, 8000)))

    def test_two_views_of_a_room_differ_and_cameras_lose_what_is_far(self) -> None:
        rng = np.random.default_rng
        colour, depth, filled = view("corridor", rng(0), rng(1), CAMERAS["realsense"])
        again, *_ = view("corridor", rng(0), rng(2), CAMERAS["realsense"])
        assert colour.shape == (120, 160, 3) and depth.dtype == np.uint16 and not np.array_equal(colour, again)
        assert depth.max() < 4600 < filled.max() and np.mean(depth == 0) > 0.1
        assert np.abs(depth.astype(int) - filled)[depth > 0].max() == 0

    def test_scenes_can_be_told_from_depth_alone(self) -> None:
        """Nearest mean of coarse depth, in rooms never met."""
        coarse = np.array(
            [
                [view(scene, *np.random.default_rng([k, n]).spawn(2))[2][5::10, 5::10].ravel() for n in range(8)]
                for k, scene in enumerate(SCENES)
            ],
            float,
        )
        means = coarse[:, :6].mean(axis=1)
        nearest = np.linalg.norm(coarse[:, 6:, None] - means, axis=-1).argmin(axis=-1)
        assert np.mean(nearest == np.arange(len(SCENES))[:, None]) > 0.4  # chance is 0.08


def test_texts_quote_and_break_lines_as_the_official_ones(tiny: Callable[[str], Path]) -> None:
    source = tiny("ag-news")
    raw = (source / "train.csv").read_text()
    assert raw.startswith('"1","') and '""' in raw and "\\n" in raw
    texts = [one.tracks[Modality.TEXT].text or "" for one in reader("text-csv").recordings(source)]
    assert any("\n" in text for text in texts) and not any("\\n" in text for text in texts)


class TestRealSets:
    @pytest.mark.parametrize(
        ("name", "folder", "modality"),
        [
            ("fsdd", "fsdd", "audio"),
            ("arabic-digits", "arabic-digits", "audio"),
            ("mnist", "mnist-t10k", "image"),
            ("imu-digits", "imu-digits", "imu"),
            ("xed-languages", "xed", "text"),
        ],
    )
    def test_their_first_recordings_become_samples(
        self, name: str, folder: str, modality: str, recordings: Path, lake: Lake
    ) -> None:
        recipe = load_recipe(name)
        found = reader(recipe.reader.name, **recipe.reader.parameters)
        done = ingest(lake, found, recordings / folder, format=recipe.format, dataset=name, limit=150)
        assert (done.samples + done.duplicates, done.quarantined) == (150, ())
        rows = Ledger(lake).rows("SELECT * FROM samples")
        assert {tuple(row["modalities"]) for row in rows} == {(modality,)}
        assert all(len(row["labels"]) == 1 for row in rows)

    def test_every_image_of_a_packed_file_is_a_recording_of_its_own(self, recordings: Path, lake: Lake) -> None:
        source = recordings / "mnist-t10k"
        ingest(lake, reader("mnist"), source, format=load_recipe("mnist").format, dataset="mnist", limit=30)
        truth = {one.name: one.tracks[Modality.IMAGE].read(source) for one in reader("mnist").recordings(source)}
        for meta, picture in _members(lake, "image.png"):
            assert Image.open(io.BytesIO(picture)).tobytes() == truth[meta["name"]]


def test_a_film_that_is_missing_or_damaged_costs_no_other(
    tiny: Callable[[str], Path], tmp_path: Path, lake: Lake
) -> None:
    source = shutil.copytree(tiny("ucf101"), tmp_path / "ucf101")
    gone, cut = sorted((source / "UCF-101").glob("*/*.avi"))[:2]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:20_000])
    recipe = load_recipe("ucf101")
    done = ingest(lake, reader("ucf101"), source, format=recipe.format, dataset="ucf101")
    assert {name for name, _ in done.quarantined} == {gone.stem, cut.stem} and done.recordings == 22
    assert f"no such file: UCF-101/{gone.parent.name}/{gone.name}" in dict(done.quarantined)[gone.stem]
