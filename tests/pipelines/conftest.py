"""Small recordings made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

MakeVideo = Callable[..., Path]
MakeSound = Callable[..., Path]


@pytest.fixture
def make_video() -> MakeVideo:
    """Write a video: frame i is a grey of level 40 + 2 i with a white left edge; sound clicks at every whole second."""

    def make(
        path: Path,
        *,
        frames: int = 50,
        gop: int = 12,
        size: tuple[int, int] = (64, 48),
        sound_hz: int | None = 44_100,
        sound_s: float | None = None,
        late_s: float = 0.0,
        rotation: int = 0,
        faststart: bool = True,
        format: str = "mp4",
        layout: str = "stereo",
        start_s: float = 0.0,
        seed: int = 0,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "+faststart"} if faststart and format == "mp4" else {}
        with av.open(f"file:{path}", "w", format=format, options=options) as container:
            video = container.add_stream("libx264", rate=25, options={"crf": "18", "bf": "2", "threads": "1"})
            video.width, video.height, video.pix_fmt, video.gop_size = *size, "yuv420p", gop
            if rotation:
                video.set_display_rotation(rotation)
            audio = container.add_stream("aac", rate=sound_hz, layout=layout) if sound_hz else None
            for index in range(frames):
                picture = np.full((size[1], size[0], 3), 40 + 2 * index + seed % 2, np.uint8)
                picture[:, :8] = 255
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = index + round(25 * start_s)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            if audio is not None:
                length = round((sound_s or frames / 25) * sound_hz)
                wave = 0.02 * np.random.default_rng(seed).standard_normal(length)
                wave[sound_hz::sound_hz] = 0.9
                wave = np.repeat(wave[None], audio.layout.nb_channels, axis=0).astype(np.float32)
                for start in range(0, length, 1024):
                    chunk = np.ascontiguousarray(wave[:, start : start + 1024])
                    frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=layout)
                    frame.sample_rate, frame.time_base = sound_hz, Fraction(1, sound_hz)
                    frame.pts = start + round((start_s + late_s) * sound_hz)
                    container.mux(audio.encode(frame))
                container.mux(audio.encode(None))
        return path

    return make


@pytest.fixture
def make_sound() -> MakeSound:
    """Write a WAV of noise, of another content for every `seed`."""

    def make(path: Path, *, seconds: float = 0.3, hz: int = 8000, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * hz))
        soundfile.write(path, wave, hz, subtype="PCM_16")
        return path

    return make
