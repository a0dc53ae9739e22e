"""Commands over what was learned: snapshots, promote, rollback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flows.cli.common import FORMATS, show, with_existing_lake

if TYPE_CHECKING:
    from store.lake import Lake

COLUMNS = ("snapshot_id", "method", "seed", "after_task", "trial", "verdict", "reason", "memory_bytes", "recorded_at")


@click.command(epilog="Example: palimpsest snapshots samsemo")
@click.argument("stream")
@click.option("--format", "form", type=FORMATS, default="table", show_default=True)
@with_existing_lake
def snapshots(lake: Lake, stream: str, form: str) -> None:
    """List the snapshots of STREAM, newest last, and which is in use."""
    from store.champions import champion
    from store.ledger import Ledger
    from store.snapshots import list_snapshots

    ledger = Ledger(lake)
    in_use = champion(ledger, stream)
    rows = [{**row, "in_use": row["snapshot_id"] == in_use} for row in list_snapshots(ledger, stream)]
    show(("in_use", *COLUMNS), [{name: row[name] for name in ("in_use", *COLUMNS)} for row in rows], form)


@click.command(epilog="Example: palimpsest promote samsemo samsemo-crossmodal-moe-s0-1a2b3c4d/003")
@click.argument("stream")
@click.argument("snapshot")
@click.option("--reason", default="promoted by hand", show_default=True, help="Kept with the verdict.")
@with_existing_lake
def promote(lake: Lake, stream: str, snapshot: str, reason: str) -> None:
    """Make SNAPSHOT the champion of STREAM, whatever the gate said."""
    from store import champions
    from store.ledger import Ledger

    ledger = Ledger(lake)
    former = champions.champion(ledger, stream)
    champions.promote(lake, ledger, stream, snapshot, expected=former, reason=reason, figures={})
    click.echo(f"{stream}: {snapshot} in place of {former or 'none'}")


@click.command(epilog="Example: palimpsest rollback samsemo --reason 'too eager'")
@click.argument("stream")
@click.option("--reason", default="rolled back by hand", show_default=True, help="Kept with the verdict.")
@with_existing_lake
def rollback(lake: Lake, stream: str, reason: str) -> None:
    """Give STREAM its former champion back."""
    from store import champions
    from store.ledger import Ledger

    click.echo(f"{stream}: {champions.rollback(lake, Ledger(lake), stream, reason=reason)}")
