"""The page against figures worked out by hand."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flows.report import report
from store.lake import Lake
from store.ledger import Ledger
from store.types import PalimpsestError
from tests.flows.conftest import CHAMPION


class Rows(HTMLParser):
    """The page's table rows as lists of cell texts, and whether all that was opened was closed in order."""

    def __init__(self, page: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "br"):
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


def test_the_page_holds_the_figures(page: str) -> None:
    parsed = Rows(page)
    assert parsed.open == []
    # A_1 = 1, A_2 = (3/4 + 1) / 2; forgetting and backward transfer are task 1's quarter.
    best = ["crossmodal-moe · seed 0", "93.8", "87.5", "25.0", "-25.0", "2", "1,234", "5,678"]
    assert parsed.rows.count(best) == 2, "by classifier and by retrieval"
    assert ["finetune · seed 0", "81.2", "62.5", "75.0", "-75.0", "2", "1,234", "5,678"] in parsed.rows
    assert ["2 second", "75.0", "100.0"] in parsed.rows  # the champion's matrix
    assert ["2 second", "25.0", "100.0"] in parsed.rows
    assert ["audio", "50.0 (37.5)", "50.0 (37.5)"] in parsed.rows
    assert [["1", "25", "25"], ["2", "75", "75"]] == [row for row in parsed.rows if row[1:2] in (["25"], ["75"])]
    assert ["2", "2", "1", "2", "2"] in parsed.rows  # lineage: samples, shards, recordings, files
    assert ["1", "audio ends 3.2 s before <video>", "x.mp4"] in parsed.rows
    assert "3 of 4" in page and "classification, task 2: 1" in page


def test_the_champion_comes_first_and_the_gate_is_told(page: str) -> None:
    assert f"<code>{CHAMPION}/002</code>" in page
    assert re.findall(r'class="name (\w+)">\1</td><td class="name">(.*?)</td>', page.replace("\n", "")) == [
        ("promoted", "forgets 0.0%"),
        ("refused", "forgets 25.0%, more than 15.0%"),
        ("promoted", "by hand"),
    ]
    assert re.findall(r"<summary>(.*?) · seed", page) == ["crossmodal-moe", "finetune"] * 2  # matrices, ablations


def test_the_sql_behind_each_figure_can_be_pasted(page: str, learned: Ledger) -> None:
    queries = [html.unescape(query) for query in re.findall("<pre>(.*?)</pre>", page, re.DOTALL)]
    assert len(queries) == 10
    assert all(learned.rows(query) for query in queries)


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    assert not re.search("https?:|<script|<link|<img|@import|url\\(", page)


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
