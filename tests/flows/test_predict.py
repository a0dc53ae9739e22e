"""Labels for files by the stream's champion, with what it remembers that is like them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flows.predict import doubt, predict
from flows.update import update
from store import champions
from store.ledger import Ledger
from store.types import PalimpsestError
from tests.learner.handmade import CLASSES, TAUGHT, arrive, copied, make_lake, make_recipe, make_trainer, png, signals


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A text and a picture of every class, unseen so far."""
    found = {}
    for label in CLASSES[:4]:
        new = signals(label, 99, TAUGHT.learner.backbones)
        for suffix, content in (("txt", new["text"].encode()), ("png", new["image"])):
            found[f"{label}.{suffix}"] = tmp_path / f"{label}.{suffix}"
            found[f"{label}.{suffix}"].write_bytes(content)
    return found


@pytest.mark.parametrize("suffix", ["txt", "png"])
def test_a_file_gets_a_label_a_confidence_and_its_nearest_with_their_sources(taught, files, suffix):
    names = [f"{label}.{suffix}" for label in CLASSES[:4]]
    rows = predict(taught, TAUGHT, [files[name] for name in names], neighbours=2)
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
    rows = predict(taught, TAUGHT, manifest=manifest)
    assert [row["label"] for row in rows] == ["cat", "dog"]


def test_a_method_that_reads_chooses_among_names_met_or_not(tmp_path, files):
    lake = make_lake(tmp_path, ("image",), labels=CLASSES[:4])
    recipe = make_recipe(modalities=("image",), backbone="canonical", method="comm")
    update(lake, recipe)
    one, other = predict(lake, recipe, [files["ant.png"], files["dog.png"]], names=["zebra", "dog", "ant"])
    assert (one["label"], other["label"]) == ("ant", "dog")
    (alone,) = predict(lake, recipe, [files["ant.png"]], names=["zebra"])
    assert (alone["label"], alone["confidence"]) == ("zebra", 1.0)


def test_names_are_refused_where_classes_are_known_by_samples(taught, files):
    with pytest.raises(
        PalimpsestError, match="learnt by crossmodal-moe, which knows classes by their samples and not by"
    ):
        predict(taught, TAUGHT, [files["ant.png"]], names=["ant"])


def test_predicting_changes_nothing(taught, files):
    before = {path: path.read_bytes() for path in taught.ledger.rglob("*.parquet")}
    one = predict(taught, TAUGHT, [files["ant.txt"]])
    assert predict(taught, TAUGHT, [files["ant.txt"]]) == one
    assert {path: path.read_bytes() for path in taught.ledger.rglob("*.parquet")} == before


def test_the_champion_speaks_not_the_last_snapshot(taught, files, tmp_path):
    lake = copied(taught, tmp_path)
    summary = update(lake, TAUGHT)
    assert predict(lake, TAUGHT, [files["dog.txt"]])[0]["label"] == "dog"
    champions.rollback(lake, Ledger(lake), "hand")
    assert champions.champion(Ledger(lake), "hand") == f"{summary.run_id}/001"
    assert predict(lake, TAUGHT, [files["dog.txt"]])[0]["label"] in ("ant", "bee")


def test_a_champion_outlives_a_change_of_its_recipe(taught, files):
    """It was learnt under other settings, which its run remembers."""
    edited = make_recipe(modalities=TAUGHT.learner.backbones, epochs=3, params={"experts": 6, "fused_dim": 64})
    assert predict(taught, edited, [files["bee.png"]])[0]["label"] == "bee"


def test_without_a_champion_it_says_what_to_do(tmp_path, files):
    lake = make_lake(tmp_path, TAUGHT.learner.backbones, labels=CLASSES[:2])
    with pytest.raises(PalimpsestError, match="stream hand has no champion yet: run `palimpsest update hand`"):
        predict(lake, TAUGHT, [files["ant.txt"]])
    make_trainer(lake, TAUGHT)
    with pytest.raises(PalimpsestError, match="no champion yet"):
        predict(lake, TAUGHT, [files["ant.txt"]])


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
        predict(taught, TAUGHT, [tmp_path / name])


def test_what_was_never_learnt_is_flagged_and_what_was_is_not(taught, files, tmp_path):
    """Noise and letters that no class has, beside new files of the known classes."""
    strange = {"noise.png": png(np.random.default_rng(0).integers(0, 256, (64, 64, 3))), "odd.txt": b"qqqqqqqq wwwwwww"}
    for name, content in strange.items():
        (tmp_path / name).write_bytes(content)
    known = predict(taught, TAUGHT, [files[f"{label}.png"] for label in CLASSES[:4]])
    assert sum(row["unfamiliar"] for row in known) <= 1
    assert all(row["unfamiliar"] for row in predict(taught, TAUGHT, [tmp_path / name for name in strange]))


def test_flags_are_what_the_view_of_known_things_says(taught, files):
    ledger = Ledger(taught)
    known = ledger.rows("FROM familiarity WHERE snapshot_id = ?", [champions.champion(ledger, TAUGHT.name)])
    bounds = {row["modalities"]: row for row in known}
    for suffix, modality in (("txt", "text"), ("png", "image")):
        for row in predict(taught, TAUGHT, [files[f"{label}.{suffix}"] for label in CLASSES[:4]]):
            bound = bounds[modality]
            beyond = row["novelty"] > bound["novelty_bound"] or row["confidence"] < bound["confidence_bound"]
            assert row["unfamiliar"] == beyond


def test_the_domain_is_that_of_most_of_the_nearest(tmp_path, files):
    lake = make_lake(tmp_path, ("text",), labels=CLASSES[:2], domain="north")
    arrive(lake, labels=CLASSES[2:4], modalities=("text",), domain="south")
    by_domain = {"scenario": "domain-incremental", "by": "domain"}
    recipe = make_recipe(modalities=("text",), stream=by_domain, method="slda")
    update(lake, recipe)
    rows = predict(lake, recipe, [files[f"{label}.txt"] for label in CLASSES[:4]])
    assert [row["domain"] for row in rows] == ["north", "north", "south", "south"]


def rows_of(unfamiliar: list[bool | None], domain: str | None = None) -> list[dict[str, object]]:
    return [{"unfamiliar": flag, "domain": domain} for flag in unfamiliar]


@pytest.mark.parametrize(
    ("beyond", "of", "told"),
    [
        (1, 1, False),  # one file: its row says it
        (2, 2, True),  # 0.05 squared
        (2, 12, False),  # twelve times in a hundred
        (4, 12, True),
        (9, 100, False),
        (12, 100, True),
        (80, 1000, False),  # no coincidence, but hardly more than would be expected
        (0, 0, False),
    ],
)
def test_only_what_chance_does_not_explain_is_doubted(beyond, of, told):
    rows = rows_of([True] * beyond + [False] * (of - beyond) + [None] * 3)
    assert (doubt(rows) is not None) == told


def test_doubt_is_one_plain_sentence_and_names_the_nearest_domain():
    told = doubt(rows_of([True] * 9 + [False] * 3))
    assert told == (
        "9 of 12 look like nothing this stream has learnt (0.6 would be expected): an unknown class or domain?"
    )
    rows = rows_of([True] * 4, "theo") + rows_of([True] * 5, "george") + rows_of([False] * 3, "lucas")
    assert str(doubt(rows)).endswith("The nearest domain is george (5 of 9).")
