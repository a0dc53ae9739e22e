"""The `hub` family: checkpoints of Hugging Face transformers, of their hub or in a folder.

In a recipe, once ``pip install 'palimpsest[hub]'`` is done::

    learner:
      backbones:
        video: hub:MCG-NJU/videomae-base             # a name that is downloaded once
        audio: hub:ast-finetuned-audioset            # a folder in the lake's backbones/
        text: hub:/data/checkpoints/xlm-roberta-base # or anywhere

ViT and CLIP read pictures and depth, VideoMAE video, AST, wav2vec 2.0 and HuBERT sound, BERT, (XLM-)RoBERTa and CLIP
text. Weights are read from safetensors alone, and no code that comes with a checkpoint is run.
Shapes: B batch, N tokens, S special tokens, n = N - S patches, F values in a patch, D width.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner import torchaudio_cpu  # noqa: F401  before transformers, which imports torchaudio
from learner.modules.adapter import masked_mean
from learner.pictures import decoded, depth_picture
from store.lake import Lake, file_sha256
from store.types import Hertz, Modality, PalimpsestError, Sample, Seconds, slug

VERSION = 1  # raised whenever the preprocessing here changes
RATE: Hertz = 16_000
AT_ONCE = 4  # samples through the frozen blocks: more of 1,568 tokens and 3,072 hidden values take gigabytes
LONGEST_WAVE: Seconds = 20.0  # for encoders of raw sound, which have no longest input of their own
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
Unfold = Callable[[Sample], np.ndarray]
Choose = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """A checkpoint's self-attention, ``[B, N, D]`` -> ``[B, N, D]``.

    Args:
        core: everything, or all but the last projection.
        out: the last projection, where `core` lacks it.
        masked: whether `core` takes a mask; without one every sample has all tokens.
        causal: whether a token sees only those before it.
    """

    def __init__(self, core: nn.Module, out: nn.Module | None = None, *, masked: bool = True, causal: bool = False):
        super().__init__()
        self.core, self.out, self.masked, self.causal = core, out or nn.Identity(), masked, causal

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend to the valid tokens; a sample without any attends to all."""
        if not self.masked:
            return self.out(self.core(x)[0])
        seen = (mask | ~mask.any(1, keepdim=True))[:, None, None]  # [B, 1, 1, N]
        if self.causal:
            seen = seen & torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        return self.out(self.core(x, attention_mask=seen)[0])


class PreNorm(nn.Module):
    """A block that normalises what each half reads; see `base.Block`."""

    def __init__(self, norm: nn.Module, attention: Attention, feed_norm: nn.Module, feed: nn.Module):
        super().__init__()
        self.norm, self.attention, self.feed_norm, self.feed_forward = norm, attention, feed_norm, feed

    def attend(self, h: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, D]`` and validity ``[B, N]`` -> ``[B, N, D]``."""
        return h + self.attention(self.norm(h), mask)

    def feed(self, h: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``, without the residual."""
        return self.feed_forward(self.feed_norm(h))


class PostNorm(nn.Module):
    """A block that normalises the sum after each half; see `base.Block`.

    The norm after the second half is the `entry` of the next block, or the backbone's last norm: so what an adapter
    adds beside the feed-forward layer is normalised together with it.
    """

    def __init__(self, entry: nn.Module, attention: Attention, norm: nn.Module, feed: nn.Module):
        super().__init__()
        self.entry, self.attention, self.norm, self.feed_forward = entry, attention, norm, feed

    def attend(self, h: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, D]`` and validity ``[B, N]`` -> ``[B, N, D]``."""
        h = self.entry(h)
        return self.norm(h + self.attention(h, mask))

    def feed(self, h: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``, without the residual."""
        return self.feed_forward(h)


class Front(nn.Module):
    """From a sample to the first block's input, in the two steps of `base.Backbone`; `tokens` is the longest N."""

    tokens: int

    def patches(self, sample: Sample) -> np.ndarray:
        """The sample's signal as float32 ``[N, F]``."""
        raise NotImplementedError

    def stem(self, patches: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, F]`` -> ``[B, N, D]``."""
        raise NotImplementedError


class Patched(Front):
    """Signals of one size, cut into patches: pictures, videos, spectrograms.

    Args:
        unfold: a sample's patches ``[n, F]``, in the order of the positions.
        projection: the convolution over patches.
        special: tokens before the first patch, ``[S, D]``.
        positions: ``[N, D]``.
        norm: what the tokens go through before the first block.
    """

    def __init__(
        self, unfold: Unfold, projection: Any, special: Tensor, positions: Tensor, norm: nn.Module | None = None
    ):
        super().__init__()
        self.unfold, self.norm = unfold, norm or nn.Identity()
        self.projection: Any = projection
        self.special, self.positions = nn.Parameter(special.detach()), nn.Parameter(positions.detach())
        self.tokens = len(positions)

    def patches(self, sample: Sample) -> np.ndarray:
        """The sample's signal as float32 ``[N, F]``; the rows of special tokens are zeros.

        Raises:
            PalimpsestError: the checkpoint's preprocessing and its model do not fit together.
        """
        found = np.pad(self.unfold(sample), ((len(self.special), 0), (0, 0))).astype(np.float32)
        if len(found) != self.tokens:
            raise PalimpsestError(
                f"the checkpoint's preprocessor_config.json makes {len(found)} tokens of sample {sample.key}, its model"
                f" takes {self.tokens}: give the file the model's own size"
            )
        return found

    def stem(self, patches: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, F]`` -> ``[B, N, D]``."""
        weight, bias = self.projection.weight, self.projection.bias
        h = F.linear(patches[:, len(self.special) :], weight.flatten(1), bias)
        h = torch.cat([self.special.expand(len(h), -1, -1), h], 1)
        return self.norm(h + self.positions)


class Wave(Front):
    """Raw sound through a stack of convolutions, of which each token sees R samples, S after the one before.

    A row of patches holds how many samples are its own, and these: S, and in the last row whatever is left.
    """

    def __init__(self, model: Any, extractor: Any):
        super().__init__()
        config, encoder = model.config, model.encoder
        self.extractor, self.relative = extractor, encoder.pos_conv_embed
        self.convolutions: Any = model.feature_extractor
        self.projection: Any = model.feature_projection
        self.norm = nn.Identity() if config.do_stable_layer_norm else encoder.layer_norm
        self.dim, self.hop, self.sight = config.hidden_size, math.prod(config.conv_stride), 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.sight = (self.sight - 1) * stride + kernel
        self.tokens = self._count(int(LONGEST_WAVE * RATE))

    def patches(self, sample: Sample) -> np.ndarray:
        """At most 20 s of sound as float32 ``[N, R + S]``."""
        wave = self.extractor(_wave(sample, LONGEST_WAVE), sampling_rate=RATE, return_tensors="np").input_values[0]
        wave = np.pad(wave, (0, max(0, self.sight - len(wave))))
        n = self._count(len(wave))
        whole, rest = wave[: (n - 1) * self.hop], wave[(n - 1) * self.hop :]
        rows = np.zeros((n, self.sight + self.hop), np.float32)
        rows[:-1, 0], rows[-1, 0] = self.hop, len(rest)
        rows[:-1, 1 : 1 + self.hop], rows[-1, 1 : 1 + len(rest)] = whole.reshape(n - 1, self.hop), rest
        return rows

    def stem(self, patches: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, F]`` -> ``[B, N, D]``; one by one, since the first norm of some encoders spans the whole sound."""
        h = patches.new_zeros(*patches.shape[:2], self.dim)
        for i, n in enumerate(mask.sum(1).tolist()):
            if n:
                rows = patches[i, :n]
                wave = torch.cat([rows[:-1, 1 : 1 + self.hop].flatten(), rows[-1, 1 : 1 + int(rows[-1, 0])]])
                projected = self.projection(self.convolutions(wave[None]).transpose(1, 2))
                h[i, :n] = (projected[0] if isinstance(projected, tuple) else projected)[0]
        return self.norm(h + self.relative(h))

    def _count(self, samples: int) -> int:
        return (samples - self.sight) // self.hop + 1


class Words(Front):
    """Token numbers, cut to the model's longest input with the tokenizer's own last token kept."""

    def __init__(self, model: Any, tokenizer: Any, positions: int):
        super().__init__()
        self.tokenizer = tokenizer
        self.embeddings: Any = model.embeddings
        self.padding: int = model.config.pad_token_id or 0
        self.tokens = min(positions, tokenizer.model_max_length)
        self.patches(Sample("", {}, text=""))  # the first call settles a tokenizer, which threads share from then on

    def patches(self, sample: Sample) -> np.ndarray:
        """The text's token numbers as float32 ``[N, 1]``."""
        text = (sample.text or "")[: 64 * self.tokens]
        ids = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        if len(ids) > self.tokens:
            ids = [*ids[: self.tokens - 1], ids[-1]]
        return np.array(ids, np.float32)[:, None]

    def stem(self, patches: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, 1]`` -> ``[B, N, D]``."""
        ids = torch.where(mask, patches[..., 0].long(), self.padding)
        return self.embeddings(input_ids=ids)


class HubBackbone(nn.Module):
    """A checkpoint as a backbone; see `base.Backbone`.

    Args:
        name: names its features in the cache.
        modality: what it reads.
        dim: D.
        front: from a sample to the first block's input.
        blocks: first to last.
        norm: what the last block's output goes through.
        choose: of valid tokens ``[B, N]``, those that speak for the sample.
    """

    def __init__(
        self,
        *,
        name: str,
        modality: Modality,
        dim: int,
        front: Front,
        blocks: Iterable[nn.Module],
        norm: nn.Module,
        choose: Choose,
    ):
        super().__init__()
        self.name, self.modality, self.digest = name, modality, ""
        self.dim = self.pooled_dim = dim
        self.at_once = AT_ONCE
        self.front, self.blocks, self.norm, self.choose = front, nn.ModuleList(blocks), norm, choose
        self.tokens, self.patches, self.stem = front.tokens, front.patches, front.stem

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, D]``: the mean of the tokens that speak for the sample."""
        return masked_mean(self.norm(h), self.choose(mask))


def load(reference: str, modality: Modality, lake: Lake) -> HubBackbone:
    """A checkpoint as a frozen backbone on the CPU.

    Args:
        reference: a folder, in the lake's `backbones/` or anywhere, or a name on Hugging Face's hub.
        modality: what it is to read.
        lake: looked in first.

    Raises:
        PalimpsestError: transformers is missing, or the checkpoint is absent, incomplete, damaged, without safetensors,
            of an architecture that is not known here, or not for `modality`.
    """
    try:
        import transformers
    except ImportError as error:
        raise PalimpsestError(
            f"backbone hub:{reference} needs transformers ({error}): pip install 'palimpsest[hub]'"
        ) from error
    transformers.logging.set_verbosity_error()  # what matters of a loading report is an error below
    transformers.logging.disable_progress_bar()
    folder = _folder(reference, lake)
    family = _family(reference, folder, modality)
    processor: Any = getattr(transformers, f"Auto{family.processor}")
    # Pictures come out the same whether torchvision is installed or not.
    pictures = {"backend": "pil"} if family.processor == "ImageProcessor" else {}
    try:
        processor = processor.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **pictures)
        model, report = getattr(transformers, family.model).from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
        made = build(family, model, processor, modality, f"hub-{slug(Path(reference).name)}")
    except PalimpsestError:
        raise
    except Exception as error:  # files from outside, or another version's names, can raise anything
        raise PalimpsestError(
            f"{folder} cannot be loaded as {family.model} of transformers {transformers.__version__}: {error}"
        ) from error
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith(UNUSED)):
        raise PalimpsestError(
            f"checkpoint {folder} lacks {len(missing)} tensors of a {family.model}, such as {missing[0]}"
        )
    made.digest = _digest(folder, modality)
    return made.eval().requires_grad_(False)


def build(family: Family, model: Any, processor: Any, modality: Modality, name: str = "hub") -> HubBackbone:
    """A backbone of a family's model, as `transformers` holds it, and of what prepares its input."""
    parts = family.parts(model, processor, modality)
    return HubBackbone(name=name, modality=modality, dim=model.config.hidden_size, **parts)


def picture_patches(processor: Any, patch: int, modality: Modality, sample: Sample) -> np.ndarray:
    """A picture, or depth as one, -> ``[n, 3 P P]``, row by row."""
    picture = decoded(sample.image) if modality is Modality.IMAGE else depth_picture(sample.depth)  # type: ignore[arg-type]
    x = _prepared(processor, [picture])[0]
    C, H, W = x.shape
    cells = x[:, : H // patch * patch, : W // patch * patch].reshape(C, H // patch, patch, W // patch, patch)
    return cells.transpose(1, 3, 0, 2, 4).reshape(-1, C * patch * patch)


def tube_patches(processor: Any, frames: int, tube: int, patch: int, sample: Sample) -> np.ndarray:
    """Evenly spaced frames -> ``[n, 3 t P P]``, tubes of t frames in order of time, then row by row."""
    chosen = np.linspace(0, len(sample.frames) - 1, frames).round().astype(int)
    pictures = {i: decoded(sample.frames[i]) for i in set(chosen.tolist())}
    x = _prepared(processor, [pictures[i] for i in chosen.tolist()])
    T, C, H, W = x.shape
    tubes = x.reshape(T // tube, tube, C, H // patch, patch, W // patch, patch)
    return tubes.transpose(0, 3, 5, 2, 1, 4, 6).reshape(-1, C * tube * patch * patch)


def spectrum_patches(extractor: Any, patch: int, stride: tuple[int, int], sample: Sample) -> np.ndarray:
    """Sound -> overlapping ``[n, P P]`` of its log-mel spectrogram, band by band."""
    wave = _wave(sample, 0.025 + 0.01 * (extractor.max_length - 1))  # all frames of 25 ms, each 10 ms after another
    wave = np.pad(wave, (0, max(0, 400 - len(wave))))
    mel = extractor(wave, sampling_rate=RATE, return_tensors="np").input_values[0]  # [frames, bands]
    windows = np.lib.stride_tricks.sliding_window_view(mel.T, (patch, patch))[:: stride[0], :: stride[1]]
    return windows.reshape(-1, patch * patch)


def _prepared(processor: Any, pictures: list[np.ndarray]) -> np.ndarray:
    """``[H, W, 3]`` uint8 each -> ``[T, 3, h, w]``."""
    found = processor(pictures, input_data_format="channels_last", return_tensors="np").pixel_values
    return found.reshape(-1, *found.shape[-3:])


def _wave(sample: Sample, longest: Seconds) -> np.ndarray:
    return sample.audio[: math.ceil(longest * RATE)].astype(np.float32) / 32768  # type: ignore[index]


def _every(mask: Tensor) -> Tensor:
    return mask


def _first(count: int, mask: Tensor) -> Tensor:
    return mask & (torch.arange(mask.shape[1], device=mask.device) < count)


def _last(mask: Tensor) -> Tensor:
    return mask & (torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1)


def _vit(model: Any, processor: Any, modality: Modality) -> dict[str, Any]:
    stem = model.embeddings
    unfold = partial(picture_patches, processor, model.config.patch_size, modality)
    return {
        "front": Patched(unfold, stem.patch_embeddings.projection, stem.cls_token[0], stem.position_embeddings[0]),
        "blocks": [_timm(layer) for layer in model.layers],
        "norm": model.layernorm,
        "choose": partial(_first, 1),
    }


def _ast(model: Any, extractor: Any, modality: Modality) -> dict[str, Any]:
    stem, config = model.embeddings, model.config
    _at_our_rate(extractor)
    unfold = partial(spectrum_patches, extractor, config.patch_size, (config.frequency_stride, config.time_stride))
    special = torch.cat([stem.cls_token[0], stem.distillation_token[0]])
    return {
        "front": Patched(unfold, stem.patch_embeddings.projection, special, stem.position_embeddings[0]),
        "blocks": [_timm(layer) for layer in model.layers],
        "norm": model.layernorm,
        "choose": partial(_first, 2),
    }


def _timm(layer: Any) -> PreNorm:
    return PreNorm(layer.layernorm_before, Attention(layer.attention), layer.layernorm_after, layer.mlp)


def _videomae(model: Any, processor: Any, modality: Modality) -> dict[str, Any]:
    stem, config = model.embeddings, model.config
    unfold = partial(tube_patches, processor, config.num_frames, config.tubelet_size, config.patch_size)
    none = torch.zeros(0, config.hidden_size, device=model.device)
    return {
        "front": Patched(unfold, stem.patch_embeddings.projection, none, stem.position_embeddings[0]),
        "blocks": [
            PreNorm(
                layer.layernorm_before,
                Attention(layer.attention.attention, layer.attention.output.dense, masked=False),
                layer.layernorm_after,
                nn.Sequential(layer.intermediate, layer.output.dense),
            )
            for layer in model.encoder.layer
        ],
        "norm": model.layernorm or nn.Identity(),
        "choose": _every,
    }


def _wav2vec2(model: Any, extractor: Any, modality: Modality) -> dict[str, Any]:
    _at_our_rate(extractor)
    encoder, layers = model.encoder, model.encoder.layers
    if model.config.do_stable_layer_norm:
        if any(getattr(layer, "adapter_layer", None) is not None for layer in layers):
            raise PalimpsestError("checkpoints with adapters for languages (MMS) are not supported: take one without")
        blocks: list[nn.Module] = [
            PreNorm(layer.layer_norm, Attention(layer.attention), layer.final_layer_norm, layer.feed_forward)
            for layer in layers
        ]
        norm = encoder.layer_norm
    else:
        entries = [nn.Identity(), *(layer.final_layer_norm for layer in layers[:-1])]
        blocks = [
            PostNorm(entry, Attention(layer.attention), layer.layer_norm, layer.feed_forward)
            for entry, layer in zip(entries, layers, strict=True)
        ]
        norm = layers[-1].final_layer_norm
    return {"front": Wave(model, extractor), "blocks": blocks, "norm": norm, "choose": _every}


def _bert(model: Any, tokenizer: Any, modality: Modality) -> dict[str, Any]:
    config, layers = model.config, model.encoder.layer
    before = (
        0 if config.model_type == "bert" else config.pad_token_id + 1
    )  # numbers that (XLM-)RoBERTa gives no position
    entries = [nn.Identity(), *(layer.output.LayerNorm for layer in layers[:-1])]
    return {
        "front": Words(model, tokenizer, config.max_position_embeddings - before),
        "blocks": [
            PostNorm(
                entry,
                Attention(layer.attention.self, layer.attention.output.dense),
                layer.attention.output.LayerNorm,
                nn.Sequential(layer.intermediate, layer.output.dense),
            )
            for entry, layer in zip(entries, layers, strict=True)
        ],
        "norm": layers[-1].output.LayerNorm,
        "choose": _every,
    }


def _clip(model: Any, processor: Any, modality: Modality) -> dict[str, Any]:
    stem, config, text = model.embeddings, model.config, modality is Modality.TEXT
    if text:
        front: Front = Words(model, processor, config.max_position_embeddings)
    else:
        unfold = partial(picture_patches, processor, config.patch_size, modality)
        special, positions = stem.class_embedding[None], stem.position_embedding.weight
        front = Patched(unfold, stem.patch_embedding, special, positions, model.pre_layrnorm)
    return {
        "front": front,
        "blocks": [
            PreNorm(layer.layer_norm1, Attention(layer.self_attn, causal=text), layer.layer_norm2, layer.mlp)
            for layer in model.encoder.layers
        ],
        "norm": model.final_layer_norm if text else model.post_layernorm,
        "choose": _last if text else partial(_first, 1),
    }


@dataclass(frozen=True, slots=True)
class Family:
    """Checkpoints of one architecture.

    Attributes:
        model: the class of transformers.
        processor: what prepares its input: transformers' ``Auto...`` of this name.
        modalities: what it can read.
        parts: of a loaded model and processor, the parts of a `HubBackbone`.
    """

    model: str
    processor: str
    modalities: tuple[Modality, ...]
    parts: Callable[[Any, Any, Modality], dict[str, Any]]


PICTURES, SOUND, TEXT = (Modality.IMAGE, Modality.DEPTH), (Modality.AUDIO,), (Modality.TEXT,)
_CLIP_VISION = Family("CLIPVisionModel", "ImageProcessor", PICTURES, _clip)
_CLIP_TEXT = Family("CLIPTextModel", "Tokenizer", TEXT, _clip)
FAMILIES: dict[str, Sequence[Family]] = {  # by config.json's model_type
    "vit": [Family("ViTModel", "ImageProcessor", PICTURES, _vit)],
    "videomae": [Family("VideoMAEModel", "ImageProcessor", (Modality.VIDEO,), _videomae)],
    "audio-spectrogram-transformer": [Family("ASTModel", "FeatureExtractor", SOUND, _ast)],
    "wav2vec2": [Family("Wav2Vec2Model", "FeatureExtractor", SOUND, _wav2vec2)],
    "hubert": [Family("HubertModel", "FeatureExtractor", SOUND, _wav2vec2)],
    "bert": [Family("BertModel", "Tokenizer", TEXT, _bert)],
    "roberta": [Family("RobertaModel", "Tokenizer", TEXT, _bert)],
    "xlm-roberta": [Family("XLMRobertaModel", "Tokenizer", TEXT, _bert)],
    "clip": [_CLIP_VISION, _CLIP_TEXT],
    "clip_vision_model": [_CLIP_VISION],
    "clip_text_model": [_CLIP_TEXT],
}
UNUSED = ("pooler.", "masked_spec_embed")  # tensors that a checkpoint may lack


def _folder(reference: str, lake: Lake) -> Path:
    for folder in (lake.backbones / reference, Path(reference).expanduser()):
        if folder.is_dir():
            return folder
    if reference.startswith(("/", ".", "~")) or reference.count("/") > 1:
        raise PalimpsestError(f"backbone hub:{reference}: there is no folder {reference}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(reference, allow_patterns=list(FILES)))
    except Exception as error:  # a name, a network and a server can be wrong in many ways
        raise PalimpsestError(
            f"backbone hub:{reference}: there is no such folder, here or in {lake.backbones}, and Hugging Face's hub "
            f"does not give it ({type(error).__name__}): without network, bring the checkpoint here and name its folder"
        ) from error


def _family(reference: str, folder: Path, modality: Modality) -> Family:
    try:
        architecture = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PalimpsestError(
            f"{folder} is no checkpoint of transformers: its config.json names no model_type"
        ) from error
    if architecture not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise PalimpsestError(f"backbone hub:{reference} is a {architecture}; those that can be used are: {known}")
    if not any(folder.glob("*.safetensors")):
        raise PalimpsestError(
            f"checkpoint {folder} has no *.safetensors, and pickled weights are not read: take one that has them, or "
            "save the model again with save_pretrained"
        )
    for family in FAMILIES[architecture]:
        if modality in family.modalities:
            return family
    reads = " and ".join(m for family in FAMILIES[architecture] for m in family.modalities)
    raise PalimpsestError(
        f"backbone hub:{reference}, a {architecture}, reads {reads}; the recipe names it for {modality}"
    )


def _at_our_rate(extractor: Any) -> None:
    if extractor.sampling_rate != RATE:
        raise PalimpsestError(f"the checkpoint takes sound at {extractor.sampling_rate} Hz, shards hold {RATE} Hz")


def _digest(folder: Path, modality: Modality) -> str:
    """Of the weights and of everything that says how they and the signals are read."""
    found = hashlib.sha256(f"{VERSION} {modality}".encode())
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        found.update(f"{file_sha256(path)} {path.name}\n".encode())
    return found.hexdigest()
