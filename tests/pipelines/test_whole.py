"""Files that end before their containers do."""

from __future__ import annotations

import struct

import pytest

from pipelines.media import whole
from pipelines.quality import Unfit
from tests.pipelines import faults


@pytest.mark.parametrize("kind", ["mp4", "mp4 with its index last", "mkv", "wav", "avi", "mov", "webm", "m4a"])
def test_a_file_is_whole_until_its_last_byte_is_gone(tmp_path, kind):
    suffix = kind.split()[0]
    path = tmp_path / f"a.{suffix}"
    if kind in faults.WHOLE:
        faults.WHOLE[kind][1](path)
    elif suffix in ("avi", "mov"):
        faults.video(path, sound_hz=None)
    else:
        faults.video(path.with_suffix({"webm": ".mkv", "m4a": ".mp4"}[suffix])).rename(path)
    whole.check(path)
    data = path.read_bytes()
    for end in (len(data) - 1, len(data) * 9 // 10, len(data) // 2, 60):
        path.write_bytes(data[:end])
        with pytest.raises(Unfit, match=f"the file is cut off: {end:,} of [0-9,]+ bytes are there"):
            whole.check(path)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "wav", "jpg"])
@pytest.mark.parametrize("tail", [b"", b"\0" * 99, b"\n", b"-- appended by somebody"])
def test_what_follows_the_end_does_no_harm(tmp_path, kind, tail):
    path = faults.WHOLE[kind][1](tmp_path / f"a.{kind}")
    path.write_bytes(path.read_bytes() + tail)
    whole.check(path)


@pytest.mark.parametrize("claim", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0])
def test_a_length_that_its_writer_did_not_know_is_none(tmp_path, claim):
    (tmp_path / "a.wav").write_bytes(faults.wav(b"\0" * 100, claim=claim))
    whole.check(tmp_path / "a.wav")


def test_a_live_matroska_and_an_open_ended_box_have_no_length(tmp_path):
    (tmp_path / "live.mkv").write_bytes(bytes.fromhex("1a45dfa38018538067") + b"\x01" + b"\xff" * 7 + b"data" * 9)
    (tmp_path / "open.mp4").write_bytes(
        struct.pack(">I4s8x", 16, b"ftyp") + struct.pack(">I4s", 0, b"mdat") + b"x" * 99
    )
    (tmp_path / "large.mp4").write_bytes(
        struct.pack(">I4s8x", 16, b"ftyp") + struct.pack(">I4sQ", 1, b"mdat", 116) + b"x" * 100
    )
    for path in tmp_path.iterdir():
        whole.check(path)


@pytest.mark.parametrize(
    "data", [b"", b"RI", b"\x1a\x45\xdf\xa3", b"\0\0\0\x08ftyp", b"\0\0\0\0ftyp", b"\0\0\0\x01ftyp"]
)
def test_a_stump_is_left_to_the_decoder(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    whole.check(tmp_path / "a")
