"""Speech in five languages: espeak-ng where it is installed, a formant synthesiser of our own where it is not."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from store.types import Hertz, Seconds

RATE = 16_000
_HOP = 80


@dataclass(frozen=True)
class Prosody:
    """How something is said, as ratios to a level voice (1) or depths (0 = none).

    Attributes:
        pitch: ratio of the mean pitch.
        span: ratio of the pitch range.
        rate: ratio of the speaking rate.
        energy: ratio of the loudness.
        tremor: depth of a 6 Hz wobble in pitch and loudness, 0 to 1.
        edge: saturation that adds harmonics, 0 to 1.
    """

    pitch: float = 1.0
    span: float = 1.0
    rate: float = 1.0
    energy: float = 1.0
    tremor: float = 0.0
    edge: float = 0.0

    def towards(self, other: Prosody, weight: float) -> Prosody:
        """The prosody `weight` of the way from this one (0) to `other` (1); further than 1 exaggerates."""
        return Prosody(*(a + weight * (b - a) for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


TONES = {
    "level": Prosody(),
    "bright": Prosody(pitch=1.35, span=1.8, rate=1.12, energy=1.4),
    "soft": Prosody(pitch=0.86, span=0.3, rate=0.8, energy=0.5, tremor=0.5),
    "harsh": Prosody(pitch=1.12, span=1.3, rate=1.2, energy=2.2, edge=0.7),
}


@dataclass(frozen=True)
class Voice:
    """A speaker: language (EN DE ES PL KO), espeak-ng variant (`f1`, `m1` ...), mean pitch, vocal tract scale, pace."""

    language: str
    variant: str
    pitch_hz: Hertz
    tract: float
    pace: float

    @property
    def sex(self) -> str:
        """`female` or `male`."""
        return "female" if self.variant.startswith("f") else "male"


def cast(language: str, variants: Sequence[str], rng: np.random.Generator) -> Voice:
    """Draws a speaker of `language` from espeak-ng `variants`."""
    variant = str(rng.choice(list(variants)))
    base, tract = (205.0, 1.14) if variant.startswith("f") else (112.0, 1.0)
    pitch_hz, tract, pace = base * rng.uniform(0.86, 1.18), tract * rng.uniform(0.94, 1.06), rng.uniform(0.92, 1.08)
    return Voice(language, variant, pitch_hz, tract, pace)


# The colour of a language beyond its sounds: ratios of pitch, rate and second formant, and semitones a phrase rises by.
_COLOUR = {
    "EN": (1.0, 1.0, 1.0, -3.0),
    "DE": (0.93, 0.94, 0.95, -4.5),
    "ES": (1.05, 1.14, 1.04, -1.0),
    "PL": (0.97, 1.06, 0.97, -2.0),
    "KO": (1.09, 1.02, 1.07, 2.0),
}


def speak(text: str, voice: Voice, *, rng: np.random.Generator, prosody: Prosody = TONES["level"]) -> np.ndarray:
    """Says `text`.

    Returns:
        float32 ``[T]`` at 16 kHz within -1..1, loudness following `prosody.energy`.
    """
    pitch, rate, _, _ = _COLOUR[voice.language]
    said = Prosody(**{**vars(prosody), "pitch": prosody.pitch * pitch, "rate": prosody.rate * rate * voice.pace})
    sound = _espeak(text, voice, said) if shutil.which("espeak-ng") else None
    return _colour(_formants(text, voice, said, rng) if sound is None else sound, prosody, rng)


def loudness(sound: np.ndarray, fps: float, frames: int) -> np.ndarray:
    """Root mean square of `sound` around each video frame, float32 ``[frames]`` scaled to 0..1."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(sound, dtype=np.float64))])
    at = ((np.arange(frames) + 0.5) * RATE / fps).astype(int)
    level = np.sqrt(np.abs(energy[np.minimum(at + 400, len(sound))] - energy[np.minimum(at - 400, len(sound)).clip(0)]))
    return (level / max(float(level.max()), 1e-6)).astype(np.float32)


def _colour(sound: np.ndarray, prosody: Prosody, rng: np.random.Generator) -> np.ndarray:
    """Applies what both backends leave to the wave: tremor, edge and loudness."""
    t = np.arange(len(sound))
    wobble = prosody.tremor * np.sin(2 * np.pi * (rng.uniform(5.2, 6.8) * t / RATE + rng.uniform()))
    sound = np.interp(t + 9 * wobble, t, sound) * (1 + 0.5 * wobble)
    sound = np.tanh((0.1 + 6 * max(prosody.edge, 0.0)) * sound / max(float(np.abs(sound).max()), 1e-6))
    level = 0.06 * max(prosody.energy, 0.1) / max(float(np.sqrt(np.mean(sound**2))), 1e-6)
    return np.tanh(level * sound).astype(np.float32)


def _espeak(text: str, voice: Voice, prosody: Prosody) -> np.ndarray | None:
    """The same through espeak-ng; None where it cannot (a build without this voice)."""
    lift = prosody.pitch * voice.pitch_hz / (205.0 if voice.sex == "female" else 112.0)
    pitch = int(np.clip(50 + 50 * np.log2(lift), 0, 99))
    words = int(np.clip(165 * prosody.rate, 80, 400))
    ssml = f'<speak><prosody range="{int(np.clip(50 * prosody.span, 0, 99))}">{html.escape(text)}</prosody></speak>'
    name = f"{voice.language.lower()}+{voice.variant}"
    command = ["espeak-ng", "-m", "-z", "-v", name, "-p", str(pitch), "-s", str(words), "--stdin", "--stdout"]
    done = subprocess.run(command, input=ssml.encode(), capture_output=True, check=False)
    if done.returncode or len(done.stdout) <= 44:
        return None
    # A stream's header claims no true length, so the samples are taken as they lie behind it.
    sound = np.frombuffer(done.stdout[44 : len(done.stdout) // 2 * 2], "<i2") / 32768
    rate = int.from_bytes(done.stdout[24:28], "little")
    # Whole blocks of 20 ms in and out: the ratio is exact and the transforms have small factors.
    blocks = -(-len(sound) * 50 // rate)
    spectrum = np.fft.rfft(np.pad(sound, (0, blocks * rate // 50 - len(sound))))
    return np.fft.irfft(spectrum[: blocks * RATE // 100 + 1], blocks * RATE // 50) * RATE / rate


_VOWELS = {
    "a": (760, 1250, 2550),
    "e": (500, 1850, 2550),
    "i": (300, 2250, 3000),
    "o": (490, 900, 2450),
    "u": (320, 800, 2300),
    "y": (300, 1700, 2300),
    "@": (520, 1450, 2500),
}
# Consonants: formants, voicing, noise, centre of the noise in Hz; stops are a closure and a burst.
_CONSONANTS = {
    "m": (250, 1100, 2200, 0.45, 0, 1000),
    "n": (250, 1600, 2600, 0.45, 0, 1000),
    "l": (350, 1200, 2700, 0.6, 0, 1000),
    "r": (420, 1300, 1700, 0.55, 0.02, 1500),
    "w": (300, 700, 2200, 0.6, 0, 1000),
    "j": (280, 2200, 2900, 0.6, 0, 1000),
    "s": (320, 1500, 2600, 0, 0.5, 6200),
    "S": (320, 1700, 2500, 0, 0.6, 3300),
    "Z": (300, 1700, 2500, 0.3, 0.3, 3200),
    "z": (300, 1500, 2600, 0.3, 0.25, 6000),
    "f": (320, 1100, 2300, 0, 0.18, 4600),
    "v": (300, 1100, 2300, 0.4, 0.08, 4500),
    "x": (400, 1400, 2300, 0, 0.35, 1900),
    "h": (500, 1450, 2500, 0, 0.2, 1300),
    "p": (300, 900, 2200, 0, 0.5, 900),
    "t": (300, 1700, 2600, 0, 0.6, 4300),
    "k": (300, 1900, 2300, 0, 0.6, 2100),
    "b": (260, 900, 2200, 0.2, 0.3, 800),
    "d": (260, 1700, 2600, 0.2, 0.35, 3900),
    "g": (260, 1900, 2300, 0.2, 0.35, 1900),
}
_SPELLING = {
    "EN": "sh>S tch>tS ch>tS th>z ck>k ph>f oo>u ee>i ea>i ou>au ow>au igh>ai ay>ei y>i qu>kw x>ks c>k q>k",
    "DE": "sch>S ch>x ei>ai ie>i eu>oj ä>e ö>@ ü>y ß>s w>v v>f z>ts ck>k qu>kv x>ks c>k q>k y>y",
    "ES": "ch>tS ll>j ñ>nj qu>k gue>ge gui>gi ge>xe gi>xi ce>se ci>si h> j>x v>b z>s x>ks c>k y>j q>k",
    "PL": "sz>S cz>tS rz>Z ch>x dz>dz ł>w ą>on ę>en ś>S ć>tS ż>Z ź>Z ó>u w>v c>ts y>@ j>j",
    "KO": "ch>tS jj>tS kk>k tt>t pp>p ss>s c>k",
}
_JAMO = (
    "g kk n d tt r m b pp s ss - j jj ch k t p h".split(),
    "a e ja je @ e j@ je o wa we we jo u w@ we wi ju @ wi i".split(),
    "- g g g n n n d l l l l l l l l m b b s s n t t k t p h".split(),
)


def _phones(text: str, language: str) -> str:
    """`text` as one character a phone (keys of the tables above) and blanks for pauses; crude, and the same always."""
    letters = []
    for char in unicodedata.normalize("NFC", text.lower()):
        code = ord(char) - 0xAC00
        if 0 <= code < 11172:
            parts = _JAMO[0][code // 588], _JAMO[1][code % 588 // 28], _JAMO[2][code % 28]
            letters += [part for part in parts if part != "-"]
        else:
            letters.append(char)
    table = dict(pair.split(">") for pair in _SPELLING[language].split())
    spelled = re.sub("|".join(table), lambda match: table[match[0]], "".join(letters))
    plain = re.sub(r"[\s,.;:?!-]+", " ", unicodedata.normalize("NFKD", spelled))
    return "".join(c for c in plain if c == " " or c in _VOWELS or c in _CONSONANTS)


def _segments(phones: str) -> np.ndarray:
    """``[S, 7]``: seconds, three formants in Hz, voicing, noise, noise centre in Hz."""
    rows: list[tuple[float, ...]] = [(0.03, 500, 1450, 2500, 0, 0, 1000)]
    for phone in phones + " ":
        if phone in _VOWELS:
            rows.append((0.1, *_VOWELS[phone], 1, 0, 1000))
        elif phone == " ":
            rows.append((0.04, 500, 1450, 2500, 0, 0, 1000))
        elif phone in "ptkbdg":
            *formants, voicing, noise, centre = _CONSONANTS[phone]
            rows += [(0.045, *formants, voicing, 0, centre), (0.02, *formants, voicing, noise, centre)]
        else:
            rows.append((0.07, *_CONSONANTS[phone]))
    return np.array(rows)


def _formants(text: str, voice: Voice, prosody: Prosody, rng: np.random.Generator) -> np.ndarray:
    """Source and filter: a sawtooth glottis and noise, shaped frame by frame by three gliding formants."""
    segments = _segments(_phones(text, voice.language))
    counts = np.maximum(1, segments[:, 0] * rng.uniform(0.85, 1.15, len(segments)) / prosody.rate * RATE / _HOP)
    track = np.repeat(segments[:, 1:], counts.astype(int), axis=0)
    smooth = np.hanning(9)[1:-1] / np.hanning(9)[1:-1].sum()
    track = np.stack([np.convolve(np.pad(c, 3, mode="edge"), smooth, mode="valid") for c in track.T], axis=1)
    frames = len(track)
    position = np.linspace(-0.5, 0.5, frames)
    knots = max(3, frames // 40)
    accent = np.interp(position, np.linspace(-0.5, 0.5, knots), rng.uniform(-3.5, 3.5, knots))
    semitones = prosody.span * (accent + _COLOUR[voice.language][3] * position)
    pitch = voice.pitch_hz * prosody.pitch * 2 ** (semitones / 12) * (1 + 0.01 * rng.standard_normal(frames))
    t = np.arange(frames * _HOP) / _HOP
    glottis = 2 * (np.cumsum(np.interp(t, np.arange(frames), pitch)) / RATE % 1) - 1
    frequency = np.fft.rfftfreq(512, 1 / RATE)[None, :]
    shape = np.hypot(1, frequency / 700)  # stands for the formants above the third
    tract = voice.tract * np.array([1.0, _COLOUR[voice.language][2], 1.0])
    for formant, bandwidth in zip((track[:, :3] * tract).T[..., None], (80, 110, 170), strict=True):
        shape = shape * formant**2 / np.hypot(formant**2 - frequency**2, bandwidth * frequency)
    hiss = np.exp(-(((frequency - track[:, 5:6]) / 1100) ** 2))
    window = np.hanning(4 * _HOP)
    spectra = (
        np.fft.rfft(np.lib.stride_tricks.sliding_window_view(source, 4 * _HOP)[::_HOP][:frames] * window, 512)
        for source in np.pad([glottis, rng.standard_normal(len(t))], ((0, 0), (2 * _HOP, 2 * _HOP)))
    )
    spectrum = next(spectra) * 0.3 * track[:, 3:4] * shape + next(spectra) * 0.5 * track[:, 4:5] * hiss
    # The filters have zero phase, half of the ringing lies before a frame: each is set into the middle of its FFT.
    pieces = np.roll(np.fft.irfft(spectrum, 512), 96, axis=1)
    sound = np.zeros((frames + 8) * _HOP)
    for index, piece in enumerate(pieces):
        sound[index * _HOP : index * _HOP + 512] += piece
    return sound[256 : 256 + frames * _HOP]


def trim(sound: np.ndarray, *, longest: Seconds = np.inf) -> np.ndarray:
    """`sound` without the silence at its ends, at most `longest` seconds of it."""
    heard = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    start = int(heard[0]) if len(heard) else 0
    stop = int(heard[-1]) + 1 if len(heard) else len(sound)
    return sound[start : int(min(stop, start + longest * RATE))]
