"""Readers: official layouts in, recordings out."""

from __future__ import annotations

import gzip
import struct
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.clip import ClipFormat
from pipelines.ingest import ingest
from pipelines.readers import READERS, draw_split, reader
from store.lake import Lake
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
        ("nothing", {}, "no reader is called 'nothing'; there are digits"),
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


class TestSamsemo:
    COLUMNS = ("utterance_id", "language", "aggregated_emotions", "transcript")

    @pytest.fixture
    def source(self, tmp_path):
        rows = [
            ("aaaaaaaaaa_1", "EN", "happiness,surprise", 'He said "hi'),
            ("bbbbbbbbbb_2", "KO", "anger", "a"),
            ("cccccccccc_3", "PL", "neutral", ""),
        ]
        touch(tmp_path / "samsemo.tsv", "\n".join("\t".join(row) for row in (self.COLUMNS, *rows)))
        touch(tmp_path / "data" / "EN" / "aaaaaaaaaa_1.mp4")
        touch(tmp_path / "data" / "EN" / "aaaaaaaaaa_1" / "audio.wav")
        touch(tmp_path / "data" / "deeper" / "KO" / "bbbbbbbbbb_2" / "audio.wav")
        touch(tmp_path / "data" / "deeper" / "KO" / "bbbbbbbbbb_2" / "image_0.jpg")
        touch(tmp_path / "splits" / "valid_split_EN.txt", "aaaaaaaaaa_1\n")
        touch(tmp_path / "splits" / "test_split_KO.txt", "bbbbbbbbbb_2\n")
        return tmp_path

    def test_the_layout_is_read(self, source):
        english, korean, absent = reader("samsemo").recordings(source)
        assert english.labels == ("happiness", "surprise")
        assert (english.domain, english.split, english.group) == ("EN", Split.VAL, "aaaaaaaaaa")
        assert english.clips[0].text == 'He said "hi'
        assert {m: t.path.as_posix() for m, t in english.tracks.items()} == {VIDEO: "data/EN/aaaaaaaaaa_1.mp4"}
        folder = "data/deeper/KO/bbbbbbbbbb_2"
        assert {m: t.path.as_posix() for m, t in korean.tracks.items()} == {VIDEO: folder, AUDIO: f"{folder}/audio.wav"}
        assert (absent.split, absent.clips[0].text) == (None, None)
        assert absent.tracks[VIDEO].path == Path("data/PL/cccccccccc_3.mp4")

    def test_the_first_emotion_alone(self, source):
        english, *_ = reader("samsemo", emotions="first").recordings(source)
        assert english.labels == ("happiness",)

    def test_a_byte_order_mark_and_a_row_without_its_end_are_read(self, source):
        path = source / "samsemo.tsv"
        path.write_text("\ufeff" + path.read_text().rstrip())
        assert [one.clips[0].text for one in reader("samsemo").recordings(source)] == ['He said "hi', "a", None]

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["utterance_id\taggregated_emotions", "a_1\tanger"], "samsemo.tsv has no column language, transcript"),
            (["\t".join(COLUMNS), "a_1\tEN\tanger\thi", "b_2"], "samsemo.tsv line 3 has no language"),
        ],
    )
    def test_what_the_table_lacks_is_named(self, source, lines, message):
        touch(source / "samsemo.tsv", "\n".join(lines))
        with pytest.raises(PalimpsestError, match=message):
            list(reader("samsemo").recordings(source))


class TestFolder:
    def read(self, source, text):
        touch(source / "manifest.csv", text)
        return list(reader("folder").recordings(source))

    def test_rows_of_the_same_files_are_clips_of_one_recording(self, tmp_path):
        first, second = self.read(
            tmp_path,
            "video,audio,label,start_s,end_s,domain,split,text,extra\n"
            "a.mp4,,dog;cat,0,1.5,park,valid,hello,1\n"
            "b.mp4,b.wav,,,,,,,2\n"
            "a.mp4,,fox,1.5,,park,valid,,3\n",
        )
        assert first.clips == (Clip(0, 1.5, ("dog", "cat"), "hello"), Clip(1.5, None, ("fox",)))
        assert (first.name, first.domain, first.split) == ("a.mp4", "park", Split.VAL)
        assert (second.name, second.clips, second.labels, second.split) == ("b.mp4+b.wav", (), (), None)

    def test_texts_alone_are_recordings(self, tmp_path):
        one, other = self.read(tmp_path, "text,label\ngood film,plus\nbad film,minus\ngood film,plus\n")
        assert one.tracks[Modality.TEXT].text == "good film"
        assert (one.labels or one.clips[0].labels, other.labels) == (("plus",), ("minus",))

    def test_parquet_reads_as_csv_does(self, tmp_path):
        (csv_read,) = self.read(tmp_path / "csv", "imu,label,imu_rate_hz,start_s,end_s\nm.csv,walk,25,0.5,2\n")
        (tmp_path / "pq").mkdir()
        columns = {"imu": ["m.csv"], "label": [["walk"]], "imu_rate_hz": [25.0], "start_s": [0.5], "end_s": [2]}
        pq.write_table(pa.table(columns), tmp_path / "pq" / "manifest.parquet")
        (parquet_read,) = reader("folder").recordings(tmp_path / "pq")
        assert parquet_read == csv_read
        assert csv_read.tracks[IMU].rate_hz == 25

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("video,start_s\na.mp4,soon\n", "manifest.csv row 2: start_s is 'soon'; it must be a number"),
            ("video,split\na.mp4,dev\n", "row 2: split is 'dev'; it must be train, val or test"),
            ("video,domain\na.mp4,x\na.mp4,y\n", "rows 2 and 3 are one recording with two domains"),
            ("text,split\nhi,train\nhi,test\n", "rows 2 and 3 are one recording with two splits"),
            ("file,name\na,b\n", "has none of the columns"),
        ],
    )
    def test_a_wrong_cell_is_named(self, tmp_path, text, message):
        with pytest.raises(PalimpsestError, match=message):
            self.read(tmp_path, text)

    def test_a_path_that_no_disk_can_hold_refuses_its_own_recording_alone(self, tmp_path, make_sound):
        source, endless = tmp_path / "source", "x" * 300
        make_sound(source / "good.wav")
        (source / "loop").symlink_to("loop")
        touch(source / "manifest.csv", f"audio\n{endless}\nloop\ngood.wav\n")
        done = ingest(Lake(tmp_path / "lake"), reader("folder"), source, format=ClipFormat(), dataset="odd")
        assert done.recordings == 1
        reasons = dict(done.quarantined)
        assert reasons[endless] == f"cannot be read: {endless} (File name too long)"
        assert reasons["loop"].startswith("cannot be read: loop (")

    def test_no_manifest_says_so(self, tmp_path):
        with pytest.raises(PalimpsestError, match="no manifest.csv or manifest.parquet in"):
            list(reader("folder").recordings(tmp_path))
