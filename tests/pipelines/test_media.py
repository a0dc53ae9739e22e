"""Decoding: the right frame, the right sample, and the same ones whichever way a file is decoded."""

from __future__ import annotations

import io
import struct
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.video.reformatter import VideoReformatter
from PIL import Image

from pipelines.clip import ClipFormat, cut_all
from pipelines.media import depth, ffmpeg, pyav, stills
from pipelines.quality import Deadline, Unfit, gate
from store.types import Modality, Recording, Track

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


@needs_ffmpeg
@pytest.mark.parametrize(
    ("matrix", "seen"),
    [
        ((1, 0, 0, 1), "ABCD"),
        ((-1, 0, 0, 1), "BADC"),
        ((1, 0, 0, -1), "CDAB"),
        ((-1, 0, 0, -1), "DCBA"),
        ((0, 1, -1, 0), "CADB"),
        ((0, -1, 1, 0), "BDAC"),
        ((0, 1, 1, 0), "ACBD"),
        ((0, -1, -1, 0), "DBCA"),
    ],
)
def test_every_display_matrix_is_followed(tmp_path, matrix, seen):
    path, levels = tmp_path / "phone.mp4", {"A": 220, "B": 160, "C": 100, "D": 40}
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "10", "threads": "1"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        quarters = np.repeat(
            np.repeat([[levels["A"], levels["B"]], [levels["C"], levels["D"]]], 24, axis=0), 32, axis=1
        )
        frame = av.VideoFrame.from_ndarray(np.repeat(quarters[..., None], 3, axis=2).astype(np.uint8), format="rgb24")
        container.mux(video.encode(frame))
        container.mux(video.encode(None))
    data = bytearray(path.read_bytes())
    a, b, c, d = (one << 16 for one in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    found = pyav.scan(path)
    size = (48, 64) if matrix[0] == 0 else (64, 48)
    for frames in (pyav.frames, ffmpeg.frames):
        for settings in ({"size": size}, {}, {"crop": (0.0, 0.0, 1.0, 1.0)}):
            (picture,) = pictures(frames(found, np.array([0.0]), **settings)).values()
            assert picture.shape == (*size[::-1], 3)
            corners = [picture[y, x].mean() for y in (8, -8) for x in (8, -8)]
            np.testing.assert_allclose(corners, [levels[name] for name in seen], atol=4)


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


@needs_ffmpeg
def test_an_ffmpeg_that_hangs_is_killed(tmp_path, make_video, stand_in):
    found = pyav.scan(make_video(tmp_path / "a.mp4", frames=10))
    stand_in("exec sleep 60\n")
    with pytest.raises(Unfit, match="took longer than 0 s"):
        list(ffmpeg.frames(found, np.array([0.1]), deadline=Deadline(0.3)))


def test_decoding_has_a_time_limit(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", frames=10)
    with pytest.raises(Unfit, match="took longer than"):
        pyav.scan(path, deadline=Deadline(-1))
    with pytest.raises(Unfit, match="took longer than"):
        list(pyav.frames(pyav.scan(path), np.array([0.1]), deadline=Deadline(-1)))


@needs_ffmpeg
def test_hdr_without_a_tone_mapper_says_so(tmp_path, make_video, stand_in):
    found = replace(pyav.scan(make_video(tmp_path / "a.mp4", frames=10)), hdr=True)
    stand_in("echo \"[AVFilterGraph] No such filter: 'zscale'\" >&2; exit 1\n")
    with pytest.raises(Unfit, match="a.mp4 is HDR: install an ffmpeg that has zscale"):
        list(ffmpeg.frames(found, np.array([0.1])))


@pytest.fixture
def write(tmp_path):
    """Write a file by ffmpeg."""

    def write(name: str, *arguments: str | Path) -> Path:
        command = [ffmpeg.executable(), "-v", "error", "-y", *map(str, arguments), str(tmp_path / name)]
        subprocess.run(command, check=True)
        return tmp_path / name

    return write


X264 = ("-c:v", "libx264", "-threads", "1", "-pix_fmt", "yuv420p")


@needs_ffmpeg
@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_is_brought_to_sdr(write, transfer):
    red = ("-f", "lavfi", "-i", "color=0xc05050:s=64x48:d=0.2:r=25")
    said = {"color_primaries": "bt2020", "color_trc": transfer, "colorspace": "bt2020nc"}
    # Where a program looks for it has changed with its versions.
    colour = ["-vf", "setparams=" + ":".join(map("=".join, said.items()))]
    colour += [word for name, value in said.items() for word in (f"-{name}", value)]
    found = pyav.scan(write("a.mkv", *red, *X264[:-1], "yuv420p10le", *colour))
    assert found.hdr
    (mapped,) = pictures(ffmpeg.frames(found, np.array([0.1]), size=(16, 12))).values()
    (plain,) = pictures(pyav.frames(found, np.array([0.1]), size=(16, 12))).values()
    assert np.abs(mapped - plain).mean() > 5


@needs_ffmpeg
def test_a_file_that_turns_interlaced_is_deinterlaced_from_there(tmp_path, write):
    look = ("-f", "lavfi", "-i", "testsrc2=s=160x120:r=25:d=1")
    write("a.ts", *look, *X264, "-g", "10", "-output_ts_offset", "1")
    write("b.ts", *look, *X264, "-vf", "setfield=tff", "-flags", "+ildct+ilme", "-output_ts_offset", "2")
    (tmp_path / "both.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    video = Recording("both", {Modality.VIDEO: Track(Path("both.ts"))})
    found = pyav.scan(tmp_path / "both.ts")
    assert not found.needs_graph
    with pytest.raises(pyav.Interlaced):
        list(pyav.frames(found, np.array([0.2, 1.6])))
    (sample,) = cut_all(video, ClipFormat(frames=6, frame_size=None), tmp_path)
    shown = [np.asarray(Image.open(io.BytesIO(jpeg))).astype(int) for jpeg in sample.frames]
    full = decoded(tmp_path / "both.ts")
    for picture, time in zip(shown, (np.arange(6) + 0.5) / 3, strict=True):
        distances = [np.abs(picture - other).mean() for other in full]
        assert int(np.argmin(distances)) % 25 == int(time * 25) % 25


@needs_ffmpeg
def test_what_lies_before_an_edit_list_is_not_shown(write):
    look = ("-f", "lavfi", "-i", "testsrc2=s=160x120:r=25:d=3")
    whole = decoded(write("whole.mp4", *look, *X264, "-g", "50"))
    found = pyav.scan(write("edit.mp4", "-ss", "1", "-i", write("whole.mp4", *look, *X264, "-g", "50"), "-c", "copy"))
    gate(found.quality)
    served = pictures(pyav.frames(found, np.array([0.02, 0.5, 1.5])))
    for place, index in enumerate((25, 37, 62)):
        np.testing.assert_array_equal(served[place], whole[index])


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("odd.mp4", (*X264[:-1], "yuv444p", "-vf", "crop=175:97")),
        ("ten.mp4", (*X264[:-1], "yuv422p10le")),
        ("stretched.mp4", (*X264, "-vf", "setsar=2/1")),
        ("alpha.mov", ("-c:v", "qtrle", "-pix_fmt", "argb")),
        ("frames.avi", ("-c:v", "mpeg4", "-bf", "2", "-q:v", "2")),
        ("a.webm", ("-c:v", "libvpx", "-b:v", "2M", "-auto-alt-ref", "1")),
        ("a.gif", ()),
        ("a.mpg", ("-c:v", "mpeg2video", "-q:v", "2")),
    ],
)
def test_any_picture_format_is_shown_in_its_own_pixels(tmp_path, write, name, arguments):
    write(name, "-f", "lavfi", "-i", "testsrc2=s=176x98:r=25:d=1", *arguments)
    (sample,) = cut_all(
        Recording(name, {Modality.VIDEO: Track(Path(name))}), ClipFormat(frames=5, frame_size=None), tmp_path
    )
    full = decoded(tmp_path / name)
    for number, jpeg in enumerate(sample.frames):
        picture = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
        assert picture.shape == full[0].shape
        distances = [np.abs(picture - other).mean() for other in full]
        assert int(np.argmin(distances)) == 2 + 5 * number


def joined(tmp_path: Path, *parts: Path) -> Path:
    (tmp_path / "joined.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    return tmp_path / "joined.ts"


def test_size_and_sound_may_change_midway(tmp_path, make_video):
    first = make_video(tmp_path / "a.ts", format="mpegts", frames=50, late_s=0.1, start_s=1.0)
    other = {"size": (96, 64), "sound_hz": 48_000, "layout": "mono", "start_s": 3.12}
    found = pyav.scan(joined(tmp_path, first, make_video(tmp_path / "b.ts", format="mpegts", **other)), audio_hz=16_000)
    gate(found.quality)
    shown = pictures(pyav.frames(found, np.array([0.5, 3.0]), size=(32, 24)))
    np.testing.assert_allclose([shown[0][:, 12:].mean(), shown[1][:, 12:].mean()], [64, 40 + 2 * 22], atol=3)
    heard = np.abs(found.audio[:].astype(int))
    for click in (1.1, 3.12):
        start = round((click - 0.2) * 16_000)
        assert abs(start + int(heard[start : start + 6400].argmax()) - round(click * 16_000)) <= 16


def test_a_clock_that_goes_back_is_refused(tmp_path, make_video):
    part = make_video(tmp_path / "a.ts", format="mpegts", frames=75, sound_hz=None)
    with pytest.raises(Unfit, match="the video's clock goes back by 3.0 s"):
        pyav.scan(joined(tmp_path, part, part))


def test_the_default_sound_is_heard_and_a_cover_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=25)
        video = container.add_stream("libx264", rate=25, options={"threads": "1"})
        for stream, format in ((cover, "yuvj420p"), (video, "yuv420p")):
            stream.width, stream.height, stream.pix_fmt = 64, 48, format
        cover.disposition = av.stream.Disposition.attached_pic
        sounds = [container.add_stream("aac", rate=16_000, layout="mono") for _ in range(3)]
        for stream in sounds:
            stream.disposition = av.stream.Disposition.default if stream is sounds[1] else av.stream.Disposition(0)
        for index in range(25):
            for stream, level in ((cover, 250), (video, 100)):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
        for number, stream in enumerate(sounds):
            wave = np.full((1, 16_000), 1000 * (number + 1), np.int16)
            frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), 0
            container.mux(stream.encode(frame))
        for stream in (cover, video, *sounds):
            container.mux(stream.encode(None))
    found = pyav.scan(path, audio_hz=16_000)
    assert abs(np.median(found.audio[:]) - 2000) < 100
    (picture,) = pictures(pyav.frames(found, np.array([0.5]))).values()
    assert abs(picture.mean() - 100) < 3


@pytest.mark.parametrize("hz", [8000, 11_025, 48_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_any_channels_become_mono_without_clipping(tmp_path, hz, channels):
    tone = 0.99 * np.sin(2 * np.pi * 440 * np.arange(hz) / hz)
    soundfile.write(tmp_path / "a.wav", np.repeat(tone[:, None], channels, axis=1), hz)
    found = pyav.scan(tmp_path / "a.wav", audio_hz=16_000, video=False)
    assert len(found.audio) == pytest.approx(16_000, abs=16)
    assert found.quality["audio_clipped"] == 0
    spectrum = np.abs(np.fft.rfft(found.audio[:16_000] / 32768))
    assert int(spectrum.argmax()) == 440
    assert spectrum[440] > 4000  # half of full scale


def test_long_sound_is_the_same_from_disk(tmp_path, make_sound, monkeypatch):
    path = make_sound(tmp_path / "a.wav", seconds=3.0)
    whole = pyav.scan(path, audio_hz=16_000, video=False).audio[:]
    monkeypatch.setattr(pyav, "SPOOL_BYTES", 1000)
    spooled = pyav.scan(path, audio_hz=16_000, video=False).audio
    np.testing.assert_array_equal(spooled[:], whole)
    np.testing.assert_array_equal(spooled[7000:9000], whole[7000:9000])


def test_a_long_film_is_read_again(tmp_path, make_video, monkeypatch):
    path, targets = make_video(tmp_path / "a.mp4"), np.array([0.1, 0.9, 1.7])
    held = pictures(pyav.frames(pyav.scan(path), targets))
    monkeypatch.setattr(pyav, "HELD_BYTES", 1000)
    found = pyav.scan(path)
    assert not found.held
    for place, picture in pictures(pyav.frames(found, targets)).items():
        np.testing.assert_array_equal(picture, held[place])


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
