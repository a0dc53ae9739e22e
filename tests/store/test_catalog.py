from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from store.catalog import write_catalog
from store.lake import Lake
from store.ledger import TABLES, Ledger

SESSION = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
for line in sys.stdin:
    print(connection.sql(line).fetchall(), flush=True)
"""


@pytest.fixture
def ask(lake: Lake) -> Iterator[object]:
    """Ask a session that holds the catalog open in another process all the while."""
    write_catalog(lake)
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION, str(lake.catalog)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def answer(sql: str) -> str:
        assert session.stdin and session.stdout
        session.stdin.write(sql + "\n")
        session.stdin.flush()
        return session.stdout.readline().strip()

    yield answer
    session.communicate()


def test_an_open_session_sees_later_rows_and_stops_nobody(lake: Lake, ask) -> None:
    assert ask("SELECT count(*) FROM runs") == "[(0,)]"
    Ledger(lake).append("runs", [{"run_id": "r", "stream": "s"}])
    write_catalog(lake)
    Ledger(lake).append("snapshots", [{"snapshot_id": "r/001", "run_id": "r"}])
    assert ask("SELECT stream, snapshot_id FROM runs JOIN snapshots USING (run_id)") == "[('s', 'r/001')]"


def test_a_session_goes_on_after_the_catalog_was_replaced(lake: Lake, ask) -> None:
    assert ask("SELECT count(*) FROM runs") == "[(0,)]"
    former = lake.catalog.stat().st_ino
    (lake.root / ".catalog-digest").unlink()
    write_catalog(lake)
    assert lake.catalog.stat().st_ino != former
    Ledger(lake).append("runs", [{"run_id": "r", "stream": "s"}])
    assert ask("SELECT count(*) FROM runs") == "[(1,)]"


def test_the_file_is_written_once_and_again_where_it_is_gone(lake: Lake) -> None:
    first = write_catalog(lake).stat()
    Ledger(lake).append("runs", [{"run_id": "r"}])
    again = write_catalog(lake).stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    lake.catalog.unlink()
    assert write_catalog(lake).exists()


def test_nothing_is_replaced_beside_a_log_of_the_users_own(lake: Lake) -> None:
    inode = write_catalog(lake).stat().st_ino
    (lake.root / ".catalog-digest").unlink()
    wal = lake.root / "catalog.duckdb.wal"
    wal.touch()
    assert write_catalog(lake).stat().st_ino == inode
    wal.unlink()
    assert write_catalog(lake).stat().st_ino != inode


def test_a_moved_lake_gets_its_catalog_anew(lake: Lake, tmp_path: Path) -> None:
    Ledger(lake).append("runs", [{"run_id": "r"}])
    write_catalog(lake)
    moved = Lake(tmp_path / "it's moved")
    shutil.move(lake.root, moved.root)
    with duckdb.connect(str(write_catalog(moved))) as connection:
        assert connection.sql("SELECT run_id FROM runs").fetchall() == [("r",)]


def test_the_catalog_holds_views_only_and_readers_share_it(lake: Lake) -> None:
    path = str(write_catalog(lake))
    with duckdb.connect(path, read_only=True) as connection:
        views = {
            name for (name,) in connection.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        }
        assert connection.sql("SELECT count(*) FROM duckdb_tables()").fetchall() == [(0,)]
        assert set(TABLES) < views
        for view in views:
            assert connection.sql(f"FROM {view}").fetchall() == []
        code = "import sys, duckdb; duckdb.connect(sys.argv[1], read_only=True).sql('FROM runs').fetchall()"
        subprocess.run([sys.executable, "-c", code, path], check=True)
