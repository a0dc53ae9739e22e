"""The `folder` reader: with a manifest, and without one."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.clip import ClipFormat
from pipelines.ingest import ingest
from pipelines.readers import reader
from pipelines.readers.folder import read_manifest
from store.lake import Lake
from store.types import Clip, Modality, PalimpsestError, Recording, Split

VIDEO, AUDIO, IMU, IMAGE, DEPTH = Modality.VIDEO, Modality.AUDIO, Modality.IMU, Modality.IMAGE, Modality.DEPTH


def touch(source: Path, *names: str) -> Path:
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    return source


def found(source: Path) -> list[Recording]:
    return list(reader("folder").recordings(source))


class TestManifest:
    def read(self, source: Path, text: str) -> list[Recording]:
        (source / "manifest.csv").write_text(text)
        return found(source)

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
        (csv_read,) = self.read(tmp_path, "imu,label,imu_rate_hz,start_s,end_s\nm.csv,walk,25,0.5,2\n")
        (tmp_path / "pq").mkdir()
        columns = {"imu": ["m.csv"], "label": [["walk"]], "imu_rate_hz": [25.0], "start_s": [0.5], "end_s": [2]}
        pq.write_table(pa.table(columns | {"other": [1]}), tmp_path / "pq" / "manifest.parquet")
        (parquet_read,) = found(tmp_path / "pq")
        assert parquet_read == csv_read
        assert csv_read.tracks[IMU].rate_hz == 25

    def test_a_damaged_parquet_says_so(self, tmp_path):
        path = tmp_path / "manifest.parquet"
        pq.write_table(pa.table({"audio": ["a.wav"] * 9}), path)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(PalimpsestError, match="cannot be read as Parquet"):
            found(tmp_path)

    def test_a_gigantic_cell_of_a_parquet_loses_its_own_row_alone(self, tmp_path):
        pq.write_table(pa.table({"text": ["x" * (2 << 20), "fine"]}), tmp_path / "manifest.parquet")
        bad, good = found(tmp_path)
        assert (bad.name, bad.fault) == ("row 1", "manifest.parquet row 1 is longer than 1 MiB")
        assert good.tracks[Modality.TEXT].text == "fine"

    def test_a_header_with_spaces_and_capitals_is_understood(self, tmp_path):
        (one,) = self.read(tmp_path, "\ufeffAudio, Label\r\na.wav, dog\r\n")
        assert (one.name, one.labels) == ("a.wav", ("dog",))

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("video,start_s\na.mp4,soon\n", "manifest.csv row 2: start_s is 'soon'; it must be a number, 0 or more"),
            ("video,split\na.mp4,dev\n", "manifest.csv row 2: split is 'dev'; it must be train, val or test"),
            ("video,domain\na.mp4,x\na.mp4,y\n", "manifest.csv rows 2 and 3 are one recording with two domains"),
            ("text,split\nhi,train\nhi,test\n", "manifest.csv rows 2 and 3 are one recording with two splits"),
            ("imu,imu_rate_hz\n\na.csv,0\n", "manifest.csv row 3: imu_rate_hz is '0'; it must be a number above 0"),
            ("video\n" + "x" * (1 << 20) + "\n", "manifest.csv row 2 is longer than 1 MiB"),
        ],
    )
    def test_a_wrong_cell_loses_its_own_recording_alone(self, tmp_path, text, fault):
        header, rows = text.split("\n", 1)
        bad, good = self.read(tmp_path, f"{header}\n{rows}good.x\n")
        assert (bad.fault, bad.tracks) == (fault, {})
        assert (good.name.startswith(("good", "text")), good.fault) == (True, None)

    def test_a_path_that_no_disk_can_hold_refuses_its_own_recording_alone(self, tmp_path, make_sound):
        source, endless = tmp_path / "source", "x" * 300
        make_sound(source / "good.wav")
        (source / "loop").symlink_to("loop")
        self.read(source, f"audio\n{endless}\nloop\ngood.wav\n")
        done = ingest(Lake(tmp_path / "lake"), reader("folder"), source, format=ClipFormat(), dataset="odd")
        assert done.recordings == 1
        reasons = dict(done.quarantined)
        assert reasons[endless] == f"cannot be read: {endless} (File name too long)"
        assert reasons["loop"].startswith("cannot be read: loop (")

    def test_a_path_may_lead_into_an_archive(self, tmp_path):
        (tmp_path / "folder.zip").mkdir()
        inside, plain, archive = self.read(tmp_path, "audio\na.zip/b/c.wav\nfolder.zip/c.wav\na.zip\n")
        track = inside.tracks[AUDIO]
        assert (inside.name, track.path, track.member) == ("a.zip/b/c.wav", Path("a.zip"), "b/c.wav")
        assert [one.tracks[AUDIO].member for one in (plain, archive)] == [None, None]

    def test_ten_thousand_rows_take_little_memory(self, tmp_path):
        rows = "".join(f"{n}.mp4,class {n % 50},{n % 7},{n % 7 + 1}\n" for n in range(10_000))
        (tmp_path / "manifest.csv").write_text("video,label,start_s,end_s\n" + rows)
        tracemalloc.start()
        assert sum(1 for _ in read_manifest(tmp_path / "manifest.csv")) == 10_000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak / 10_000 < 1500  # bytes a row


class TestNoManifest:
    def test_files_of_one_stem_are_one_recording_labelled_by_their_folder(self, tmp_path):
        touch(tmp_path, "dog/1.mp4", "dog/1.csv", "dog/1.WAV", "dog/2.jpg", "cat/deep/3.flac", "4.mkv", "notes.txt")
        told = {one.name: (set(one.tracks), one.labels, one.split, one.clips) for one in found(tmp_path)}
        assert told == {
            "4.mkv": ({VIDEO}, (), None, ()),
            "cat/deep/3.flac": ({AUDIO}, ("deep",), None, ()),
            "dog/1.mp4+dog/1.WAV+dog/1.csv": ({VIDEO, AUDIO, IMU}, ("dog",), None, ()),
            "dog/2.jpg": ({IMAGE}, ("dog",), None, ()),
        }

    def test_two_files_of_one_kind_and_stem_are_two_recordings(self, tmp_path):
        assert [one.name for one in found(touch(tmp_path, "a.jpg", "a.png"))] == ["a.jpg", "a.png"]

    def test_pictures_in_a_folder_called_depth_are_depth_of_those_beside_it(self, tmp_path):
        touch(tmp_path, "room/1.jpg", "room/depth/1.png", "room/2.npy", "depth/3.png", "depth/odd/4.png")
        told = {one.name: (list(one.tracks), one.labels) for one in found(tmp_path)}
        assert told == {
            "depth/3.png": ([DEPTH], ()),
            "depth/odd/4.png": ([IMAGE], ("odd",)),
            "room/1.jpg+room/depth/1.png": ([IMAGE, DEPTH], ("room",)),
            "room/2.npy": ([DEPTH], ("room",)),
        }

    def test_hidden_and_unfinished_files_and_lakes_are_left_out(self, tmp_path):
        touch(tmp_path, ".a.mp4", "b.mp4.part", "c.mp4.tmp", "d.mp4.crdownload", "e.mp4~", ".trash/f.mp4", "g.mp4")
        touch(tmp_path, "lake/catalog.duckdb", "lake/cache/h.npy")
        assert [one.name for one in found(tmp_path)] == ["g.mp4"]

    def test_links_to_folders_are_not_followed(self, tmp_path):
        touch(tmp_path, "a/1.wav")
        (tmp_path / "a" / "loop").symlink_to("..")
        (tmp_path / "b").symlink_to("a")
        assert [one.name for one in found(tmp_path)] == ["a/1.wav"]

    def test_a_name_that_is_not_utf8_is_refused_by_an_escaped_name(self, tmp_path, make_sound, lake):
        make_sound(tmp_path / "in" / "good.wav")
        (tmp_path / "in" / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"x")
        done = ingest(lake, reader("folder"), tmp_path / "in", format=ClipFormat(), dataset="odd")
        assert done.recordings == 1
        assert dict(done.quarantined) == {r"caf\xe9.wav": r"the name caf\xe9.wav is not UTF-8: rename it"}

    def test_the_order_is_that_of_names(self, tmp_path):
        touch(tmp_path, "b/2.wav", "b/10.wav", "a.wav", "c.wav", "B/1.wav")
        assert [one.name for one in found(tmp_path)] == ["a.wav", "c.wav", "B/1.wav", "b/10.wav", "b/2.wav"]

    def test_a_folder_without_media_says_so(self, tmp_path):
        with pytest.raises(PalimpsestError, match=r"no manifest.csv or manifest.parquet in .*, nor any media file"):
            found(touch(tmp_path, "notes.txt"))
