"""The `tiny` family: small transformers that this project pre-trains itself by masked reconstruction.

One network serves every modality; what differs is how a signal is cut into patches and how tokens are pooled. A token
may carry a thumbnail of its patch past the blocks: what reconstruction makes little of, as lips, is not lost. For the
same reason the mean of all patches can go beside the pooled tokens, as a bag of letter n-grams beside a text's.
Shapes: B batch, N tokens, F values in a patch, D width, H heads, S pooling cells, T values in a thumbnail.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.modules.adapter import masked_mean
from learner.pictures import depth_picture, pixels
from learner.torchaudio_cpu import torchaudio
from store.types import Hertz, Modality, Sample

AUDIO_RATE: Hertz = 16_000
IMU_RATE: Hertz = 50


@dataclass(frozen=True, slots=True)
class TinySpec:
    """The shape of one tiny backbone.

    Attributes:
        patch: the axes of a patch; their product is F.
        grid: patches along each axis, slowest first; a sequence has one axis and may be shorter.
        cells: pooling cells along each axis of `grid`.
        thumbnail: the axes of a patch's thumbnail, whose values are means over blocks of the patch; none carries none.
        dim: width of what the blocks work on; D is T more.
        version: raised whenever the preprocessing changes.
        bag: whether the mean of the patches is the backbone's summary.
    """

    modality: Modality
    patch: tuple[int, ...]
    grid: tuple[int, ...]
    cells: tuple[int, ...]
    thumbnail: tuple[int, ...] = ()
    dim: int = 128
    depth: int = 4
    heads: int = 4
    version: int = 1
    bag: bool = field(default=False, repr=False)  # the version says it in the digest


SPECS = {
    f"tiny-{spec.modality}": spec
    for spec in (
        TinySpec(Modality.AUDIO, patch=(4, 64), grid=(80,), cells=(4,)),
        TinySpec(
            Modality.VIDEO,
            patch=(2, 16, 16, 3),
            grid=(4, 4, 4),
            cells=(2, 2, 2),
            thumbnail=(1, 2, 2, 3),
            version=3,
        ),
        TinySpec(Modality.IMAGE, patch=(8, 8, 3), grid=(8, 8), cells=(2, 2), version=2),
        TinySpec(Modality.DEPTH, patch=(8, 8), grid=(8, 8), cells=(2, 2)),
        TinySpec(Modality.IMU, patch=(8, 6), grid=(40,), cells=(4,)),
        TinySpec(Modality.TEXT, patch=(256,), grid=(48,), cells=(1,), version=2, bag=True),
    )
}


def log_mel(audio: np.ndarray) -> np.ndarray:
    """int16 ``[T]`` at 16 kHz -> log-mel patches ``[n, 256]`` of 4 frames (40 ms) x 64 bands, levelled per clip."""
    wave = torch.from_numpy(audio.astype(np.float32) / 32768)
    wave = F.pad(wave, (0, max(0, 800 - len(wave))))
    mel = _mel()(wave).clamp_min(1e-6).log().T  # [frames, 64]
    mel = (mel - mel.mean()) / (mel.std() + 1e-3)
    frames = len(mel) // 4 * 4
    return mel[:frames].reshape(-1, 4 * 64).numpy()


def frame_patches(frames: list[bytes]) -> np.ndarray:
    """JPEGs in time order -> ``[64, 1536]``: 4 x 4 x 4 tubes of 2 frames x 16 x 16 pixels, in [-1, 1]."""
    chosen = np.linspace(0, len(frames) - 1, 8).round().astype(int)
    video = np.stack([pixels(frames[i], 64) for i in chosen])  # [8, 64, 64, 3]
    tubes = video.reshape(4, 2, 4, 16, 4, 16, 3).transpose(0, 2, 4, 1, 3, 5, 6)
    return tubes.reshape(64, -1)


def image_patches(image: bytes) -> np.ndarray:
    """A JPEG or PNG -> ``[64, 192]``: 8 x 8 patches of 8 x 8 pixels, in [-1, 1]."""
    return pixels(image, 64).reshape(8, 8, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(64, -1)


def depth_patches(depth: np.ndarray) -> np.ndarray:
    """uint16 mm ``[H, W]`` -> ``[64, 64]``: 8 x 8 patches of 8 x 8 values from -1, 10 m or no return, to 1, nearest."""
    return pixels(depth_picture(depth), 64)[..., 0].reshape(8, 8, 8, 8).transpose(0, 2, 1, 3).reshape(64, -1)


def imu_patches(imu: np.ndarray) -> np.ndarray:
    """float32 ``[T, 6]`` at 50 Hz -> ``[n, 48]`` of 8 steps; acceleration in g/2, rates in 4 rad/s, centred."""
    scaled = (imu - imu.mean(0)) / np.array([4.9] * 3 + [4.0] * 3, np.float32)
    padded = np.pad(scaled, ((0, -len(scaled) % 8), (0, 0)))
    return padded.reshape(-1, 8 * 6).astype(np.float32)


def word_patches(text: str) -> np.ndarray:
    """Words -> ``[n, 256]``: hashed counts of a word's letter n-grams (1 to 4, with its ends marked), unit length."""
    rows = []
    for word in text.lower().split() or [""]:
        row, marked = np.zeros(256, np.float32), f"^{word}$"
        for n in range(1, 5):
            for i in range(len(marked) - n + 1):
                code = int.from_bytes(hashlib.blake2b(marked[i : i + n].encode(), digest_size=4).digest(), "little")
                row[code % 256] += 1.0 if code & 0x100 else -1.0
        rows.append(row * (4 / max(1.0, float(np.linalg.norm(row)))))
    return np.stack(rows)


_PATCHES: dict[Modality, Callable[[Sample], np.ndarray]] = {
    Modality.AUDIO: lambda sample: log_mel(sample.audio),  # type: ignore[arg-type]
    Modality.VIDEO: lambda sample: frame_patches(sample.frames),
    Modality.IMAGE: lambda sample: image_patches(sample.image),  # type: ignore[arg-type]
    Modality.DEPTH: lambda sample: depth_patches(sample.depth),  # type: ignore[arg-type]
    Modality.IMU: lambda sample: imu_patches(sample.imu),  # type: ignore[arg-type]
    Modality.TEXT: lambda sample: word_patches(sample.text or ""),
}


class TinyBlock(nn.Module):
    """A pre-norm transformer block in the halves that `backbones.base.Block` asks for; what lies beyond `dim` stays."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.dim, self.heads = dim, heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def attend(self, h: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, D]`` and validity ``[B, N]`` -> ``[B, N, D]``; a sample without valid tokens attends to all."""
        B, N, D = *h.shape[:2], self.dim
        q, k, v = (
            self.qkv(self.norm1(h[..., :D])).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )  # each [B, H, N, D/H]
        keys = mask | ~mask.any(1, keepdim=True)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None])
        return h + _beside(self.out(attended.transpose(1, 2).reshape(B, N, D)), h)

    def feed(self, h: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``, without the residual."""
        return _beside(self.down(F.gelu(self.up(self.norm2(h[..., : self.dim])))), h)


class TinyBackbone(nn.Module):
    """A tiny transformer over patches; see `backbones.base.Backbone`."""

    positions: Tensor
    cell_of_token: Tensor

    def __init__(self, spec: TinySpec):
        super().__init__()
        self.spec, self.name, self.modality = spec, f"tiny-{spec.modality}", spec.modality
        carried = math.prod(spec.thumbnail) if spec.thumbnail else 0
        self.dim, self.tokens = spec.dim + carried, math.prod(spec.grid)
        self.cells = math.prod(spec.cells)
        self.pooled_dim = spec.dim * self.cells + carried * self.tokens
        self.summary_dim = math.prod(spec.patch) if spec.bag else 0
        self.digest = ""
        self.embed = nn.Linear(math.prod(spec.patch), spec.dim)
        self.blocks = nn.ModuleList(TinyBlock(spec.dim, spec.heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.dim)
        self.register_buffer("positions", _positions(spec.grid, spec.dim), persistent=False)
        self.register_buffer("cell_of_token", _cells(spec.grid, spec.cells), persistent=False)

    def patches(self, sample: Sample) -> np.ndarray:
        """The sample's signal as float32 ``[n, F]``, cut to the backbone's longest input."""
        return _PATCHES[self.modality](sample)[: self.tokens].astype(np.float32)

    def stem(self, patches: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, F]`` -> ``[B, N, D]``."""
        h = self.embed(patches) + self.positions[: patches.shape[1]]
        return torch.cat([h, self._thumbnails(patches)], 2) if self.spec.thumbnail else h

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, P]``: means of the valid tokens in each cell of time (and space), then thumbnails."""
        if len(self.spec.grid) == 1:  # cells of a sequence are equal parts of its valid length
            length = mask.sum(1, keepdim=True).clamp_min(1)
            index = torch.arange(h.shape[1], device=h.device)
            cell = (index * self.cells // length).clamp_max(self.cells - 1)
        else:
            cell = self.cell_of_token[: h.shape[1]].expand(h.shape[:2])
        member = F.one_hot(cell, self.cells) * mask[..., None]  # [B, N, S]
        weights = member.transpose(1, 2).to(h.dtype)
        weights = weights / weights.sum(2, keepdim=True).clamp_min(1)
        pooled = (weights @ self.norm(h[..., : self.spec.dim])).flatten(1)
        if not self.spec.thumbnail:
            return pooled
        carried = h[..., self.spec.dim :] * mask[..., None]
        return torch.cat([pooled, F.pad(carried, (0, 0, 0, self.tokens - h.shape[1])).flatten(1)], 1)

    def summary(self, patches: Tensor, mask: Tensor) -> Tensor:
        """The mean of the valid patches, ``[B, N, F]`` -> ``[B, F]``; asked for where the spec has a bag."""
        return masked_mean(patches, mask)

    def _thumbnails(self, patches: Tensor) -> Tensor:
        """``[B, N, F]`` -> ``[B, N, T]``."""
        blocks = [(t, p // t) for p, t in zip(self.spec.patch, self.spec.thumbnail, strict=True)]
        cut = patches.reshape(*patches.shape[:2], *(n for block in blocks for n in block))
        return cut.mean([3 + 2 * axis for axis in range(len(blocks))]).flatten(2)


def _beside(added: Tensor, h: Tensor) -> Tensor:
    """What a block adds to its part of `h`, and nothing to the rest."""
    return F.pad(added, (0, h.shape[-1] - added.shape[-1]))


_MEL: list[nn.Module] = []


def _mel() -> nn.Module:
    if not _MEL:
        _MEL.append(torchaudio.transforms.MelSpectrogram(AUDIO_RATE, n_fft=400, hop_length=160, n_mels=64))
    return _MEL[0]


def _positions(grid: tuple[int, ...], dim: int) -> Tensor:
    """Sine and cosine position codes, ``[N, D]``: each axis of `grid` takes an equal share of D."""
    share = dim // len(grid) // 2 * 2
    codes = []
    for axis, index in enumerate(np.indices(grid).reshape(len(grid), -1)):
        width = share if axis else dim - share * (len(grid) - 1)
        rate = np.exp(-math.log(10_000) * np.arange(0, width, 2) / width)
        angle = index[:, None] * rate
        codes.append(np.concatenate([np.sin(angle), np.cos(angle)], 1)[:, :width])
    return torch.from_numpy(np.concatenate(codes, 1)).float()


def _cells(grid: tuple[int, ...], cells: tuple[int, ...]) -> Tensor:
    """The pooling cell of each token, ``[N]``."""
    index = np.indices(grid).reshape(len(grid), -1)
    cell = np.zeros(index.shape[1], np.int64)
    for axis, count in enumerate(cells):
        cell = cell * count + index[axis] * count // grid[axis]
    return torch.from_numpy(cell)
