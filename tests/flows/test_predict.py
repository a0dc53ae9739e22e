"""Labels for files by the stream's champion, with what it remembers that is like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.predict import predict
from flows.update import update
from store import champions
from store.lake import Lake
from store.ledger import Ledger
from store.types import PalimpsestError
from tests.learner.handmade import CLASSES, copied, make_lake, make_recipe, make_trainer, signals

MODALITIES = ("text", "image")
RECIPE = make_recipe(modalities=MODALITIES, method="crossmodal-moe", epochs=2)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake whose stream has a champion; that of nobody else, and nothing is changed in it."""
    lake = make_lake(tmp_path_factory.mktemp("predict"), MODALITIES, labels=CLASSES[:4])
    update(lake, RECIPE)
    return lake


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A text and a picture of every class, unseen so far."""
    found = {}
    for label in CLASSES[:4]:
        new = signals(label, 99, MODALITIES)
        for suffix, content in (("txt", new["text"].encode()), ("png", new["image"])):
            found[f"{label}.{suffix}"] = tmp_path / f"{label}.{suffix}"
            found[f"{label}.{suffix}"].write_bytes(content)
    return found


@pytest.mark.parametrize("suffix", ["txt", "png"])
def test_a_file_gets_a_label_a_confidence_and_its_nearest_with_their_sources(taught, files, suffix):
    names = [f"{label}.{suffix}" for label in CLASSES[:4]]
    rows = predict(taught, RECIPE, [files[name] for name in names], neighbours=2)
    assert [row["file"] for row in rows] == [str(files[name]) for name in names]
    assert [row["label"] for row in rows] == list(CLASSES[:4])
    sources = {row["source_path"] for row in Ledger(taught).rows("SELECT source_path FROM recordings")}
    for row in rows:
        assert 0.25 < row["confidence"] <= 1
        assert 0 <= row["novelty"] < 1
        nearest = [one.split(" ") for one in row["nearest"].split("; ")]
        assert len(nearest) == 2
        cosines = [float(cosine) for _, cosine, _ in nearest]
        assert cosines == sorted(cosines, reverse=True)
        assert 1 - cosines[0] == pytest.approx(row["novelty"], abs=0.006)
        for label, _, source in nearest:
            assert source in sources
            assert source.startswith(f"{label}/")  # where that anchor's recording lies


def test_several_tracks_of_a_recording_are_named_by_a_manifest(taught, files, tmp_path):
    manifest = tmp_path / "new ones.csv"
    manifest.write_text(f"image,text\ncat.png,{files['cat.txt'].read_text()}\ndog.png,\n")
    rows = predict(taught, RECIPE, manifest=manifest)
    assert [row["label"] for row in rows] == ["cat", "dog"]


def test_predicting_changes_nothing(taught, files):
    before = {path: path.read_bytes() for path in taught.ledger.rglob("*.parquet")}
    one = predict(taught, RECIPE, [files["ant.txt"]])
    assert predict(taught, RECIPE, [files["ant.txt"]]) == one
    assert {path: path.read_bytes() for path in taught.ledger.rglob("*.parquet")} == before


def test_the_champion_speaks_not_the_last_snapshot(taught, files, tmp_path):
    lake = copied(taught, tmp_path)
    summary = update(lake, RECIPE)
    assert predict(lake, RECIPE, [files["dog.txt"]])[0]["label"] == "dog"
    champions.rollback(lake, Ledger(lake), "hand")
    assert champions.champion(Ledger(lake), "hand") == f"{summary.run_id}/001"
    assert predict(lake, RECIPE, [files["dog.txt"]])[0]["label"] in ("ant", "bee")


def test_a_champion_outlives_a_change_of_its_recipe(taught, files):
    """It was learnt under other settings, which its run remembers."""
    edited = make_recipe(modalities=MODALITIES, epochs=3, params={"experts": 6, "fused_dim": 64})
    assert predict(taught, edited, [files["bee.png"]])[0]["label"] == "bee"


def test_without_a_champion_it_says_what_to_do(tmp_path, files):
    lake = make_lake(tmp_path, MODALITIES, labels=CLASSES[:2])
    with pytest.raises(PalimpsestError, match="stream hand has no champion yet: run `palimpsest update hand`"):
        predict(lake, RECIPE, [files["ant.txt"]])
    make_trainer(lake, RECIPE)
    with pytest.raises(PalimpsestError, match="no champion yet"):
        predict(lake, RECIPE, [files["ant.txt"]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xyz", b"?", "a.xyz: what kind of recording is .xyz"),
        ("bare", b"?", "bare: what kind of recording is this"),
        ("absent.png", None, "no such file: .*absent.png"),
        ("broken.png", b"no picture", "broken.png"),
        ("a.csv", b"0,0,0,0,0,0,0\n0.02,1,1,1,1,1,1\n0.04,1,1,1,1,1,1\n", "has none of the modalities text, image"),
    ],
)
def test_a_file_of_no_use_is_named(taught, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PalimpsestError, match=message):
        predict(taught, RECIPE, [tmp_path / name])
