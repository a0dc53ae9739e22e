"""Pre-training: label-free, reproducible to the byte, and it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load

from flows import stream
from learner import registry
from learner.loader import Example
from learner.pretrain import pretrain
from store.lake import Lake, put
from store.ledger import Ledger
from store.types import PalimpsestError
from tests.learner.handmade import make_lake, make_recipe

MODALITIES = ("imu", "text")


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    lake = make_lake(tmp_path_factory.mktemp("pretrain"), MODALITIES, labels=("ant", "bee", "cat"), splits=("train",))
    recipe = make_recipe(modalities=MODALITIES)
    index = stream.load(Ledger(lake), recipe, MODALITIES).index
    return list(index.rows(range(len(index))))


@pytest.mark.parametrize("name", ["tiny-imu", "tiny-text"])
def test_the_same_seed_gives_the_same_bytes(examples, name):
    one = pretrain(name, examples, steps=3, batch_size=8)
    torch.rand(1)
    assert pretrain(name, examples, steps=3, batch_size=8) == one
    assert pretrain(name, examples, steps=3, batch_size=8, seed=1) != one


def test_labels_are_never_read(examples):
    blind = [replace(example, label="", domain="") for example in examples]
    assert pretrain("tiny-imu", blind, steps=2, batch_size=8) == pretrain("tiny-imu", examples, steps=2, batch_size=8)


def test_the_loss_falls_and_the_weights_load(examples, tmp_path):
    losses: list[float] = []
    data = pretrain("tiny-imu", examples, steps=40, batch_size=16, progress=lambda done, total, x: losses.append(x))
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in load(data).values())
    lake = Lake(tmp_path / "lake")
    put(lake.backbones / "tiny-imu.safetensors", data)
    model = registry.backbone("tiny-imu", lake, torch.device("cpu"))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_without_the_modality_it_says_so(examples):
    with pytest.raises(PalimpsestError, match="no sample has image"):
        pretrain("tiny-image", examples, steps=1)
