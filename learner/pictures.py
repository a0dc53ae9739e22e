"""From encoded pictures to what a backbone sees."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image

FARTHEST_MM = 10_000  # of what a room's depth camera measures


def decoded(data: bytes) -> np.ndarray:
    """A JPEG or PNG -> uint8 ``[H, W, 3]``."""
    if simplejpeg.is_jpeg(data):
        return simplejpeg.decode_jpeg(data, "RGB")
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def depth_picture(depth: np.ndarray) -> np.ndarray:
    """uint16 mm ``[H, W]``, 0 = no return, -> uint8 ``[H, W, 3]``: the nearer the brighter, black from 10 m on.

    What sends nothing back is black too: as far as can be.
    """
    near = 1 - np.where(depth > 0, depth, FARTHEST_MM).clip(max=FARTHEST_MM).astype(np.float32) / FARTHEST_MM
    return np.repeat((255 * near).round().astype(np.uint8)[..., None], 3, 2)


def pixels(data: bytes | np.ndarray, size: int) -> np.ndarray:
    """A JPEG, PNG or decoded picture -> float32 ``[size, size, 3]`` in [-1, 1], by an antialiased bilinear filter.

    Decoding gives Pillow's values, scaling those to a step of 255 (two where it enlarges), both in half of its time.
    """
    picture = decoded(data) if isinstance(data, bytes) else data
    if picture.shape != (size, size, 3):
        whole = torch.from_numpy(picture).permute(2, 0, 1)[None]
        picture = F.interpolate(whole, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    return picture.astype(np.float32) / 127.5 - 1
