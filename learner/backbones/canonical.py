"""One form for every signal: a picture of 64 x 64 x 3 in [-1, 1], whatever it was; nothing but its content tells.

The members of the `canonical` family cut such pictures into one grid of patches and share one stem, one trunk and one
set of weights, so that a method may forget which of them a sample came through.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from learner.backbones.tiny import IMU_RATE, TinyBackbone, TinySpec, log_mel
from learner.pictures import depth_picture, pixels
from store.types import Modality, Sample

SIZE, PATCH = 64, 8


def image_form(sample: Sample) -> np.ndarray:
    """The picture itself, stretched."""
    return pixels(sample.image, SIZE)  # type: ignore[arg-type]


def depth_form(sample: Sample) -> np.ndarray:
    """Nearness as grey."""
    return pixels(depth_picture(sample.depth), SIZE)  # type: ignore[arg-type]


def video_form(sample: Sample) -> np.ndarray:
    """Four frames at equal distances, in rows of two."""
    chosen = np.linspace(0, len(sample.frames) - 1, 4).round().astype(int)
    first, second, third, fourth = (pixels(sample.frames[i], SIZE // 2) for i in chosen)
    return np.concatenate([np.concatenate([first, second], 1), np.concatenate([third, fourth], 1)])


def audio_form(sample: Sample) -> np.ndarray:
    """The log-mel spectrum as grey, bands from the bottom up, the whole clip over the width."""
    mel = log_mel(sample.audio).reshape(-1, SIZE)  # type: ignore[arg-type]  # [frames, bands]
    return _grey(_resized(mel.T[::-1] / 3, SIZE, SIZE))


def imu_form(sample: Sample) -> np.ndarray:
    """Waves in the upper half, spectra in the lower; acceleration above rates, the three axes as colours."""
    moved = (sample.imu - sample.imu.mean(0)) / np.array([4.9] * 3 + [4.0] * 3, np.float32)  # type: ignore[union-attr]
    both = moved[:, :3], moved[:, 3:]
    waves = [np.repeat(_resized(three.T, 3, SIZE).T[None], SIZE // 4, 0) for three in both]
    spectra = [np.stack([_resized(_spectrum(axis), SIZE // 4, SIZE) for axis in three.T], 2) for three in both]
    return np.concatenate([*waves, *spectra]).clip(-1, 1)


def _spectrum(wave: np.ndarray) -> np.ndarray:
    """Log magnitudes of an axis ``[T]`` at 50 Hz in windows of 0.64 s, ``[bands, frames]``, high ones first."""
    window, hop = round(0.64 * IMU_RATE), round(0.08 * IMU_RATE)
    padded = torch.from_numpy(np.pad(wave, (0, max(0, window - len(wave)))).astype(np.float32))
    found = torch.stft(padded, window, hop, window=torch.hann_window(window), center=False, return_complex=True)
    return (found.abs().clamp_min(1e-2).log().numpy()[1:] / 3)[::-1]


def _resized(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """``[h, w]`` -> ``[height, width]``, by an antialiased bilinear filter."""
    whole = torch.from_numpy(np.ascontiguousarray(x, np.float32))[None, None]
    return F.interpolate(whole, (height, width), mode="bilinear", antialias=True)[0, 0].numpy()


def _grey(x: np.ndarray) -> np.ndarray:
    return np.repeat(x.clip(-1, 1)[..., None], 3, 2)


FORMS: dict[Modality, Callable[[Sample], np.ndarray]] = {
    Modality.IMAGE: image_form,
    Modality.DEPTH: depth_form,
    Modality.VIDEO: video_form,
    Modality.AUDIO: audio_form,
    Modality.IMU: imu_form,
}


class CanonicalBackbone(TinyBackbone):
    """The shared trunk as one modality enters it; see `backbones.base.Backbone`."""

    def __init__(self, modality: Modality):
        grid = (SIZE // PATCH, SIZE // PATCH)
        super().__init__(TinySpec(modality, (PATCH, PATCH, 3), grid, cells=(2, 2), thumbnail=(2, 2, 3)))
        self.name = f"canonical-{modality}"

    def beside(self, modality: Modality) -> CanonicalBackbone:
        """The same trunk, the very parameters, for another modality."""
        other = copy.copy(self)
        other.name, other.modality = f"canonical-{modality}", modality
        return other

    def patches(self, sample: Sample) -> np.ndarray:
        """The sample's canonical picture as float32 ``[64, 192]``: 8 x 8 patches of 8 x 8 pixels."""
        side = SIZE // PATCH
        cut = FORMS[self.modality](sample).reshape(side, PATCH, side, PATCH, 3).transpose(0, 2, 1, 3, 4)
        return cut.reshape(side * side, -1).astype(np.float32)
