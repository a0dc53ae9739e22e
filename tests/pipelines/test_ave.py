"""AVE: its lists' quirks, and the way from a synthesised one to rows."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from flows.recipe import load_recipe
from pipelines.clip import ClipFormat
from pipelines.ingest import ingest
from pipelines.readers import reader
from pipelines.synthesize import synthesize
from pipelines.synthesize.layouts.ave import CLASSES
from pipelines.synthesize.scene import PALETTES, setting
from pipelines.synthesize.sounds import SOUNDS, murmur, play
from pipelines.synthesize.things import show
from store.ledger import Ledger
from store.types import Clip, Modality, PalimpsestError, Split

TABLE = """Category&VideoID&Quality&StartTime&EndTime
Church bell&-RUhOCu3LNX&good&0&10
Male speech, man speaking&_abcdefghij&good&2&7
Frying (food)&_abcdefghij&good&2&7
Rock & roll&bbbbbbbbbbb&good&1&10
Bark&bbbbbbbbbbb&good&0&1
Bus&ccccccccccc&good&0&0
Cat&ddddddddddd&good&0&10
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "AVE").mkdir()
    (tmp_path / "Annotations.txt").write_text(TABLE)
    rows = TABLE.splitlines()[1:]
    (tmp_path / "trainSet.txt").write_text("\n".join([rows[0], rows[2], rows[3], rows[5]]))
    (tmp_path / "valSet.txt").write_text(rows[1] + "\n")
    (tmp_path / "testSet.txt").write_text(rows[4] + "\n")
    return tmp_path


@pytest.fixture(scope="module")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes of three videos each, and two more."""
    return synthesize("ave", tmp_path_factory.mktemp("data") / "ave", size=15, seed=1)


def read(source: Path, **parameters: str) -> dict:
    return {one.name: one for one in reader("ave", **parameters).recordings(source)}


def test_a_video_is_a_recording_and_its_events_are_clips(source):
    found = read(source)
    assert list(found) == ["-RUhOCu3LNX", "_abcdefghij", "bbbbbbbbbbb", "ddddddddddd"]
    assert found["-RUhOCu3LNX"].tracks[Modality.VIDEO].path == Path("AVE/-RUhOCu3LNX.mp4")
    # To the tenth second is to the file's end, and an ampersand may be part of a category.
    assert found["-RUhOCu3LNX"].clips == (Clip(0, None, ("Church bell",)),)
    assert set(found["bbbbbbbbbbb"].clips) == {Clip(1, None, ("Rock & roll",)), Clip(0, 1, ("Bark",))}
    assert set(found["_abcdefghij"].clips) == {
        Clip(2, 7, ("Male speech, man speaking",)),
        Clip(2, 7, ("Frying (food)",)),
    }


def test_a_video_in_two_lists_is_not_trained_on(source):
    places = {name: one.split for name, one in read(source).items()}
    assert places == {
        "-RUhOCu3LNX": Split.TRAIN,
        "_abcdefghij": Split.VAL,
        "bbbbbbbbbbb": Split.TEST,
        "ddddddddddd": None,
    }


def test_one_event_a_video_is_the_one_its_list_names(source):
    labels = {name: [clip.labels for clip in one.clips] for name, one in read(source, events="one").items()}
    assert labels["_abcdefghij"] == [("Male speech, man speaking",)]
    assert labels["bbbbbbbbbbb"] == [("Bark",)]


def test_the_whole_video_may_be_the_window(source):
    clips = read(source, window="video")["bbbbbbbbbbb"].clips
    assert {(clip.start_s, clip.end_s) for clip in clips} == {(0, None)}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_table_without_header_or_lists_reads_the_same(source, ending):
    expected = list(read(source))
    for name in ("trainSet.txt", "valSet.txt", "testSet.txt"):
        (source / name).unlink()
    bare = ending.join(TABLE.splitlines()[1:])
    (source / "Annotations.txt").write_bytes(b"\xef\xbb\xbf" + bare.encode())
    assert list(read(source)) == expected
    assert read(source)["-RUhOCu3LNX"].clips == (Clip(0, None, ("Church bell",)),)


def test_lists_without_the_table_are_enough(source):
    (source / "Annotations.txt").unlink()
    assert set(read(source)) == {"-RUhOCu3LNX", "_abcdefghij", "bbbbbbbbbbb"}


def test_stills_and_sound_stand_for_a_video(source):
    (source / "video_frames" / "_abcdefghij").mkdir(parents=True)
    tracks = read(source)["_abcdefghij"].tracks
    assert (tracks[Modality.VIDEO].path, tracks[Modality.VIDEO].rate_hz) == (Path("video_frames/_abcdefghij"), 3)
    assert tracks[Modality.AUDIO].path == Path("raw_audio/_abcdefghij.wav")


@pytest.mark.parametrize("row", ["Bark&aaaaaaaaaaa&good&0", "Bark&aaaaaaaaaaa&good&zero&10", "Bark aaaaaaaaaaa"])
def test_a_row_that_cannot_be_understood_is_named(source, row):
    (source / "valSet.txt").write_text(f"Cat&ddddddddddd&good&0&10\n{row}\nDog&eeeeeeeeeee&good&0&10\n")
    (source / "Annotations.txt").write_text(TABLE.replace("Church", f"{row}\nChurch", 1))
    found = read(source)
    assert found["valSet.txt line 2"].fault.startswith(f"valSet.txt line 2 is {row!r}; it must be Category&VideoID")
    assert {name for name, one in found.items() if one.fault} == {"valSet.txt line 2", "Annotations.txt line 2"}
    assert found["eeeeeeeeeee"].split == found["ddddddddddd"].split == Split.VAL and len(found) == 7


def test_a_first_row_that_makes_no_sense_is_another_list(source):
    (source / "valSet.txt").write_text("a list of something else\nCat&ddddddddddd&good&0&10\n")
    with pytest.raises(PalimpsestError, match="valSet.txt line 1 is 'a list of something else'; it must be Category&"):
        read(source)


def test_a_folder_of_something_else_says_so(tmp_path):
    with pytest.raises(PalimpsestError, match="no Annotations.txt in"):
        read(tmp_path)


def test_from_synthesis_to_rows(synthesised, tmp_path, lake):
    source = shutil.copytree(synthesised, tmp_path / "ave")
    lost, *_ = sorted((source / "AVE").iterdir())
    assert lost.name.startswith("-")
    lost.unlink()
    table = [line.rsplit("&", 4) for line in (source / "Annotations.txt").read_text().splitlines()[1:]]
    done = ingest(lake, reader("ave"), source, format=ClipFormat(), dataset="ave")
    assert dict(done.quarantined) == {lost.stem: f"no such file: AVE/{lost.name}"}
    rows = Ledger(lake).rows(
        "SELECT r.name, s.labels, s.split, s.start_s, s.duration_s FROM samples s JOIN recordings r USING (recording)"
    )
    wanted = {
        (video, category, float(start), float(end) - float(start))
        for category, video, _, start, end in table
        if start != end and video != lost.stem
    }
    assert {(row["name"], *row["labels"], row["start_s"], round(row["duration_s"])) for row in rows} == wanted
    # A video of two classes is in two lists; the one of no length is in none of the rows.
    (shared,) = [video for video, count in Counter(video for _, video, *_ in table).items() if count > 1]
    assert {row["split"] for row in rows if row["name"] == shared} == {"test"}
    assert Counter(row["split"] for row in rows if row["name"] != shared) == {"train": 4, "val": 5, "test": 5}


def test_the_protocol_takes_a_clip_a_video(synthesised, lake):
    recipe = load_recipe("ave")
    done = ingest(
        lake, reader("ave", **recipe.reader.parameters), synthesised, format=recipe.format, dataset="ave", group="label"
    )
    assert (done.recordings, done.samples) == (16, 16)
    rows = Ledger(lake).rows("SELECT labels, duration_s, modalities FROM samples")
    assert all(row["duration_s"] == pytest.approx(2, abs=0.1) and len(row["labels"]) == 1 for row in rows)
    assert {tuple(row["modalities"]) for row in rows} == {("video", "audio")}


@pytest.mark.parametrize(("name", "tasks"), [("ave", 4), ("ave-7x4", 7)])
def test_the_recipes_cut_all_classes_into_tasks(name, tasks):
    recipe = load_recipe(name)
    assert set(recipe.stream.order) == set(CLASSES) and len(recipe.stream.order) == 28
    assert recipe.stream.per_task * tasks == 28
    assert recipe.stream.order[:3] == ("Acoustic guitar", "Cat", "Fixed-wing aircraft, airplane")
    assert (recipe.reader, recipe.format) == (load_recipe("ave").reader, load_recipe("ave").format)


def test_videos_are_h264_and_aac(synthesised):
    with av.open(str(next((synthesised / "AVE").iterdir()))) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        assert container.duration == pytest.approx(2e6, abs=0.1e6)


def test_any_number_of_workers_writes_the_same_bytes(synthesised, tmp_path):
    again = synthesize("ave", tmp_path / "again", size=15, seed=1, workers=2)
    for path in (path for path in synthesised.rglob("*") if path.is_file()):
        assert (again / path.relative_to(synthesised)).read_bytes() == path.read_bytes(), path.name


def test_every_sound_is_one_of_its_own():
    spectra = []
    for name, sound in SOUNDS.items():
        wave = play(sound, np.random.default_rng(0), 2.0)
        assert wave.shape == (32_000,) and np.isfinite(wave).all(), name
        assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.1, abs=0.001)
        spectra.append(np.log(np.abs(np.fft.rfft(wave)[1:]).reshape(50, -1).mean(1) + 1e-3))
    apart = np.abs(np.array(spectra)[:, None] - np.array(spectra)).mean(-1) + 9 * np.eye(len(spectra))
    assert apart.min() > 0.15
    assert np.sqrt(np.mean(murmur(np.random.default_rng(0), 1.0) ** 2)) == pytest.approx(0.1, abs=0.001)


def test_what_is_not_there_is_not_seen():
    rng = np.random.default_rng(0)
    there = np.arange(20) >= 10
    frames = show(setting(PALETTES["EN"], "male", rng), 1, 3, np.ones(20), rng=rng, present=there).astype(int)
    change = (np.abs(np.diff(frames, axis=0)).max(-1) > 80).mean((1, 2))
    assert change[9] > 3 * change[:9].max()
