"""Commands around the work: demo, doctor, serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flows.cli.common import bars, with_lake

if TYPE_CHECKING:
    from store.lake import Lake


@click.command(epilog="Example: palimpsest --lake /tmp/demo demo")
@with_lake
def demo(lake: Lake) -> None:
    """Make recordings in five languages and learn one after the other."""
    from flows.demo import demo as run

    with bars() as tell:
        run(lake, say=click.echo, progress=tell)


@click.command(epilog="Example: palimpsest doctor")
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


@click.command(epilog="Example: palimpsest serve, and elsewhere: prefect deployment run ingest/samsemo")
@click.option("--port", default=4200, show_default=True, help="Of the server, where it starts one.")
@click.option("--watch", multiple=True, metavar="DATASET", help="Ingest it every five minutes; may be given again.")
@with_lake
def serve(lake: Lake, port: int, watch: tuple[str, ...]) -> None:
    """Serve ingest/<dataset>, update/nightly and the other flows through Prefect, until interrupted.

    Runs come from the server at PREFECT_API_URL; where that is not set, one is started on a loopback port and named in
    the active Prefect profile for as long as it runs. Every run works on this lake, wherever it is asked for.
    """
    from flows.deployments.serve import serve as run

    run(lake, port=port, watch=watch)
