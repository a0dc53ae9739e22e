"""Decoding: the right frame, the right sample, and the same ones whichever way a file is decoded."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from PIL import Image

from pipelines.media import depth, ffmpeg, pyav, stills
from pipelines.quality import Unfit, gate

needs_ffmpeg = pytest.mark.skipif(ffmpeg.executable() is None, reason="no ffmpeg on this machine")
TOLERANCE = 2.0  # mean absolute difference of the two paths, in grey levels of 255


def pictures(served) -> dict[int, np.ndarray]:
    return {place: picture.astype(int) for places, picture in served for place in places}


def decoded(path: Path) -> list[np.ndarray]:
    """Every frame of a file, by a full decode."""
    scaler = VideoReformatter()
    with av.open(str(path)) as container:
        return [
            scaler.reformat(frame, format="rgb24", interpolation=pyav.SCALING).to_ndarray()
            for frame in container.decode(video=0)
        ]


@pytest.mark.parametrize(
    ("targets", "frames"),
    [([0.0, 0.039], [0, 0]), ([0.04], [1]), ([0.05, 0.079], [1, 1]), ([9.0], [3]), ([-1.0], [0])],
)
def test_a_target_takes_the_frame_that_is_on_screen(targets, frames):
    assert pyav.on_screen(np.arange(4) * 0.04, np.array(targets)).tolist() == frames


def test_sparse_frames_equal_a_full_decode(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", frames=90, gop=15)
    full = decoded(path)
    targets = np.array([0.02, 0.3, 0.31, 1.0, 2.9, 3.58])
    found = pyav.scan(path)
    served = pictures(pyav.frames(found, targets))
    assert sorted(served) == list(range(len(targets)))
    for place, index in enumerate(pyav.on_screen(found.times, targets)):
        np.testing.assert_array_equal(served[place], full[index])


def test_sparse_frames_of_a_real_recording_equal_a_full_decode(recordings):
    for path in sorted((recordings / "grid-s1" / "clips").glob("*.mp4"))[:5]:
        full = decoded(path)
        found, targets = pyav.scan(path), np.array([0.1, 0.9, 1.77, 2.4])
        served = pictures(pyav.frames(found, targets))
        for place, index in enumerate(pyav.on_screen(found.times, targets)):
            np.testing.assert_array_equal(served[place], full[index])


@needs_ffmpeg
def test_both_paths_pick_the_same_frames(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", frames=60)
    found, targets = pyav.scan(path), np.array([0.0, 0.5, 0.52, 1.3, 2.39])
    crop = (0.25, 0.25, 0.5, 0.5)
    here = pictures(pyav.frames(found, targets, size=(32, 32), crop=crop))
    there = pictures(ffmpeg.frames(found, targets, size=(32, 32), crop=crop))
    assert sorted(here) == sorted(there) == list(range(len(targets)))
    for place in here:
        levels = [np.abs(here[place] - other).mean() for other in there.values()]
        assert levels[place] < TOLERANCE
        assert levels[place] == min(levels)


@needs_ffmpeg
def test_a_rotated_video_is_turned_upright(tmp_path, make_video):
    found = pyav.scan(make_video(tmp_path / "phone.mp4", rotation=90, frames=10))
    (picture,) = pictures(pyav.frames(found, np.array([0.1]), size=(48, 64))).values()
    edges = {"top": picture[:4], "bottom": picture[-4:], "left": picture[:, :4], "right": picture[:, -4:]}
    # Stored with its white edge left; turned a quarter counter-clockwise it lies at the bottom.
    assert max(edges, key=lambda side: edges[side].mean()) == "bottom"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a shell script in the place of ffmpeg; it finds the real one in $0."""

    def put(script: str) -> None:
        program = tmp_path / "ffmpeg.sh"
        program.write_text("#!/bin/sh\n" + script.replace("$0", f"'{ffmpeg.executable()}'"))
        program.chmod(0o755)
        monkeypatch.setattr(ffmpeg, "executable", lambda: str(program))

    return put


@needs_ffmpeg
def test_a_long_log_does_not_stop_ffmpeg(tmp_path, make_video, stand_in):
    found = pyav.scan(make_video(tmp_path / "a.mp4", frames=10))
    # A log that nobody takes ends by itself, so that this fails rather than hangs.
    stand_in('head -c 200000 /dev/zero | timeout 2 cat >&2 && exec $0 "$@"\n')
    assert sorted(pictures(ffmpeg.frames(found, np.array([0.1, 0.3]), size=(32, 32), crop=None))) == [0, 1]


@needs_ffmpeg
def test_what_ffmpeg_said_last_is_the_reason(tmp_path, make_video, stand_in):
    found = pyav.scan(make_video(tmp_path / "a.mp4", frames=10))
    stand_in("head -c 9000 /dev/zero >&2; echo >&2; echo no such thing >&2; exit 1\n")
    with pytest.raises(Unfit, match=r"ffmpeg cannot read a.mp4: no such thing"):
        list(ffmpeg.frames(found, np.array([0.1]), size=(32, 32), crop=None))


@needs_ffmpeg
@pytest.mark.parametrize(("reached", "served"), [(25, [0, 1]), (37, [0, 1, 2]), (60, [0, 1, 2, 3])])
def test_the_last_picture_does_not_stand_for_what_ffmpeg_did_not_reach(tmp_path, make_video, stand_in, reached, served):
    found = pyav.scan(make_video(tmp_path / "a.mp4", frames=60))
    targets = np.array([0.1, 0.97, 1.45, 2.39])  # on frames 2, 24, 36 and 59
    stand_in(f'$0 "$@" | $0 -v error -i pipe: -map 0 -c copy -frames:v {reached} -f nut pipe:\n')
    assert sorted(pictures(ffmpeg.frames(found, targets, size=(32, 32), crop=None))) == served


def test_sound_is_resampled_in_its_place(tmp_path, make_video):
    found = pyav.scan(make_video(tmp_path / "a.mp4", frames=75, sound_hz=44_100), audio_hz=16_000)
    clicks = np.abs(found.audio[:].astype(int))
    assert abs(int(clicks[:24_000].argmax()) - 16_000) <= 1
    assert abs(24_000 + int(clicks[24_000:40_000].argmax()) - 32_000) <= 1


def test_a_late_sound_begins_with_silence(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", frames=75, sound_s=2.5, late_s=0.5)
    found = pyav.scan(path, audio_hz=16_000)
    assert not found.audio[:7_000].any()
    # The container itself keeps the start in whole milliseconds.
    assert abs(int(np.abs(found.audio[:30_000].astype(int)).argmax()) - 24_000) <= 16


def test_a_clock_that_jumps_far_ahead_is_refused(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w", options={"live": "1"}) as container:  # a live recording declares no length
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for start in (0, 7 * 3600 * 8000):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 8000, Fraction(1, 8000), start
            container.mux(audio.encode(frame))
    with pytest.raises(Unfit, match="the sound's clock jumps beyond 6 h"):
        pyav.scan(path, audio_hz=8000, video=False)


def test_playlists_are_not_followed(tmp_path, make_video):
    make_video(tmp_path / "a.mp4", frames=5)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    with pytest.raises(Unfit, match="not a media file"):
        pyav.scan(tmp_path / "list.mp4")


@pytest.mark.parametrize(
    ("quality", "reason"),
    [
        ({"declared_s": 3.0, "video_s": 0.8, "audio_s": 0.7}, "video ends after 0.8 of 3.0 s: the file is cut off"),
        ({"declared_s": 9.0, "video_s": 9.0, "audio_s": 5.8}, "audio ends 3.2 s before the video"),
        ({"video_decoded": 40, "video_errors": 5}, "5 of 40 video frames are damaged"),
        ({"video_frames": 20, "video_frames_declared": 75}, "video has 20 of 75 declared frames"),
    ],
)
def test_the_gate_names_what_is_wrong(quality, reason):
    with pytest.raises(Unfit, match=reason):
        gate(quality)


def test_the_gate_lets_small_gaps_pass():
    gate({"declared_s": 3.0, "video_s": 3.0, "audio_s": 2.978, "video_frames": 74, "video_frames_declared": 75})


def test_depth_is_millimetres_by_nearest(tmp_path):
    raw = np.array([[0, 8], [16, 65535]], np.uint16)
    Image.fromarray(raw).save(tmp_path / "d.png")
    data = (tmp_path / "d.png").read_bytes()
    np.testing.assert_array_equal(depth.read(data, "d.png", factor=0.125), [[0, 1], [2, 8192]])
    assert set(depth.read(data, "d.png", factor=0.125, size=(8, 8)).ravel()) == {0, 1, 2, 8192}


def test_real_depth_frames_are_read(recordings):
    path = next((recordings / "depth-hands-sr305").glob("*/*.png"))
    found = depth.read(path.read_bytes(), path.name, factor=0.125, size=(64, 48))
    assert found.shape == (48, 64)
    assert found.dtype == np.uint16
    assert 100 < np.median(found[found > 0]) < 2000


def test_stills_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 0):
        Image.new("RGB", (4, 4)).save(tmp_path / f"image_{number}.jpg")
    assert [Path(p).stem for p in stills.listing(tmp_path)] == ["image_0", "image_9", "image_10"]
