"""What the tests of every room share."""

from __future__ import annotations

import os

# Read by torch when it is first imported: one thread is faster here than two that contend, and its sums do not vary.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from store.lake import Lake  # noqa: E402


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings, one folder a data set; without them the test is skipped."""
    if folder := os.environ.get("PALIMPSEST_DATA"):
        return Path(folder)
    pytest.skip("PALIMPSEST_DATA names no folder of real recordings")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake of the test's own."""
    return Lake(tmp_path / "lake")
