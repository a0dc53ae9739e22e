"""AVE (Tian, Shi, Li, Duan & Xu 2018): ten-second clips of audio-visual events, in the official layout."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers import require
from store.types import Clip, Modality, PalimpsestError, Recording, Seconds, Split, Track

LISTS = {Split.TRAIN: "trainSet.txt", Split.VAL: "valSet.txt", Split.TEST: "testSet.txt"}
LENGTH: Seconds = 10.0
STILLS_HZ = 3.0


@dataclass(frozen=True, slots=True)
class Event:
    """A row of a list: `category`, and when it is both seen and heard in video `video`."""

    category: str
    video: str
    start_s: Seconds
    end_s: Seconds


@dataclass(frozen=True)
class Ave:
    """`Annotations.txt`, `trainSet.txt`, `valSet.txt`, `testSet.txt` and `AVE/<VideoID>.mp4`.

    Stills and sound in `video_frames/<VideoID>/` (3 a second) and `raw_audio/<VideoID>.wav` stand for an mp4 that is
    not there. Rows of no length name no event and are left out. A video in several lists belongs, with all its events,
    to the last of train, val and test, so that nothing is tested that was learned; one in none of them draws its split.

    Attributes:
        events: `all` of a video, or `one`: the first that its list names, as in class-incremental protocols.
        window: `event` cuts from an event's start to its end, `video` takes the whole video.
    """

    events: str = "all"
    window: str = "event"
    name = "ave"
    version = 1

    def __post_init__(self) -> None:
        if self.events not in ("all", "one"):
            raise ValueError(f"events is {self.events!r}; it must be all or one")
        if self.window not in ("event", "video"):
            raise ValueError(f"window is {self.window!r}; it must be event or video")

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a video, in the order of Annotations.txt; its events are clips with labels of their own.

        Raises:
            PalimpsestError: there is neither Annotations.txt nor a list, or a row of one cannot be understood.
        """
        lists = {split: list(_events(source / name)) for split, name in LISTS.items() if (source / name).is_file()}
        table = source / "Annotations.txt"
        if not lists:
            require(table, "an AVE folder holds Annotations.txt, its lists and AVE/")
        rows = list(_events(table)) if table.is_file() else []
        splits = {event.video: split for split, listed in lists.items() for event in listed}
        first = [event for split, listed in lists.items() for event in listed if splits[event.video] == split]
        events: dict[str, dict[Event, None]] = {}  # in order, the same one once
        for event in itertools.chain(first, rows, *lists.values()):
            events.setdefault(event.video, {})[event] = None
        for video in dict.fromkeys(itertools.chain((event.video for event in rows), events)):
            found = list(events[video])[: 1 if self.events == "one" else None]
            yield Recording(
                video,
                _tracks(source, video),
                tuple(self._clip(event) for event in found),
                split=splits.get(video),
            )

    def _clip(self, event: Event) -> Clip:
        # The tenth second ends with the file, be that a little earlier or later.
        whole = self.window == "video"
        end = None if whole or event.end_s == LENGTH else event.end_s
        return Clip(0.0 if whole else event.start_s, end, (event.category,))


def _tracks(source: Path, video: str) -> dict[Modality, Track]:
    path, stills = Path("AVE", f"{video}.mp4"), Path("video_frames", video)
    if (source / path).is_file() or not (source / stills).is_dir():
        return {Modality.VIDEO: Track(path)}
    sound = Path("raw_audio", f"{video}.wav")
    return {Modality.VIDEO: Track(stills, rate_hz=STILLS_HZ), Modality.AUDIO: Track(sound)}


def _events(path: Path) -> Iterator[Event]:
    """The events of one list, which may begin with a header line; a category may hold any character, even an &."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip() or (number == 1 and line.startswith("Category&")):
                continue
            try:
                category, video, _, start, end = line.strip().rsplit("&", 4)
                event = Event(category, video, int(start), int(end))
            except ValueError as error:
                raise PalimpsestError(
                    f"{path} line {number} is {line.strip()[:120]!r}; it must be Category&VideoID&Quality&Start&End, "
                    "the last two in whole seconds"
                ) from error
            if event.end_s != event.start_s:
                yield event
