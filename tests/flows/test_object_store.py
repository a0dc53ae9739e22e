"""Shards on an object store: a local S3 server takes them, gives them back by range, and fails now and then."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pipelines.plan
import store.lake
from flows import stream
from flows.ingest import ingest
from flows.recipe import load_recipe
from learner import registry
from learner.features import TrunkFeatures
from learner.loader import pipeline
from learner.modules.encoder import first_adapters
from store import cache
from store.lake import Lake, get
from store.ledger import Ledger
from store.types import Modality, PalimpsestError

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")
Fail = Callable[[Callable[[int], bool]], list[str]]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server."""
    one = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    one.start()
    yield "http://{}:{}".format(*one.get_host_and_port())
    one.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Where shards go on the server, which is where the environment says that S3 is."""
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    monkeypatch.setattr(store.lake, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(pipelines.plan, "BATCH_RECORDINGS", 1)
    S3FileSystem.clear_instance_cache()
    S3FileSystem().makedirs("palimpsest-shards", exist_ok=True)
    yield f"s3://palimpsest-shards/{tmp_path.name}"
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def failing(s3: str, monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Has uploads lose the connection where `when` says so of their number; returns the list they go into."""
    from s3fs import S3FileSystem

    def fail(when: Callable[[int], bool]) -> list[str]:
        uploads: list[str] = []

        async def put_file(self: Any, here: str, there: str, **kwargs: Any) -> None:
            uploads.append(there)
            if when(len(uploads)):
                raise ConnectionResetError("connection lost")
            await sound(self, here, there, **kwargs)

        monkeypatch.setattr(S3FileSystem, "_put_file", put_file)
        S3FileSystem.clear_instance_cache()  # whose methods were made before
        return uploads

    sound = S3FileSystem._put_file
    return fail


def rows(lake: Lake) -> list[dict[str, Any]]:
    return Ledger(lake).rows("SELECT * EXCLUDE recorded_at FROM samples ORDER BY key")


def keys(lake: Lake) -> Counter[str]:
    """The keys that the stream's loader reads from the shards."""
    index = stream.load(Ledger(lake), load_recipe("folder"), ["audio"]).index
    return Counter(sample.key for sample in pipeline(index.rows(range(len(index)))))


def test_shards_are_the_same_as_in_a_folder_and_are_read_by_range(tmp_path: Path, s3: str, folder: Path) -> None:
    near, far = Lake(tmp_path / "near"), Lake(tmp_path / "far")
    ingest(near, "folder", source=folder, workers=1)
    assert ingest(far, "folder", source=folder, workers=2, shards=s3).shards == 2
    assert rows(far) == rows(near)
    for shard in Ledger(far).rows("FROM shards WHERE url IS NOT NULL"):
        assert shard["url"] == f"{s3}/folder/{shard['shard']}"
        assert get(shard["url"]) == (near.root / "shards" / "folder" / shard["shard"]).read_bytes()
    assert keys(far) == keys(near) == Counter(row["key"] for row in rows(near))
    assert not (far.root / "shards").exists()
    assert ingest(far, "folder", shards=s3).known == 2


def test_a_lost_connection_is_tried_again(lake: Lake, s3: str, failing: Fail, folder: Path) -> None:
    uploads = failing(lambda upload: upload in (2, 3))
    assert ingest(lake, "folder", source=folder, workers=1, shards=s3).samples == 2
    assert len(uploads) == 4 and len(set(uploads)) == 2
    assert len(keys(lake)) == 2


def test_a_store_that_goes_on_failing_ends_the_run_and_the_next_one_completes_it(
    lake: Lake, s3: str, failing: Fail, folder: Path
) -> None:
    failing(lambda upload: upload > 1)
    with pytest.raises(PalimpsestError, match="object store fails at s3://.*connection lost.*What was done is kept"):
        ingest(lake, "folder", source=folder, workers=1, shards=s3)
    (kept,) = rows(lake)
    failing(lambda upload: False)
    assert ingest(lake, "folder", workers=1, shards=s3).resumed >= 1
    assert set(keys(lake).values()) == {1} and len(keys(lake)) == 2 and kept in rows(lake)


@pytest.mark.parametrize(("url", "message"), [("s3://no-such-bucket/x", "bucket does not exist"), ("s4://x/y", "s4")])
def test_an_url_that_cannot_work_says_so(lake: Lake, s3: str, folder: Path, url: str, message: str) -> None:
    with pytest.raises(PalimpsestError, match=message):
        ingest(lake, "folder", source=folder, workers=1, shards=url)


def test_features_of_remote_shards_are_those_of_near_ones_and_copies_are_bounded(
    tmp_path: Path, s3: str, folder: Path
) -> None:
    near, far = Lake(tmp_path / "near"), Lake(tmp_path / "far")
    ingest(near, "folder", source=folder, workers=1)
    ingest(far, "folder", source=folder, workers=1, shards=s3)
    found = []
    for lake in (near, far):
        index = stream.load(Ledger(lake), load_recipe("folder"), ["audio"]).index
        models = registry.backbones({"audio": "tiny"}, lake, torch.device("cpu"))
        features = TrunkFeatures(lake, models, first_adapters(models, 2), torch.device("cpu"), workers=2)
        features.prepare({shard: index.in_shard(shard) for shard in index.shards})
        examples = sorted(index.rows(range(len(index))), key=lambda example: example.key)
        found.append(features.batch(examples, [0, 0], [0, 0]))
    assert torch.equal(found[0].tokens[Modality.AUDIO], found[1].tokens[Modality.AUDIO])
    assert torch.equal(found[0].pooled[Modality.AUDIO], found[1].pooled[Modality.AUDIO])
    assert not (near.cache / "shards").exists()
    copies = sorted((far.cache / "shards").iterdir())
    assert [copy.read_bytes() for copy in copies] == [
        (near.root / "shards" / "folder" / copy.name.partition("-")[2]).read_bytes() for copy in copies
    ]
    assert len(copies) == 2
    os.utime(copies[1], (0, 0))  # used long ago
    held = far.cache_bytes - cache.trim(far)
    assert cache.trim(replace(far, cache_bytes=held - 1)) >= 0
    assert [copy.exists() for copy in copies] == [True, False]
