"""Samples small enough for a page: pictures as JPEG inside it, sound and motion as drawings, text as text."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from flows.report.svg import envelope, traces
from learner.loader import Example
from store.lake import Lake
from store.shards import read_sample
from store.types import PalimpsestError, Sample

SIDE = 96  # pixels at most
LETTERS = 120


def thumbnail(lake: Lake, row: dict[str, Any]) -> Markup:
    """A glance at the sample in a row of `sample_index`; empty where its shard is gone or damaged."""
    example = Example.from_row(row, lake)
    try:
        return glance(read_sample(example.url, example.entry, example.sidecars))
    except (PalimpsestError, OSError):
        return Markup("")


def glance(sample: Sample) -> Markup:
    """What a person recognises a sample by: its middle frame, picture and depth, and what it sounds, moves and says."""
    pictures = [*sample.frames[len(sample.frames) // 2 :][:1], *([sample.image] if sample.image else [])]
    parts = [_jpeg(Image.open(io.BytesIO(picture))) for picture in pictures]
    if sample.depth is not None:
        grey = sample.depth * (255 / max(int(sample.depth.max()), 1))
        parts.append(_jpeg(Image.fromarray(grey.astype(np.uint8))))
    if sample.audio is not None and len(sample.audio):
        parts.append(envelope(sample.audio / 32768, width=SIDE, height=SIDE // 3))
    if sample.imu is not None and len(sample.imu):
        parts.append(traces(sample.imu, width=SIDE, height=SIDE // 3))
    if sample.text is not None:
        parts.append(Markup("<q>{}</q>").format(sample.text[:LETTERS] + "…" * (len(sample.text) > LETTERS)))
    return Markup("").join(parts)


def _jpeg(picture: Image.Image) -> Markup:
    picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=75)
    return Markup('<img src="data:image/jpeg;base64,{}" alt="">').format(base64.b64encode(buffer.getvalue()).decode())
