"""The ledger: immutable Parquet files, each committed by one rename, read through DuckDB views.

Every table has a natural key. A file's name is the hash of the keys it holds, so a resumed run overwrites instead of
doubling; where several files hold a key, the row recorded last wins.
"""

from __future__ import annotations

import datetime as dt
import glob
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from store.lake import Lake, lock, put, sweep

if TYPE_CHECKING:
    import duckdb  # else where it is used: processes that build shards never ask

MAX_FILES = 200
_TIME = pa.timestamp("us", tz="UTC")
_NAMES = pa.list_(pa.string())
_SQL_TYPES = {
    pa.string(): "VARCHAR",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    _NAMES: "VARCHAR[]",
    _TIME: "TIMESTAMPTZ",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A ledger table: its natural key and its columns; every table also has `recorded_at`, written by `append`."""

    name: str
    key: tuple[str, ...]
    schema: pa.Schema

    @property
    def view(self) -> str:
        """The SQL that names, casts and deduplicates the table's files; `{ledger}` is the folder."""
        columns = ", ".join(f'"{field.name}"::{_SQL_TYPES[field.type]} AS "{field.name}"' for field in self.schema)
        keys = ", ".join(f'"{name}"' for name in self.key)
        return (
            f"CREATE OR REPLACE VIEW {self.name} AS SELECT {columns} "
            f"FROM read_parquet('{{ledger}}/{self.name}/*.parquet', union_by_name = true) "
            f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY recorded_at DESC) = 1;"
        )


def _table(name: str, key: str, /, **columns: pa.DataType) -> Table:
    fields = [pa.field(column, kind) for column, kind in columns.items()]
    return Table(name, tuple(key.split()), pa.schema([*fields, pa.field("recorded_at", _TIME)]))


_S, _I, _F, _B = pa.string(), pa.int64(), pa.float64(), pa.bool_()
# fmt: off
TABLES = {
    table.name: table
    for table in (
        _table("datasets", "dataset", dataset=_S, reader=_S, format_digest=_S, format=_S, source=_S),
        _table("batches", "dataset batch", dataset=_S, batch=_S, plan=_S, position=_I, slug=_S, recordings=_NAMES,
               arrival=_S),
        _table("recordings", "dataset recording", dataset=_S, recording=_S, name=_S, source_path=_S, bytes=_I,
               labels=_NAMES, domain=_S, arrival=_S, split=_S, language=_S, clips=_I, quality=_S),
        _table("samples", "dataset key", dataset=_S, key=_S, recording=_S, labels=_NAMES, domain=_S, arrival=_S,
               split=_S, modalities=_NAMES, start_s=_F, duration_s=_F, shard=_S, offset=_I, size=_I, checksum=_S),
        _table("sidecars", "dataset key modality", dataset=_S, key=_S, modality=_S, shard=_S, offset=_I, size=_I,
               checksum=_S),
        _table("shards", "dataset shard", dataset=_S, shard=_S, batch=_S, url=_S, bytes=_I, sha256=_S, samples=_I),
        _table("quarantined", "dataset name", dataset=_S, name=_S, recording=_S, source_path=_S, reason=_S),
        _table("streams", "stream", stream=_S, dataset=_S, scenario=_S, definition=_S),
        _table("tasks", "stream task", stream=_S, task=_I, task_name=_S, labels=_NAMES, manifest=_S,
               train=_I, val=_I, test=_I),
        _table("task_samples", "stream dataset key", stream=_S, task=_I, manifest=_S, dataset=_S, key=_S, split=_S),
        _table("runs", "run_id", run_id=_S, stream=_S, scenario=_S, method=_S, seed=_I, digest=_S, trial=_B,
               modalities=_NAMES, config=_S, status=_S),
        _table("snapshots", "snapshot_id", snapshot_id=_S, run_id=_S, after_task=_I, path=_S, sha256=_S, parent=_S,
               parameters=_I, trained_parameters=_I, memory_bytes=_I),
        _table("predictions", "run_id after_task on_task split protocol modalities key", run_id=_S, after_task=_I,
               on_task=_I, split=_S, protocol=_S, modalities=_S, key=_S, label=_S, predicted=_S,
               predicted_in_task=_S, labels=_NAMES, predicted_labels=_NAMES, confidence=_F,
               identified=_F, hit=_I, average_precision=_F, novelty=_F, nearest=_NAMES, snapshot_id=_S),
        _table("promotions", "promotion", promotion=_S, stream=_S, snapshot_id=_S, run_id=_S, after_task=_I,
               verdict=_S, reason=_S, figures=_S),
        _table("events", "event", event=_S, kind=_S, subject=_S, detail=_S, seconds=_F),
    )
}
# fmt: on
VIEWS = Path(__file__).with_name("views.sql")


def view_statements(lake: Lake) -> str:
    """All views as SQL over the absolute ledger paths of `lake`."""
    folder = glob.escape(str(lake.ledger)).replace("'", "''")
    return "\n".join(table.view.replace("{ledger}", folder) for table in TABLES.values()) + VIEWS.read_text()


class Ledger:
    """Append to and ask the ledger of one lake. Safe to use from several threads and processes at once."""

    def __init__(self, lake: Lake):
        self.lake = lake
        for table in TABLES.values():
            # An empty glob is an error in DuckDB, and so is a column that no file has: one for each schema there was.
            first = lake.ledger / table.name / f"_schema-{_digest(str(table.schema))}.parquet"
            if not first.exists():
                with lock(lake, "ledger", shared=True, wait=True):
                    put(first, _parquet(table.schema.empty_table()))
        self._lock = threading.Lock()
        self._views: duckdb.DuckDBPyConnection | None = None

    def append(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Commit `rows` as one file; columns left out are null, of rows with one key the last counts.

        Raises:
            KeyError: a row has a column that the table lacks, or lacks one of its key.
        """
        spec, now = TABLES[table], dt.datetime.now(dt.UTC)
        complete = {"\0".join(str(row[name]) for name in spec.key): {**row, "recorded_at": now} for row in rows}
        if not complete:
            return
        if unknown := {name for row in complete.values() for name in row} - set(spec.schema.names):
            raise KeyError(f"table {table} has no column {sorted(unknown)}")
        target = self.lake.ledger / table / f"{_digest(*sorted(complete))}.parquet"
        content = _parquet(pa.Table.from_pylist(list(complete.values()), schema=spec.schema))
        with lock(self.lake, "ledger", shared=True, wait=True):
            put(target, content)
        self._compact(spec)

    def append_table(self, table: str, rows: pa.Table) -> None:
        """`append` for many rows at once, in columns; no key may come twice.

        Raises:
            KeyError: `rows` has a column that the table lacks, or lacks one of its key.
        """
        spec = TABLES[table]
        if odd := set(rows.column_names) - set(spec.schema.names) or set(spec.key) - set(rows.column_names):
            raise KeyError(f"table {table} has no column {sorted(odd)}, or rows lack it")
        content = hashlib.sha256()
        for batch in rows.select(list(spec.key)).combine_chunks().to_batches():
            content.update(batch.serialize())
        now = pa.scalar(dt.datetime.now(dt.UTC), _TIME)
        columns = {name: rows[name] for name in rows.column_names} | {"recorded_at": pa.repeat(now, len(rows))}
        nulls = {field.name: pa.nulls(len(rows), field.type) for field in spec.schema if field.name not in columns}
        complete = pa.table(columns | nulls).select(spec.schema.names).cast(spec.schema)
        with lock(self.lake, "ledger", shared=True, wait=True):
            put(self.lake.ledger / table / f"{content.hexdigest()[:20]}.parquet", _parquet(complete))
        self._compact(spec)

    def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> pa.Table:
        """The result of `sql` over the ledger's tables and views; values are bound, never pasted.

        Raises:
            duckdb.Error: the statement is wrong.
        """
        import duckdb

        try:
            return self._ask(sql, parameters)
        except duckdb.IOException:  # compaction removed a file between the listing and the read: ask when it is done
            with lock(self.lake, "ledger", shared=True, wait=True):
                return self._ask(sql, parameters)

    def batches(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = (), *, size: int = 1 << 16
    ) -> Iterator[pa.RecordBatch]:
        """`query` in pieces, for results that are too many to hold."""
        with lock(self.lake, "ledger", shared=True, wait=True):  # compaction would remove files from under it
            yield from self._cursor().sql(sql, params=parameters or None).to_arrow_reader(size)

    def state(self, *tables: str) -> str:
        """A name for what `tables` hold now: another one after every commit."""
        files = (file for table in tables for file in sorted((self.lake.ledger / table).glob("*.parquet")))
        listed = ((file.parent.name, file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
        return _digest(*map(repr, listed))

    def rows(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """`query` as a list of dicts."""
        return self.query(sql, parameters).to_pylist()

    def sweep(self) -> None:
        """Remove what killed writers left aside."""
        with lock(self.lake, "ledger", wait=True):
            sweep(self.lake.ledger)

    def _ask(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> pa.Table:
        answer = self._cursor().sql(sql, params=parameters or None)
        return pa.table({}) if answer is None else answer.to_arrow_table()  # SET and the like answer nothing

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        with self._lock:
            if self._views is None:
                self._views = duckdb.connect(":memory:", config={"threads": 1})
                self._views.execute("SET GLOBAL TimeZone = 'UTC';" + view_statements(self.lake))
            return self._views.cursor()

    def _compact(self, spec: Table) -> None:
        folder = self.lake.ledger / spec.name
        if len(_files(folder)) <= MAX_FILES:
            return
        with lock(self.lake, "ledger", wait=True):
            files = _files(folder)
            merged = self._ask(f"SELECT * FROM {spec.name}").cast(spec.schema)
            put(folder / f"all-{_digest(*(file.name for file in files))}.parquet", _parquet(merged))
            for file in files:
                file.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.parquet") if not file.name.startswith("_schema"))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
