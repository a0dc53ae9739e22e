"""Real recordings made worse on purpose: babble, darkness, blur, tracks that drop out; seeded, and fixed at ingest."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.clip import inside
from pipelines.readers import Reader, draw_split
from store.types import Modality, Recording, Shift, Split, Track


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way of making recordings worse; without settings they stay as they are.

    Attributes:
        name: what it is called; the domain of its recordings where a recipe has several variants.
        snr_db: loudness of the recording's own sound over babble of other ones of its split, in dB; None for none.
        talkers: how many others babble.
        blur: standard deviation of a Gaussian blur, as a share of the picture's width.
        light: what every pixel is multiplied by.
        drop: tracks that are left out.
        drop_share: of how many recordings, drawn by their name.
    """

    name: str = "clean"
    snr_db: float | None = None
    talkers: int = 6
    blur: float = 0.0
    light: float = 1.0
    drop: tuple[Modality, ...] = ()
    drop_share: float = 1.0

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


@dataclass(frozen=True)
class Varied:
    """The recordings of another reader, each in one of several variants, drawn by its name.

    Babble is drawn among the recordings that lie there at that time; a known recording keeps what it was given.

    Attributes:
        reader: finds the recordings.
        variants: what they are put through.
        seed: which recording gets which variant, which babble, and whether its tracks drop out.
    """

    reader: Reader
    variants: tuple[Variant, ...]
    seed: int = 0

    @property
    def name(self) -> str:
        """As the reader's own."""
        return self.reader.name

    @property
    def version(self) -> int:
        """As the reader's own."""
        return self.reader.version

    def recordings(self, source: Path) -> Iterator[Recording]:
        """The reader's recordings, in its order, with splits drawn and shifts attached."""
        voices = self._voices(source) if any(variant.snr_db is not None for variant in self.variants) else {}
        for found in self.reader.recordings(source):
            owner = _owner(found, source)
            split = found.split or draw_split(owner)
            rng = np.random.default_rng(_number(f"{self.seed} {found.name if found.split or found.group else owner}"))
            variant = self.variants[int(rng.integers(len(self.variants)))]
            drop = variant.drop if rng.uniform() < variant.drop_share else ()
            # Drawn last, for it depends on who else is there.
            babble = self._babble(voices[split], found, variant.talkers, rng) if variant.snr_db is not None else ()
            shift = Shift(babble, variant.snr_db or 0.0, variant.blur, variant.light, drop)
            domain = variant.name if len(self.variants) > 1 else found.domain
            yield replace(found, split=split, domain=domain, shift=None if shift == Shift() else shift)

    def _voices(self, source: Path) -> dict[Split, list[Track]]:
        """What can be heard in each split, as far as it lies there."""
        voices = defaultdict(list)
        for found in self.reader.recordings(source):
            track = found.tracks.get(Modality.AUDIO) or found.tracks.get(Modality.VIDEO)
            if track and track.path and inside(source / track.path, source) and (source / track.path).is_file():
                voices[found.split or draw_split(_owner(found, source))].append(track)
        return voices

    def _babble(
        self, voices: list[Track], found: Recording, talkers: int, rng: np.random.Generator
    ) -> tuple[Track, ...]:
        drawn = (voices[place] for place in rng.choice(len(voices), min(talkers + 1, len(voices)), replace=False))
        return tuple(track for track in drawn if track not in found.tracks.values())[:talkers]


def _owner(found: Recording, source: Path) -> str:
    """What a split is drawn by: copies of one content belong together, as a plain ingest has it."""
    if found.split or found.group:
        return found.group or found.name
    try:
        return found.content_id(source)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError):
        return found.name  # it cannot be read, and will be refused


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
