"""The recordings that a champion remembers as most like a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.similar import similar
from store.ledger import Ledger
from store.types import PalimpsestError
from tests.learner.handmade import TAUGHT, signals


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of a class that was learnt, unseen so far."""
    (tmp_path / "new.png").write_bytes(signals("cat", 99, TAUGHT.learner.backbones)["image"])
    return tmp_path / "new.png"


def test_the_very_recordings_are_named_nearest_first(taught, picture):
    rows = similar(taught, TAUGHT, picture, count=4)
    assert len(rows) == 4
    assert (rows[0]["label"], rows[0]["task"], rows[0]["dataset"]) == ("cat", 2, "hand")
    assert [row["cosine"] for row in rows] == sorted((row["cosine"] for row in rows), reverse=True)
    of = {row["source_path"]: row["labels"][0] for row in Ledger(taught).rows("FROM recordings WHERE split = 'train'")}
    assert all(of[row["source_path"]] == row["label"] for row in rows)
    assert {row["at_s"] for row in rows} == {0.0}


def test_one_modality_may_ask_for_another(taught, picture):
    across = similar(taught, TAUGHT, picture, by="image>text", count=2)
    assert len(across) == 2
    assert across != similar(taught, TAUGHT, picture, by="image", count=2)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("text", "new.png has no text; it has image"),
        ("smell", "cannot compare by 'smell'; it can by text, text>image, image, image>text, all"),
    ],
)
def test_what_cannot_be_compared_says_what_can(taught, picture, by, message):
    with pytest.raises(PalimpsestError, match=message):
        similar(taught, TAUGHT, picture, by=by)


def test_a_file_of_another_kind_is_refused(taught, tmp_path):
    (tmp_path / "a.csv").write_text("0,0,0,0,0,0,0\n0.02,1,1,1,1,1,1\n0.04,1,1,1,1,1,1\n")
    with pytest.raises(PalimpsestError, match="none of the modalities text, image"):
        similar(taught, TAUGHT, tmp_path / "a.csv")


def test_without_a_champion_it_says_what_to_do(lake, picture):
    with pytest.raises(PalimpsestError, match="no champion yet: run `palimpsest update hand`"):
        similar(lake, TAUGHT, picture)
