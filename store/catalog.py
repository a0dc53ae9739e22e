"""catalog.duckdb: the ledger's views as a file that people open with any DuckDB client; made again at will."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from store.lake import Lake, put
from store.ledger import Ledger, view_statements


def write_catalog(lake: Lake) -> Path:
    """Put the views in `lake.catalog` where they are absent or outdated; a session that holds the file goes on.

    Returns:
        The file's path. It is replaced by rename, and only when the lake has moved or the views have changed, so an
        open session keeps seeing new rows: the views read the ledger, not the file. Beside a `.wal`, which holds what
        such a session wrote into the file itself, it is left alone.
    """
    Ledger(lake)  # a view over an empty folder cannot be created
    statements = view_statements(lake)
    stamp = lake.root / ".catalog-digest"
    digest = hashlib.sha256(statements.encode()).hexdigest()
    if lake.catalog.exists() and stamp.exists() and stamp.read_text() == digest:
        return lake.catalog
    if lake.catalog.with_name(f"{lake.catalog.name}.wal").exists():
        return lake.catalog
    import duckdb

    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        aside = Path(folder, "catalog.duckdb")
        path = str(aside).replace("'", "''")
        connection.execute(f"ATTACH '{path}' AS catalog (STORAGE_VERSION 'v1.0.0'); USE catalog;")
        connection.execute(statements)
        connection.execute("USE memory; DETACH catalog;")
        put(lake.catalog, aside.read_bytes())
    put(stamp, digest.encode())
    return lake.catalog
