"""Where everything lies: the lake's folders, and the one way to put bytes there so that a crash leaves no half."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import mmap
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar, cast

from store.types import PalimpsestError, Seconds

SUMS = "SHA256SUMS"
MAPS = 64  # files that `view` keeps mapped; each takes a descriptor
PAUSES: tuple[Seconds, ...] = (0.5, 2.0, 8.0)  # before a store that failed is asked again
T = TypeVar("T")

_held: set[TextIO] = set()
# A forked worker would keep its parent's locks alive after the parent was killed.
os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])


@dataclass(frozen=True, slots=True)
class Lake:
    """A folder of shards, ledger, runs and caches; shards may live elsewhere, by fsspec URL.

    Attributes:
        root: the lake's folder, absolute.
        shards_url: where shards are written, an absolute path or ``s3://bucket/prefix``; None for ``root/shards``.
        cache_bytes: how large the cache may grow; ``PALIMPSEST_CACHE_GB``, else 50 GB.
    """

    root: Path
    shards_url: str | None = None
    cache_bytes: int = field(default_factory=lambda: _cache_bytes(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root).expanduser().absolute())
        if self.shards_url and "://" not in self.shards_url:
            object.__setattr__(self, "shards_url", str(Path(self.shards_url).expanduser().absolute()))

    @property
    def catalog(self) -> Path:
        """The DuckDB file of views for people."""
        return self.root / "catalog.duckdb"

    @property
    def ledger(self) -> Path:
        """The truth: immutable Parquet files, a folder a table."""
        return self.root / "ledger"

    @property
    def cache(self) -> Path:
        """Derived bytes, safe to delete."""
        return self.root / "cache"

    @property
    def reports(self) -> Path:
        """Reports for people."""
        return self.root / "reports"

    @property
    def backbones(self) -> Path:
        """Weights of backbones pre-trained in this lake."""
        return self.root / "backbones"

    def run(self, run_id: str) -> Path:
        """The folder of one run's checkpoint, snapshots and anchors."""
        return self.root / "runs" / run_id

    def shard_url(self, dataset: str, name: str) -> str:
        """Where shard `name` of `dataset` lies: a path, or a URL on an object store."""
        return f"{(self.shards_url or str(self.root / 'shards')).rstrip('/')}/{dataset}/{name}"

    def relative(self, url: str) -> str:
        """`url` as the ledger holds it: relative to the root when it lies below, so that the lake can be moved."""
        return url.removeprefix(f"{self.root}/")

    def resolve(self, url: str) -> str:
        """Where a shard that the ledger holds under `url` lies now."""
        return url if "://" in url else str(self.root / url)


def _cache_bytes() -> int:
    told = os.environ.get("PALIMPSEST_CACHE_GB", "50")
    try:
        return int(float(told) * 1e9)
    except ValueError as error:
        raise PalimpsestError(f"PALIMPSEST_CACHE_GB is {told!r}: give a number of gigabytes") from error


def put(url: str | Path, data: bytes) -> None:
    """Write `data` under `url` in one step: readers see the former content or the new one, never a part."""
    with new_file(url) as file:
        file.write(data)


@contextlib.contextmanager
def new_file(url: str | Path) -> Iterator[BinaryIO]:
    """A file, open for writing, that lies under `url` once the block ends well; if it does not, nothing has changed.

    Local files are written aside, synced and renamed; object stores are atomic by themselves.
    """
    target = _local(url)
    if target is None:
        with tempfile.NamedTemporaryFile(prefix="palimpsest-") as file:
            yield cast(BinaryIO, file)
            file.flush()
            try:
                _ask(url, lambda fs, path: fs.put_file(file.name, path))
            except FileNotFoundError as error:
                raise PalimpsestError(f"cannot write {url}: {error}") from error
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(aside, "w+b") as written:
            yield written
            written.flush()
            os.fsync(written.fileno())
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the renames in `folder` outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def get(url: str | Path, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes at `url`, or `size` of them from `offset`.

    Raises:
        FileNotFoundError: nothing lies there.
    """
    local = _local(url)
    if local is None:
        end = None if size is None else offset + size
        return _ask(url, lambda fs, path: fs.cat_file(path, start=offset or None, end=end))
    with open(local, "rb") as file:
        file.seek(offset)
        return file.read() if size is None else file.read(size)


def view(url: str | Path, offset: int, size: int) -> memoryview:
    """The `size` bytes at `url` from `offset`, fewer where it ends before; a local file's are mapped, not copied.

    Only for files that are replaced, never cut short: a map has no bytes behind its file's end, and touching it kills.

    Raises:
        FileNotFoundError: nothing lies there.
    """
    local = _local(url)
    if local is None:
        return memoryview(get(url, offset, size))
    found = os.stat(local)
    if found.st_size < offset + size:
        return memoryview(get(local, offset, size))
    return _map(local, found.st_dev, found.st_ino, found.st_size)[offset : offset + size]


@functools.lru_cache(MAPS)  # to map a shard for each of its samples would take as long as to read them
def _map(path: Path, _device: int, _inode: int, _size: int) -> memoryview:
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def present(urls: Iterable[str]) -> set[str]:
    """Those of `urls` at which something lies, by one listing of each folder rather than a question for each.

    A store that does not answer raises, lest it seem empty.
    """
    folders: dict[str, set[str]] = {}
    for url in urls:
        folders.setdefault(url.rpartition("/")[0], set()).add(url)
    found: set[str] = set()
    for folder, ones in folders.items():
        names = _names(folder)
        found |= {url for url in ones if url.rpartition("/")[2] in names}
    return found


def _names(folder: str) -> set[str]:
    try:
        if (local := _local(folder)) is not None:
            return set(os.listdir(local))
        return {name.rstrip("/").rpartition("/")[2] for name in _ask(folder, _listing)}
    except FileNotFoundError:
        return set()


def _listing(fs: Any, path: str) -> list[str]:
    fs.invalidate_cache(path)
    names: list[str] = fs.ls(path, detail=False)
    return names


def _ask(url: str | Path, act: Callable[[Any, str], T]) -> T:
    """What `act` gives on the object store of `url` and the path there; a lost connection or a busy store may pass.

    Raises:
        FileNotFoundError: nothing lies there.
        PalimpsestError: the store goes on failing, or refuses.
    """
    from fsspec.core import url_to_fs  # most lakes lie on a disk and never need it

    pauses = iter(PAUSES)
    while True:
        try:
            return act(*url_to_fs(str(url)))
        except FileNotFoundError:
            raise
        except ImportError as error:
            raise PalimpsestError(f"{url}: {error}; for s3:// install palimpsest[s3]") from error
        except Exception as error:  # each store has errors of its own
            if (pause := next(pauses, None)) is None or isinstance(error, PermissionError):
                raise PalimpsestError(
                    f"the object store fails at {url}: {error}. What was done is kept; run the same command again."
                ) from error
            time.sleep(pause)


@functools.lru_cache(1024)  # to make a path takes longer than to find a sample's bytes
def _local(url: str | Path) -> Path | None:
    text = str(url).removeprefix("file://")
    return None if "://" in text else Path(text)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder written aside and renamed to `target` when the block ends well; an earlier `target` is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    aside.mkdir()
    try:
        yield aside
        for path in aside.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        try:
            os.replace(aside, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _exchange(aside, target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_sums(folder: Path) -> str:
    """Write `SHA256SUMS` over the files in `folder`; returns its own SHA-256, which names all their content."""
    sums = "".join(f"{file_sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()))
    (folder / SUMS).write_text(sums)
    return hashlib.sha256(sums.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _exchange(one: Path, other: Path) -> None:
    """Put folder `one` in the place of `other`: in one step, or in two renames where the system lacks that call."""
    with contextlib.suppress(AttributeError):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if ctypes.CDLL(None).renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
            return
    former = one.with_name(f"{one.name}.tmp")
    with contextlib.suppress(FileNotFoundError):  # someone else has taken it away
        os.replace(other, former)
    os.replace(one, other)
    shutil.rmtree(former, ignore_errors=True)


def sweep(folder: Path) -> int:
    """Remove what killed writers left aside below `folder`; returns how many. Call only while holding its lock."""
    left = list(folder.rglob(".*.tmp"))
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(left)


@contextlib.contextmanager
def lock(lake: Lake, name: str, *, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold the lake's lock `name`; the kernel lets it go when the holder dies.

    Args:
        lake: whose lock.
        name: what is guarded.
        wait: until the lock is free, rather than raise.
        shared: beside other shared holders, but no exclusive one.

    Raises:
        BlockingIOError: another holder has it.
    """
    path = lake.root / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        _held.add(file)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
            _held.discard(file)
