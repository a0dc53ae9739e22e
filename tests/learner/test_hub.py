"""Transformers checkpoints as backbones, against transformers itself: small random ones in the formats of the hub."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner import registry, torchaudio_cpu  # noqa: F401  torchaudio before transformers
from learner.backbones.base import Backbone, through
from learner.backbones.hub import FAMILIES, HubBackbone, build
from learner.batch import Batch
from learner.data import ClassIndex
from learner.features import TrunkFeatures
from learner.methods.base import Context
from learner.methods.crossmodal_moe import CrossModalMoE
from learner.pictures import depth_picture
from store.anchors import AnchorStore
from store.lake import Lake
from store.types import Modality, PalimpsestError, Sample
from tests.learner.handmade import CLASSES, make_lake, make_recipe, make_trainer

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'palimpsest[hub]'"
)
AUDIO, DEPTH, IMAGE, TEXT, VIDEO = Modality.AUDIO, Modality.DEPTH, Modality.IMAGE, Modality.TEXT, Modality.VIDEO
CPU = torch.device("cpu")
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
CONVOLUTIONS = {
    "conv_dim": (16,) * 3,
    "conv_kernel": (10, 8, 5),
    "conv_stride": (5, 8, 8),
    "num_feat_extract_layers": 3,
}
POSITIONS = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
NORMAL = {"do_normalize": True, "do_resize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25]}
WAVES = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "sampling_rate": 16000}
AST_MEL = {
    "feature_extractor_type": "ASTFeatureExtractor",
    "max_length": 96,
    "num_mel_bins": 32,
    "sampling_rate": 16000,
}


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
    prepared = {
        **NORMAL,
        "do_center_crop": True,
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
    }
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
            **NORMAL, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 32,
            "size": 32, "resample": 3,
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
SOUNDS = [
    Sample("a", {}, audio=sound(0, 16_000)),
    Sample("b", {}, audio=sound(1, 7_321)),
    Sample("c", {}, audio=sound(2, 300)),
]
TEXTS = [Sample(key, {}, text=text) for key, text in zip("abc", ["The dogs bark", "", "łódź " * 20], strict=True)]


def asked_image(model: Any, auto: Callable[[str], Any], sample: Sample) -> Any:
    return model(**auto("ImageProcessor")(pillow(sample.image), return_tensors="pt"))  # type: ignore[arg-type]


def asked_video(model: Any, auto: Callable[[str], Any], sample: Sample) -> Any:
    chosen = np.linspace(0, len(sample.frames) - 1, 4).round().astype(int)
    frames = auto("ImageProcessor")([pillow(sample.frames[i]) for i in chosen], return_tensors="pt")
    return model(pixel_values=frames["pixel_values"].reshape(1, 4, 3, 32, 32))


def asked_sound(model: Any, auto: Callable[[str], Any], sample: Sample) -> Any:
    wave = sample.audio.astype(np.float32) / 32768  # type: ignore[union-attr]
    prepared = auto("FeatureExtractor")(
        np.pad(wave, (0, max(0, 400 - len(wave)))), sampling_rate=16000, return_tensors="pt"
    )
    return model(prepared["input_values"])


def asked_text(model: Any, auto: Callable[[str], Any], sample: Sample) -> Any:
    return model(**auto("Tokenizer")(sample.text, truncation=True, max_length=24, return_tensors="pt"))


ARCHITECTURES = {
    "vit": (vit, "ViTModel", IMAGE, IMAGES, asked_image),
    "videomae": (videomae, "VideoMAEModel", VIDEO, VIDEOS, asked_video),
    "videomae, final norm": (
        lambda f: videomae(f, use_mean_pooling=False),
        "VideoMAEModel",
        VIDEO,
        VIDEOS,
        asked_video,
    ),
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
    """Patches ``[B, N, F]`` of samples, None for one that lacks the modality, and validity, at the longest length."""
    patches = [None if sample is None else backbone.patches(sample) for sample in samples]
    width = next(p.shape[1] for p in patches if p is not None)
    x, mask = (
        torch.zeros(len(samples), backbone.tokens, width),
        torch.zeros(len(samples), backbone.tokens, dtype=torch.bool),
    )
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


def test_depth_is_read_as_a_grey_picture(checkpoint):
    depth = np.random.default_rng(0).integers(0, 12_000, (30, 40)).astype(np.uint16)
    from_depth = loaded(checkpoint("vit"), DEPTH).patches(Sample("a", {}, depth=depth))
    buffer = io.BytesIO()
    Image.fromarray(depth_picture(depth)).save(buffer, "PNG")
    assert np.array_equal(
        from_depth, loaded(checkpoint("vit"), IMAGE).patches(Sample("a", {}, image=buffer.getvalue()))
    )


@pytest.mark.parametrize("name", ["ast", "wav2vec2", "xlm-roberta", "videomae"])
def test_what_exceeds_the_longest_input_is_cut_off(name, checkpoint):
    long = Sample("a", {}, frames=[picture(0, 32, 32)] * 900, audio=sound(0, 16_000 * 60), text="the dog barks " * 9000)
    backbone = loaded(checkpoint(name), ARCHITECTURES[name][2])
    found = backbone.patches(long)
    assert len(found) == backbone.tokens
    if name == "wav2vec2":
        long.audio = long.audio[: 16_000 * 20]
        assert np.array_equal(found, backbone.patches(long))
    if name == "xlm-roberta":
        assert (found[0, 0], found[-1, 0]) == (0, 2)  # <s> and </s>


def test_a_sample_is_the_same_bits_whatever_lies_beside_it(checkpoint):
    backbone = loaded(checkpoint("wav2vec2"), AUDIO)
    x, mask = collated(backbone, SOUNDS)
    order = [2, 0, 1]
    h, other = run(backbone, x, mask), run(backbone, x[order], mask[order])
    assert torch.equal(backbone.pool(h, mask)[order], backbone.pool(other, mask[order]))


def test_the_digest_follows_weights_preprocessing_and_modality(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint("vit"), tmp_path / "copy"))
    (folder / "README.md").write_text("says nothing about how pictures are read")
    found = [loaded(checkpoint("vit"), IMAGE).digest, loaded(folder, DEPTH).digest]
    assert loaded(folder, IMAGE).digest == found[0]
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0, 0, 0]}))
    found.append(loaded(folder, IMAGE).digest)
    state = load_file(folder / "model.safetensors")
    state["vit.embeddings.cls_token"] += 1
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    found.append(loaded(folder, IMAGE).digest)
    assert len({*found}) == 4


def test_a_name_is_looked_for_in_the_lake_first_and_then_asked_of_the_hub(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint("vit"), tmp_path / "backbones" / "mine")
    assert loaded("mine", IMAGE, tmp_path).name == "hub-mine"
    asked = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert not any(
            fnmatch(file, pattern) for file in ("pytorch_model.bin", "a.pkl", "m.py") for pattern in allow_patterns
        )
        if name == "some/other":
            raise OSError("no network")
        return str(checkpoint("vit"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert loaded("some/vit-small", IMAGE, tmp_path).name == "hub-vit-small"
    with pytest.raises(PalimpsestError, match="some/other.*no such folder.*does not give it"):
        loaded("some/other", IMAGE, tmp_path)
    assert asked == ["some/vit-small", "some/other"]


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lacking(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if ".1." not in k}, folder / "model.safetensors", {"format": "pt"})


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def setting(file: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **values}))

    return change


@pytest.mark.parametrize(
    ("name", "modality", "spoil", "message"),
    [
        ("vit", IMAGE, shutil.rmtree, "there is no folder .*copy"),
        ("vit", IMAGE, lambda folder: (folder / "config.json").unlink(), "no checkpoint of transformers"),
        ("vit", IMAGE, lambda folder: (folder / "preprocessor_config.json").unlink(), "cannot be loaded as ViTModel"),
        ("vit", IMAGE, pickled, "no .*safetensors, and pickled weights are not read"),
        ("vit", IMAGE, lacking, r"lacks \d+ tensors of a ViTModel, such as layers.1"),
        ("vit", IMAGE, cut, "cannot be loaded as ViTModel"),
        ("vit", IMAGE, setting("config.json", hidden_size=64), "cannot be loaded as ViTModel"),
        (
            "vit",
            IMAGE,
            setting("config.json", model_type="swin"),
            "is a swin; those that can be used are: vit, videomae",
        ),
        ("vit", AUDIO, lambda folder: None, "a vit, reads image and depth; the recipe names it for audio"),
        ("vit", Modality.IMU, lambda folder: None, "a vit, reads image and depth; the recipe names it for imu"),
        ("clip vision", VIDEO, lambda folder: None, "a clip, reads image and depth and text; .* video"),
        (
            "ast",
            AUDIO,
            setting("preprocessor_config.json", sampling_rate=8000),
            "sound at 8000 Hz, shards hold 16000 Hz",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(name, modality, spoil, message, checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint(name), tmp_path / "copy"))
    spoil(folder)
    with pytest.raises(PalimpsestError, match=message):
        loaded(folder, modality)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("vit", setting("preprocessor_config.json", size={"height": 24, "width": 24})),
        ("videomae", setting("preprocessor_config.json", crop_size={"height": 16, "width": 16})),
        ("ast", setting("preprocessor_config.json", max_length=64)),
    ],
)
def test_preprocessing_that_does_not_fit_the_model_is_refused(name, change, checkpoint, tmp_path):
    _, _, modality, samples, _ = ARCHITECTURES[name]
    folder = Path(shutil.copytree(checkpoint(name), tmp_path / "copy"))
    change(folder)
    with pytest.raises(PalimpsestError, match="preprocessor_config.json makes .* of sample a, its model takes"):
        loaded(folder, modality).patches(samples[0])


def test_code_that_comes_with_a_checkpoint_is_not_run(checkpoint, tmp_path):
    for name, modality in (("vit", IMAGE), ("xlm-roberta", TEXT)):
        folder = Path(shutil.copytree(checkpoint(name), tmp_path / name))
        (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass")
        for file in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
            if (folder / file).exists():
                kinds = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoTokenizer")
                setting(file, auto_map=dict.fromkeys(kinds, "own.Own"))(folder)
        with suppress(PalimpsestError):
            loaded(folder, modality)
    assert not (tmp_path / "ran").exists()


def test_a_stream_is_learnt_on_checkpoints(checkpoint, tmp_path):
    """Two tasks, an adapter at each of the last two blocks; computed again, the features are the same bits."""
    lake = make_lake(tmp_path, ("image", "text"), labels=CLASSES[:4])
    backbones = {IMAGE: f"hub:{checkpoint('vit')}", TEXT: f"hub:{checkpoint('xlm-roberta')}"}
    recipe = make_recipe(modalities=("image", "text"), epochs=1, stages=3, params={"adapted_blocks": 2})
    learner = recipe.learner.model_copy(update={"backbones": backbones})
    trainer, data = make_trainer(lake, recipe.model_copy(update={"learner": learner}))
    assert sorted(trainer.method.modules.adapters) == ["image-0", "image-1", "text-0", "text-1"]
    tasks = [trainer.task(number, name, data.tasks[number]) for number, name in data.names.items()]
    snapshots = [trainer.learn(task, tasks[:number]) for number, task in enumerate(tasks)]
    assert len(snapshots) == 2
    cached = tasks[1].train.batch(range(5))
    uncached = TrunkFeatures(lake, trainer.features.backbones, trainer.features.trunk, CPU)
    fresh = uncached.batch(cached.examples, [0] * 5, [0] * 5)
    for m in (IMAGE, TEXT):
        assert torch.equal(cached.tokens[m], fresh.tokens[m])
        assert torch.equal(cached.pooled[m], fresh.pooled[m])


def test_modalities_share_a_checkpoint_for_images_and_names_one_for_text(checkpoint, tmp_path):
    lacks = lambda label, number: {"imu"} if label in CLASSES[:2] else {"image"}  # noqa: E731
    lake = make_lake(tmp_path, ("image", "imu"), labels=CLASSES[:4], lacks=lacks)
    shared, names = f"canonical:hub:{checkpoint('clip vision')}", f"hub:{checkpoint('clip text')}"
    how = {"method": "comm", "epochs": 1, "params": {"text": names}}
    trainer, data = make_trainer(lake, make_recipe(modalities=("image", "imu"), backbone=shared, **how))
    one, other = trainer.features.backbones.values()
    assert set(map(id, one.parameters())) == set(map(id, other.parameters()))
    tasks = [trainer.task(number, name, data.tasks[number]) for number, name in data.names.items()]
    for number, task in enumerate(tasks):
        trainer.learn(task, tasks[:number])
    seen, felt = (next(task.train.batches()) for task in tasks)
    assert seen.pooled[IMAGE].shape[1:] == felt.pooled[Modality.IMU].shape[1:] == (one.pooled_dim,)
    (row,) = trainer.ledger.rows("SELECT count(*) AS n FROM predictions WHERE protocol = 'agnostic' AND identified = 1")
    assert row["n"] > 0


@pytest.mark.parametrize("name", ["canonical:", "canonical:tiny", "canonical:no/such"])
def test_no_other_trunk_takes_them_all(name):
    with pytest.raises(PalimpsestError, match=f"no backbone is called '{name}'; there are canonical and"):
        registry.backbones({IMAGE: name}, Lake(Path("/none")), CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gpu_agrees_with_the_cpu(name, checkpoint):
    _, _, modality, samples, _ = ARCHITECTURES[name]
    backbone = loaded(checkpoint(name), modality)
    x, mask = collated(backbone, [*samples, None])
    expected = backbone.pool(run(backbone, x, mask), mask)
    backbone, x, mask = backbone.cuda(), x.cuda(), mask.cuda()
    torch.testing.assert_close(backbone.pool(run(backbone, x, mask), mask).cpu(), expected, atol=1e-2, rtol=1e-2)


def base_size(model_type: str, modality: Modality) -> HubBackbone:
    """A checkpoint's backbone at its published size, whose weights take no memory until they are read."""
    family = FAMILIES[model_type][0]
    with torch.device("meta"):
        model = getattr(transformers, family.model)(transformers.AutoConfig.for_model(model_type))
        backbone = build(family, model, None, modality)
    for module in backbone.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fill = torch.ones if isinstance(module, torch.nn.LayerNorm) else torch.zeros
                setattr(module, name, torch.nn.Parameter(fill(parameter.shape), requires_grad=False))
    return backbone.eval()


def test_a_task_adds_at_most_one_hundredth_of_the_parameters():
    """An expert frozen and another grown in each adapter of the last four blocks, and ten rows of the head."""
    backbones: Any = {IMAGE: base_size("vit", IMAGE), VIDEO: base_size("videomae", VIDEO)}
    assert [(len(b.blocks), b.dim) for b in backbones.values()] == [(12, 768)] * 2
    index = ClassIndex()
    method = CrossModalMoE(Context(backbones, 2, index, AnchorStore(), CPU), adapted_blocks=4, freeze=1, spare=4)
    counts = [parameters(method.modules)]
    for number in (1, 2, 3):
        labels = torch.arange(10 * (number - 1), 10 * number).repeat(2)
        index.add((f"{label:02d}", "") for label in labels.tolist())
        tokens = {m: torch.randn(len(labels), 6, 2 * 768) for m in backbones}
        masks = {m: torch.ones(len(labels), 6, dtype=torch.bool) for m in backbones}
        pooled = {m: h[..., 768:].mean(1) for m, h in tokens.items()}
        batch = Batch(tokens, masks, pooled, labels, labels)
        train = SimpleNamespace(classes=labels.unique().tolist(), batches=lambda one=batch: iter([one]))
        task: Any = SimpleNamespace(number=number, train=train, val=SimpleNamespace(batches=lambda: iter(())))
        method.begin_task(task)
        method.end_task(task)
        counts.append(parameters(method.modules))
    assert [len(adapter.experts) - 4 for adapter in method.network.adapters.values()] == 8 * [2]
    added = [later - earlier for earlier, later in zip(counts, counts[1:], strict=False)]
    assert added[0] == 10 * 256
    assert added[1] == added[2] == max(added) == 8 * (2 * 768 * 16 + 2 * (768 + 64)) + 10 * 256
    assert max(added) <= 0.01 * (counts[0] + sum(map(parameters, backbones.values())))


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
