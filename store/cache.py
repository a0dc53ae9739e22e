"""Derived bytes that may be deleted at any time, within a bound: what was used longest ago goes first.

An entry is a file or a folder, written aside and renamed. What a process has open or mapped stays readable after its
entry has gone; a process that finds an entry gone makes it again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from store.lake import Lake, get, put

ABANDONED = 86_400  # seconds without a change after which nobody is taken to be writing any more


def used(entry: Path) -> None:
    """Note that `entry` is used now."""
    with suppress(FileNotFoundError):
        os.utime(entry)


def trim(lake: Lake, *, spare: Collection[Path] = ()) -> int:
    """Remove what was used longest ago until the lake's cache is within its bound, and what killed writers left.

    Args:
        lake: whose cache.
        spare: entries that stay whatever their age.

    Returns:
        The bytes that it may still grow by; negative where what is spared does not fit.
    """
    for aside in [*lake.cache.glob("*/.*.tmp"), *lake.cache.glob("trunk/*/.*.tmp")]:
        with suppress(FileNotFoundError):
            if aside.stat().st_mtime < time.time() - ABANDONED:
                _remove(aside)
    entries = sorted(_entries(lake))
    left = lake.cache_bytes - sum(held for _, held, _ in entries)
    for _, held, path in entries:
        if left >= 0:
            break
        if path not in spare:
            _remove(path)
            left += held
    return left


def copy_of(lake: Lake, url: str) -> Path:
    """Where the copy of a remote shard lies, once `fetch` has brought it."""
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{PurePosixPath(url).name}"
    return lake.cache / "shards" / name


def fetch(lake: Lake, url: str) -> int:
    """Have a copy of a whole remote shard in the lake's cache; returns the bytes by which the cache has grown.

    Raises:
        FileNotFoundError: nothing lies there.
        PalimpsestError: the object store goes on failing.
    """
    copy, grown = copy_of(lake, url), 0
    if not copy.exists():
        data = get(url)
        put(copy, data)
        grown = len(data)
    used(copy)
    return grown


def size(entry: Path) -> int:
    """Bytes of an entry."""
    try:
        if entry.is_dir():
            return sum(file.stat().st_size for file in os.scandir(entry))
        return entry.stat().st_size
    except FileNotFoundError:
        return 0


def _entries(lake: Lake) -> Iterator[tuple[int, int, Path]]:
    """When each was used, its size, and where it lies; what is still being written is none."""
    for kind in ("index/*", "shards/*", "trunk/*/*"):
        for path in lake.cache.glob(kind):
            if not path.name.startswith("."):
                with suppress(FileNotFoundError):
                    yield path.stat().st_mtime_ns, size(path), path


def _remove(path: Path) -> None:
    if path.is_dir():
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # gone in one step, for whoever looks for it
        with suppress(OSError):
            path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
