"""Readers: official layouts in, recordings out."""

from __future__ import annotations

import gzip
import struct
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from pipelines.readers import READERS, draw_split, reader
from store.types import Clip, Modality, PalimpsestError, Split

VIDEO, AUDIO, IMU, IMAGE = Modality.VIDEO, Modality.AUDIO, Modality.IMU, Modality.IMAGE


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", READERS)
def test_every_reader_answers_to_its_name(name):
    assert reader(name).name == name


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("nothing", {}, "no reader is called 'nothing'; there are .*digits"),
        ("grid", {"wrods": "all"}, "reader grid: .*wrods"),
        ("grid", {"words": "some"}, "it must be all or digits"),
    ],
)
def test_a_wrong_reader_or_parameter_says_so(name, parameters, message):
    with pytest.raises(PalimpsestError, match=message):
        reader(name, **parameters)


def test_splits_are_drawn_by_name_in_their_shares():
    drawn = Counter(draw_split(f"film {n}") for n in range(4000))
    assert drawn[Split.TRAIN] / 4000 == pytest.approx(0.7, abs=0.03)
    assert drawn[Split.VAL] / 4000 == pytest.approx(0.1, abs=0.02)
    assert draw_split("film 1") == draw_split("film 1")


class TestGrid:
    @pytest.fixture
    def source(self, tmp_path):
        touch(tmp_path / "clips" / "bbaf2n.mp4")
        words = "0 23750 sil\n23750 29500 bin\n29500 41000 two\n41000 41500 sp\n41500 53000 now\n53000 74500 sil\n"
        touch(tmp_path / "alignments" / "bbaf2n.align", words)
        touch(tmp_path / "alignments" / "bbaf3s.align", "0 25000 three\n")
        return tmp_path

    def test_words_are_clips_and_silence_is_not(self, source):
        first, absent = reader("grid").recordings(source)
        assert first.clips == (Clip(0.95, 1.18, ("bin",)), Clip(1.18, 1.64, ("two",)), Clip(1.66, 2.12, ("now",)))
        assert (first.name, first.language, first.tracks[VIDEO].path) == ("bbaf2n", "en", Path("clips/bbaf2n.mp4"))
        assert absent.tracks[VIDEO].path == Path("clips/bbaf3s.mp4")

    def test_the_digit_slot_alone(self, source):
        first, _ = reader("grid", words="digits").recordings(source)
        assert [clip.labels for clip in first.clips] == [("two",)]

    @pytest.mark.parametrize("line", ["23750 bin", "0 end bin", "0 1 two words"])
    def test_a_wrong_line_of_an_alignment_is_named(self, source, line):
        path = touch(source / "alignments" / "bbaf2n.align", f"0 23750 sil\n{line}\n")
        with pytest.raises(PalimpsestError, match=f"{path} line 2 is '{line}'; it must be: start end word"):
            list(reader("grid").recordings(source))

    def test_a_folder_of_something_else_says_what_is_missing(self, tmp_path):
        with pytest.raises(PalimpsestError, match="no alignments in"):
            list(reader("grid").recordings(tmp_path))

    def test_the_real_one_has_its_51_words(self, recordings):
        found = list(reader("grid").recordings(recordings / "grid-s1"))
        assert len(found) == 600
        assert len({clip.labels for one in found for clip in one.clips}) == 51
        assert sum(len(one.clips) for one in found) == 3600


class TestDigits:
    @pytest.fixture
    def source(self, tmp_path):
        labels = bytes(n % 10 for n in range(200))
        for name, head, body in (
            ("images-idx3", struct.pack(">4I", 0x803, 200, 2, 2), bytes(n // 4 % 256 for n in range(800))),
            ("labels-idx1", struct.pack(">2I", 0x801, 200), labels),
        ):
            (tmp_path / "mnist-t10k").mkdir(exist_ok=True)
            (tmp_path / "mnist-t10k" / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(head + body))
        for digit in range(10):
            for index in range(12):
                touch(tmp_path / "fsdd" / "recordings" / f"{digit}_ann_{index}.wav", f"{digit} {index}")
            touch(tmp_path / "arabic-digits" / "recordings" / f"{digit}_arabic_0.wav")
            for minute in range(10):
                touch(tmp_path / "imu-digits" / "data" / f"imu_complete_data_{digit}_20251106_2143{minute:02d}.csv")
        return tmp_path

    def test_pairs_are_of_one_class_one_split_and_used_once(self, source):
        found = list(reader("digits").recordings(source))
        used = Counter(track for one in found for track in one.tracks.values())
        assert set(used.values()) == {1}
        # 5 test, 5 val and 2 train sounds a digit; 4, 2 and 14 images.
        assert Counter(one.split for one in found) == {Split.TEST: 40, Split.VAL: 20, Split.TRAIN: 20}
        for one in found:
            (word,), digit = one.labels, int(one.tracks[AUDIO].path.name[0])
            assert word == "zero one two three four five six seven eight nine".split()[digit]
            assert one.tracks[IMAGE].read(source) == bytes([(one.tracks[IMAGE].offset - 16) // 4 % 256] * 4)
            assert (one.tracks[IMAGE].offset - 16) // 4 % 10 == digit
            if IMU in one.tracks:
                assert f"data_{digit}_" in one.tracks[IMU].path.name

    def test_the_seed_draws_other_pairs_of_the_same_recordings(self, source):
        first, second, third = (
            [one.name for one in reader("digits", seed=seed).recordings(source)] for seed in (0, 0, 1)
        )
        assert first == second
        assert first != third

    def test_a_cut_off_archive_says_so(self, source):
        path = source / "mnist-t10k" / "t10k-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(PalimpsestError, match=f"mnist-t10k cannot be read: damaged gzip: {path.name}"):
            list(reader("digits").recordings(source))

    def test_speakers_are_domains(self, source):
        found = list(reader("digits-speakers").recordings(source))
        assert Counter(one.domain for one in found) == {"ann": 120, "arabic": 10}
        assert {one.language for one in found if one.domain == "arabic"} == {"ar"}
        assert Counter(one.split for one in found if one.domain == "ann") == {"train": 20, "val": 50, "test": 50}

    def test_concepts_are_divided_among_the_modalities(self, source):
        found = list(reader("modalities").recordings(source))
        heard, of = {}, {"mnist-t10k": IMAGE, "fsdd": AUDIO, "imu-digits": IMU, "arabic-digits": AUDIO}
        for one in found:
            folder, _, name = one.name.partition("/")
            (modality,), (track,) = one.tracks, one.tracks.values()
            assert name and modality == of[folder] and track.path.parts[0] == folder and (source / track.path).is_file()
            heard.setdefault(folder, set()).update(one.labels)
        words = "zero one two three four five six seven eight nine".split()
        assert {folder: sorted(labels, key=words.index) for folder, labels in heard.items()} == {
            "mnist-t10k": words[:3],
            "fsdd": words[3:6],
            "imu-digits": words[6:8],
            "arabic-digits": words[8:],
        }
        assert len({one.name for one in found}) == len(found)

    def test_of_a_concept_so_many_are_taken(self, source):
        drawn = Counter((one.labels, one.split) for one in reader("modalities", most=3).recordings(source))
        assert max(drawn.values()) == 3

    def test_a_folder_without_any_of_them_says_what_it_looked_for(self, tmp_path):
        with pytest.raises(
            PalimpsestError, match="no mnist-t10k, fsdd, imu-digits, grid-s1, arabic-digits, nyu-depth in"
        ):
            list(reader("modalities").recordings(tmp_path))

    def test_real_talking_heads_are_seen_and_not_heard(self, recordings):
        talks = [one for one in reader("modalities").recordings(recordings) if one.name.startswith("grid-s1/")]
        assert len(talks) == 600 and all(one.mute and set(one.tracks) == {VIDEO} for one in talks)
        assert {label for one in talks for clip in one.clips for label in clip.labels} == {
            "blue",
            "green",
            "red",
            "white",
        }

    def test_the_real_ones_miss_movement_in_most_samples(self, recordings):
        found = list(reader("digits").recordings(recordings))
        assert len(found) == 3000
        assert Counter((one.split, one.labels[0]) for one in found)[Split.TRAIN, "three"] == 240
        assert sum(IMU in one.tracks for one in found) == 500

    def test_the_real_arabic_splits_are_blocks_of_their_index(self, recordings):
        blocks = defaultdict(list)
        for one in reader("digits-speakers").recordings(recordings):
            if one.domain == "arabic":
                blocks[one.labels, one.split].append(int(one.name.rsplit("_", 1)[1]))
        for (label, split), indices in blocks.items():
            later = {Split.TRAIN: Split.VAL, Split.VAL: Split.TEST}.get(split)
            assert later is None or max(indices) < min(blocks[label, later])
