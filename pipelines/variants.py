"""Real recordings made worse on purpose: babble, darkness, blur, tracks that drop out; seeded, and fixed at ingest."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

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
            split = _split(found)
            rng = np.random.default_rng(_number(f"{self.seed} {found.name}"))
            variant = self.variants[int(rng.integers(len(self.variants)))]
            shift = Shift(
                babble=self._babble(voices[split], found, variant.talkers, rng) if variant.snr_db is not None else (),
                snr_db=variant.snr_db or 0.0,
                blur=variant.blur,
                light=variant.light,
                drop=variant.drop if rng.uniform() < variant.drop_share else (),
            )
            domain = variant.name if len(self.variants) > 1 else found.domain
            yield replace(found, split=split, domain=domain, shift=None if shift == Shift() else shift)

    def _voices(self, source: Path) -> dict[Split, list[Track]]:
        voices = defaultdict(list)
        for found in self.reader.recordings(source):
            track = found.tracks.get(Modality.AUDIO) or found.tracks.get(Modality.VIDEO)
            if track is not None:
                voices[_split(found)].append(track)
        return voices

    def _babble(
        self, voices: list[Track], found: Recording, talkers: int, rng: np.random.Generator
    ) -> tuple[Track, ...]:
        drawn = (voices[place] for place in rng.choice(len(voices), min(talkers + 1, len(voices)), replace=False))
        return tuple(track for track in drawn if track not in found.tracks.values())[:talkers]


def _split(found: Recording) -> Split:
    return found.split or draw_split(found.group or found.name)


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
