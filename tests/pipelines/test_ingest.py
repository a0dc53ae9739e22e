"""Ingest: what lands, what is refused, and that neither workers nor kills change the end."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import webdataset
from PIL import Image

import pipelines.ingest
import pipelines.plan
from pipelines.clip import ClipFormat
from pipelines.ingest import build_shard, ingest
from pipelines.readers import reader
from store.lake import Lake, lock
from store.ledger import Ledger
from store.shards import Entry, read_sample
from store.types import Modality, PalimpsestError, Recording, Sample, Track

FORMAT = ClipFormat(frames=2, frame_size=(16, 16))
ROOT = Path(__file__).parents[2]


def run(lake: Lake, source: Path, **options):
    options = {"format": FORMAT, "dataset": "talks", "group": "label"} | options
    return ingest(lake, reader("folder"), source, **options)


def manifest(source: Path, *rows: str, columns: str = "audio,label,domain,split") -> Path:
    source.mkdir(parents=True, exist_ok=True)
    (source / "manifest.csv").write_text("\n".join([columns, *rows]) + "\n")
    return source


def table(lake: Lake, name: str) -> list[dict]:
    rows = Ledger(lake).rows(f"SELECT * EXCLUDE recorded_at FROM {name} ORDER BY ALL")
    # Lakes differ in where they lie, and only in that.
    return [{key: value for key, value in row.items() if key not in ("url", "source")} for row in rows]


def state(lake: Lake) -> dict:
    """All that an ingest leaves: the shards' bytes and the ledger's rows."""
    folder = lake.root / "shards"
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {"files": files} | {name: table(lake, name) for name in ("samples", "recordings", "shards", "batches")}


def read_samples(lake: Lake) -> list[Sample]:
    """Every sample, each read from where the ledger says it lies."""
    rows = Ledger(lake).rows("SELECT s.*, h.url FROM samples s JOIN shards h USING (dataset, shard)")
    entries = [(row["url"], Entry(row["key"], row["offset"], row["size"], row["checksum"])) for row in rows]
    return [read_sample(lake.resolve(url), entry) for url, entry in entries]


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(pipelines.plan, "BATCH_RECORDINGS", 3)


@pytest.fixture
def talks(tmp_path, make_sound) -> Path:
    """Ten sounds of two labels."""
    source = tmp_path / "talks"
    for number in range(10):
        make_sound(source / f"{number}.wav", seed=number)
    return manifest(source, *(f"{n}.wav,{'dog' if n % 2 else 'cat'},home," for n in range(10)))


def test_recordings_become_shards_that_stock_webdataset_reads(lake, talks, make_video):
    make_video(talks / "v.mp4", frames=25)
    manifest(talks, "v.mp4,,dog,0.0,0.5", ",1.wav,cat,,", columns="video,audio,label,start_s,end_s")
    summary = run(lake, talks)
    assert (summary.recordings, summary.samples, summary.quarantined) == (2, 2, ())
    (row,) = Ledger(lake).rows("SELECT url FROM shards")
    samples = list(webdataset.WebDataset(lake.resolve(row["url"]), shardshuffle=False).decode("pil"))
    seen = next(sample for sample in samples if "frame000.jpg" in sample)
    assert seen["frame001.jpg"].size == (16, 16)
    assert seen["json"]["labels"] == ["dog"]
    assert seen["json"]["tracks"]["audio"]["length"] == 8000
    assert {sample["__key__"] for sample in samples} == {row["key"] for row in table(lake, "samples")}


def test_shards_come_in_the_order_of_their_group(lake, talks, small_batches):
    run(lake, talks)
    ordered = Ledger(lake).rows("SELECT slug, recordings FROM batches ORDER BY position")
    assert [row["slug"] for row in ordered] == ["cat", "cat-dog", "dog", "dog"]
    labels = {row["recording"]: row["labels"][0] for row in table(lake, "recordings")}
    assert [labels[r] for row in ordered for r in row["recordings"]] == ["cat"] * 5 + ["dog"] * 5


def test_a_second_run_ingests_nothing(lake, talks):
    run(lake, talks)
    before = state(lake)
    again = run(lake, talks, workers=2)
    assert (again.recordings, again.samples, again.known) == (0, 0, 10)
    assert state(lake) == before


def test_workers_do_not_change_a_byte(tmp_path, talks, small_batches):
    lakes = [Lake(tmp_path / name) for name in ("one", "two")]
    for lake, workers in zip(lakes, (1, 2), strict=True):
        run(lake, talks, workers=workers)
    assert state(lakes[0]) == state(lakes[1])


def test_workers_do_not_change_a_byte_of_real_recordings(tmp_path, recordings, monkeypatch):
    monkeypatch.setattr(pipelines.plan, "BATCH_RECORDINGS", 20)
    for name, workers in (("one", 1), ("two", 2)):
        summary = ingest(
            Lake(tmp_path / name),
            reader("grid"),
            recordings / "grid-s1",
            format=ClipFormat(margin_s=0.04),
            dataset="grid",
            workers=workers,
            limit=40,
        )
        assert (summary.recordings, summary.samples, summary.shards) == (40, 240, 2)
    assert state(Lake(tmp_path / "one")) == state(Lake(tmp_path / "two"))


def test_what_an_exception_leaves_is_finished_as_planned(tmp_path, lake, talks, small_batches):
    def stop(batches):
        yield build_shard(batches[0])
        build_shard(batches[1])  # its bytes lie there, its rows do not
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lake, talks, run=stop)
    assert 0 < len(table(lake, "shards")) < 4
    resumed = run(lake, talks)
    assert resumed.resumed == 3
    whole = Lake(tmp_path / "whole")
    run(whole, talks)
    assert state(lake) == state(whole)


@pytest.mark.parametrize("table_name", ["samples", "recordings", "quarantined", "shards"])
def test_a_half_committed_shard_is_built_again(tmp_path, lake, talks, small_batches, monkeypatch, table_name):
    append = Ledger.append

    def die(self, name, rows):
        if name == table_name and list(rows):
            raise KeyboardInterrupt
        append(self, name, rows)

    if table_name == "quarantined":
        (talks / "3.wav").write_bytes(b"no sound")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ledger, "append", die)
        run(lake, talks)
    run(lake, talks)
    whole = Lake(tmp_path / "whole")
    run(whole, talks)
    assert state(lake) == state(whole)


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path, lake, talks, small_batches):
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import pipelines.ingest as module\n"
        "import pipelines.plan\n"
        "from pipelines.clip import ClipFormat\n"
        "from pipelines.readers import reader\n"
        "from store.lake import Lake\n"
        "pipelines.plan.BATCH_RECORDINGS, module.COMMIT_EVERY = 3, 0.0\n"
        "def run(batches):\n"
        "    for number, batch in enumerate(batches):\n"
        "        built = module.build_shard(batch)\n"
        "        if number == 2:\n"
        "            Path(batch.url).with_name('.half.tar.1.tmp').write_bytes(b'half')\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield built\n"
        "lake, source = map(Path, sys.argv[1:])\n"
        "module.ingest(Lake(lake), reader('folder'), source, format=ClipFormat(frames=2, frame_size=(16, 16)),\n"
        "              dataset='talks', group='label', run=run)\n"
    )
    command = [sys.executable, str(script), str(lake.root), str(talks)]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(table(lake, "shards")) == 2
    assert run(lake, talks).resumed == 2
    whole = Lake(tmp_path / "whole")
    run(whole, talks)
    assert state(lake) == state(whole)


def test_bad_recordings_are_set_aside_with_their_reasons(lake, talks, make_video, make_sound):
    whole = make_video(talks / "whole.mp4", frames=75, gop=75)
    (talks / "cut.mp4").write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.4)])
    plain = make_video(talks / "plain.mp4", faststart=False)
    (talks / "noindex.mp4").write_bytes(plain.read_bytes()[:-200])
    plain.unlink()
    (talks / "empty.mp4").touch()
    (talks / "text.mp4").write_text("this is a text\n" * 50)
    odd = "-odd 'name' \"here\".mp4"
    make_video(talks / odd, frames=30, seed=1)
    rows = ["1,1,1,1,1,1" if n % 5 else "1,nan,1,1,1,1" for n in range(60)]
    (talks / "motion.csv").write_text("\n".join(rows))
    quoted = odd.replace('"', '""')
    names = ["whole.mp4", "cut.mp4", "noindex.mp4", "empty.mp4", "text.mp4", "gone.mp4", "../talks.mp4", "/etc/passwd"]
    listed = [*(f"{name},,," for name in names), f'"{quoted}",,,', ",motion.csv,50,", ",,,"]
    manifest(talks, *listed, columns="video,imu,imu_rate_hz,label")
    summary = run(lake, talks)
    reasons = dict(summary.quarantined)
    assert summary.recordings == 2
    assert {row["name"] for row in table(lake, "recordings")} == {"whole.mp4", odd}
    assert "the file is cut off" in reasons["cut.mp4"]
    assert reasons["noindex.mp4"] == "the file is cut off: its index (moov) is missing"
    assert reasons["empty.mp4"] == "the file is empty: empty.mp4"
    assert reasons["text.mp4"] == "not a media file: text.mp4"
    assert reasons["gone.mp4"] == "no such file: gone.mp4"
    assert "leads out of the data set's folder" in reasons["../talks.mp4"]
    assert "leads out of the data set's folder" in reasons["/etc/passwd"]
    assert reasons["motion.csv"] == "IMU column acc_y is NaN in 12 of 60 rows"
    assert reasons["row 12"] == "it names neither a file nor a text"
    assert {row["name"]: row["reason"] for row in table(lake, "quarantined")} == reasons


def test_quarantine_is_left_alone_retried_and_mended(lake, talks, make_sound):
    good = (talks / "3.wav").read_bytes()
    (talks / "3.wav").write_bytes(b"no sound")
    (talks / "4.wav").rename(talks / "away.wav")
    assert len(run(lake, talks).quarantined) == 2
    again = run(lake, talks)
    assert (again.skipped, again.quarantined, again.known) == (2, (), 8)
    assert len(run(lake, talks, retry_quarantined=True).quarantined) == 2
    (talks / "3.wav").write_bytes(good)
    (talks / "away.wav").rename(talks / "4.wav")
    mended = run(lake, talks)
    assert (mended.recordings, mended.skipped, mended.quarantined) == (2, 0, ())
    assert [row["reason"] for row in table(lake, "quarantined")] == [None, None]


def test_a_corrected_label_lands_without_decoding(lake, talks, monkeypatch):
    run(lake, talks)
    before = state(lake)["files"]
    monkeypatch.setattr(pipelines.ingest, "cut_all", None)
    manifest(talks, *(f"{n}.wav,{'fox' if n == 3 else 'dog' if n % 2 else 'cat'},away,test" for n in range(10)))
    summary = run(lake, talks)
    assert (summary.relabelled, summary.recordings) == (10, 0)
    samples = table(lake, "samples")
    assert sorted(row["labels"][0] for row in samples).count("fox") == 1
    assert {(row["domain"], row["split"]) for row in samples} == {("away", "test")}
    assert {row["domain"] for row in table(lake, "recordings")} == {"away"}
    assert state(lake)["files"] == before
    assert run(lake, talks).relabelled == 0


def test_later_arrivals_append_and_rewrite_nothing(lake, talks, make_sound):
    run(lake, talks, limit=6)
    before = state(lake)["files"]
    summary = run(lake, talks)
    assert (summary.recordings, summary.known) == (4, 6)
    after = state(lake)["files"]
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1


def test_a_clip_added_to_a_known_recording_is_cut_alone(lake, talks):
    columns = "audio,label,start_s,end_s"
    run(lake, manifest(talks, "1.wav,a,0,0.1", "1.wav,b,0.1,0.2", columns=columns))
    before = table(lake, "samples")
    summary = run(lake, manifest(talks, "1.wav,a,0,0.1", "1.wav,b,0.1,0.2", "1.wav,c,0.2,0.3", columns=columns))
    assert (summary.samples, summary.known) == (1, 1)
    after = table(lake, "samples")
    assert [row for row in after if row in before] == before
    assert sorted(row["labels"][0] for row in after) == ["a", "b", "c"]
    assert run(lake, talks).samples == 0


def test_the_same_bytes_under_two_names_are_one_recording(lake, talks):
    (talks / "copy.wav").write_bytes((talks / "1.wav").read_bytes())
    manifest(talks, "1.wav,dog,,", "copy.wav,cat,,")
    summary = run(lake, talks)
    assert (summary.recordings, summary.duplicates) == (1, 1)
    manifest(talks, "copy.wav,cat,,", "1.wav,dog,,")
    summary = run(lake, talks)
    assert (summary.relabelled, summary.duplicates) == (0, 1)


def test_a_lost_shard_is_built_again_as_it_was(lake, talks, small_batches):
    run(lake, talks)
    before = state(lake)
    lost = sorted((lake.root / "shards" / "talks").iterdir())[1]
    lost.unlink()
    again = run(lake, talks)
    assert (again.resumed, again.shards, again.known) == (1, 1, 7)
    assert state(lake) == before
    assert len(read_samples(lake)) == 10
    assert run(lake, talks).shards == 0


def test_a_lost_shard_of_added_clips_is_built_again_as_it_was(lake, talks):
    columns = "audio,label,start_s,end_s"
    run(lake, manifest(talks, "1.wav,a,0,0.1", columns=columns))
    run(lake, manifest(talks, "1.wav,a,0,0.1", "1.wav,b,0.1,0.2", columns=columns))
    before = state(lake)
    for lost in before["files"]:
        (lake.root / "shards" / "talks" / lost).unlink()
        assert run(lake, talks).samples == 1
        assert state(lake) == before


def test_a_lake_that_was_moved_is_read_and_not_decoded_again(tmp_path, lake, talks, monkeypatch):
    run(lake, talks)
    moved = Lake(lake.root.rename(tmp_path / "elsewhere"))
    assert len(read_samples(moved)) == 10
    monkeypatch.setattr(pipelines.ingest, "cut_all", None)
    again = run(moved, talks)
    assert (again.recordings, again.known, again.quarantined) == (0, 10, ())


def test_shards_recorded_by_their_whole_path_are_read_and_not_decoded_again(lake, talks):
    run(lake, talks)
    ledger = Ledger(lake)
    shards = ledger.rows("SELECT * EXCLUDE recorded_at FROM shards")
    ledger.append("shards", [row | {"url": str(lake.root / row["url"])} for row in shards])
    assert len(read_samples(lake)) == 10
    assert run(lake, talks).recordings == 0


def test_a_clip_that_fails_does_not_freeze_its_recording(lake, talks):
    columns = "audio,label,start_s,end_s"
    run(lake, manifest(talks, "1.wav,dog,0,0.2", columns=columns))
    manifest(talks, "1.wav,dog,0,0.2", "1.wav,dog,50,90", columns=columns)
    assert len(run(lake, talks).quarantined) == 1
    manifest(talks, "1.wav,fox,0,0.2", "1.wav,dog,50,90", columns=columns)
    summary = run(lake, talks)
    assert (summary.known, summary.relabelled, summary.skipped, summary.quarantined) == (1, 1, 1, ())
    manifest(talks, "1.wav,cat,0,0.2", columns=columns)
    summary = run(lake, talks)
    assert (summary.known, summary.relabelled, summary.skipped) == (1, 1, 0)
    assert [row["labels"] for row in table(lake, "samples")] == [["cat"]]
    assert [row["reason"] for row in table(lake, "quarantined")] == [None]


@pytest.mark.parametrize("end", ["0.1", "{duration}"])
def test_a_clip_to_the_end_takes_no_other_clips_labels(lake, talks, end):
    duration = soundfile.info(talks / "1.wav").duration
    rows = ["1.wav,dog,0,", f"1.wav,cat,0,{end.format(duration=duration)}"]
    run(lake, manifest(talks, *rows, columns="audio,label,start_s,end_s"))
    before = table(lake, "samples")
    again = run(lake, talks)
    assert (again.relabelled, again.samples) == (0, 0)
    assert table(lake, "samples") == before


def test_a_corrected_language_lands(lake, talks):
    class Tongues:
        name, version, language = "tongues", 1, "en"

        def __repr__(self) -> str:
            return self.name

        def recordings(self, source):
            return (replace(found, language=self.language) for found in reader("folder").recordings(source))

    tongues = Tongues()
    for tongues.language in ("en", "fr"):
        ingest(lake, tongues, talks, format=FORMAT, dataset="talks")
        assert {row["language"] for row in table(lake, "recordings")} == {tongues.language}


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", ".", "..", "", "a b", "x\n"])
def test_a_data_set_cannot_be_named_out_of_the_lake(lake, talks, name):
    with pytest.raises(PalimpsestError, match="a data set cannot be called"):
        run(lake, talks, dataset=name)
    assert not lake.root.exists()


def test_another_format_is_refused(lake, talks):
    run(lake, talks)
    with pytest.raises(PalimpsestError, match="--as NAME"):
        run(lake, talks, format=ClipFormat(frames=3))
    assert run(lake, talks, format=ClipFormat(frames=3), dataset="talks-3").recordings == 10


def test_two_ingests_of_one_data_set_do_not_meet(lake, talks):
    with lock(lake, "ingest-talks"), pytest.raises(PalimpsestError, match="another ingest of talks is running"):
        run(lake, talks)


def test_progress_counts_recordings(lake, talks, small_batches):
    seen = []
    run(lake, talks, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 10), (6, 10), (9, 10), (10, 10)]


def test_what_is_still_changing_is_left_for_later_and_arrives_then(lake, talks):
    old = time.time() - 3600
    for number in range(4):
        os.utime(talks / f"{number}.wav", (old, old))
    (talks / "9.wav").unlink()
    first = run(lake, talks, settle_s=60, arrival="monday")
    assert (first.recordings, first.arriving, first.quarantined) == (4, 6, ())
    for number in range(4, 9):
        os.utime(talks / f"{number}.wav", (old, old))
    second = run(lake, talks, settle_s=60, arrival="tuesday")
    assert (second.recordings, second.known, second.relabelled, second.arriving) == (5, 4, 0, 1)
    arrivals = Ledger(lake).rows("SELECT arrival, count(*) AS n FROM samples GROUP BY ALL ORDER BY ALL")
    assert [(row["arrival"], row["n"]) for row in arrivals] == [
        ("monday", 4),
        ("tuesday", 5),
    ]
    assert run(lake, talks).relabelled == 0  # a run that names no arrival takes none away


def test_what_a_kill_left_over_keeps_the_arrival_it_was_planned_with(lake, talks, small_batches):
    def stop(batches):
        yield build_shard(batches[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lake, talks, run=stop, arrival="monday")
    run(lake, talks, arrival="tuesday")
    assert {row["arrival"] for row in table(lake, "samples")} == {"monday"}


def test_tracks_in_an_archive_are_the_same_as_beside_it(tmp_path, talks, make_video):
    class Packed:
        name, version = "packed", 1

        def __repr__(self) -> str:
            return self.name

        def recordings(self, source):
            for number in range(3):
                yield Recording(f"{number}", {Modality.AUDIO: Track(Path("all.zip"), f"deep/../{number}.wav")}, ())
            yield Recording("stills", {Modality.VIDEO: Track(Path("all.zip"), "stills/", rate_hz=2)}, ())
            yield Recording("none", {Modality.AUDIO: Track(Path("all.zip"), "none.wav")}, ())
            yield Recording("odd", {Modality.AUDIO: Track(Path("odd.zip"), "none.wav")}, ())

    with zipfile.ZipFile(talks / "all.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"deep/../{number}.wav", (talks / f"{number}.wav").read_bytes())
        for number in range(4):
            picture = io.BytesIO()
            Image.new("RGB", (20, 20), (60 * number, 0, 0)).save(picture, "JPEG")
            archive.writestr(f"stills/{number}.jpg", picture.getvalue())
    (talks / "odd.zip").write_bytes(b"PK no archive")
    lake, beside = Lake(tmp_path / "packed"), Lake(tmp_path / "beside")
    summary = ingest(lake, Packed(), talks, format=FORMAT, dataset="talks")
    assert (summary.recordings, summary.samples) == (4, 4)
    assert dict(summary.quarantined) == {
        "none": "no such file: all.zip/none.wav",
        "odd": "cannot be read: odd.zip/none.wav (damaged zip archive: odd.zip)",
    }
    run(beside, manifest(talks, *(f"{number}.wav," for number in range(3)), columns="audio,label"))
    sounds = {sample.key: sample for sample in read_samples(lake) if sample.audio is not None}
    assert len(sounds) == 3
    for sample in read_samples(beside):
        assert (sounds[sample.key].audio == sample.audio).all()
    assert not list(tmp_path.glob("*.wav"))
    assert ingest(lake, Packed(), talks, format=FORMAT, dataset="talks").known == 4


@pytest.mark.parametrize(("name", "algorithm"), [("SHA256SUMS", "sha256"), ("md5sums.txt", "md5")])
def test_a_flipped_bit_is_caught_where_the_source_lists_checksums(lake, talks, name, algorithm):
    sums = [f"{hashlib.new(algorithm, (talks / f'{n}.wav').read_bytes()).hexdigest()}  ./{n}.wav" for n in range(10)]
    (talks / name).write_text("\n".join(sums) + "\n")
    whole = (talks / "3.wav").read_bytes()
    (talks / "3.wav").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    summary = run(lake, talks)
    assert summary.recordings == 9
    assert [(one, f"not the file that {name} names" in reason) for one, reason in summary.quarantined] == [
        ("3.wav", True)
    ]
    (talks / "3.wav").write_bytes(whole)
    assert run(lake, talks).recordings == 1


def test_a_lost_shard_comes_back_whole_or_its_recordings_in_another(lake, talks, small_batches):
    run(lake, talks)
    lost = sorted((lake.root / "shards" / "talks").iterdir())[0]
    (row,) = [row for row in table(lake, "batches") if lost.name.endswith(f"-{row['batch']}.tar")]
    away = next(one["name"] for one in table(lake, "recordings") if one["recording"] == row["recordings"][0])
    lost.unlink()
    (talks / away).rename(talks / "away")
    run(lake, talks)
    (talks / "away").rename(talks / away)
    run(lake, talks)
    assert len(read_samples(lake)) == 10
    assert run(lake, talks).known == 10


def test_a_touched_file_is_tried_again(lake, talks, monkeypatch):
    cut = pipelines.ingest.cut_all

    def touching(recording, *args, **options):
        yield from cut(recording, *args, **options)
        if recording.name == "3.wav":
            os.utime(talks / "3.wav", (1, 1))

    with monkeypatch.context() as patch:
        patch.setattr(pipelines.ingest, "cut_all", touching)
        ((name, reason),) = run(lake, talks).quarantined
    assert (name, "changed while they were read" in reason) == ("3.wav", True)
    assert run(lake, talks).recordings == 1


def test_an_end_that_is_too_short_is_not_cut_again_and_again(lake, talks, make_sound):
    make_sound(talks / "long.wav", seconds=2.0)
    manifest(talks, "long.wav,a,0,1", "long.wav,b,1.8,", columns="audio,label,start_s,end_s")
    format = ClipFormat(min_s=0.5)
    assert run(lake, talks, format=format).samples == 1
    again = run(lake, talks, format=format)
    assert (again.samples, again.known, again.quarantined) == (0, 1, ())


def test_a_file_that_has_only_begun_to_arrive_is_no_failure(lake, talks):
    (talks / "0.wav").write_bytes(b"")
    (talks / "c.zip").write_bytes(b"PK half")
    manifest(talks, "0.wav,a", "c.zip/1.wav,a", columns="audio,label")
    summary = run(lake, talks, settle_s=3600)
    assert (summary.arriving, summary.quarantined) == (2, ())


def test_bytes_that_are_no_unicode_cost_their_recording_alone(lake, talks):
    class Odd:
        name, version = "odd", 1

        def recordings(self, source):
            yield Recording("a", {Modality.AUDIO: Track(Path("1.wav"))}, (), labels=("caf\udce9",))
            yield Recording("b", {Modality.AUDIO: Track(Path("2.wav"))}, (), labels=("dog",))

    summary = ingest(lake, Odd(), talks, format=FORMAT, dataset="talks")
    assert (summary.recordings, [name for name, _ in summary.quarantined]) == (1, ["a"])


def test_a_damaged_cache_of_identities_is_made_again(lake, talks):
    run(lake, talks)
    (cache,) = (lake.cache / "identities").iterdir()
    data = cache.read_bytes()
    cache.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    assert run(lake, talks).known == 10


def test_a_folder_without_any_recording_is_taken_for_the_wrong_one(lake, talks):
    class Blind:
        name, version = "blind", 1

        def recordings(self, source):
            return iter(())

    with pytest.raises(PalimpsestError, match="is this the right folder"):
        ingest(lake, Blind(), talks, format=FORMAT, dataset="talks")
