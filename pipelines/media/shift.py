"""Signals made worse on purpose: babble over a sound, pictures in the dark or out of focus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipelines.media.pyav import Sound
from store.types import Seconds, Shift

LONGEST: Seconds = 60.0  # of a voice in the babble, before it begins again
CHUNK: Seconds = 60.0


class Babbled:
    """A sound ``[T]`` under babble, as loud as it was alone; slices are int16 arrays, as those of `Sound`.

    Args:
        own: the sound.
        voices: what babbles, all of them equally loud.
        snr_db: how much louder the sound is than all voices together, over its whole length.
    """

    def __init__(self, own: Sound, voices: Sequence[Sound], snr_db: float):
        self.hz, self._own, self._scale, self._gain = own.hz, own, 1.0, 0.0
        heard = (voice[: round(LONGEST * voice.hz)].astype(np.float32) for voice in voices)
        self._voices = [voice / np.sqrt(np.mean(voice**2)) for voice in heard if voice.any()]
        power = np.zeros(2)
        for start in range(0, len(own), step := round(CHUNK * self.hz)):
            window = slice(start, min(start + step, len(own)))
            power += [np.sum(np.square(signal, dtype=np.float64)) for signal in (own[window], self._babble(window))]
        if power.all():
            noise = 10 ** (-snr_db / 10)
            self._gain, self._scale = float(np.sqrt(noise * power[0] / power[1])), float(1 / np.sqrt(1 + noise))

    def __len__(self) -> int:
        return len(self._own)

    def __getitem__(self, window: slice) -> NDArray[np.int16]:
        mixed = self._scale * (self._own[window] + self._gain * self._babble(window))
        return np.clip(np.rint(mixed), -32768, 32767).astype(np.int16)

    def _babble(self, window: slice) -> NDArray[np.float32]:
        places = np.arange(*window.indices(len(self._own)))
        babble = np.zeros(len(places), np.float32)
        for voice in self._voices:
            babble += voice.take(places, mode="wrap")
        return babble


def veiled(picture: NDArray[np.uint8], shift: Shift) -> NDArray[np.uint8]:
    """`picture` ``[H, W, 3]`` as blurred and as dark as `shift` says."""
    if shift.blur:
        blurred = Image.fromarray(np.ascontiguousarray(picture)).filter(
            ImageFilter.GaussianBlur(shift.blur * picture.shape[1])
        )
        picture = np.asarray(blurred)
    return picture if shift.light == 1 else np.clip(picture * shift.light, 0, 255).astype(np.uint8)
