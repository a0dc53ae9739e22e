"""UESTC-MMEA-CL, as the data set unpacks.

The layout::

    video/<N>_<class>/<stem>.mp4      H.264 yuv420p 160x120, 25 fps, silent; stem <N>_<class>_YYYY_MM_DD_HH_MM_SS
    sensor/<N>_<class>/<stem>.csv     no header; acc x y z, gyro x y z in counts, 25 rows a second
    {train,val,test}.txt              rows ``sensor/<N>_<class>/<stem>.csv``
    mydataset_{train,val,test}.txt    rows ``<prefix>/data/<N>_<class>/<stem> frames rows N-1``, no newline at the end

Counts are an MPU's: 8192 to 1 g (gravity always there), 16.4 to 1 degree a second, around a bias that drifts from one
recording to the next; sensor rows equal frames within one. Ten people were recorded, each on a day and in rooms of
their own, and move in their own way. Of the 32 classes, 20 come in fours that share two motions and two sights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.synthesize.imu import Motion, move
from pipelines.synthesize.layouts.writing import Row, Run, clock, write_mp4
from pipelines.synthesize.scene import FPS, any_palette, setting
from pipelines.synthesize.things import show
from store.types import Seconds

# What the sensor feels: see `pipelines.synthesize.imu`.
MOTIONS: dict[str, Motion] = {
    "holding": (0.3, (0.006, 0.01, 0.006), (0, 0, 0), (0.05, 0.12, 0.05)),
    "scribbling": (2.4, (0.02, 0.006, 0.012), (0.003, 0, 0), (0.05, 0.05, 0.25)),
    "wide strokes": (0.75, (0.3, 0.06, 0.16), (0.02, 0, 0), (0.25, 0.2, 0.55)),
    "short strokes": (2.0, (0.06, 0.02, 0.1), (0, 0.02, 0.02), (0.35, 0.05, 0.1)),
    "slow steps": (0.8, (0.04, 0.06, 0.09), (0.01, 0.03, 0.015), (0.35, 0.1, 0.1)),
    "quick steps": (1.25, (0.04, 0.08, 0.05), (0.01, 0.035, 0.03), (0.15, 0.3, 0.1)),
    "scrubbing": (1.6, (0.05, 0.05, 0.01), (0.02, 0.02, 0), (0.1, 0.5, 0.3)),
    "to the mouth": (0.5, (0.03, 0.2, 0.12), (0, 0.02, 0), (0.9, 0.1, 0.2)),
    "at rest": (0.25, (0.003, 0.004, 0.003), (0, 0, 0), (0.02, 0.02, 0.02)),
    "leaning": (0.35, (0.03, 0.15, 0.15), (0, 0.03, 0), (0.5, 0.05, 0.05)),
    "tapping": (3.6, (0.004, 0.012, 0.004), (0, 0.003, 0), (0.12, 0.03, 0.03)),
    "spooning": (0.9, (0.03, 0.15, 0.05), (0.01, 0, 0.03), (0.2, 0.7, 0.2)),
    "stirring": (1.3, (0.09, 0.01, 0.09), (0, 0, 0), (0.1, 0.2, 0.1)),
    "folding": (0.6, (0.28, 0.1, 0.04), (0.1, 0.04, 0), (0.1, 0.9, 0.2)),
    "dealing": (1.8, (0.12, 0.02, 0.02), (0.05, 0, 0), (0.1, 0.1, 0.6)),
    "carrying": (0.95, (0.08, 0.05, 0.04), (0.01, 0.05, 0.01), (0.1, 0.1, 0.35)),
    "pedalling": (1.5, (0.015, 0.03, 0.05), (0.01, 0.015, 0.01), (0.08, 0.08, 0.08)),
    "falling": (0.9, (0.1, 0.1, 0.6), (0.05, 0.05, 0.1), (1.4, 0.6, 0.3)),
    "lifting": (0.8, (0.05, 0.3, 0.1), (0, 0.04, 0), (0.9, 0.1, 0.1)),
    "throwing": (1.1, (0.35, 0.12, 0.05), (0.08, 0.03, 0), (0.2, 0.2, 1.1)),
    "pulling": (0.5, (0.1, 0.05, 0.4), (0, 0, 0.08), (0.1, 1.0, 0.1)),
    "stooping": (0.6, (0.05, 0.4, 0.25), (0, 0.08, 0.02), (1.2, 0.1, 0.2)),
}
_GESTURES = ("falling", "lifting", "throwing", "pulling", "stooping")
# The official folders' order: what an activity feels like, and what is seen of it.
ACTIVITIES = {
    "upstairs": ("slow steps", "stairs"),
    "downstairs": ("quick steps", "stairs"),
    "drinking": ("to the mouth", "kitchen"),
    "fall": ("falling", "floor"),
    "reading": ("holding", "paper"),
    "sweep_floor": ("wide strokes", "crumbs"),
    "cut_fruits": ("short strokes", "crumbs"),
    "mop_floor": ("wide strokes", "gloss"),
    "writing": ("scribbling", "paper"),
    "wipe_table": ("short strokes", "gloss"),
    "wash_hand": ("scrubbing", "basin"),
    "standing": ("at rest", "room"),
    "play_phone": ("holding", "phone"),
    "type_pc": ("tapping", "keys"),
    "eating": ("spooning", "plate"),
    "cooking": ("stirring", "pan"),
    "pick_up_phone": ("lifting", "handset"),
    "drop_trush": ("throwing", "bin"),
    "fold_clothes": ("folding", "cloth"),
    "walking": ("slow steps", "street"),
    "play_card": ("dealing", "cards"),
    "brush_teeth": ("to the mouth", "basin"),
    "wash_dish": ("scrubbing", "kitchen"),
    "moving_sth": ("carrying", "box"),
    "type_phone": ("scribbling", "phone"),
    "chat": ("leaning", "room"),
    "open_close_door": ("pulling", "door"),
    "ride_bike": ("pedalling", "handlebar"),
    "sit_stand": ("leaning", "screen"),
    "take_drop_sth": ("stooping", "shelf"),
    "shopping": ("quick steps", "street"),
    "watch_TV": ("at rest", "screen"),
}
SIGHTS = tuple(dict.fromkeys(sight for _, sight in ACTIVITIES.values()))
ACC_COUNTS, GYRO_COUNTS = 8192 / 9.80665, 16.4 * 180 / np.pi  # to 1 m/s^2, to 1 rad/s
_FAMILY, _PEOPLE = 2, 10
_LISTS = ("train.txt", "val.txt", "test.txt")


def uestc_mmea(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes the UESTC-MMEA-CL layout (see the module) into the empty folder `out`: 3 a class, or fewer classes."""
    activities = list(ACTIVITIES)[: max(1, recordings // 3)]
    each = max(3, round(recordings / len(activities)))
    held, tested = max(1, round(0.1 * each)), max(1, round(0.2 * each))
    parts = np.repeat([0, 1, 2], [each - held - tested, held, tested])
    span = (6.0, 10.0) if each > 3 else (1.6, 2.2)  # the smallest sizes are for tests
    rng = np.random.default_rng([seed, 0])
    jobs: list[Callable[[], Row]] = []
    for label, activity in enumerate(activities):
        folder = f"{label + 1}_{activity}"
        (out / "video" / folder).mkdir(parents=True)
        (out / "sensor" / folder).mkdir(parents=True)
        for number, (part, person) in enumerate(zip(parts, rng.permutation(each) % _PEOPLE, strict=True)):
            at = clock(9 * 3600 + 37 * number + 1100 * label).replace(":", "_")
            stem = f"{folder}_2021_{1 + person:02d}_{10 + person:02d}_{at}"
            draw, seconds = (seed, 1, label, number), rng.uniform(*span)
            jobs.append(partial(_record, out, folder, stem, (seed, 2, int(person)), draw, seconds, int(part)))
    rows = run(jobs)
    for part, name in enumerate(_LISTS):
        listed = [row for row in rows if row["part"] == part]
        plain = "".join(f"sensor/{row['path']}.csv\n" for row in listed)
        counted = "\n".join(f"/mmea/data/{row['path']} {row['frames']} {row['rows']} {row['label']}" for row in listed)
        (out / name).write_text(plain, encoding="utf-8")
        (out / f"mydataset_{name}").write_text(counted, encoding="utf-8")


def _record(
    out: Path, folder: str, stem: str, person: Sequence[int], draw: Sequence[int], seconds: Seconds, part: int
) -> Row:
    """Renders one recording and returns its row of the lists; a person's manner and rooms are drawn from their own."""
    own, rng = np.random.default_rng(person), np.random.default_rng(draw)
    number, activity = folder.split("_", 1)
    feels, sees = ACTIVITIES[activity]
    frames = round(seconds * FPS)
    rows = frames + int(rng.integers(-1, 2))
    pace, size = own.uniform([0.85, 0.8], [1.15, 1.25])
    hue, saturation, value, pattern = any_palette(own)
    frequency, first, second, turn = MOTIONS[feels]
    manner = (pace * frequency, *(tuple(size * one for one in axes) for axes in (first, second, turn)))
    _, felt = move(manner, rng, seconds=(rows + 0.5) / FPS, hz=FPS, gesture=feels in _GESTURES)
    counts = felt[:rows] * np.repeat([ACC_COUNTS, GYRO_COUNTS], 3)
    counts[:, 3:] += rng.normal(0, 60, 3)
    if rng.uniform() < 0.3:  # a misread row, as such sensors have
        counts[int(rng.integers(rows)), int(rng.integers(6))] = rng.choice([-32768, 32767])
    whole = np.rint(counts).clip(-32768, 32767).astype(int)
    lines = "".join(",".join(map(str, row)) + "\n" for row in whole.tolist())
    (out / "sensor" / folder / f"{stem}.csv").write_text(lines, encoding="utf-8")
    room = setting((hue, 0.6 * saturation, value, pattern), "male", rng)
    pulse = np.abs(np.sin(np.pi * pace * frequency * np.arange(frames) / FPS))
    film = show(room, _FAMILY, SIGHTS.index(sees), 0.3 * pulse, rng=rng)
    write_mp4(out / "video" / folder / f"{stem}.mp4", film, None)
    return {"path": f"{folder}/{stem}", "frames": frames, "rows": rows, "label": int(number) - 1, "part": part}
