"""One form for every signal."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from flows import stream
from learner import registry
from learner.backbones.canonical import FORMS, SIZE
from learner.pretrain import pretrain
from store.lake import Lake
from store.ledger import Ledger
from store.types import Modality, PalimpsestError, Sample
from tests.learner.handmade import make_lake, make_recipe, png

RATE = 16_000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    lake = Lake(tmp_path_factory.mktemp("canonical") / "lake")
    return registry.backbones(dict.fromkeys(FORMS, "canonical"), lake, torch.device("cpu"))


@pytest.fixture(scope="module")
def sample() -> Sample:
    rng = np.random.default_rng(0)
    frames = [png(np.full((48, 64, 3), shade)) for shade in (0, 85, 170, 255)]
    return Sample(
        "one",
        {},
        image=png(rng.uniform(0, 255, (28, 28, 3))),
        frames=frames,
        audio=(rng.normal(0, 3000, RATE)).astype(np.int16),
        imu=rng.normal(0, 3, (90, 6)).astype(np.float32),
        depth=rng.integers(400, 9000, (40, 50)).astype(np.uint16),
    )


def test_no_shape_type_or_range_tells_the_modality(models, sample):
    found = {modality: model.patches(sample) for modality, model in models.items()}
    assert set(found) == set(FORMS)
    assert {(x.shape, x.dtype) for x in found.values()} == {((64, 192), np.dtype(np.float32))}
    assert all(-1 <= x.min() < x.max() <= 1 for x in found.values())


def test_all_modalities_go_through_the_same_parameters(models):
    parameters = [set(map(id, model.parameters())) for model in models.values()]
    assert all(one == parameters[0] for one in parameters) and parameters[0]
    assert len({model.digest for model in models.values()}) == 1
    assert len({model.name for model in models.values()}) == len(models)  # their features are cached apart


def test_frames_lie_in_rows_of_two(sample):
    picture = FORMS[Modality.VIDEO](sample)
    quarters = [picture[i : i + 32, j : j + 32].mean() for i in (0, 32) for j in (0, 32)]
    assert quarters == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=0.02)


def test_a_higher_tone_is_higher_up():
    def row(hz: int) -> int:
        wave = 8000 * np.sin(2 * np.pi * hz * np.arange(RATE) / RATE)
        return int(FORMS[Modality.AUDIO](Sample("t", {}, audio=wave.astype(np.int16)))[..., 0].mean(1).argmax())

    assert row(3000) < row(1000) < row(300)


def test_a_jolt_shows_where_it_was_and_a_faster_wave_higher_up():
    imu = np.zeros((100, 6), np.float32)
    imu[50:52, 1] = 30.0
    waves = FORMS[Modality.IMU](Sample("t", {}, imu=imu))[: SIZE // 4]
    assert abs(waves[0, :, 1].argmax() - 32) <= 2 and np.ptp(waves[..., 0]) == 0  # green is the second axis

    def row(hz: float) -> int:
        imu = np.zeros((200, 6), np.float32)
        imu[:, 0] = 5 * np.sin(2 * np.pi * hz * np.arange(200) / 50)
        return int(FORMS[Modality.IMU](Sample("t", {}, imu=imu))[32:48, :, 0].mean(1).argmax())

    assert row(20) < row(10) < row(4)


@pytest.mark.parametrize("steps", [1, 20, 4000])
def test_imu_of_any_length_has_a_form(steps):
    picture = FORMS[Modality.IMU](Sample("t", {}, imu=np.ones((steps, 6), np.float32)))
    assert picture.shape == (SIZE, SIZE, 3) and np.isfinite(picture).all()


def test_text_has_none(tmp_path):
    with pytest.raises(PalimpsestError, match="canonical takes image, depth, video, audio, imu; the recipe names"):
        registry.backbones({Modality.TEXT: "canonical"}, Lake(tmp_path / "lake"), torch.device("cpu"))


def test_it_is_pretrained_on_all_modalities_at_once(tmp_path: Path):
    modalities = ("imu", "image")
    lake = make_lake(tmp_path, modalities, labels=("ant", "bee"), splits=("train",))
    index = stream.load(Ledger(lake), make_recipe(modalities=modalities), modalities).index
    examples = list(index.rows(range(len(index))))
    one = pretrain("canonical", examples, steps=3, batch_size=8)
    assert pretrain("canonical", examples, steps=3, batch_size=8) == one
    of_one = [example for example in examples if example.label == "ant"]
    assert pretrain("canonical", of_one, steps=3, batch_size=8) != one
    assert load(one).keys() == registry.untrained("canonical")[0].state_dict().keys()


def test_pictures_are_stretched_not_cropped():
    picture = np.zeros((20, 60, 3))
    picture[:, 50:] = 255
    form = FORMS[Modality.IMAGE](Sample("t", {}, image=png(picture)))
    assert Image.open(io.BytesIO(png(picture))).size == (60, 20)
    assert form[:, 56:].min() > 0.9 and form[:, :48].max() < -0.9
