from __future__ import annotations

import json
import multiprocessing
import os

import pytest

from store.champions import champion, promote, refuse, rollback
from store.lake import Lake
from store.ledger import Ledger
from store.types import PalimpsestError

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def ledger(lake: Lake) -> Ledger:
    ledger = Ledger(lake)
    ledger.append("runs", [{"run_id": "r", "stream": "s"}, {"run_id": "q", "stream": "other"}])
    ledger.append(
        "snapshots",
        [{"snapshot_id": f"{run}/{t:03d}", "run_id": run, "after_task": t} for run in "rq" for t in range(1, 6)],
    )
    return ledger


def up(lake: Lake, ledger: Ledger, snapshot_id: str, expected: str | None) -> None:
    promote(lake, ledger, "s", snapshot_id, expected=expected, reason="better", figures={"accuracy": 0.5})


def test_the_last_promoted_is_champion(lake: Lake, ledger: Ledger) -> None:
    assert champion(ledger, "s") is None
    up(lake, ledger, "r/001", None)
    up(lake, ledger, "r/002", "r/001")
    assert champion(ledger, "s") == "r/002"
    assert champion(ledger, "other") is None


def test_a_champion_changed_meanwhile_is_not_overwritten(lake: Lake, ledger: Ledger) -> None:
    up(lake, ledger, "r/001", None)
    up(lake, ledger, "r/002", "r/001")
    for expected in (None, "r/001"):
        with pytest.raises(PalimpsestError, match="no longer"):
            up(lake, ledger, "r/003", expected)
    assert champion(ledger, "s") == "r/002"


def test_promoting_the_champion_again_changes_nothing(lake: Lake, ledger: Ledger) -> None:
    up(lake, ledger, "r/001", None)
    up(lake, ledger, "r/001", None)
    assert ledger.query("FROM promotions").num_rows == 1


def test_a_refused_challenger_is_kept_with_its_figures(lake: Lake, ledger: Ledger) -> None:
    up(lake, ledger, "r/001", None)
    refuse(lake, ledger, "s", "r/002", reason="forgets", figures={"forgetting": 0.4})
    assert champion(ledger, "s") == "r/001"
    (row,) = ledger.rows("FROM promotions WHERE verdict = 'refused'")
    assert (row["snapshot_id"], row["run_id"], row["after_task"], row["reason"]) == ("r/002", "r", 2, "forgets")
    assert json.loads(row["figures"]) == {"forgetting": 0.4}


def test_rolling_back_walks_the_line_of_champions(lake: Lake, ledger: Ledger) -> None:
    for t in range(1, 4):
        up(lake, ledger, f"r/00{t}", f"r/00{t - 1}" if t > 1 else None)
    assert rollback(lake, ledger, "s") == champion(ledger, "s") == "r/002"
    assert rollback(lake, ledger, "s") == champion(ledger, "s") == "r/001"
    with pytest.raises(PalimpsestError, match="no champion before r/001"):
        rollback(lake, ledger, "s")
    up(lake, ledger, "r/004", "r/001")
    assert rollback(lake, ledger, "s") == "r/001"
    promotions = [row["promotion"] for row in ledger.rows("FROM promotions ORDER BY recorded_at")]
    assert promotions == sorted(set(promotions))
    assert len(promotions) == 7


@pytest.mark.parametrize("snapshot_id", ["r/009", "q/001"])
def test_a_snapshot_of_another_stream_is_refused(lake: Lake, ledger: Ledger, snapshot_id: str) -> None:
    with pytest.raises(PalimpsestError, match="has no snapshot"):
        up(lake, ledger, snapshot_id, None)
    assert champion(ledger, "s") is None


def _challenge(lake: Lake, snapshot_id: str) -> None:
    try:
        up(lake, Ledger(lake), snapshot_id, "r/001")
    except PalimpsestError:
        os._exit(3)
    os._exit(0)  # what libraries of the parent do at exit is no business of its fork


def test_of_challengers_at_once_one_wins(lake: Lake, ledger: Ledger) -> None:
    up(lake, ledger, "r/001", None)
    challengers = [FORK.Process(target=_challenge, args=(lake, f"r/00{t}")) for t in range(2, 6)]
    for challenger in challengers:
        challenger.start()
    for challenger in challengers:
        challenger.join()
    assert sorted(challenger.exitcode for challenger in challengers) == [0, 3, 3, 3]
    assert ledger.query("FROM promotions").num_rows == 2
