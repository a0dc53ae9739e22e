"""Transformers checkpoints as backbones, against transformers itself: small random ones in the formats of the hub."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from learner import registry, torchaudio_cpu  # noqa: F401  torchaudio before transformers
from learner.backbones.base import Backbone, through
from store.lake import Lake
from store.types import Modality, PalimpsestError, Sample

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'palimpsest[hub]'")
AUDIO, DEPTH, IMAGE, TEXT, VIDEO = Modality.AUDIO, Modality.DEPTH, Modality.IMAGE, Modality.TEXT, Modality.VIDEO
CPU = torch.device("cpu")
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
CONVOLUTIONS = {"conv_dim": (16,) * 3, "conv_kernel": (10, 8, 5), "conv_stride": (5, 8, 8), "num_feat_extract_layers": 3}
POSITIONS = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
NORMAL = {"do_normalize": True, "do_resize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25]}
WAVES = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "sampling_rate": 16000}
AST_MEL = {"feature_extractor_type": "ASTFeatureExtractor", "max_length": 96, "num_mel_bins": 32, "sampling_rate": 16000}


def spread(model: Any) -> Any:
    """Away from the small values that models begin with, so that a part left out shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def write(folder: Path, model: Any, files: dict[str, Any]) -> Path:
    spread(model).save_pretrained(folder)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def vit(folder: Path) -> Path:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, image_size=32, patch_size=8))
    prepared = {**NORMAL, "image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    return write(folder, model, {"preprocessor_config.json": prepared})


def videomae(folder: Path, **more: Any) -> Path:
    shape = {"image_size": 32, "patch_size": 16, "num_frames": 4, "tubelet_size": 2}
    decoder = {"decoder_num_attention_heads": 2, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
    model = transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**SIZES, **shape, **decoder, **more))
    prepared = {**NORMAL, "do_center_crop": True, "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    files = {"preprocessor_config.json": {**prepared, "feature_extractor_type": "VideoMAEFeatureExtractor"}}
    return write(folder, model, files)


def ast(folder: Path) -> Path:
    model = transformers.ASTForAudioClassification(
        transformers.ASTConfig(**SIZES, max_length=96, num_mel_bins=32, frequency_stride=10, time_stride=10)
    )
    return write(folder, model, {"preprocessor_config.json": AST_MEL})


def wav2vec2(folder: Path, *, stable: bool = False) -> Path:
    shape = {"do_stable_layer_norm": stable, "feat_extract_norm": "layer" if stable else "group", "conv_bias": stable}
    config = transformers.Wav2Vec2Config(**SIZES, **CONVOLUTIONS, **POSITIONS, **shape, vocab_size=12)
    return write(folder, transformers.Wav2Vec2ForCTC(config), {"preprocessor_config.json": WAVES})


def hubert(folder: Path, *, stable: bool = False) -> Path:
    shape = {"do_stable_layer_norm": stable, "feat_extract_norm": "layer" if stable else "group"}
    config = transformers.HubertConfig(**SIZES, **CONVOLUTIONS, **POSITIONS, **shape)
    return write(folder, transformers.HubertModel(config), {"preprocessor_config.json": WAVES})


def xlm_roberta(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyzłó"]
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters, ("▁the", -1.0)]
    tokenizer = Tokenizer(models.Unigram([*vocabulary, ("<mask>", 0.0)], unk_id=3))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    config = transformers.XLMRobertaConfig(**SIZES, vocab_size=40, max_position_embeddings=26, pad_token_id=1)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>"}
    about = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512, "sep_token": "</s>", **special}
    files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": {**about, "mask_token": "<mask>"}}
    return write(folder, transformers.XLMRobertaForMaskedLM(config), files)


def bert(folder: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "##s", *"abcdefghijklmnopqrstuvwxyz"]
    config = transformers.BertConfig(**SIZES, vocab_size=len(words), max_position_embeddings=24)
    about = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 24}
    files = {"vocab.txt": "\n".join(words), "tokenizer_config.json": about}
    return write(folder, transformers.BertForMaskedLM(config), files)


def clip(folder: Path) -> Path:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{c}</w>" for c in letters), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    config = transformers.CLIPConfig(
        text_config={**SIZES, "vocab_size": len(tokens), "max_position_embeddings": 24, **ends},
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    files = {
        "preprocessor_config.json": {
            **NORMAL, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 32, "size": 32,
            "resample": 3,
        },
        "vocab.json": {token: i for i, token in enumerate(tokens)},
        "merges.txt": "#version: 0.2\nt h\nth e</w>\n",
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer", "model_max_length": 24, "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        },
    }  # fmt: skip
    return write(folder, transformers.CLIPModel(config), files)


def picture(number: int, width: int, height: int, kind: str = "PNG") -> bytes:
    coarse = Image.fromarray(np.random.default_rng(number).integers(0, 256, (5, 7, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height)).save(buffer, kind)
    return buffer.getvalue()


def sound(number: int, samples: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    wave = np.sin(np.arange(samples) * 0.05 * (1 + number)) + 0.3 * rng.standard_normal(samples)
    return (6000 * wave).astype(np.int16)


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


IMAGES = [Sample("a", {}, image=picture(0, 60, 40)), Sample("b", {}, image=picture(1, 32, 32, "JPEG"))]
VIDEOS = [Sample("a", {}, frames=[picture(i, 50, 40) for i in range(9)]), Sample("b", {}, frames=[picture(9, 32, 32)])]
SOUNDS = [Sample("a", {}, audio=sound(0, 16_000)), Sample("b", {}, audio=sound(1, 7_321)), Sample("c", {}, audio=sound(2, 300))]
TEXTS = [Sample(key, {}, text=text) for key, text in zip("abc", ["The dogs bark", "", "łódź " * 20], strict=True)]


def asked_image(model: Any, auto: Callable[[str], Any], sample: Sample) -> Any:
    return model(**auto("ImageProcessor")(pillow(sample.image), return_tensors="pt"))  # type: ignore[arg-type]


def asked_video(model: Any, auto: Callable[[str], Any], sample: Sample) -> Any:
    chosen = np.linspace(0, len(sample.frames) - 1, 4).round().astype(int)
    frames = auto("ImageProcessor")([pillow(sample.frames[i]) for i in chosen], return_tensors="pt")
    return model(pixel_values=frames["pixel_values"].reshape(1, 4, 3, 32, 32))


def asked_sound(model: Any, auto: Callable[[str], Any], sample: Sample) -> Any:
    wave = sample.audio.astype(np.float32) / 32768  # type: ignore[union-attr]
    prepared = auto("FeatureExtractor")(np.pad(wave, (0, max(0, 400 - len(wave)))), sampling_rate=16000, return_tensors="pt")
    return model(prepared["input_values"])


def asked_text(model: Any, auto: Callable[[str], Any], sample: Sample) -> Any:
    return model(**auto("Tokenizer")(sample.text, truncation=True, max_length=24, return_tensors="pt"))


ARCHITECTURES = {
    "vit": (vit, "ViTModel", IMAGE, IMAGES, asked_image),
    "videomae": (videomae, "VideoMAEModel", VIDEO, VIDEOS, asked_video),
    "videomae, mean": (lambda f: videomae(f, use_mean_pooling=False), "VideoMAEModel", VIDEO, VIDEOS, asked_video),
    "ast": (ast, "ASTModel", AUDIO, SOUNDS, asked_sound),
    "wav2vec2": (wav2vec2, "Wav2Vec2Model", AUDIO, SOUNDS[:2], asked_sound),
    "wav2vec2, stable": (lambda f: wav2vec2(f, stable=True), "Wav2Vec2Model", AUDIO, SOUNDS[:2], asked_sound),
    "hubert": (hubert, "HubertModel", AUDIO, SOUNDS[:2], asked_sound),
    "hubert, stable": (lambda f: hubert(f, stable=True), "HubertModel", AUDIO, SOUNDS[:2], asked_sound),
    "xlm-roberta": (xlm_roberta, "XLMRobertaModel", TEXT, TEXTS, asked_text),
    "bert": (bert, "BertModel", TEXT, TEXTS, asked_text),
    "clip vision": (clip, "CLIPVisionModel", IMAGE, IMAGES, asked_image),
    "clip text": (clip, "CLIPTextModel", TEXT, TEXTS, asked_text),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            made[name] = ARCHITECTURES[name][0](tmp_path_factory.mktemp("checkpoint") / "small")
        return made[name]

    return find


def loaded(folder: str | Path, modality: Modality, lake: Path = Path("/none")) -> Any:
    return registry.backbones({str(modality): f"hub:{folder}"}, Lake(lake), CPU)[modality]


def collated(backbone: Backbone, samples: list[Sample | None]) -> tuple[Tensor, Tensor]:
    """Patches ``[B, N, F]`` of samples, None for one that lacks the modality, and validity, at the backbone's length."""
    patches = [None if sample is None else backbone.patches(sample) for sample in samples]
    width = next(p.shape[1] for p in patches if p is not None)
    x, mask = torch.zeros(len(samples), backbone.tokens, width), torch.zeros(len(samples), backbone.tokens, dtype=torch.bool)
    for i, p in enumerate(patches):
        if p is not None:
            assert p.dtype == np.float32
            x[i, : len(p)], mask[i, : len(p)] = torch.from_numpy(p), True
    return x, mask


@torch.inference_mode()
def run(backbone: Backbone, x: Tensor, mask: Tensor) -> Tensor:
    h = backbone.stem(x, mask)
    for block in backbone.blocks:
        h = through(block, h, mask)
    return h


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_it_computes_what_transformers_computes(name, checkpoint):
    """Sample by sample as transformers does, though padded in one batch beside a sample that has no such track."""
    _, model_class, modality, samples, ask = ARCHITECTURES[name]
    folder = checkpoint(name)
    backbone = loaded(folder, modality)
    model = getattr(transformers, model_class).from_pretrained(folder, dtype=torch.float32).eval()
    x, mask = collated(backbone, [*samples, None])
    h = run(backbone, x, mask)
    assert h.isfinite().all()
    pooled = backbone.pool(h, mask)
    assert pooled.shape == (len(samples) + 1, backbone.pooled_dim)
    assert not pooled[-1].any()
    assert h.shape[2] == backbone.dim == SIZES["hidden_size"]
    final = h if name == "clip vision" else backbone.norm(h)
    for i, sample in enumerate(samples):
        expected = ask(model, lambda auto: getattr(transformers, f"Auto{auto}").from_pretrained(folder), sample)
        found = final[i][mask[i]]
        torch.testing.assert_close(found, expected.last_hidden_state[0], atol=1e-4, rtol=0)
        if name in ("ast", "clip vision", "clip text"):
            torch.testing.assert_close(pooled[i], expected.pooler_output[0], atol=1e-4, rtol=0)
