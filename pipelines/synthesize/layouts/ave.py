"""AVE, as the data set unpacks.

The layout::

    AVE/<VideoID>.mp4    H.264 yuv420p 160x120, 25 fps + AAC 16 kHz mono; 10 s (2 s in the smallest sizes)
    Annotations.txt      Category&VideoID&Quality&StartTime&EndTime, a header line, then a row an event, by class
    trainSet.txt, valSet.txt, testSet.txt    rows of the same form without a header
    ReadMe.txt

A VideoID is eleven of ``[A-Za-z0-9_-]``; the first begins with ``-``. One video bears two events of two classes, one
in trainSet.txt and one in testSet.txt, and one row has no length. Events are both seen and heard from StartTime to
EndTime, in whole seconds, over the noise of a place. Of the 28 classes, 16 come in fours that share two sounds and two
looks, and male and female speech one look: neither ear nor eye alone tells all of them, together they do.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.synthesize.layouts.writing import Row, Run, write_mp4
from pipelines.synthesize.scene import FPS, act, any_look, any_palette, setting
from pipelines.synthesize.sounds import SOUNDS, murmur, play
from pipelines.synthesize.speech import RATE, cast, loudness, speak, trim
from pipelines.synthesize.things import show
from pipelines.synthesize.words import LANGUAGES, SENTENCES

# What a class sounds and looks like; a look is a thing of `pipelines.synthesize.things`, or a face.
CLASSES = {
    "Church bell": ("bell", "tower"),
    "Male speech, man speaking": ("man", "face"),
    "Bark": ("yelp", "pet"),
    "Fixed-wing aircraft, airplane": ("jet", "wings"),
    "Race car, auto racing": ("revs", "passing"),
    "Female speech, woman speaking": ("woman", "face"),
    "Helicopter": ("chop", "rotor"),
    "Violin, fiddle": ("reed", "slender"),
    "Flute": ("breath", "slender"),
    "Ukulele": ("bright strings", "waisted"),
    "Frying (food)": ("crackle", "pan"),
    "Truck": ("diesel", "passing"),
    "Shofar": ("breath", "bulky"),
    "Motorcycle": ("revs", "standing"),
    "Acoustic guitar": ("warm strings", "waisted"),
    "Train horn": ("horn", "train"),
    "Clock": ("tick", "dial"),
    "Banjo": ("warm strings", "round"),
    "Goat": ("yelp", "cradled"),
    "Baby cry, infant cry": ("wail", "cradled"),
    "Bus": ("diesel", "standing"),
    "Chainsaw": ("saw", "blade"),
    "Cat": ("wail", "pet"),
    "Horse": ("hoofs", "rider"),
    "Toilet flush": ("flush", "bowl"),
    "Rodents, rats, mice": ("squeak", "burrow"),
    "Accordion": ("reed", "bulky"),
    "Mandolin": ("bright strings", "round"),
}
LOOKS = tuple(dict.fromkeys(look for _, look in CLASSES.values() if look != "face"))
_FAMILY = 1
_VARIANTS = {"man": ("m1", "m3", "m5", "m7"), "woman": ("f1", "f3", "f5")}
_LISTS = ("trainSet.txt", "valSet.txt", "testSet.txt")
_README = """AVE layout, synthesised

Made by `palimpsest synthesize ave` (seed {seed}): invented things and synthetic sounds
in the layout of the AVE data set.
"""
Event = tuple[str, int, int]  # category, first second, last


def ave(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes the AVE layout (see the module) into the empty folder `out`: three videos a class, or fewer classes."""
    classes = list(CLASSES)[: max(1, recordings // 3)]
    each = max(3, round(recordings / len(classes)))
    seconds = 10 if each > 3 else 2  # the smallest sizes are for tests
    held, tested = max(1, round(0.1 * each)), max(1, round(0.2 * each))
    parts = np.repeat([0, 1, 2], [each - held - tested, held, tested])
    (out / "AVE").mkdir()
    rng = np.random.default_rng([seed, 0])
    names = _names(rng, len(classes) * each + 2)
    lists: tuple[list[str], ...] = ([], [], [])
    jobs: list[Callable[[], Row]] = []

    def film(events: Sequence[Event], places: Sequence[int]) -> list[str]:
        name = next(names)
        jobs.append(partial(_film, out, name, events, seconds, (seed, 1, len(jobs))))
        rows = [f"{category}&{name}&good&{start}&{end}\n" for category, start, end in events]
        for row, place in zip(rows, places, strict=True):
            lists[place].append(row)
        return rows

    table = [row for category in classes for part in parts for row in film([_event(category, seconds, rng)], [part])]
    table += film([("Male speech, man speaking", 0, seconds // 2), ("Acoustic guitar", seconds // 2, seconds)], [0, 2])
    table += film([("Bus", 0, 0)], [0])
    order = list(CLASSES).index
    for name, rows in zip(("Annotations.txt", *_LISTS), (table, *lists), strict=True):
        rows = sorted(rows, key=lambda row: order(row.split("&")[0]))
        head = "Category&VideoID&Quality&StartTime&EndTime\n" if name == "Annotations.txt" else ""
        (out / name).write_text(head + "".join(rows), encoding="utf-8")
    (out / "ReadMe.txt").write_text(_README.format(seed=seed), encoding="utf-8")
    run(jobs)


def _names(rng: np.random.Generator, count: int) -> Iterator[str]:
    letters = list(string.ascii_letters + string.digits + "_-")
    names = dict.fromkeys("".join(rng.choice(letters, 11)) for _ in range(count))
    assert len(names) == count
    first, second, *rest = names
    return iter((f"-{first[1:]}", f"_{second[1:]}", *rest))


def _event(category: str, seconds: int, rng: np.random.Generator) -> Event:
    """Two events in three last as long as the video."""
    if rng.uniform() < 0.66:
        return category, 0, seconds
    start = int(rng.integers(0, seconds - seconds // 3))
    return category, start, int(rng.integers(start + max(1, seconds // 3), seconds + 1))


def _film(out: Path, name: str, events: Sequence[Event], seconds: int, draw: Sequence[int]) -> Row:
    """Renders one video: its events one after the other, each in a shot of its own."""
    rng = np.random.default_rng(draw)
    hue, saturation, value, pattern = any_palette(rng)
    place = setting((hue, 0.4 * saturation, value, pattern), str(rng.choice(["female", "male"])), rng)
    sound = murmur(rng, seconds) * 10 ** -rng.uniform(0.1, 0.7)
    shots = []
    for number, (category, start, end) in enumerate(events):
        tone, look = CLASSES[category]
        own = np.zeros(seconds * RATE, np.float32)
        if end > start:
            own[start * RATE : end * RATE] = _heard(tone, end - start, rng) * rng.uniform(0.6, 1.5)
        sound = sound + own
        pulse = loudness(own, FPS, seconds * FPS)
        if look == "face":
            shot = act(place, any_look(rng), pulse, rng=rng)
        else:
            second = np.arange(seconds * FPS) // FPS
            there = (start <= second) & (second < end)
            shot = show(place, _FAMILY, LOOKS.index(look), pulse, rng=rng, present=there)
        first, last = (0 if number == 0 else start, seconds if number == len(events) - 1 else end)
        shots.append(shot[first * FPS : last * FPS])
    write_mp4(out / "AVE" / f"{name}.mp4", np.concatenate(shots), sound.clip(-1, 1).astype(np.float32))
    return {}


def _heard(tone: str, seconds: int, rng: np.random.Generator) -> np.ndarray:
    if tone in SOUNDS:
        return play(SOUNDS[tone], rng, seconds)
    language = str(rng.choice(LANGUAGES))
    voice, said = cast(language, _VARIANTS[tone], rng), np.zeros(0, np.float32)
    while len(said) < seconds * RATE:
        text = str(rng.choice(SENTENCES[language]))
        said = np.concatenate([said, trim(speak(text, voice, rng=rng)), np.zeros(RATE // 8, np.float32)])
    return 1.5 * said[: seconds * RATE]
