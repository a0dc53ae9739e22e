"""Where a data set's recordings lie: told to the lake once, read by every later ingest."""

from __future__ import annotations

from pathlib import Path

from pipelines.ingest import checked_name
from store.lake import Lake
from store.ledger import Ledger
from store.types import PalimpsestError


def set_source(lake: Lake, dataset: str, folder: Path | str) -> Path:
    """Remember `folder` as where the recordings of `dataset` lie; returns it, absolute.

    Raises:
        PalimpsestError: there is no such folder, or `dataset` cannot name a data set.
    """
    checked_name(dataset)
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise PalimpsestError(f"no such folder: {path}")
    ledger = Ledger(lake)
    held = ledger.rows("SELECT * EXCLUDE recorded_at FROM datasets WHERE dataset = ?", [dataset])
    row = held[0] if held else {"dataset": dataset}
    if row.get("source") != str(path):
        ledger.append("datasets", [row | {"source": str(path)}])
    return path


def get_source(lake: Lake, dataset: str, otherwise: str | None = None) -> Path:
    """Where the recordings of `dataset` lie, or, if the lake has not been told, those of the data set `otherwise`.

    Raises:
        PalimpsestError: the lake has been told of neither.
    """
    rows = Ledger(lake).rows("SELECT dataset, source FROM datasets WHERE source IS NOT NULL")
    told = {row["dataset"]: Path(row["source"]) for row in rows}
    found = told.get(dataset) or told.get(otherwise or dataset)
    if found is None:
        raise PalimpsestError(
            f"the lake does not know where {dataset}'s recordings lie: "
            f"give --source DIR, or tell it once with: palimpsest source {dataset} DIR"
        )
    return found
