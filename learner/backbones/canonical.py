"""One form for every signal: a square picture of 3 channels in [-1, 1]; nothing but its content tells what it was.

All modalities that are brought to it share one stem, one trunk and one set of weights, so that a method may forget
which of them a sample came through: the `canonical` family's own small ones, or those of a checkpoint for images.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from learner.backbones.base import Backbone
from learner.backbones.tiny import IMU_RATE, TinyBackbone, TinySpec, log_mel
from learner.pictures import depth_picture, pixels
from store.types import Modality, Sample

SIZE, PATCH = 64, 8
LARGE = 224  # for checkpoints, which scale it as they are used to


def image_form(sample: Sample, size: int = SIZE) -> np.ndarray:
    """The picture itself, stretched."""
    return pixels(sample.image, size)  # type: ignore[arg-type]


def depth_form(sample: Sample, size: int = SIZE) -> np.ndarray:
    """Nearness as grey."""
    return pixels(depth_picture(sample.depth), size)  # type: ignore[arg-type]


def video_form(sample: Sample, size: int = SIZE) -> np.ndarray:
    """Four frames at equal distances, in rows of two."""
    chosen = np.linspace(0, len(sample.frames) - 1, 4).round().astype(int)
    first, second, third, fourth = (pixels(sample.frames[i], size // 2) for i in chosen)
    return np.concatenate([np.concatenate([first, second], 1), np.concatenate([third, fourth], 1)])


def audio_form(sample: Sample, size: int = SIZE) -> np.ndarray:
    """The log-mel spectrum as grey, bands from the bottom up, the whole clip over the width."""
    mel = log_mel(sample.audio).reshape(-1, 64)  # type: ignore[arg-type]  # [frames, bands]
    return _grey(_resized(mel.T[::-1] / 3, size, size))


def imu_form(sample: Sample, size: int = SIZE) -> np.ndarray:
    """Waves in the upper half, spectra in the lower; acceleration above rates, the three axes as colours."""
    moved = (sample.imu - sample.imu.mean(0)) / np.array([4.9] * 3 + [4.0] * 3, np.float32)  # type: ignore[union-attr]
    both = moved[:, :3], moved[:, 3:]
    waves = [np.repeat(_resized(three.T, 3, size).T[None], size // 4, 0) for three in both]
    spectra = [np.stack([_resized(_spectrum(axis), size // 4, size) for axis in three.T], 2) for three in both]
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


FORMS: dict[Modality, Callable[..., np.ndarray]] = {
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


def through_pictures(images: Backbone, modality: Modality) -> Backbone:
    """A backbone for images, the very parameters, as `modality` enters it by its picture."""
    other = copy.copy(images)
    other.name, other.modality = f"canonical-{images.name}-{modality}", modality
    other.patches = lambda sample: images.patches(Sample(sample.key, {}, image=_png(FORMS[modality](sample, LARGE))))  # type: ignore[method-assign]
    return other


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(((picture + 1) * 127.5).round().astype(np.uint8)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
