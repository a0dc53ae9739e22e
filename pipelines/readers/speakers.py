"""Spoken digits of six English speakers and of an Arabic set: the same ten classes, a domain a speaker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.readers.digits import WORDS, block_split, fsdd_split, spoken
from store.types import Modality, Recording, Split, Track


def arabic(source: Path, folder: str) -> Iterator[tuple[Split, int, Path]]:
    """Split, digit and path of every Arabic digit: blocks of each digit's recordings, by their index."""
    found = sorted(spoken(source, folder), key=lambda one: (one[0], one[2]))
    counts, place = Counter(digit for digit, *_ in found), Counter[int]()
    for digit, _, _, path in found:
        yield block_split(place[digit], counts[digit]), digit, path
        place[digit] += 1


@dataclass(frozen=True)
class DigitsSpeakers:
    """A folder that holds fsdd and arabic-digits; the latter was augmented upstream, so its splits are blocks."""

    name = "digits-speakers"
    version = 1

    def recordings(self, source: Path) -> Iterator[Recording]:
        """One recording a spoken digit: fsdd by name, then Arabic by digit and index."""
        for digit, speaker, index, path in spoken(source, "fsdd"):
            yield self._recording(path, digit, domain=speaker, split=fsdd_split(index), language="en")
        for split, digit, path in arabic(source, "arabic-digits"):
            yield self._recording(path, digit, domain="arabic", split=split, language="ar")

    def _recording(self, path: Path, digit: int, **known: object) -> Recording:
        return Recording(path.stem, {Modality.AUDIO: Track(path)}, (), labels=(WORDS[digit],), **known)  # type: ignore[arg-type]
