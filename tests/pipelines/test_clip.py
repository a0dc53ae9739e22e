"""Cutting: windows over all tracks, aligned to the sample and to the frame."""

from __future__ import annotations

import gzip
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipelines.quality
import store.types
from pipelines.clip import ClipFormat, cut, cut_all, windows
from pipelines.media import pyav
from pipelines.quality import Unfit
from pipelines.readers import reader
from store.types import Clip, Modality, Recording, Track

FORMAT = ClipFormat(frames=4, frame_size=(32, 32))


def levels(sample) -> list[float]:
    """The grey of each frame, right of the white edge."""
    return [np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"))[:, 12:].mean() for jpeg in sample.frames]


@pytest.fixture
def talk(tmp_path, make_video) -> Recording:
    make_video(tmp_path / "talk.mp4", frames=75)
    return Recording("talk", {Modality.VIDEO: Track(Path("talk.mp4"))}, labels=("hello",))


def test_frames_lie_at_the_centres_of_equal_parts(tmp_path, talk):
    sample = cut(talk, Clip(1.0, 1.8), FORMAT, tmp_path)
    frames = [int(t / 0.04) for t in (1.1, 1.3, 1.5, 1.7)]
    np.testing.assert_allclose(levels(sample), [40 + 2 * i for i in frames], atol=2.5)
    assert sample.meta["start_s"] == 1.0
    assert sample.meta["duration_s"] == pytest.approx(0.8)
    assert sample.meta["tracks"]["video"] == {"rate_hz": 5.0, "length": 4, "width": 32, "height": 32}


def test_sound_is_the_same_window_of_the_whole(tmp_path, talk):
    whole = cut(talk, Clip(), FORMAT, tmp_path).audio
    for start, end in ((0.0, 0.5), (0.9137, 1.2), (2.5, 3.0)):
        part = cut(talk, Clip(start, end), FORMAT, tmp_path).audio
        np.testing.assert_array_equal(part, whole[round(start * 16_000) : round(end * 16_000)])


def test_a_mute_recording_leaves_its_sound_out(tmp_path, talk):
    sample = cut(replace(talk, mute=True), Clip(0.0, 0.5), FORMAT, tmp_path)
    assert sample.audio is None and len(sample.frames) == 4
    assert set(sample.meta["tracks"]) == {"video"}


def test_a_real_word_is_the_same_window_of_its_sentence(recordings):
    source = recordings / "grid-s1"
    sentence = next(reader("grid").recordings(source))
    whole = pyav.scan(source / sentence.tracks[Modality.VIDEO].path, audio_hz=16_000).audio[:]
    samples = list(cut_all(sentence, ClipFormat(margin_s=0.04), source))
    assert [sample.meta["labels"] for sample in samples] == [["bin"], ["blue"], ["at"], ["f"], ["two"], ["now"]]
    for sample, clip in zip(samples, sentence.clips, strict=True):
        start, end = round((clip.start_s - 0.04) * 16_000), round((clip.end_s + 0.04) * 16_000)
        np.testing.assert_array_equal(sample.audio, whole[start:end])
        assert len(sample.frames) == 8


def test_margins_end_at_the_recording(tmp_path, talk):
    sample = cut(talk, Clip(0.0, 3.0), replace(FORMAT, margin_s=0.5), tmp_path)
    assert (sample.meta["start_s"], sample.meta["clip"]) == (0.0, [0.0, 3.0])
    assert sample.meta["duration_s"] <= 3.05
    assert sample.key.endswith("-0000000-0003000")


def test_cutting_twice_gives_the_same_bytes(tmp_path, talk):
    first, second = (cut(talk, Clip(0.3, 2.0), FORMAT, tmp_path) for _ in range(2))
    assert first.frames == second.frames
    assert first.meta == second.meta


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (Clip(3.4, 3.6), r"clip 3.4-3.6 s lies beyond the recording's end at 3.0 s"),
        (Clip(1.0, 9.0), r"clip 1-9 s lies beyond the recording's end"),
        (Clip(2.0, 1.0), "ends before it starts"),
    ],
)
def test_a_window_outside_the_recording_is_refused(tmp_path, talk, clip, reason):
    with pytest.raises(Unfit, match=reason):
        cut(talk, clip, FORMAT, tmp_path)


def test_a_clip_too_long_to_learn_from_is_refused(tmp_path, talk):
    with pytest.raises(Unfit, match="longer than 2 s: give start and end times"):
        cut(talk, Clip(), replace(FORMAT, max_s=2.0), tmp_path)


def test_a_video_whose_clips_are_all_too_short_says_so(tmp_path, talk):
    short = replace(talk, clips=(Clip(0.0, 0.1), Clip(1.0, 1.2)))
    with pytest.raises(Unfit, match="no clip of at least 0.5 s; the recording lasts 3.0"):
        list(cut_all(short, replace(FORMAT, min_s=0.5), tmp_path))


def test_a_damaged_gzip_is_unfit(tmp_path):
    packed = gzip.compress(np.random.default_rng(0).bytes(4000))
    name = Path("two.idx.gz")
    note = Recording("note", {Modality.IMAGE: Track(name, length=16, shape=(4, 4))})
    for damaged in (packed[:2000], packed[:20] + b"\xff" * 20 + packed[40:], b"no gzip"):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(Unfit, match="cannot be read: damaged gzip: two.idx.gz"):
            cut(note, Clip(), FORMAT, tmp_path)


def test_a_gzip_that_unpacks_to_too_much_is_unfit(tmp_path, monkeypatch):
    monkeypatch.setattr(store.types, "MAX_UNPACKED", 1 << 20)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    note = Recording("note", {Modality.IMAGE: Track(Path("bomb.gz"), length=16, shape=(4, 4))})
    with pytest.raises(Unfit, match="bomb.gz unpacks to more than 1 MiB; unpack it first"):
        cut(note, Clip(), FORMAT, tmp_path)


def test_one_window_with_two_labels_is_one_sample(tmp_path, talk):
    twice = replace(talk, clips=(Clip(0, 1, ("dog",)), Clip(0, 1, ("cat", "dog"))))
    (sample,) = cut_all(twice, FORMAT, tmp_path)
    assert sample.meta["labels"] == ["dog", "cat"]


def test_a_recording_without_clips_is_cut_into_windows():
    grid = ClipFormat(window_s=1.0, hop_s=0.5)
    assert [(c.start_s, c.end_s) for c in windows((), 2.2, grid)] == [(0, 1), (0.5, 1.5), (1, 2), (1.5, 2.2)]
    assert [(c.start_s, c.end_s) for c in windows((), 0.7, grid)] == [(0, None)]
    assert windows((Clip(0, 0.1), Clip(0, 0.5)), 2.0, ClipFormat(min_s=0.2)) == [Clip(0, 0.5)]


def test_a_named_sound_replaces_the_video_s_own(tmp_path, talk, make_sound):
    make_sound(tmp_path / "studio.wav", seconds=3.0, hz=16_000)
    both = replace(talk, tracks=talk.tracks | {Modality.AUDIO: Track(Path("studio.wav"))})
    sample = cut(both, Clip(1.0, 2.0), FORMAT, tmp_path)
    own = cut(talk, Clip(1.0, 2.0), FORMAT, tmp_path)
    assert sample.modalities == own.modalities == (Modality.VIDEO, Modality.AUDIO)
    assert np.abs(sample.audio.astype(int) - own.audio).max() > 1000


def test_a_track_that_has_ended_is_a_missing_modality(tmp_path, make_sound):
    make_sound(tmp_path / "a.wav", seconds=1.0)
    rows = "\n".join(",".join(["1"] * 6) for _ in range(100))
    (tmp_path / "a.csv").write_text(rows)
    tracks = {Modality.AUDIO: Track(Path("a.wav")), Modality.IMU: Track(Path("a.csv"), rate_hz=50)}
    late = cut(Recording("a", tracks), Clip(1.2, 1.8), FORMAT, tmp_path)
    assert late.modalities == (Modality.IMU,)
    assert late.meta["tracks"] == {"imu": {"rate_hz": 50.0, "length": 30}}


def test_a_raw_image_slice_and_a_text_keep_what_they_say(tmp_path):
    pixels = np.arange(32, dtype=np.uint8)
    (tmp_path / "two.idx").write_bytes(pixels.tobytes())
    image = Track(Path("two.idx"), offset=16, length=16, shape=(4, 4))
    note = Recording("note", {Modality.IMAGE: image, Modality.TEXT: Track(text=" so it says ")})
    sample = cut(note, Clip(), ClipFormat(image_size=None, min_s=1.0), tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample.image))).ravel(), pixels[16:])
    assert sample.text == "so it says"
    assert sample.modalities == (Modality.IMAGE, Modality.TEXT)


def test_stills_stand_for_a_video(tmp_path, make_sound):
    folder = tmp_path / "scene"
    make_sound(folder / "audio.wav", seconds=2.0)
    for number in range(4):
        Image.new("L", (40, 30), 50 * number).save(folder / f"image_{number}.jpg")
    tracks = {Modality.VIDEO: Track(Path("scene")), Modality.AUDIO: Track(Path("scene/audio.wav"))}
    sample = cut(Recording("scene", tracks), Clip(), FORMAT, tmp_path)
    np.testing.assert_allclose(levels(sample), [0, 50, 100, 150], atol=3)


def test_frames_may_come_at_a_rate(tmp_path, talk):
    sample = cut(talk, Clip(0.4, 3.0), replace(FORMAT, frame_hz=2.0), tmp_path)
    np.testing.assert_allclose(
        levels(sample), [40 + 2 * int(t / 0.04 + 0.01) for t in (0.65, 1.15, 1.65, 2.15, 2.65)], atol=2.5
    )
    assert sample.meta["tracks"]["video"] == {"rate_hz": 2.0, "length": 5, "width": 32, "height": 32}
    short = cut(talk, Clip(1.0, 1.2), replace(FORMAT, frame_hz=2.0), tmp_path)
    np.testing.assert_allclose(levels(short), [40 + 2 * 27], atol=2.5)


def test_key_frames_stand_until_the_next(tmp_path, make_video):
    make_video(tmp_path / "a.mp4", frames=75, gop=25)
    keys = ClipFormat(frames=6, frame_size=(32, 32), keyframes=True, audio_hz=None)
    (sample,) = cut_all(Recording("a", {Modality.VIDEO: Track(Path("a.mp4"))}), keys, tmp_path)
    np.testing.assert_allclose(levels(sample), [40 + 2 * key for key in (0, 0, 25, 25, 50, 50)], atol=2.5)
    assert sample.modalities == (Modality.VIDEO,)


def test_frames_may_keep_their_size(tmp_path, make_video):
    make_video(tmp_path / "a.mp4", size=(70, 46), rotation=90)
    video = Recording("a", {Modality.VIDEO: Track(Path("a.mp4"))})
    for crop, size in ((None, (46, 70)), ((0.0, 0.5, 0.5, 0.5), (23, 35))):
        (sample,) = cut_all(video, replace(FORMAT, frame_size=None, crop=crop), tmp_path)
        assert Image.open(io.BytesIO(sample.frames[0])).size == size
        assert [sample.meta["tracks"]["video"][name] for name in ("width", "height")] == list(size)


def test_clips_come_in_order_of_time(tmp_path, talk):
    clips = (Clip(2.0, 2.5), Clip(0.5, 1.5), Clip(0.5, 1.0), Clip(0.0, 3.0))
    samples = list(cut_all(replace(talk, clips=clips), FORMAT, tmp_path))
    assert [tuple(s.meta["clip"]) for s in samples] == [(0.0, 3.0), (0.5, 1.0), (0.5, 1.5), (2.0, 2.5)]
    for sample in samples:
        assert sample.frames == cut(talk, Clip(*sample.meta["clip"]), FORMAT, tmp_path).frames


@pytest.fixture
def watched(monkeypatch):
    """The positions that were decoded so far; those put into `lost` are taken for damaged."""
    served, lost, decode = [], set(), pyav.frames

    def frames(*args, **settings):
        for places, picture in decode(*args, **settings):
            served.append(places)
            if not lost & set(places):
                yield places, picture

    monkeypatch.setattr(pyav, "frames", frames)
    return served, lost


def test_a_clip_is_decoded_when_it_is_asked_for(tmp_path, talk, watched):
    served, _ = watched
    samples = cut_all(replace(talk, clips=()), replace(FORMAT, window_s=0.5), tmp_path)
    for number in range(1, 7):
        next(samples)
        assert len(served) == 4 * number


def test_a_damaged_frame_is_replaced_by_its_neighbour(tmp_path, talk, watched):
    _, lost = watched
    lost |= {11, 12}  # the last of one clip and the first of the next
    quality = {}
    many = replace(FORMAT, window_s=0.25)
    samples = list(cut_all(replace(talk, clips=()), many, tmp_path, quality=quality))
    assert samples[2].frames[3] == samples[2].frames[2]
    assert samples[3].frames[0] == samples[3].frames[1]
    assert [sample.meta["quality"]["video_errors"] for sample in samples] == [0, 0, 1, 1] + [0] * 8
    assert (quality["video_errors"], quality["video_decoded"]) == (2, 48)
    lost |= {20}
    late = cut_all(replace(talk, clips=()), many, tmp_path)
    assert len([next(late) for _ in samples]) == len(samples)
    with pytest.raises(Unfit, match="3 of 48 video frames are damaged"):
        next(late)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for modality in (Modality.VIDEO, Modality.AUDIO, Modality.IMU, Modality.IMAGE, Modality.DEPTH, Modality.TEXT):
        with pytest.raises(Unfit, match="pipe is no regular file"):
            cut(Recording("pipe", {modality: Track(Path("pipe"))}), Clip(), FORMAT, tmp_path)


def test_a_recording_that_takes_too_long_is_given_up(tmp_path, talk, monkeypatch):
    monkeypatch.setattr(pipelines.quality, "LIMIT_S", -1.0)
    with pytest.raises(Unfit, match="took longer than"):
        cut(talk, Clip(), FORMAT, tmp_path)


def test_the_format_survives_the_ledger():
    format = ClipFormat(crop=(0.1, 0.2, 0.3, 0.4), image_size=None)
    assert ClipFormat.from_json(format.json) == format
