"""The shard contract: plain WebDataset tars, byte-reproducible, with an offset index so one read fetches a sample."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile

from store.lake import new_file, view
from store.types import DamagedSampleError, Modality, Sample

BLOCK = tarfile.BLOCKSIZE
NAME_AND_SIZE = struct.Struct("100s24x11s")  # of a USTAR header
PNG = b"\x89PNG"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one sample lies in its shard.

    Attributes:
        offset: first byte of the sample's first tar header.
        size: bytes up to the end of its last member's padding.
        checksum: 16 hexadecimal digits of the SHA-256 of those bytes.
    """

    key: str
    offset: int
    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Where a modality of a sample lies that was added, or replaced, after its shard was written."""

    modality: Modality
    url: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class Shard:
    """A written shard: its URL, size, SHA-256 and index."""

    url: str
    bytes: int
    sha256: str
    entries: tuple[Entry, ...]


def encode(sample: Sample) -> list[tuple[str, bytes]]:
    """The sample's members, ``(suffix, bytes)``, in the order they are written."""
    members = [("json", json.dumps(sample.meta, sort_keys=True, ensure_ascii=False).encode())]
    members += [(f"frame{i:03d}.jpg", frame) for i, frame in enumerate(sample.frames)]
    if sample.audio is not None:
        wav = io.BytesIO()
        soundfile.write(wav, sample.audio, sample.meta["tracks"]["audio"]["rate_hz"], format="WAV", subtype="PCM_16")
        members.append(("audio.wav", wav.getvalue()))
    if sample.imu is not None:
        members.append(("imu.npy", _npy(sample.imu.astype(np.float32))))
    if sample.image is not None:
        members.append(("image.png" if sample.image.startswith(PNG) else "image.jpg", sample.image))
    if sample.depth is not None:
        members.append(("depth.npy", _npy(sample.depth.astype(np.uint16))))
    if sample.text is not None:
        members.append(("text.txt", sample.text.encode()))
    return members


def decode(key: str, members: Iterable[tuple[str, memoryview]]) -> Sample:
    """The sample that `members` hold; images stay encoded. Nothing in it refers to the members' bytes."""
    sample = Sample(key=key, meta={})
    for suffix, data in members:
        if suffix == "json":
            sample.meta = json.loads(bytes(data))
        elif suffix.startswith("frame"):
            sample.frames.append(bytes(data))
        elif suffix == "audio.wav":
            # PCM16 behind the 44-byte header that `encode` wrote: no decoder is faster than none.
            sample.audio = np.frombuffer(data, "<i2", offset=44).copy()
        elif suffix == "imu.npy":
            sample.imu = np.load(io.BytesIO(data), allow_pickle=False)
        elif suffix.startswith("image."):
            sample.image = bytes(data)
        elif suffix == "depth.npy":
            sample.depth = np.load(io.BytesIO(data), allow_pickle=False)
        elif suffix == "text.txt":
            sample.text = str(data, "utf-8")
    return sample


class _Discarded(Exception):  # noqa: N818 - a signal, not an error
    """What makes an unfinished file vanish."""


class Mark(NamedTuple):
    """How far a `ShardWriter` had come: samples, bytes, and the hash over them."""

    entries: int
    bytes: int
    hash: hashlib._Hash


class ShardWriter:
    """Writes samples as one USTAR file with fixed times and owners, one at a time, to be had in one atomic step.

    What was added since a `mark` can be taken back, so a recording that turns out bad half-way leaves no trace::

        with ShardWriter(url) as writer:
            writer.add(sample)
        writer.shard    # None where nothing was added: then there is no file either
    """

    def __init__(self, url: str):
        self.url = url
        self.entries: list[Entry] = []
        self.shard: Shard | None = None
        self._hash = hashlib.sha256()
        self._aside = contextlib.ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None and self._file is not None and self.entries:
            self._write(b"\0" * (2 * BLOCK))
            self.shard = Shard(self.url, self._file.tell(), self._hash.hexdigest(), tuple(self.entries))
            self._aside.close()
        else:
            self._aside.__exit__(_Discarded, _Discarded(), None)

    def add(self, sample: Sample) -> Entry:
        """Append `sample`; returns where it lies."""
        if self._file is None:
            self._file = self._aside.enter_context(new_file(self.url))
        start, digest = self._file.tell(), hashlib.sha256()
        for suffix, data in encode(sample):
            info = tarfile.TarInfo(f"{sample.key}.{suffix}")
            info.size = len(data)
            for part in (info.tobuf(tarfile.USTAR_FORMAT), data, b"\0" * (-len(data) % BLOCK)):
                digest.update(part)
                self._write(part)
        entry = Entry(sample.key, start, self._file.tell() - start, digest.hexdigest()[:16])
        self.entries.append(entry)
        return entry

    def mark(self) -> Mark:
        """The present state, to go back to."""
        return Mark(len(self.entries), self._file.tell() if self._file else 0, self._hash.copy())

    def take_back(self, mark: Mark) -> None:
        """Forget all that was added since `mark`."""
        del self.entries[mark.entries :]
        self._hash = mark.hash.copy()
        if self._file is not None:
            self._file.seek(mark.bytes)
            self._file.truncate()

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._hash.update(data)
        self._file.write(data)


def write_shard(url: str, samples: Iterable[Sample]) -> Shard:
    """Write `samples` as one shard.

    Raises:
        ValueError: there are none.
    """
    with ShardWriter(url) as writer:
        for sample in samples:
            writer.add(sample)
    if writer.shard is None:
        raise ValueError(f"no sample for {url}")
    return writer.shard


def read_sample(url: str, entry: Entry, sidecars: Iterable[Sidecar] = ()) -> Sample:
    """One sample by its index entry: a single read, and one for each of its `sidecars`, checked against the checksum.

    Raises:
        DamagedSampleError: the shard is absent, or the bytes are not those that were written.
    """
    data = read_bytes(url, entry)
    if hashlib.sha256(data).hexdigest()[:16] != entry.checksum:
        raise DamagedSampleError(
            f"sample {entry.key} in {url} is damaged: its bytes differ from those written at ingest. "
            "Delete the shard and run the same ingest again."
        )
    sample = decode(entry.key, members(data))
    for sidecar in sidecars:
        sample.take(sidecar.modality, read_sample(sidecar.url, sidecar.entry))
    return sample


def read_bytes(url: str, entry: Entry) -> memoryview:
    """The bytes of one sample as they lie in its shard, unchecked: what is learnt from comes through `read_sample`.

    Raises:
        DamagedSampleError: the shard is absent.
    """
    try:
        return view(url, entry.offset, entry.size)
    except FileNotFoundError as error:
        raise DamagedSampleError(
            f"sample {entry.key}: its shard {url} is absent. Run the same ingest again."
        ) from error


def members(data: memoryview) -> Iterator[tuple[str, memoryview]]:
    """The members, ``(suffix, bytes)``, that the bytes of one sample hold; nothing is copied."""
    position = 0
    while position < len(data):
        name, octal = NAME_AND_SIZE.unpack_from(data, position)
        size, body = int(octal, 8), position + BLOCK
        yield name.rstrip(b"\0").decode().partition(".")[2], data[body : body + size]
        position = body + size + (-size % BLOCK)


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
