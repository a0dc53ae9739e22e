"""The words every room shares: recordings, their tracks and clips, and the samples cut from them."""

from __future__ import annotations

import errno
import functools
import gzip
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import numpy as np

Seconds = float
Hertz = float
MAX_UNPACKED = 256 << 20
MAX_RATIO = 200  # of unpacked to packed bytes, beyond `MAX_UNPACKED`


class PalimpsestError(Exception):
    """An error a user can cause and mend: the message says what was wrong, where, and what to do."""


class DamagedSampleError(PalimpsestError):
    """A sample whose bytes in a shard are absent, or not those that ingest wrote."""


class Modality(StrEnum):
    """The kinds of track a recording can have."""

    VIDEO = "video"
    AUDIO = "audio"
    IMU = "imu"
    IMAGE = "image"
    DEPTH = "depth"
    TEXT = "text"


class Split(StrEnum):
    """Which part of a data set a recording belongs to; learning reads train, choices read val, tables read test."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Track:
    """One signal of a recording: a file below the data set's source, a byte slice of one, or a text itself.

    Attributes:
        path: relative to the source folder; None for a text given inline; a folder of stills may stand for a video.
        member: the path is a zip archive and the track this file in it, or, ending in ``/``, a folder of stills.
        offset: first byte of the slice, for containers such as IDX; in a .gz file it counts unpacked bytes.
        length: bytes in the slice; None for the whole file.
        text: the text itself, for an inline text track.
        rate_hz: sampling rate where the file does not say it (IMU).
        shape: array shape of a raw slice (IDX images are ``(height, width)`` uint8).
    """

    path: Path | None = None
    member: str | None = None
    offset: int = 0
    length: int | None = None
    text: str | None = None
    rate_hz: Hertz | None = None
    shape: tuple[int, ...] | None = None

    def read(self, source: Path) -> bytes:
        """The track's bytes; `source` is the folder that `path` is relative to.

        Raises:
            OSError: the file is absent or unreadable; a .gz is damaged or unpacks to more than 256 MiB.
        """
        if self.path is None:
            return (self.text or "").encode()
        with self.open(source) as file:
            file.seek(self.offset)
            return file.read() if self.length is None else file.read(self.length)

    def chunks(self, source: Path, size: int = 1 << 20) -> Iterator[bytes]:
        """The track's bytes in pieces, so that hashing a multi-hour file takes constant memory."""
        if self.path is None:
            yield (self.text or "").encode()
            return
        path = source / self.path
        if path.is_dir():
            for still in sorted(one for one in path.iterdir() if one.is_file()):
                yield os.fsencode(still.name)
                yield from Track(still.relative_to(source)).chunks(source, size)
            return
        if self.member and self.member.endswith("/"):
            for info in self.members(source):
                yield PurePosixPath(info.filename).name.encode()
                yield from Track(self.path, info.filename).chunks(source, size)
            return
        with self.open(source) as file:
            file.seek(self.offset)
            left = self.length if self.length is not None else -1
            while left and (chunk := file.read(size if left < 0 else min(size, left))):
                left = left - len(chunk) if left > 0 else left
                yield chunk

    def members(self, source: Path) -> list[zipfile.ZipInfo]:
        """The members of the archive that are the track, in order of name; none where it holds no such one.

        Raises:
            OSError: there is no archive, it is damaged, or the members claim to unpack to far more than they take.
        """
        assert self.path is not None and self.member is not None
        _, folders = _archive(source / self.path, (source / self.path).stat().st_mtime_ns)
        folder, _, name = self.member.rpartition("/")
        found = [info for info in folders.get(folder, ()) if not name or info.filename == self.member]
        size = sum(info.file_size for info in found)
        if size > max(MAX_UNPACKED, MAX_RATIO * sum(info.compress_size for info in found)):
            raise OSError(errno.EFBIG, f"{self.member} claims to unpack to {size >> 20} MiB")
        return found

    def open(self, source: Path) -> BinaryIO:
        """The track's file, or its member of an archive, unpacked.

        Raises:
            OSError: it is absent, unreadable or damaged.
        """
        assert self.path is not None
        path = source / self.path
        if self.member is not None:
            archive, _ = _archive(path, path.stat().st_mtime_ns)
            try:
                return cast(BinaryIO, archive.open(self.member))
            except KeyError as error:
                raise FileNotFoundError(errno.ENOENT, "no such member", f"{path}/{self.member}") from error
            except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # an encrypted one, or odd packing
                raise OSError(f"cannot be unpacked: {path.name}/{self.member} ({error})") from error
        if path.suffix != ".gz":
            return open(path, "rb")
        return io.BytesIO(_unpacked(path, path.stat().st_mtime_ns))


@functools.lru_cache(maxsize=8)  # thousands of tracks are read from one archive
def _archive(path: Path, _mtime_ns: int) -> tuple[zipfile.ZipFile, dict[str, list[zipfile.ZipInfo]]]:
    """The opened archive, and its files by folder."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise OSError(f"damaged zip archive: {path.name}") from error
    folders: dict[str, list[zipfile.ZipInfo]] = {}
    for info in sorted(archive.infolist(), key=lambda info: info.filename):
        if not info.is_dir():
            folders.setdefault(info.filename.rpartition("/")[0], []).append(info)
    return archive, folders


@functools.lru_cache(maxsize=2)  # thousands of slices are read from one packed file
def _unpacked(path: Path, _mtime_ns: int) -> bytes:
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_UNPACKED + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(f"damaged gzip: {path.name}") from error
    if len(data) > MAX_UNPACKED:
        raise OSError(errno.EFBIG, f"{path.name} unpacks to more than {MAX_UNPACKED >> 20} MiB; unpack it first")
    return data


@dataclass(frozen=True, slots=True)
class Clip:
    """One window over all tracks of a recording, in seconds from the recording's start; None reaches the end."""

    start_s: Seconds = 0.0
    end_s: Seconds | None = None
    labels: tuple[str, ...] = ()
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Shift:
    """What a recording's signals are put through before they are cut, to make noise or another domain of them.

    Attributes:
        babble: sound that is mixed in: tracks of other recordings, looped to the recording's length.
        snr_db: how many dB the recording is louder than all of them together, over its whole length.
        blur: standard deviation of a Gaussian blur, as a share of the picture's width.
        light: what every pixel is multiplied by.
        drop: modalities that are left out.
    """

    babble: tuple[Track, ...] = ()
    snr_db: float = 0.0
    blur: float = 0.0
    light: float = 1.0
    drop: tuple[Modality, ...] = ()


@dataclass(frozen=True, slots=True)
class Recording:
    """What a reader yields: where a recording's tracks lie and what is known about it.

    Attributes:
        name: what a person calls it (a file name, an utterance id); unique within the data set.
        tracks: one track a modality; a video's own sound is its audio unless an audio track is named.
        clips: the windows to cut; empty lets the format's window decide.
        labels: names, for clips that carry none of their own.
        group: recordings that must share a split (one film, one sentence, one session).
        shift: what its signals are put through; another shift of the same files is another recording.
        fault: why it cannot be cut, where what its list says of it cannot be understood; it goes to quarantine so.
        mute: a video's own sound is left out.
    """

    name: str
    tracks: dict[Modality, Track]
    clips: tuple[Clip, ...] = (Clip(),)
    labels: tuple[str, ...] = ()
    domain: str | None = None
    arrival: str | None = None
    split: Split | None = None
    group: str | None = None
    language: str | None = None
    shift: Shift | None = None
    fault: str | None = None
    mute: bool = False

    def content_id(self, source: Path) -> str:
        """16 hexadecimal digits of the SHA-256 over the tracks' bytes: the recording's identity wherever it lies.

        Raises:
            OSError: a track's file is absent or unreadable.
        """
        digest = hashlib.sha256()
        for modality in sorted(self.tracks):
            digest.update(modality.encode())
            for chunk in self.tracks[modality].chunks(source):
                digest.update(chunk)
        if self.shift is not None:
            # Not which voices babble: they are drawn among those there are, and more may come.
            digest.update(repr(replace(self.shift, babble=())).encode())
        return digest.hexdigest()[:16]


@dataclass(slots=True)
class Sample:
    """A clip's signals as the shard contract holds them, and what was known of it at ingest.

    Attributes:
        key: recording id and window, unique within the data set; holds no dot.
        meta: the JSON member.
        frames: encoded JPEGs in time order.
        audio: int16 ``[T]``, mono, at ``meta["tracks"]["audio"]["rate_hz"]``.
        imu: float32 ``[T, 6]``: acceleration m/s^2 with gravity, angular rate rad/s.
        image: an encoded JPEG or PNG.
        depth: uint16 ``[H, W]``, millimetres, 0 = no return.
        text: the transcript or message.
    """

    key: str
    meta: dict[str, Any]
    frames: list[bytes] = field(default_factory=list)
    audio: np.ndarray | None = None
    imu: np.ndarray | None = None
    image: bytes | None = None
    depth: np.ndarray | None = None
    text: str | None = None

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities present, in the order of `Modality`."""
        present = {
            Modality.VIDEO: bool(self.frames),
            Modality.AUDIO: self.audio is not None,
            Modality.IMU: self.imu is not None,
            Modality.IMAGE: self.image is not None,
            Modality.DEPTH: self.depth is not None,
            Modality.TEXT: self.text is not None,
        }
        return tuple(modality for modality, there in present.items() if there)

    def take(self, modality: Modality, other: Sample) -> None:
        """Put the signal that `other` has of `modality` in the place of this sample's own, if it has one."""
        name = "frames" if modality is Modality.VIDEO else str(modality)
        setattr(self, name, getattr(other, name))
        self.meta["tracks"] = self.meta.get("tracks", {}) | {str(modality): other.meta["tracks"][modality]}


def clip_key(recording: str, start_s: Seconds, end_s: Seconds) -> str:
    """The sample key of a window: recording id and both ends in whole milliseconds."""
    return f"{recording}-{round(start_s * 1000):07d}-{round(end_s * 1000):07d}"


def slug(text: str) -> str:
    """`text` as a file name: lower-case letters, digits and dashes, at most 40 of them."""
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split())[:40] or "x"
