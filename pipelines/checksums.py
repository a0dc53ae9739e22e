"""A source's own list of checksums: what containers without any would hide, it shows."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pipelines.quality import Unfit
from store.types import Recording

LISTS = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "MD5SUMS", "MD5SUMS.txt", "md5sums.txt")
ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}  # by hexadecimal digits
_LINE = re.compile(r"([0-9a-fA-F]+) [ *](?:\./)?(.+)")


class Checksums:
    """What the first of `LISTS` in a source says of its files, as ``sha256sum`` and ``md5sum`` write it."""

    def __init__(self, source: Path):
        self._source, self._told, self._fine = source, dict[str, str](), set[str]()
        self.list = next((name for name in LISTS if (source / name).is_file()), None)
        for line in (source / self.list).read_text(errors="replace").splitlines() if self.list else ():
            if (found := _LINE.fullmatch(line)) and len(found[1]) in ALGORITHMS:
                self._told[found[2]] = found[1].lower()

    def check(self, recording: Recording) -> None:
        """Hold the files of `recording` that the list names against it.

        Raises:
            Unfit: one is another than it says.
            OSError: one cannot be read.
        """
        if not self._told:
            return
        for path in (track.path for track in recording.tracks.values() if track.path):
            folder = self._source / path
            for one in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
                self._check(one.relative_to(self._source).as_posix())

    def _check(self, name: str) -> None:
        told = self._told.get(name)
        if told is None or name in self._fine:
            return
        with open(self._source / name, "rb") as file:
            if hashlib.file_digest(file, ALGORITHMS[len(told)]).hexdigest() != told:
                raise Unfit(f"{name} is not the file that {self.list} names: it was damaged or changed; fetch it again")
        self._fine.add(name)
