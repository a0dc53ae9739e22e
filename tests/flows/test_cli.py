"""The command line from outside: what it prints, where, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from flows.cli import COMMANDS, main
from store.champions import champion
from store.lake import Lake
from store.ledger import Ledger
from store.types import PalimpsestError
from tests.flows.conftest import CHAMPION

Cli = Callable[..., Result]


@pytest.fixture
def cli(lake: Lake) -> Cli:
    """Types a command that works on `lake`."""
    return lambda *words: CliRunner().invoke(main, ["--lake", str(lake.root), *map(str, words)])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_an_example_and_explains_its_options(command: click.Command) -> None:
    text = CliRunner().invoke(main, [str(command.name), "--help"]).output
    assert f"Example: palimpsest {'' if command.name != 'demo' else '--lake /tmp/demo '}{command.name}" in text
    told = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    assert [option.name for option in told if not option.help and option.name not in ("form",)] == []


def test_sql_prints_a_table_csv_or_json(cli: Cli, learned: Ledger) -> None:
    query = "SELECT task, task_name, [1, 2] AS list, NULL AS nothing, 0.123456 AS x FROM tasks ORDER BY task"
    assert cli("sql", query).output.splitlines() == [
        "task  task_name  list  nothing  x",
        "----  ---------  ----  -------  ------",
        "1     first      1;2            0.1235",
        "2     second     1;2            0.1235",
    ]
    rows = list(csv.reader(io.StringIO(cli("sql", query, "--format", "csv").output)))
    assert rows == [
        ["task", "task_name", "list", "nothing", "x"],
        *(["1", "first", "[1, 2]", "", "0.123456"], ["2", "second", "[1, 2]", "", "0.123456"]),
    ]
    assert json.loads(cli("sql", query, "--format", "json").output)[1] == {
        "task": 2, "task_name": "second", "list": [1, 2], "nothing": None, "x": 0.123456,
    }  # fmt: skip


def test_sql_examples_all_run(cli: Cli, learned: Ledger) -> None:
    queries = [query for query in cli("sql", "--examples").output.split(";\n") if query.strip()]
    assert len(queries) >= 8
    assert all(cli("sql", "--", query).exit_code == 0 for query in queries)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["sql", "FROM nowhere"], 1, "nowhere"),
        (["sql"], 2, "--examples"),
        (["report", "toi"], 1, "it has toy"),
        (["update", "nothing"], 1, "no recipe 'nothing'"),
        (["update", "grid-words"], 1, "palimpsest ingest grid-words"),
        (["update", "grid-words", "--set", "learner.eposch=3"], 1, "eposch"),
        (["evaluate", "grid-words"], 1, "palimpsest update grid-words"),
        (["predict", "grid-words"], 2, "--manifest"),
        (["predict", "grid-words", "x.mp4"], 1, "no champion"),
        (["similar", "grid-words"], 2, "FILE"),
        (["similar", "grid-words", "x.mp4"], 1, "no champion"),
        (["similar", "grid-words", "x.mp4", "--count", "0"], 2, "--count"),
        (["ingest", "folder"], 1, "palimpsest source folder DIR"),
        (["ingest", "folder", "--source", "/nowhere"], 1, "/nowhere"),
        (["ingest", "folder", "--workers", "0"], 2, "--workers"),
        (["ingest", "folder", "--watch"], 1, "palimpsest source folder DIR"),
        (["ingest", "folder", "--every", "5"], 2, "--watch"),
        (["ingest", "folder", "--watch", "--retry-quarantined"], 2, "again and again"),
        (["ingest", "folder", "--settle", "-1"], 2, "--settle"),
        (["promote", "toy", "toy/7"], 1, "palimpsest snapshots toy"),
        (["pretrain", "none"], 1, "palimpsest synthesize corpus"),
    ],
)
def test_errors_say_what_to_do_without_a_traceback(
    cli: Cli, learned: Ledger, words: list[str], code: int, said: str
) -> None:
    result = cli(*words)
    assert (result.exit_code, said in result.stderr) == (code, True), result.output
    assert "Traceback" not in result.output


def test_debug_shows_where(cli: Cli, learned: Ledger) -> None:
    assert isinstance(cli("report", "toi", "--debug").exception, PalimpsestError)
    assert isinstance(CliRunner().invoke(main, ["--debug", "synthesize", "x", "--out", "y"]).exception, PalimpsestError)


@pytest.mark.parametrize(
    "words", [["sql", "SELECT 1"], ["report", "s"], ["catalog"], ["update", "s"], ["snapshots", "s"]]
)
def test_no_lake_is_made_by_mistake(cli: Cli, lake: Lake, words: list[str]) -> None:
    result = cli(*words)
    assert (result.exit_code, str(lake.root) in result.stderr, lake.root.exists()) == (1, True, False)


def test_a_lake_named_after_the_command_goes_first(cli: Cli, learned: Ledger, tmp_path: Path) -> None:
    assert cli("sql", "SELECT 1", "--lake", tmp_path / "other").exit_code == 1
    there = CliRunner().invoke(main, ["sql", "SELECT 1"], env={"PALIMPSEST_LAKE": str(learned.lake.root)})
    assert there.exit_code == 0


def test_ingest_tells_what_went_to_quarantine_and_then_that_nothing_is_left(cli: Cli, folder: Path) -> None:
    first = cli("ingest", "folder", "--source", folder, "--workers", 1)
    assert first.exit_code == 3
    assert "ingested 2 recordings as 2 samples" in first.output
    assert re.search(r"quarantined broken\.wav: \w+", first.output)
    again = cli("ingest", "folder")
    assert again.exit_code == 0
    assert "ingested 0 recordings" in again.output and "2 were there already" in again.output
    assert "--retry-quarantined" in again.output
    assert cli("ingest", "folder", "--retry-quarantined").exit_code == 3


def test_what_a_file_is_called_does_not_reach_the_terminal_as_it_is(cli: Cli, folder: Path) -> None:
    (folder / "\x1b[2J\n\u202e.wav").write_text("no sound")
    with open(folder / "manifest.csv", "a") as manifest:
        manifest.write('"\x1b[2J\n\u202e.wav"\n')
    told = cli("ingest", "folder", "--source", folder, "--workers", 1).output
    assert r"quarantined \x1b[2J\n\u202e.wav: " in told
    assert "\x1b" not in told


def test_ingest_reads_from_where_source_said(cli: Cli, folder: Path) -> None:
    assert cli("source", "folder", folder).output == f"folder: {folder}\n"
    assert cli("source", "folder", folder / "nowhere").exit_code == 2
    assert "ingested 1 recordings" in cli("ingest", "folder", "--limit", 1).output


def test_update_prints_what_it_did_and_ends_with_3_when_refused(
    cli: Cli, learned: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.update as update

    told = {"learned": ["second"], "promoted": [], "refused": [f"{CHAMPION}/002: forgets 25.0%"]}

    def run(*args: object, progress: Callable[[str, int, int], None], **kwargs: object) -> update.UpdateSummary:
        progress("task 2/2 second", 1, 2)
        return update.UpdateSummary("toy", CHAMPION, 2, **told)

    monkeypatch.setattr(update, "update", run)
    result = cli("update", "toy")
    assert result.exit_code == 3
    lines = [line.split() for line in result.output.splitlines()]
    assert ["learned", "second"] in lines
    assert ["refused", f"{CHAMPION}/002:", "forgets", "25.0%"] in lines
    assert ["classifier", "0.9375", "0.875", "0.25", "-0.25", "2"] in lines
    told["refused"] = []
    assert cli("update", "toy").exit_code == 0


def test_predict_says_on_stderr_where_much_is_unfamiliar(
    cli: Cli, learned: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.predict

    rows = [{"file": f"{i}.wav", "unfamiliar": i < 9, "domain": None} for i in range(12)]
    monkeypatch.setattr(flows.predict, "predict", lambda *args, **kwargs: rows)
    result = cli("predict", "toy", "x.wav", "--format", "json")
    assert json.loads(result.stdout) == rows
    assert "9 of 12 look like nothing this stream has learnt" in result.stderr
    rows[:] = rows[9:]
    assert cli("predict", "toy", "x.wav").stderr == ""


def test_snapshots_show_the_one_in_use_and_rollback_changes_it(cli: Cli, learned: Ledger) -> None:
    rows = json.loads(cli("snapshots", "toy", "--format", "json").output)
    assert [row["snapshot_id"] for row in rows if row["in_use"]] == [f"{CHAMPION}/002"]
    assert f"{CHAMPION}/001" in cli("rollback", "toy").output
    assert champion(learned, "toy") == f"{CHAMPION}/001"
    assert cli("promote", "toy", f"{CHAMPION}/002").output == f"toy: {CHAMPION}/002 in place of {CHAMPION}/001\n"
    assert cli("snapshots", "nothing").exit_code == 0


def test_report_and_catalog_print_where_they_wrote(cli: Cli, learned: Ledger, tmp_path: Path) -> None:
    assert Path(cli("report", "toy").output.strip()) == learned.lake.reports / "toy.html"
    assert Path(cli("report", "toy", "--out", tmp_path / "r.html").output.strip()).is_file()
    assert Path(cli("catalog").output.strip()) == learned.lake.catalog


def test_what_was_found_later_is_added(cli: Cli, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(4000)), 8000)
    (tmp_path / "more.csv").write_text("recording,text\na.wav,found later\nnobody,lost\n")
    (tmp_path / "manifest.csv").write_text("audio\na.wav\n")
    assert cli("ingest", "folder", "--source", tmp_path).exit_code == 0
    result = cli("add", "folder", tmp_path / "more.csv")
    assert result.exit_code == 3
    assert "not added to nobody: folder has no such recording" in result.output
    (row,) = json.loads(cli("sql", "SELECT modalities FROM sample_index", "--format", "json").output)
    assert row == {"modalities": ["audio", "text"]}
    assert cli("add", "nothing", tmp_path / "more.csv").exit_code == 1


def test_an_interrupt_ends_with_130(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.synthesize

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipelines.synthesize, "synthesize", interrupt)
    result = cli("synthesize", "samsemo", "--out", tmp_path / "out")
    assert (result.exit_code, "goes on from here" in result.stderr) == (130, True)


def test_an_unforeseen_error_is_called_a_bug(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pipelines.synthesize

    monkeypatch.setattr(pipelines.synthesize, "synthesize", lambda *args, **kwargs: 1 / 0)
    result = cli("synthesize", "samsemo", "--out", tmp_path / "out")
    assert (result.exit_code, "bug in Palimpsest" in result.stderr) == (1, True)
