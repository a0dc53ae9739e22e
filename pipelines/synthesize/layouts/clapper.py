"""Clapper boards, to prove that tracks stay aligned: a flash, a click and a jolt at the same known times.

In the ``folder`` layout; `manifest.csv` has the columns video, imu, text, label, domain. The text says when it claps
(``claps at 1.0430 2.4170``, seconds from the recording's start): at the centre of the one white frame, at the click's
sample, and at the peak of the jolt along acc_x. The domain names frame rate, container and what starts late. An IMU
file's columns are timestamp_ms, acc_x, acc_y, acc_z (m/s^2 with gravity), gyro_x, gyro_y, gyro_z (rad/s).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pipelines.synthesize.layouts.writing import Row, Run, write_table
from store.types import Hertz, Seconds

LENGTH: Seconds = 6.0
SIZE = (64, 48)
JOLT: Seconds = 0.06  # its standard deviation
_AXES = ("timestamp_ms", "acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")


@dataclass(frozen=True, slots=True)
class Board:
    """How a recording is made; without a rate its frames last as they like.

    Attributes:
        container: the file's suffix.
        rate: frames a second.
        sound_hz: rate of the AAC sound.
        video_late: when the first frame is shown, seconds from the recording's start.
        sound_late: when the sound begins; one of both begins at 0.
        start: the container's own time of the recording's start.
        imu_hz: mean rate of the inertial samples, which come up to a fifth of their distance early or late.
    """

    container: str = "mp4"
    rate: Fraction | None = Fraction(25)
    sound_hz: int = 44_100
    video_late: Seconds = 0.0
    sound_late: Seconds = 0.0
    start: Seconds = 0.0
    imu_hz: Hertz = 50.0

    @property
    def name(self) -> str:
        """What the manifest calls it."""
        rate = f"{float(self.rate):.5g}fps" if self.rate else "vfr"
        late = "video-late" if self.video_late else "sound-late" if self.sound_late else "together"
        return f"{rate}-{self.container}-{late}"


BOARDS = (
    Board(),
    Board(rate=Fraction(30_000, 1001), sound_hz=48_000, imu_hz=25.0),
    Board("mkv", Fraction(24_000, 1001), sound_late=0.4),
    Board(rate=Fraction(50), video_late=0.3, imu_hz=100.0),
    Board("ts", Fraction(60), 48_000, sound_late=0.25),
    Board("mkv", None, 48_000, start=5.0),
    Board(rate=None, sound_late=0.75, imu_hz=25.0),
    # Nothing in a transport stream says that the encoder's first 1024 samples are none of the recording's.
    Board("ts", Fraction(30_000, 1001), sound_late=1024 / 44_100, video_late=0.35, start=40.0),
    Board("mkv", Fraction(60), video_late=0.211),
    Board("mov", Fraction(24_000, 1001), 48_000, video_late=0.5, imu_hz=100.0),
)


def clapper(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes clapper boards (see the module) into the empty folder `out`, the kinds in turn."""
    jobs: list[Callable[[], Row]] = [
        partial(_clap, out, k, BOARDS[k % len(BOARDS)], (seed, k)) for k in range(recordings)
    ]
    write_table(out / "manifest.csv", ("video", "imu", "text", "label", "domain"), run(jobs), ",")


def _clap(out: Path, k: int, board: Board, draw: Sequence[int]) -> Row:
    rng = np.random.default_rng(draw)
    if board.rate:
        edges = np.arange(int((LENGTH - board.video_late) * board.rate) + 1) / float(board.rate)
    else:
        edges = np.cumsum(np.append(0.0, rng.choice([0.017, 0.033, 0.04, 0.05, 0.067], int(LENGTH / 0.017))))
        edges = edges[edges < LENGTH]
    edges = edges + board.video_late
    first = max(board.video_late, board.sound_late) + 0.3
    wanted = np.linspace(first, edges[-1] - 0.8, 4) + rng.uniform(0, 0.4, 4)
    lit = np.searchsorted(edges, wanted) - 1
    times = (edges[lit] + edges[lit + 1]) / 2
    row: Row = {"video": f"{k:04d}.{board.container}", "imu": f"{k:04d}.csv", "label": "clap", "domain": board.name}
    _write_video(out / row["video"], board, edges, lit, times, rng)
    _write_imu(out / row["imu"], board, times, rng)
    return row | {"text": "claps at " + " ".join(f"{time:.4f}" for time in times)}


def _write_video(
    path: Path,
    board: Board,
    edges: NDArray[np.float64],
    lit: NDArray[np.int64],
    times: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    form = {"mkv": "matroska", "ts": "mpegts"}.get(board.container, board.container)
    settings = {"preset": "veryfast", "crf": "26", "flags": "+bitexact", "x264-params": "threads=1:cpu-independent=1"}
    with av.open(str(path), "w", format=form, options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=board.rate or 25, options=settings)
        video.width, video.height, video.pix_fmt, video.gop_size = *SIZE, "yuv420p", 40
        clock = 1 / board.rate if board.rate else Fraction(1, 1000)
        video.codec_context.time_base = clock if not (board.start or board.video_late) else Fraction(1, 90_000)
        sound = container.add_stream("aac", rate=board.sound_hz, layout="mono", options={"flags": "+bitexact"})
        for index, edge in enumerate(edges[:-1]):
            level = 235 if index in lit else 30
            frame = av.VideoFrame.from_ndarray(np.full((SIZE[1], SIZE[0], 3), level, np.uint8), format="rgb24")
            frame.time_base = video.codec_context.time_base
            frame.pts = round((edge + board.start) / float(frame.time_base))
            container.mux(video.encode(frame))
        container.mux(video.encode())
        length = int((edges[-1] - board.sound_late) * board.sound_hz)
        wave = 0.002 * rng.standard_normal(length).astype(np.float32)
        for time in times:
            at = round((time - board.sound_late) * board.sound_hz)
            wave[at - 1 : at + 2] += (0.5, 0.9, 0.5)
        offset = round((board.sound_late + board.start) * board.sound_hz)
        for start in range(0, length, 1024):
            block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.time_base, block.pts = board.sound_hz, Fraction(1, board.sound_hz), start + offset
            container.mux(sound.encode(block))
        container.mux(sound.encode())


def _write_imu(path: Path, board: Board, times: NDArray[np.float64], rng: np.random.Generator) -> None:
    steps = np.arange(int(LENGTH * board.imu_hz))
    clock = (steps + rng.uniform(-0.2, 0.2, len(steps)) * (steps > 0)) / board.imu_hz
    jolt = 20 * np.exp(-0.5 * ((clock[:, None] - times) / JOLT) ** 2).sum(axis=1)
    signal = rng.normal(0, 0.02, (len(steps), 6)) + [0, 0, 9.81, 0, 0, 0]
    signal[:, 0] += jolt
    lines = (
        dict(zip(_AXES, (f"{1000 * time:.3f}", *map("{:.4f}".format, row)), strict=True))
        for time, row in zip(clock, signal, strict=True)
    )
    write_table(path, _AXES, lines, ",")
