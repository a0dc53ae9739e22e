from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from learner.pictures import depth_picture, pixels


def encoded(width: int, height: int, mode: str = "RGB", kind: str = "JPEG", **options: int) -> bytes:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 13, 4), np.uint8), "RGBA")
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data: bytes, size: int) -> np.ndarray:
    picture = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.float32) / 127.5 - 1


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize(("width", "height"), [(398, 224), (224, 398), (64, 64), (17, 40)])
def test_pixels_are_those_of_pillow_to_a_step_of_255_or_two_enlarged(
    width: int, height: int, size: int, subsampling: int
) -> None:
    data = encoded(width, height, quality=90, subsampling=subsampling)
    found = pixels(data, size)
    assert (found.shape, found.dtype) == ((size, size, 3), np.float32)
    steps = np.abs(found - by_pillow(data, size)).max() * 127.5
    assert steps.round() <= (1 if size <= min(width, height) else 2)


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("RGBA", "PNG")]
)
def test_a_picture_of_the_size_is_decoded_exactly(mode: str, kind: str) -> None:
    data = encoded(64, 64, mode, kind)
    np.testing.assert_array_equal(pixels(data, 64), by_pillow(data, 64))


def test_depth_is_a_picture_whose_near_things_are_bright():
    depth = np.array([[0, 1, 1000], [5000, 10_000, 65_535]], np.uint16)
    picture = depth_picture(depth)
    assert picture.dtype == np.uint8
    assert picture.shape == (2, 3, 3)
    assert (picture == picture[..., :1]).all()
    assert picture[..., 0].tolist() == [[0, 255, 230], [128, 0, 0]]
