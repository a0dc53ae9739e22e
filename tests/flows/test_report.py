"""The page against figures worked out by hand."""

from __future__ import annotations

import base64
import html
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.report import report
from store.lake import Lake
from store.ledger import Ledger
from store.shards import write_shard
from store.types import PalimpsestError, Sample
from tests.flows.conftest import CHAMPION


class Rows(HTMLParser):
    """The page's table rows as lists of cell texts, and whether all that was opened was closed in order."""

    def __init__(self, page: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()


@pytest.fixture
def page(lake: Lake, learned: Ledger) -> str:
    return report(lake, "toy").read_text()


def test_the_page_says_how_often_a_modality_is_found_out(lake: Lake, learned: Ledger, page: str) -> None:
    assert "Which modality is it?" not in page
    of = {"run_id": CHAMPION, "after_task": 2, "on_task": 2, "split": "test", "protocol": "agnostic"}
    said = [{"predicted": "right", "identified": 1.0}] * 2 + [{"predicted": "wrong", "identified": 0.0}] * 2
    rows = [of | {"modalities": "all", "key": f"2-{i}", "label": "right", **one} for i, one in enumerate(said)]
    learned.append("predictions", rows)
    assert ["second", "50.0", "50.0"] in Rows(report(lake, "toy").read_text()).rows  # all four are right where told


def test_the_page_holds_the_figures(page: str) -> None:
    parsed = Rows(page)
    assert parsed.open == []
    # A_1 = 1, A_2 = (3/4 + 1) / 2; F1 = (2 3 / 7 + 1) / 2; forgetting and backward transfer are task 1's quarter.
    best = ["crossmodal-moe · seed 0", "93.8", "87.5", "25.0", "-25.0", "92.9", "2", "1,234", "5,678"]
    assert parsed.rows.count(best) == 2, "by classifier and by retrieval"
    assert ["finetune · seed 0", "81.2", "62.5", "75.0", "-75.0", "70.0", "2", "1,234", "5,678"] in parsed.rows
    assert ["2 second", "75.0", "100.0"] in parsed.rows  # the champion's matrix
    assert ["2 second", "25.0", "100.0"] in parsed.rows
    assert ["audio", "50.0 (37.5)", "50.0 (37.5)"] in parsed.rows
    assert ["2", "2", "1", "2", "2"] in parsed.rows  # lineage: samples, shards, recordings, files
    assert ["1", "audio ends 3.2 s before <video>", "x.mp4"] in parsed.rows
    assert "3 of 4" in page


def test_what_goes_on_inside_the_model_is_told(page: str) -> None:
    assert re.findall("<title>(expert.*?)</title>", page) == [
        "expert 0, task 1: 25.0 %",
        "expert 0, task 2: 50.0 %",
        "expert 1, task 1: 75.0 %, frozen",
        "expert 1, task 2: 50.0 %, frozen",
    ]
    assert page.count('class="mark"') == 2
    assert ["1", "9,000", "1,234", "1,000", "2", "50.0", "–", "–"] in Rows(page).rows
    assert ["2", "9,000", "1,234", "0", "2", "50.0", "0.00", "1.00"] in Rows(page).rows
    assert "classification, task 2: 1" in page


def test_methods_that_explain_nothing_have_no_inside(lake: Lake, learned: Ledger) -> None:
    events = learned.rows("SELECT * EXCLUDE recorded_at FROM events WHERE kind = 'learned'")
    learned.append("events", [event | {"detail": '{"loss": {}, "samples": 1}'} for event in events])
    page = report(lake, "toy").read_text()
    assert "Inside the model" not in page and Rows(page).open == []


def test_the_champion_comes_first_and_the_gate_is_told(page: str) -> None:
    assert f"<code>{CHAMPION}/002</code>" in page
    assert re.findall(r'class="name (\w+)">\1</td><td class="name">(.*?)</td>', page.replace("\n", "")) == [
        ("promoted", "forgets 0.0%"),
        ("refused", "forgets 25.0%, more than 15.0%"),
        ("promoted", "by hand"),
    ]
    assert (
        re.findall(r"<summary>(.*?) · seed", page) == ["crossmodal-moe", "finetune"] * 3
    )  # matrices, ablations, retrieval


def test_the_sql_behind_each_figure_can_be_pasted(page: str, learned: Ledger) -> None:
    queries = [html.unescape(query) for query in re.findall("<pre>(.*?)</pre>", page, re.DOTALL)]
    assert len(queries) == 14
    assert all(learned.rows(query) for query in queries)


def test_nothing_is_loaded_from_elsewhere(lake: Lake, learned: Ledger) -> None:
    store_samples(lake, learned)
    page = report(lake, "toy").read_text()
    assert not re.search("https?:|<script|<link|@import|url\\(", page)
    assert set(re.findall("<img src=[^,]*", page)) == {'<img src="data:image/jpeg;base64'}


def test_what_is_found_again_is_told_by_run_and_modality_set(page: str) -> None:
    # Of four samples each, ranks 1, 2, 7 and none; the votes are those of the accuracy matrix.
    parsed = Rows(page)
    assert ["given", "accuracy", "recall@1", "recall@5", "recall@10", "map"] in parsed.rows
    assert ["all", "87.5", "25.0", "50.0", "75.0", "40.0"] in parsed.rows
    assert ["audio>video", "50.0", "25.0", "50.0", "75.0", "40.0"] in parsed.rows


def test_the_nearest_recordings_are_shown_wrong_ones_first(lake: Lake, learned: Ledger) -> None:
    store_samples(lake, learned)
    text = report(lake, "toy").read_text()
    shown = text[text.index("Nearest recordings") :]
    rows = [row for row in Rows(text).rows if any("first.mp4" in cell for cell in row)]
    assert len(rows) == 1 and rows[0][0].startswith("right, taken for wrong") and "novelty 0.25" in rows[0][0]
    assert "first.mp4 at 2.50 s" in rows[0][1]  # k1, with picture, sound, motion and words
    assert "second.mp4" in rows[0][2]
    picture = Image.open(io.BytesIO(base64.b64decode(re.findall('base64,([^"]*)', shown)[0])))
    assert picture.size == (96, 48)
    assert "<q>&lt;b&gt;two words&lt;/b&gt;</q>" in shown
    assert len(re.findall('<svg viewBox="0 0 96 32".*?</svg>', shown)) == 2
    assert len(text) < 200_000


def test_without_its_shards_the_page_names_recordings_all_the_same(page: str) -> None:
    assert "first.mp4" in page and "second.mp4" in page
    assert "<img" not in page


def store_samples(lake: Lake, ledger: Ledger) -> None:
    """Put the toy samples into a shard: one with all that can be drawn, one of plain text."""
    buffer = io.BytesIO()
    Image.new("RGB", (400, 200), "red").save(buffer, "JPEG")
    tone = (20000 * np.sin(np.arange(8000))).astype(np.int16)
    told = {"tracks": {"audio": {"rate_hz": 16000}}}
    full = Sample("k1", told, image=buffer.getvalue(), audio=tone, text="<b>two words</b>")
    full.imu = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    shard = write_shard(lake.shard_url("toys", "s.tar"), [full, Sample("k2", {}, text="two")])
    for row, entry in zip(ledger.rows("FROM samples ORDER BY key"), shard.entries, strict=True):
        del row["recorded_at"]
        where = {"offset": entry.offset, "size": entry.size, "checksum": entry.checksum}
        ledger.append(
            "samples", [row | where | {"modalities": ["image"], "start_s": 2.5 if entry.key == "k1" else 0.0}]
        )
    ledger.append("shards", [{"dataset": "toys", "shard": "s.tar", "batch": "b", "url": shard.url, "samples": 2}])


def test_a_stream_without_results_says_so(lake: Lake) -> None:
    Ledger(lake).append("streams", [{"stream": "new", "dataset": "toys", "scenario": "class-incremental"}])
    text = report(lake, "new", out=lake.root / "here.html").read_text()
    assert "Nothing has been measured yet" in text and "No verdict yet" in text
    assert Rows(text).open == []


def test_names_are_text_and_not_markup(lake: Lake) -> None:
    Ledger(lake).append("streams", [{"stream": "<i>it's</i>", "dataset": "d", "scenario": "s"}])
    path = report(lake, "<i>it's</i>")
    assert path.parent == lake.reports and "<i>" not in path.read_text()


def test_an_unknown_stream_is_refused_with_those_that_are_there(lake: Lake, learned: Ledger, tmp_path: Path) -> None:
    with pytest.raises(PalimpsestError, match="no stream 'toi'.*it has toy"):
        report(lake, "toi")
    with pytest.raises(PalimpsestError, match="begins one"):
        report(Lake(tmp_path / "empty"), "toy")
