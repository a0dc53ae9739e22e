"""Cached trunk features: the same bits cold and warm, exact masks, and damage named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flows import stream
from learner import features as features_module
from learner import registry
from learner.backbones.base import through
from learner.batch import Batch
from learner.features import TrunkFeatures
from learner.index import Rows
from learner.loader import Damage, Example, pipeline
from learner.modules.encoder import first_adapters
from store import cache
from store.lake import Lake, get, put
from store.ledger import Ledger
from store.types import Modality, PalimpsestError
from tests.learner.handmade import arrive, make_lake, make_recipe, weights

MODALITIES = ("imu", "text", "image")
IMU, TEXT, IMAGE = map(Modality, MODALITIES)
CPU = torch.device("cpu")


@pytest.fixture
def here(tmp_path: Path) -> Lake:
    return make_lake(
        tmp_path,
        MODALITIES,
        labels=("ant", "bee"),
        numbers=range(5),
        lacks=lambda label, number: {"imu"} if number == 1 else {"text", "image"} if number == 2 else set(),
    )


def load(lake: Lake) -> dict[str, Rows]:
    recipe = make_recipe(modalities=MODALITIES)
    index = stream.load(Ledger(lake), recipe, recipe.learner.backbones).index
    return {shard: index.in_shard(shard) for shard in index.shards}


def open_features(lake: Lake, *, limit: int = 0, workers: int = 0) -> TrunkFeatures:
    models = registry.backbones(dict.fromkeys(MODALITIES, "tiny"), lake, CPU)
    return TrunkFeatures(lake, models, first_adapters(models, 2), CPU, Damage(limit), workers)


def as_batch(features: TrunkFeatures, examples: Sequence[Example]) -> Batch:
    return features.batch(examples, range(len(examples)), [0] * len(examples))


def identical(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(a[m], b[m])
        for a, b in ((one.tokens, other.tokens), (one.masks, other.masks), (one.pooled, other.pooled))
        for m in a
    )


def test_a_cold_and_a_warm_cache_are_the_same_bits(here, tmp_path):
    shards = load(here)
    everything = [example for examples in shards.values() for example in examples]
    cold = open_features(here)
    cold.prepare(shards)
    first = as_batch(cold, everything)
    written = {path: path.stat().st_mtime_ns for path in here.cache.rglob("*") if path.is_file()}
    warm = open_features(here)
    warm.prepare(shards)
    assert identical(first, as_batch(warm, everything))
    assert {path: path.stat().st_mtime_ns for path in here.cache.rglob("*") if path.is_file()} == written
    aside = here.cache.rename(tmp_path / "aside")
    again = open_features(here)
    again.prepare(shards)
    assert aside.exists()
    assert identical(first, as_batch(again, everything))


def test_progress_counts_every_sample(here):
    done: list[int] = []
    open_features(here).prepare(load(here), done.append)
    assert sum(done) == 10


def test_batches_have_exact_masks_and_zeros_where_a_modality_is_absent(here):
    shards, features = load(here), open_features(here)
    features.prepare(shards)
    examples = next(iter(shards.values()))
    batch = as_batch(features, examples)
    assert batch.examples == tuple(examples)
    assert batch.masks[IMU].sum(1).tolist() == [6, 0, 8, 6, 7]  # 8 time steps a token
    assert batch.masks[TEXT].sum(1).tolist() == [2, 3, 0, 2, 3]  # a word a token
    assert batch.masks[IMAGE].sum(1).tolist() == [64, 64, 0, 64, 64]
    assert batch.presence.tolist() == [[True] * 3, [False, True, True], [True, False, False], [True] * 3, [True] * 3]
    for m in batch.tokens:
        assert not batch.tokens[m][~batch.masks[m]].any()
        absent = ~batch.masks[m].any(1)
        assert not batch.pooled[m][absent].any()
        assert batch.pooled[m][~absent].any(1).all()


def test_features_are_those_of_the_backbone(here):
    shards, features = load(here), open_features(here)
    features.prepare(shards)
    examples = next(iter(shards.values()))
    batch = as_batch(features, examples)
    model = features.backbones[IMU]
    for i, sample in enumerate(pipeline(examples)):
        if sample.imu is None:
            continue
        x = torch.from_numpy(model.patches(sample))[None]
        mask = torch.ones(1, x.shape[1], dtype=torch.bool)
        h = model.stem(x, mask)
        for depth, block in enumerate(model.blocks):
            entering = block.attend(h, mask)
            h = through(block, h, mask)
            if depth == features.trunk[IMU]:
                found, both = batch.tokens[IMU][i : i + 1, : x.shape[1]], torch.cat([entering, h], 2)
                torch.testing.assert_close(found, both, atol=5e-3, rtol=2e-3)
        torch.testing.assert_close(batch.pooled[IMU][i : i + 1], model.pool(h, mask), atol=1e-4, rtol=1e-4)


def test_a_text_carries_its_bag_of_letters_beside_what_the_backbone_makes_of_it(here):
    shards = load(here)
    features = open_features(here)
    features.prepare(shards)
    examples = [example for examples in shards.values() for example in examples]
    batch, model = as_batch(features, examples), features.backbones[TEXT]
    for sample, told in zip(pipeline(examples), batch.pooled[TEXT][:, model.pooled_dim :], strict=True):
        bag = torch.from_numpy(model.patches(sample)).mean(0) if TEXT in sample.modalities else torch.zeros(256)
        torch.testing.assert_close(told, bag)
    assert batch.tokens[TEXT].shape[2] == 2 * model.dim  # and adapters are as narrow as without


def test_a_sample_that_lies_in_no_shard_gets_the_same_features(here):
    shards, features = load(here), open_features(here)
    features.prepare(shards)
    examples = next(iter(shards.values()))
    for example, sample in zip(examples, pipeline(examples), strict=True):
        cached, fresh = as_batch(features, [example]), features.encode([sample])
        assert fresh.presence.tolist() == cached.presence.tolist()
        for m in cached.tokens:
            n = cached.masks[m].shape[1]
            torch.testing.assert_close(fresh.pooled[m], cached.pooled[m], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(
                fresh.tokens[m][:, :n] * fresh.masks[m][:, :n, None], cached.tokens[m], atol=5e-3, rtol=2e-3
            )


def damage(example: Example) -> None:
    path = Path(example.url)
    data = bytearray(path.read_bytes())
    data[example.entry.offset + 600] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_sample_is_named_skipped_and_read_again_once_mended(here):
    shards = load(here)
    examples = next(iter(shards.values()))
    sound = open_features(here)
    sound.prepare(shards)
    intact = Path(examples[3].url).read_bytes()
    shutil.rmtree(here.cache / "trunk")
    damage(examples[3])
    for workers in (0, 2):  # the second time it finds the features of the first
        features = open_features(here, limit=1, workers=workers)
        features.prepare(shards)
        assert list(features.damage.reasons) == [examples[3].key]
        assert f"{examples[3].url} is damaged" in features.damage.reasons[examples[3].key]
        left = [example for example in examples if example != examples[3]]
        batch = features.batch(examples, range(5), range(5))
        assert batch.examples == tuple(left)
        assert batch.labels.tolist() == batch.groups.tolist() == [0, 1, 2, 4]
        assert identical(batch, features.batch(left, range(4), range(4)))
    Path(examples[3].url).write_bytes(intact)
    mended = open_features(here)
    mended.prepare(shards)
    assert not mended.damage.reasons
    assert identical(as_batch(mended, examples), as_batch(sound, examples))


def test_more_damage_than_allowed_ends_the_run(here):
    shards = load(here)
    examples = next(iter(shards.values()))
    damage(examples[1])
    damage(examples[3])
    features = open_features(here, limit=1)
    with pytest.raises(PalimpsestError, match=rf"(?s){examples[3].key}.*2 samples are damaged.*lets 1 be skipped"):
        features.prepare(shards)
    assert not any(path.is_file() for path in (here.cache / "trunk").rglob("*"))


def test_an_absent_shard_is_named(here):
    shards = load(here)
    path = Path(next(iter(shards.values()))[0].url)
    path.unlink()
    with pytest.raises(PalimpsestError, match=rf"{path.name} is absent"):
        open_features(here).prepare(shards)


def test_without_room_in_the_cache_features_are_the_same_bits(here):
    shards = load(here)
    everything = [example for examples in shards.values() for example in examples]
    cached = open_features(here)
    cached.prepare(shards)
    shutil.rmtree(here.cache / "trunk")
    uncached = open_features(replace(here, cache_bytes=0), workers=2)
    uncached.prepare(shards)
    assert len(list((here.cache / "trunk").glob("*/*"))) < len(MODALITIES) * len(shards)
    for some in (everything, everything[::-3], everything[4:7]):
        assert identical(as_batch(uncached, some), as_batch(cached, some))


def test_the_cache_keeps_what_was_used_last(here):
    shards = load(here)
    first, second = ({name: shard} for name, shard in shards.items())
    features = open_features(here)
    features.prepare(shards)
    folders = {name: features.folder(IMAGE, name, rows.source.digest(name)) for name, rows in shards.items()}
    for path in here.cache.glob("trunk/*/*"):
        os.utime(path, (0, 0))
    open_features(here).prepare(second)  # uses it
    held = sum(cache.size(path) for path in here.cache.glob("trunk/*/*"))
    assert cache.trim(replace(here, cache_bytes=held - 1)) >= 0
    (one,), (other,) = first, second
    assert len(list(here.cache.glob(f"trunk/*/{folders[one].name}"))) == len(MODALITIES) - 1
    assert len(list(here.cache.glob(f"trunk/*/{folders[other].name}"))) == len(MODALITIES)


@pytest.mark.parametrize("bound", ["MAX_OPEN", "MAX_ROWS"])
def test_few_shards_open_at_a_time_are_the_same_bits(here, monkeypatch, bound):
    shards = load(here)
    everything = [example for examples in shards.values() for example in examples]
    found = []
    for _ in range(2):
        features = open_features(here)
        features.prepare(shards)
        found.append(as_batch(features, everything[::-1]))
        monkeypatch.setattr(features_module, bound, len(MODALITIES))
    assert identical(*found)


def test_features_that_vanish_are_computed_again(here):
    shards = load(here)
    features = open_features(here)
    features.prepare(shards)
    examples = next(iter(shards.values()))
    whole = open_features(here)
    whole.prepare(shards)
    before = as_batch(whole, examples)
    shutil.rmtree(here.cache / "trunk")  # another run needed the room
    assert identical(as_batch(features, examples), before)


def test_other_weights_or_other_bytes_are_other_features(here):
    shards, features = load(here), open_features(here)
    name, digest = next((name, rows.source.digest(name)) for name, rows in shards.items())
    folder = features.folder(IMU, name, digest)
    ledger = Ledger(here)
    (sample,) = ledger.rows("SELECT * EXCLUDE recorded_at FROM samples WHERE shard = ? ORDER BY key LIMIT 1", [name])
    ledger.append("samples", [sample | {"checksum": "0" * 16}])
    assert features.folder(IMU, name, load(here)[name].source.digest(name)) != folder
    path = here.backbones / "tiny-imu.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert open_features(here).folder(IMU, name, digest) != folder


def test_only_some_modalities_of_a_batch(here):
    shards, features = load(here), open_features(here)
    features.prepare(shards)
    batch = as_batch(features, next(iter(shards.values())))
    part = batch.only([TEXT])
    assert part.presence.tolist() == [[False, there, False] for there in batch.presence[:, 1].tolist()]
    assert not part.pooled[IMU].any()
    assert torch.equal(part.pooled[TEXT], batch.pooled[TEXT])
    dropped = replace(batch).keep({m: torch.arange(5) != 0 for m in batch.masks})
    assert not dropped.presence[0].any()
    assert torch.equal(dropped.presence[1:], batch.presence[1:])


def remote(folder: Path) -> Lake:
    """A lake whose six shards lie on an object store."""
    lake = Lake(folder / "lake", shards_url=f"memory://{folder.name}")
    weights(lake, *MODALITIES)
    arrive(lake, modalities=MODALITIES, numbers=range(5))
    return lake


@pytest.mark.parametrize("share", [0, 0.12, 0.24, 0.36, 0.6, 1.5])
def test_however_small_the_cache_nothing_remote_is_taken_for_damaged(tmp_path, share):
    lake = remote(tmp_path)
    shards = load(lake)
    everything = [example for rows in shards.values() for example in rows]
    whole = open_features(lake)
    whole.prepare(shards)
    expected = as_batch(whole, everything)
    held = sum(cache.size(path) for path in [*lake.cache.glob("shards/*"), *lake.cache.glob("trunk/*/*")])
    shutil.rmtree(lake.cache)
    lake = replace(lake, cache_bytes=int(share * held))
    features = open_features(lake, workers=1)
    features.prepare(load(lake))
    assert identical(as_batch(features, everything), expected)
    assert not features.damage.reasons


def test_a_damaged_copy_of_a_remote_shard_is_no_damage(tmp_path):
    lake = remote(tmp_path)
    shards = load(lake)
    examples = next(iter(shards.values()))
    url, start = examples[1].url, examples[1].entry.offset
    intact = get(url)
    put(url, intact[: start + 600] + b"!!!" + intact[start + 603 :])
    spoilt = open_features(lake, limit=1)
    spoilt.prepare(shards)
    assert f"{url} is damaged" in spoilt.damage.reasons[examples[1].key]
    put(url, intact)  # the copy is still that of before
    mended = open_features(lake)
    mended.prepare(shards)
    assert len(as_batch(mended, examples)) == 5


def test_what_killed_writers_left_in_the_cache_goes_with_time(here):
    open_features(here).prepare(load(here))
    (first, *_) = here.cache.glob("trunk/*")
    old, new = first / ".ant.01234567.tmp", first / ".bee.01234567.tmp"
    for aside in (old, new):
        aside.mkdir()
        (aside / "tokens.npy").write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.trim(here)
    assert (old.exists(), new.exists()) == (False, True)
