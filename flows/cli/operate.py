"""Commands around the work: demo, doctor, serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flows.cli.common import with_lake

if TYPE_CHECKING:
    from store.lake import Lake


@click.command()
@with_lake
def demo(lake: Lake) -> None:
    """Make recordings in five languages and learn one after the other."""
    from flows.demo import demo as run

    run(lake)


@click.command()
@with_lake
def doctor(lake: Lake) -> None:
    """Check that all that is needed is here; say what to do if not."""
    from flows.doctor import examine

    sound = True
    for finding in examine(lake):
        sound &= finding.sound or not finding.required
        mark = "ok" if finding.sound else "WRONG" if finding.required else "note"
        click.echo(f"{mark:5} {finding.name:12} {finding.found}")
        if not finding.sound:
            click.echo(f"{'':18} {finding.remedy}")
    raise SystemExit(0 if sound else 1)


@click.command()
@with_lake
def serve(lake: Lake) -> None:
    """Serve ingest/<dataset> and update/nightly through Prefect."""
    from flows.deployments.serve import serve as run

    run(lake)
