"""Pictures: single images, raw slices, and folders of stills that stand for a video."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from pipelines.quality import Unfit

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
MAX_PIXELS = 100_000_000


def image(data: bytes, name: str, shape: tuple[int, ...] | None = None) -> Image.Image:
    """The upright picture in `data`: an encoded file, or raw uint8 of `shape` (height, width[, 3]).

    Raises:
        Unfit: it is no picture, damaged, or larger than 100 million pixels.
    """
    if shape is not None:
        return Image.fromarray(np.frombuffer(data, np.uint8).reshape(shape))
    if not data:
        raise Unfit("the file is empty")
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise Unfit(f"{name} has more than {MAX_PIXELS // 10**6} million pixels")
        picture.load()
    except Image.DecompressionBombError as error:
        raise Unfit(f"{name} has more than {MAX_PIXELS // 10**6} million pixels") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise Unfit(f"not an image, or a damaged one: {name}") from error
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode == "I":  # 16-bit grey, which a conversion to 8 bit would clip
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    return picture


def damaged(data: bytes) -> bool:
    """Whether `data` is a JPEG whose entropy code does not end where it should: decoders pass that in silence."""
    if not data.startswith(b"\xff\xd8"):
        return False
    try:  # an eighth of the size: the code is read all the same, the rest costs little
        simplejpeg.decode_jpeg(data, "gray", fastdct=True, fastupsample=True, min_height=1, min_width=1, strict=True)
    except ValueError as error:
        return "Corrupt JPEG data" in str(error)
    return False


def fit(
    picture: Image.Image, size: tuple[int, int] | None, crop: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """`picture` cropped to `crop` (x, y, width, height as fractions) and scaled to `size` (width, height)."""
    if size is None and crop is None:
        return picture
    x, y, w, h = crop or (0.0, 0.0, 1.0, 1.0)
    box = (x * picture.width, y * picture.height, (x + w) * picture.width, (y + h) * picture.height)
    size = size or (round(w * picture.width), round(h * picture.height))
    return picture.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def listing(folder: Path) -> list[Path]:
    """The stills in `folder` in the order of the numbers in their names; optical flow beside them is left out.

    Raises:
        Unfit: there are none.
    """
    found = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    stills = [path for path in found if not path.name.startswith("flow_")]
    if not stills:
        raise Unfit(f"no image in {folder.name}/")
    return sorted(stills, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.stem)], path.name))


def png(picture: Image.Image) -> bytes:
    """`picture` without loss."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
