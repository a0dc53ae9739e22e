"""AVE (Tian, Shi, Li, Duan & Xu 2018): ten-second clips of audio-visual events, in the official layout."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers import require
from pipelines.readers.tables import lines, understood
from store.types import Clip, Modality, Recording, Seconds, Split, Track

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

        A row that cannot be understood has a recording with a `fault`, before those of the videos.

        Raises:
            PalimpsestError: there is neither Annotations.txt nor a list, or the first row of one makes no sense.
        """
        faults: list[Recording] = []
        lists = {split: _events(source / name, faults) for split, name in LISTS.items() if (source / name).is_file()}
        table = source / "Annotations.txt"
        if not lists:
            require(table, "an AVE folder holds Annotations.txt, its lists and AVE/")
        rows = _events(table, faults) if table.is_file() else []
        yield from faults
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


def _events(path: Path, faults: list[Recording]) -> list[Event]:
    """The events of one list, which may begin with a header line; what is none of them is added to `faults`."""
    found = list(lines(path))
    headed = bool(found) and found[0][1].startswith("Category&")
    wanted = "Category&VideoID&Quality&Start&End, the last two in whole seconds"
    events = []
    for one in understood(path, found[headed:], _event, wanted, headed=headed):
        if isinstance(one, Recording):
            faults.append(one)
        elif one.end_s != one.start_s:
            events.append(one)
    return events


def _event(_: int, line: str) -> Event:
    category, video, _quality, start, end = line.rsplit("&", 4)  # a category may hold any character, even an &
    return Event(category, video, int(start), int(end))
