"""What layouts are written with: containers, tables, times; the same bytes every time."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipelines.synthesize.scene import FPS, HEIGHT, WIDTH
from pipelines.synthesize.speech import RATE

Row = dict[str, Any]
Run = Callable[[list[Callable[[], Row]]], list[Row]]
_AUDIO = {"flags": "+bitexact"}


def write_mp4(path: Path, frames: np.ndarray, sound: np.ndarray | None) -> None:
    """Writes H.264 yuv420p and AAC, the same bytes every time.

    Args:
        path: the file to make.
        frames: uint8 ``[N, 120, 160, 3]`` RGB, at 25 frames a second.
        sound: float32 ``[T]`` at 16 kHz; None for a silent film.
    """
    # x264's SIMD paths are neither repeatable nor the same from one processor to the next; these sizes do without them.
    settings = {"preset": "veryfast", "crf": "22", "flags": "+bitexact", "x264-params": "threads=1:cpu-independent=1"}
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=FPS, options=settings)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = None if sound is None else container.add_stream("aac", rate=RATE, layout="mono", options=_AUDIO)
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        if audio is None or sound is None:
            return
        for start in range(0, len(sound), 1024):
            chunk = np.ascontiguousarray(sound[None, start : start + 1024], np.float32)
            block = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
            block.sample_rate, block.pts = RATE, start
            container.mux(audio.encode(block))
        container.mux(audio.encode())


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Row], delimiter: str) -> None:
    """A CSV with a header line; columns that a row lacks are empty."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def clock(seconds: int) -> str:
    """``hh:mm:ss``."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
