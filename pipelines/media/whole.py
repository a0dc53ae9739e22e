"""Whether a file is as long as its container says: what was cut off in a copy is found without decoding anything."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from pipelines.quality import Unfit

# Lengths that writers who could not go back left in RIFF headers: they mean "to the end".
UNKNOWN_RIFF = 0x7FFFF000
BOXES = {b"ftyp", b"styp", b"sidx", b"moov", b"moof", b"mfra", b"mdat", b"meta", b"uuid", b"free", b"skip", b"wide"}
SEGMENT = b"\x18\x53\x80\x67"


def check(path: Path) -> None:
    """Refuse an mp4 (mov, m4a), mkv (webm), wav or avi that ends before its outermost parts do.

    Raises:
        Unfit: how much of it is there.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        claimed = _claimed(file, size)
    if claimed > size:
        raise Unfit(f"the file is cut off: {size:,} of {claimed:,} bytes are there")


def _claimed(file: BinaryIO, size: int) -> int:
    head = file.read(12)
    if head[4:8] == b"ftyp":
        return _boxes(file, size)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _segments(file, size)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        return _chunks(file, size)
    if head[:4] == b"RIFF":
        length = int.from_bytes(head[4:8], "little")
        return 8 + length if length < UNKNOWN_RIFF else 0
    return 0


def _boxes(file: BinaryIO, size: int) -> int:
    """The end of an ISO file's last box."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(16)
        if len(head) < 8 or head[4:8] not in BOXES:  # something was appended
            return end
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:], "big") if length == 1 else length or size - end
        if length < 8:
            return end
        end += length
    return end


def _segments(file: BinaryIO, size: int) -> int:
    """The end of a Matroska file's segment; a live one has none."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(12)
        width = 9 - head[4].bit_length() if len(head) == 12 and head[4] else 0
        if not width:
            return end
        length = int.from_bytes(head[4 : 4 + width], "big") & (1 << 7 * width) - 1
        if length == (1 << 7 * width) - 1:
            return 0
        end += 4 + width + length
        if head.startswith(SEGMENT):
            return end
    return end


def _chunks(file: BinaryIO, size: int) -> int:
    """The end of a WAV's samples."""
    at = 12
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            return at + 8 + length if length < UNKNOWN_RIFF else 0
        at += 8 + length + length % 2
    return at
