"""The `palimpsest` command line. Only click is imported here; each command imports what it does when it runs."""

from __future__ import annotations

from typing import Any

import click

from flows.cli import data, learn, models, operate, tables

COMMANDS = (
    operate.demo,
    operate.doctor,
    data.synthesize,
    data.source,
    data.ingest,
    data.add,
    learn.update,
    learn.compare,
    learn.evaluate,
    learn.predict,
    learn.similar,
    learn.pretrain,
    tables.report,
    tables.sql,
    tables.catalog,
    models.snapshots,
    models.promote,
    models.rollback,
    operate.serve,
)
INTERRUPTED = 130
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Palimpsest(click.Group):
    """Commands in the order of a day's work, and errors a person can act on."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of `COMMANDS`; click's own order is the alphabet."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what goes wrong ends in one message and an exit code, with --debug in a traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on from here", err=True)
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params["debug"] or ctx.meta.get("debug"):
                raise
            raise click.ClickException(_message(error)) from error


def _message(error: Exception) -> str:
    from store.types import PalimpsestError

    if isinstance(error, PalimpsestError | OSError):
        return str(error)
    return f"{type(error).__name__}: {error}\nThis is a bug in Palimpsest; --debug shows where."


@click.group(cls=Palimpsest, commands=COMMANDS, context_settings=SETTINGS)
@click.option(
    "--lake", envvar="PALIMPSEST_LAKE", show_envvar=True, default="lake", metavar="DIR", help="Default ./lake."
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="palimpsest")
def main(lake: str, debug: bool) -> None:
    """Recordings in, samples and shards out, and a model that learns task by task without losing the earlier ones.

    Begin with `palimpsest demo`. --lake and --debug may also stand after a command that works on a lake.

    Exit codes: 0 done, 1 an error, 2 a wrong command line, 3 done but some recordings went to quarantine, the
    gate refused a task, or damaged samples were skipped, 130 interrupted.
    """
