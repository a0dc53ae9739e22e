from __future__ import annotations

import pytest

from flows.demo import demo
from flows.source import set_source
from store.lake import Lake
from store.ledger import Ledger
from store.types import PalimpsestError


def test_the_whole_loop_runs_from_recordings_to_accuracy_and_again_from_what_is_there(lake: Lake) -> None:
    lines: list[str] = []
    demo(lake, size="tiny", say=lines.append)
    text = "\n".join(lines)
    assert all(language in text for language in ("EN", "DE", "ES", "PL", "KO"))
    assert "crossmodal-moe" in text and "finetune" in text and "Next:" in text
    ledger = Ledger(lake)
    methods = {row["method"]: row["tasks"] for row in ledger.rows("FROM stream_summary WHERE split = 'test'")}
    assert methods == {"crossmodal-moe": 5, "finetune": 5}
    before = ledger.rows("SELECT count(*) AS n FROM events")[0]["n"]
    demo(lake, size="tiny", say=lines.append)
    assert ledger.rows("SELECT count(*) AS n FROM events")[0]["n"] == before  # nothing was learnt twice


def test_recordings_of_the_user_are_left_alone(lake: Lake, tmp_path) -> None:
    set_source(lake, "samsemo", tmp_path)
    with pytest.raises(PalimpsestError, match="recordings of your own"):
        demo(lake, size="tiny")
    assert [row["source"] for row in Ledger(lake).rows("FROM datasets")] == [str(tmp_path)]
