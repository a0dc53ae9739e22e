"""Recordings inside zip archives: their members laid out as files for as long as they are cut."""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipelines.quality import FOREVER, Deadline, Unfit
from store.types import Recording, Track

MAX_MEMBER = 8 << 30


@contextlib.contextmanager
def unpacked(
    recording: Recording, source: Path, deadline: Deadline = FOREVER, scratch: Path | None = None
) -> Iterator[tuple[Recording, Path]]:
    """`recording` with files for tracks, and the folder they are relative to; it is gone when the block ends.

    It lies below `scratch`, or where the system keeps such things; names inside an archive never lead out of it.

    Raises:
        Unfit: the archive is damaged, holds no such member, or takes too long.
    """
    if not any(track.member for track in recording.tracks.values()):
        yield recording, source
        return
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="palimpsest-", dir=scratch) as home:
        tracks = {}
        for modality, track in recording.tracks.items():
            if track.member is None:
                tracks[modality] = replace(track, path=source / track.path if track.path else None)
                continue
            folder = Path(home, modality)
            folder.mkdir()
            for info in track.members(source):
                _extract(Track(track.path, info.filename), source, folder / PurePosixPath(info.filename).name, deadline)
            path = folder if track.member.endswith("/") else folder / PurePosixPath(track.member).name
            tracks[modality] = replace(track, path=path, member=None)
        yield replace(recording, tracks=tracks), Path(home)


def _extract(track: Track, source: Path, target: Path, deadline: Deadline) -> None:
    try:
        with track.open(source) as packed, open(target, "wb") as file:
            while chunk := packed.read(1 << 20):
                deadline.check()
                file.write(chunk)
                if file.tell() > MAX_MEMBER:
                    raise Unfit(f"{track.member} unpacks to more than {MAX_MEMBER >> 30} GiB")
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise Unfit(f"{track.member} in {track.path} is damaged: {error}") from error
