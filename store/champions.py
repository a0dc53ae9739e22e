"""Which snapshot of a stream is in use: a history of verdicts in the ledger, changed by compare-and-swap."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from store.lake import Lake, lock
from store.ledger import Ledger
from store.types import PalimpsestError, slug

PROMOTED, REFUSED, ROLLED_BACK = "promoted", "refused", "rolled-back"


def champion(ledger: Ledger, stream: str) -> str | None:
    """The snapshot in use, or None before the first promotion."""
    return next(reversed(_line(ledger, stream)), None)


def promote(
    lake: Lake,
    ledger: Ledger,
    stream: str,
    snapshot_id: str,
    *,
    expected: str | None,
    reason: str,
    figures: Mapping[str, Any],
) -> None:
    """Make `snapshot_id` the champion, provided that `expected` still is; nothing to do where it is already.

    Args:
        lake: whose lock to hold.
        ledger: of the same lake.
        stream: whose champion.
        snapshot_id: the challenger.
        expected: the champion it was measured against; None for none.
        reason: for people.
        figures: what the verdict rests on, as JSON.

    Raises:
        PalimpsestError: the champion is another by now, or the stream has no such snapshot.
    """
    with _lock(lake, stream):
        current = champion(ledger, stream)
        if current == snapshot_id:
            return
        if current != expected:
            raise PalimpsestError(
                f"the champion of {stream} is {current or 'none'}, no longer {expected or 'none'} which {snapshot_id} "
                "was measured against: another update or a rollback came between. Run the update again."
            )
        _record(ledger, stream, snapshot_id, PROMOTED, reason, figures)


def refuse(
    lake: Lake, ledger: Ledger, stream: str, snapshot_id: str, *, reason: str, figures: Mapping[str, Any]
) -> None:
    """Record that `snapshot_id` did not pass; the champion stays.

    Raises:
        PalimpsestError: the stream has no such snapshot.
    """
    with _lock(lake, stream):
        _record(ledger, stream, snapshot_id, REFUSED, reason, figures)


def rollback(lake: Lake, ledger: Ledger, stream: str, *, reason: str = "rolled back by hand") -> str:
    """Go back to the champion before; again, to the one before that.

    Returns:
        The snapshot now in use.

    Raises:
        PalimpsestError: there is no champion before.
    """
    with _lock(lake, stream):
        line = _line(ledger, stream)
        if len(line) < 2:
            raise PalimpsestError(f"{stream} has no champion before {line[0] if line else 'the first'} to go back to.")
        _record(ledger, stream, line[-2], ROLLED_BACK, reason, {"from": line[-1]})
        return line[-2]


def _lock(lake: Lake, stream: str) -> Any:
    return lock(lake, f"champion-{slug(stream)}", wait=True)


def _line(ledger: Ledger, stream: str) -> list[str]:
    """The champions one can go back through, the present one last."""
    line: list[str] = []
    for row in ledger.rows(
        "SELECT snapshot_id, verdict FROM promotions WHERE stream = ? AND verdict <> ? ORDER BY promotion",
        [stream, REFUSED],
    ):
        if row["verdict"] == PROMOTED:
            line.append(row["snapshot_id"])
        else:
            line.pop()
    return line


def _record(
    ledger: Ledger, stream: str, snapshot_id: str, verdict: str, reason: str, figures: Mapping[str, Any]
) -> None:
    found = ledger.rows(
        "SELECT run_id, after_task FROM snapshots JOIN runs USING (run_id) WHERE snapshot_id = ? AND stream = ?",
        [snapshot_id, stream],
    )
    if not found:
        raise PalimpsestError(f"{stream} has no snapshot {snapshot_id}: see `palimpsest snapshots {stream}`.")
    last = ledger.rows("SELECT max(promotion) AS id FROM promotions WHERE stream = ?", [stream])[0]["id"]
    number = int(last.rpartition("/")[2]) + 1 if last else 1
    row = {
        "promotion": f"{stream}/{number:06d}",
        "stream": stream,
        "snapshot_id": snapshot_id,
        "verdict": verdict,
        "reason": reason,
        "figures": json.dumps(dict(figures), sort_keys=True),
    }
    ledger.append("promotions", [row | found[0]])
