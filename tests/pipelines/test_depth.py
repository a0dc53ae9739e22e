"""Depth maps and pictures of more than eight bits."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines.media import depth, stills
from pipelines.quality import Unfit


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def test_sixteen_bits_come_out_whole() -> None:
    told = np.array([[0, 1, 256], [4095, 40_000, 65_535]], np.uint16)
    assert np.array_equal(depth.read(png(told), "d.png"), told)


def test_bits_rotate_back_and_far_is_cut() -> None:
    millimetres = np.array([[0, 1, 500], [8000, 8191, 8192], [9000, 20_000, 65_535]], np.uint16)
    rotated = png(millimetres << 3 | millimetres >> 13)
    assert np.array_equal(depth.read(rotated, "d.png", rotate=3), millimetres)
    cut = depth.read(rotated, "d.png", rotate=3, farthest=8000)
    assert np.array_equal(cut, np.minimum(millimetres, 8000))


def test_metres_as_floats_and_what_is_no_number() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[1.5, np.nan, np.inf, -1.0, 70.0]]))
    assert depth.read(buffer.getvalue(), "d.npy", factor=1000).tolist() == [[1500, 0, 0, 0, 65_535]]


def vast() -> bytes:
    """A small file that says it holds 400 million pixels."""
    data = bytearray(png(np.zeros((2, 2), np.uint16)))
    data[16:24] = struct.pack(">2I", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"no picture", "not a depth map, or a damaged one: d.png"),
        (png(np.zeros((2, 2, 3), np.uint8)), "d.png is no depth map: its pixels are RGB"),
        (png(np.zeros((40, 40), np.uint16))[:60], "not a depth map, or a damaged one: d.png"),
        (vast(), "not a depth map, or a damaged one: d.png|d.png has more than 100 million pixels"),
    ],
)
def test_what_is_no_depth_map_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        depth.read(data, "d.png")


def test_a_grey_picture_of_sixteen_bits_keeps_its_shades() -> None:
    shades = np.array([[0, 256 * 64, 256 * 128, 65_535]], np.uint16)
    assert np.asarray(stills.image(png(shades), "x.png").convert("RGB"))[0, :, 0].tolist() == [0, 64, 128, 255]


def test_real_depth_of_a_hand(recordings) -> None:
    files = sorted((recordings / "depth-hands-sr305").glob("*/*.png"))
    assert len(files) == 19
    for path in files:
        millimetres = depth.read(path.read_bytes(), path.name, factor=0.125, size=(64, 48))
        assert millimetres.shape == (48, 64) and 100 < np.median(millimetres[millimetres > 0]) < 1600
