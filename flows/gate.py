"""May the challenger become champion? Read on the val split: what it forgot, and how well it knows the new task."""

from __future__ import annotations

from dataclasses import dataclass

from flows.recipe import GateSpec
from store.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer, the reason in words, and the figures it rests on."""

    passed: bool
    reason: str
    figures: dict[str, float | None]


def judge(ledger: Ledger, run_id: str, after_task: int, gate: GateSpec) -> Verdict:
    """Hold the run's step `after_task` against the recipe's bounds."""
    rows = ledger.rows(
        """
        SELECT step_accuracy, new_accuracy, forgetting, bwt FROM step_summary
        WHERE run_id = ? AND after_task = ? AND split = 'val' AND protocol = headline(scenario) AND modalities = 'all'
        """,
        [run_id, after_task],
    )
    if not rows:
        return Verdict(True, "no val samples to judge by", {})
    figures = rows[0]
    forgetting, new = figures["forgetting"] or 0.0, figures["new_accuracy"]
    if forgetting > gate.max_forgetting:
        return Verdict(False, f"forgets {forgetting:.1%}, more than {gate.max_forgetting:.1%}", figures)
    if new is not None and new < gate.min_new_accuracy:
        return Verdict(False, f"knows {new:.1%} of the new task, less than {gate.min_new_accuracy:.1%}", figures)
    return Verdict(
        True, f"forgets {forgetting:.1%}" + ("" if new is None else f", knows {new:.1%} of the new task"), figures
    )
