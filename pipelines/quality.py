"""What is measured about a recording, and the gate that decides whether it is fit to learn from."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from store.types import PalimpsestError, Seconds

Quality = dict[str, float | int | str]

MAX_GAP: Seconds = 1.0
MAX_GAP_SHARE = 0.1
MAX_ERROR_SHARE = 0.05
LIMIT_S: Seconds = 120.0  # to cut a recording, and a second more for every MiB of it


class Unfit(PalimpsestError):  # noqa: N818 - a verdict, read as one
    """A recording that cannot become samples; the message is the reason, as a person would put it."""


class Deadline:
    """The time that cutting one recording may take; whoever loops over its packets, frames or rows asks for it."""

    def __init__(self, limit_s: Seconds):
        self.limit_s, self._end = limit_s, time.monotonic() + limit_s

    @classmethod
    def of(cls, size: int) -> Deadline:
        """The deadline, from now on, of a recording of `size` bytes."""
        return cls(LIMIT_S + size / (1 << 20))

    @property
    def left_s(self) -> Seconds:
        """What is left of it."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Go on while there is time.

        Raises:
            Unfit: there is none left.
        """
        if time.monotonic() > self._end:
            raise Unfit(f"cutting it took longer than {self.limit_s:.0f} s")


FOREVER = Deadline(math.inf)


def gate(quality: Mapping[str, float | int | str]) -> None:
    """Refuse what decoders pass in silence: cut-off files, damaged frames, tracks of unequal length.

    Args:
        quality: columns as `media` and `clip` write them; absent ones are not judged.

    Raises:
        Unfit: naming the first thing that is wrong.
    """
    number = {name: float(value) for name, value in quality.items() if not isinstance(value, str)}
    declared, video, audio = (number.get(f"{name}_s") for name in ("declared", "video", "audio"))
    longest = max(video or 0.0, audio or 0.0)
    if declared and longest and declared - longest > max(0.2, MAX_GAP_SHARE * declared):
        track = "video" if video else "audio"
        raise Unfit(f"{track} ends after {longest:.1f} of {declared:.1f} s: the file is cut off")
    for name, unit in (("video", "frames"), ("audio", "packets")):
        errors, total = number.get(f"{name}_errors", 0.0), number.get(f"{name}_decoded", 0.0)
        if total and errors > MAX_ERROR_SHARE * total:
            raise Unfit(f"{errors:.0f} of {total:.0f} {name} {unit} are damaged")
    frames, expected = number.get("video_frames", 0.0), number.get("video_frames_declared", 0.0)
    if expected and frames < (1 - MAX_GAP_SHARE) * expected:
        raise Unfit(f"video has {frames:.0f} of {expected:.0f} declared frames: the file is cut off")
    for name, other in (("audio", audio), ("IMU", number.get("imu_s"))):
        if video and other and abs(video - other) > max(MAX_GAP, MAX_GAP_SHARE * max(video, other)):
            first, last = (name, "video") if other < video else ("video", name)
            raise Unfit(f"{first} ends {abs(video - other):.1f} s before the {last}")
