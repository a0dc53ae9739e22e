"""Sounds of things: strokes or a steady voice, each a few partials over a pitch and a band of noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.synthesize.speech import RATE
from store.types import Hertz, Seconds

HARMONIC = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
BELL = (0.5, 1.0, 1.2, 1.5, 2.0, 2.7, 3.0, 4.1)
ODD = (1.0, 3.0, 5.0, 7.0)


@dataclass(frozen=True)
class Sound:
    """What something sounds like.

    Attributes:
        pitch: lowest and highest fundamental, Hz; each stroke draws its own between a few steps of it.
        partials: ratios to the fundamental.
        tilt: how fast partials grow weaker: the n-th has an amplitude of n ** -tilt.
        hiss: share of noise, 0..1.
        band: centre and width of the noise, Hz.
        beat: strokes a second; 0 sounds all the time.
        decay: seconds in which a stroke falls to a third.
        glide: octaves that the pitch falls by within a stroke (rises, below 0), or wanders by where there are none.
        vibrato: depth of a wobble of the pitch, octaves.
        tremor: depth of a wobble of the loudness, 0..1.
        flutter: how fast both wobble, Hz.
        chance: 0 for strokes in time, 1 for strokes at random.
    """

    pitch: tuple[Hertz, Hertz] = (200.0, 300.0)
    partials: tuple[float, ...] = HARMONIC
    tilt: float = 1.0
    hiss: float = 0.0
    band: tuple[Hertz, Hertz] = (1000.0, 800.0)
    beat: float = 0.0
    decay: Seconds = 0.3
    glide: float = 0.0
    vibrato: float = 0.0
    tremor: float = 0.0
    flutter: Hertz = 5.5
    chance: float = 0.2


SOUNDS = {
    "bell": Sound((350, 700), BELL, 0.7, 0.02, beat=0.9, decay=0.7),
    "bright strings": Sound((380, 620), tilt=0.6, hiss=0.04, band=(4000, 1500), beat=5.0, decay=0.12),
    "warm strings": Sound((130, 240), tilt=1.3, hiss=0.02, beat=3.0, decay=0.35),
    "diesel": Sound((28, 42), tilt=0.4, hiss=0.5, band=(150, 200), tremor=0.4, flutter=9.0, glide=0.1),
    "revs": Sound((90, 170), tilt=0.5, hiss=0.25, band=(900, 700), glide=0.9, tremor=0.3, flutter=14.0),
    "wail": Sound((420, 620), tilt=1.0, beat=1.1, decay=0.6, glide=-0.35, vibrato=0.04),
    "yelp": Sound((260, 420), tilt=0.6, hiss=0.35, band=(1100, 700), beat=2.4, decay=0.09, glide=0.7, chance=0.6),
    "reed": Sound((280, 520), tilt=0.7, beat=1.6, decay=2.0, vibrato=0.015),
    "breath": Sound((300, 560), (1.0, 2.0), 1.6, 0.4, (2200, 900), beat=1.2, decay=2.0, tremor=0.3),
    "jet": Sound((1500, 2100), (1.0,), 1.0, 0.93, (700, 900), glide=0.25, tremor=0.5, flutter=0.3),
    "chop": Sound((55, 75), tilt=1.0, hiss=0.8, band=(250, 250), beat=12.0, decay=0.03, chance=0.0),
    "crackle": Sound((3000, 5000), (1.0,), 1.0, 0.95, (5500, 1500), beat=30.0, decay=0.012, chance=1.0),
    "horn": Sound((270, 340), (1.0, 1.26, 1.5, 2.0, 2.52, 3.0), 0.4, 0.05, beat=0.5, decay=3.0),
    "tick": Sound((1800, 2600), BELL, 1.0, 0.5, (3500, 1200), beat=2.0, decay=0.012, chance=0.0),
    "saw": Sound((60, 85), ODD, 0.2, 0.45, (3000, 1500), beat=0.7, decay=1.0, glide=-0.5),
    "hoofs": Sound((160, 240), BELL, 1.2, 0.6, (900, 500), beat=6.0, decay=0.03, chance=0.15),
    "flush": Sound((90, 130), tilt=1.5, hiss=0.97, band=(1500, 1500), glide=0.4, tremor=0.6, flutter=0.25),
    "squeak": Sound((3200, 5200), (1.0, 2.0), 1.2, 0.1, (5000, 1000), beat=4.0, decay=0.06, glide=-0.4, chance=0.9),
}


def play(sound: Sound, rng: np.random.Generator, seconds: Seconds) -> np.ndarray:
    """Float32 ``[T]`` at 16 kHz, its root mean square 0.1."""
    count = round(seconds * RATE)
    t = np.arange(count) / RATE
    level, since = np.ones(count), t / max(seconds, 1e-6)
    low, high = sound.pitch
    steps = low * (high / low) ** (rng.integers(0, 4, 2 + int(seconds * max(sound.beat, 1.0))) / 3)
    stroke = np.zeros(count, int)
    if sound.beat:
        gaps = 1 / sound.beat / rng.uniform(0.9, 1.15)
        even = np.arange(len(steps)) * gaps + rng.uniform(0, min(gaps, 0.2))
        starts = np.sort(even + sound.chance * gaps * rng.uniform(-0.8, 0.8, len(even))).clip(0)
        stroke = np.searchsorted(starts, t, side="right") - 1
        since = t - starts[stroke.clip(0)]
        level = np.where(stroke >= 0, np.exp(-since / sound.decay) * np.minimum(1, since / 0.004), 0.0)
        level = level * rng.uniform(0.6, 1.0, len(steps))[stroke.clip(0)]
    wobble = np.sin(2 * np.pi * (sound.flutter * rng.uniform(0.85, 1.15) * t + rng.uniform()))
    fall = np.minimum(since / (2 * sound.decay), 1) if sound.beat else np.sin(2 * np.pi * (since + rng.uniform()))
    pitch = steps[stroke.clip(0)] * 2 ** (sound.vibrato * wobble - sound.glide * fall)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    tone = np.zeros(count)
    for number, ratio in enumerate(sound.partials, start=1):
        tone += np.where(ratio * pitch < RATE / 2, number**-sound.tilt * np.sin(ratio * phase + number), 0.0)
    centre, width = sound.band
    spectrum = np.fft.rfft(rng.standard_normal(count))
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    noise = np.fft.irfft(spectrum * np.exp(-(((hertz - centre * rng.uniform(0.9, 1.1)) / width) ** 2)), count)
    wave = (1 - sound.hiss) * _even(tone) + sound.hiss * _even(noise)
    return (0.1 * _even(wave * level * (1 + sound.tremor * wobble))).astype(np.float32)


def murmur(rng: np.random.Generator, seconds: Seconds) -> np.ndarray:
    """Noise of a place, float32 ``[T]`` at 16 kHz of root mean square 0.1: the deeper the louder, each in its way."""
    count = round(seconds * RATE)
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    hum = np.exp(-(((hertz - rng.uniform(100, 3000)) / 400) ** 2))
    shape = (np.maximum(hertz, 40) / 40) ** -rng.uniform(0.3, 1.0) + 0.2 * hum
    return (0.1 * _even(np.fft.irfft(np.fft.rfft(rng.standard_normal(count)) * shape, count))).astype(np.float32)


def _even(wave: np.ndarray) -> np.ndarray:
    return wave / max(float(np.sqrt(np.mean(wave**2))), 1e-9)
