"""Depth maps as uint16 millimetres."""

from __future__ import annotations

import io
import math
import tokenize

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.media.stills import MAX_PIXELS
from pipelines.quality import Unfit

MODES = ("I", "I;16", "I;16B", "I;16L", "F", "L")


def read(
    data: bytes,
    name: str,
    *,
    factor: float = 1.0,
    size: tuple[int, int] | None = None,
    rotate: int = 0,
    farthest: float | None = None,
) -> NDArray[np.uint16]:
    """A 16-bit PNG or a .npy as ``[H, W]`` millimetres, 0 = no return, scaled to `size` (width, height) by nearest.

    Args:
        data: the file.
        name: what messages call it.
        factor: what one unit of the file is in millimetres.
        size: width and height of the result; None keeps the file's.
        rotate: bits by which 16-bit values are rotated right first (3 for SUN RGB-D, to whose format it belongs).
        farthest: millimetres; what is farther off is set there. None keeps it.

    Raises:
        Unfit: it is neither, not one channel, or larger than 100 million pixels.
    """
    if not data:
        raise Unfit("the file is empty")
    try:
        if data.startswith(b"\x93NUMPY"):
            raw = _array(data, name)
        else:
            picture = Image.open(io.BytesIO(data), formats=("PNG", "TIFF"))
            if picture.mode not in MODES:
                raise Unfit(f"{name} is no depth map: its pixels are {picture.mode}, expected one 16-bit channel")
            if picture.width * picture.height > MAX_PIXELS:
                raise Unfit(f"{name} has more than {MAX_PIXELS // 10**6} million pixels")
            raw = np.asarray(picture)
    except (
        OSError,
        SyntaxError,
        ValueError,
        OverflowError,
        tokenize.TokenError,
        Image.DecompressionBombError,
    ) as error:
        raise Unfit(f"not a depth map, or a damaged one: {name}") from error
    if raw.ndim != 2:
        raise Unfit(f"{name} is no depth map: its shape is {raw.shape}, expected height x width")
    if size is not None:  # nearest: a mean of two surfaces is a place where nothing is
        rows = (np.arange(size[1]) + 0.5) * raw.shape[0] / size[1]
        columns = (np.arange(size[0]) + 0.5) * raw.shape[1] / size[0]
        raw = raw[rows.astype(int)[:, None], columns.astype(int)]
    if rotate:
        whole = raw.astype(np.uint16)
        raw = whole >> rotate | whole << (16 - rotate)
    depth = np.nan_to_num(raw.astype(np.float64), posinf=0.0, neginf=0.0) * factor
    return np.clip(np.rint(depth), 0, 65535 if farthest is None else farthest).astype(np.uint16)


def _array(data: bytes, name: str) -> NDArray[np.generic]:
    """A .npy file's numbers; what its header says is judged before memory is taken for it."""
    file = io.BytesIO(data)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in header:
        raise ValueError(f"version {version}")
    shape, _, kind = header[version](file)
    if kind.kind not in "uif" or len(shape) != 2 or not 0 < math.prod(shape) <= MAX_PIXELS:
        raise Unfit(f"{name} is no depth map: its shape is {shape} of {kind}, expected numbers, height x width")
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
