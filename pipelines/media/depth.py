"""Depth maps as uint16 millimetres."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.quality import Unfit


def read(data: bytes, name: str, *, factor: float = 1.0, size: tuple[int, int] | None = None) -> NDArray[np.uint16]:
    """A 16-bit PNG or a .npy as ``[H, W]`` millimetres, 0 = no return, scaled to `size` (width, height) by nearest.

    Args:
        data: the file.
        name: what messages call it.
        factor: what one unit of the file is in millimetres.
        size: width and height of the result; None keeps the file's.

    Raises:
        Unfit: it is neither, or not one channel.
    """
    if not data:
        raise Unfit("the file is empty")
    try:
        if data.startswith(b"\x93NUMPY"):
            raw = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            raw = np.asarray(Image.open(io.BytesIO(data), formats=("PNG", "TIFF")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unfit(f"not a depth map, or a damaged one: {name}") from error
    if raw.ndim != 2:
        raise Unfit(f"{name} is no depth map: its shape is {raw.shape}, expected height x width")
    if size is not None:  # nearest: a mean of two surfaces is a place where nothing is
        rows = (np.arange(size[1]) + 0.5) * raw.shape[0] / size[1]
        columns = (np.arange(size[0]) + 0.5) * raw.shape[1] / size[0]
        raw = raw[rows.astype(int)[:, None], columns.astype(int)]
    return np.clip(np.rint(np.nan_to_num(raw.astype(np.float64)) * factor), 0, 65535).astype(np.uint16)
