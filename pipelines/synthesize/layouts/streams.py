"""Sets of one stream each, as continual learning uses them: pictures, films, sounds and texts by class.

What they show and play is invented: things of as many kinds as there are classes, each with its colours, its way of
moving and its sound, in other places and other renderings every time. Names of files, tables and splits are those of

- ImageNet-R: ``README.txt`` (a name a class), ``<wnid>/<style>_<n>.jpg``; a style is a domain
- UCF101: ``UCF-101/<Class>/v_<Class>_gGG_cCC.avi`` (MPEG-4 320x240, every other class with MP3 sound),
  ``ucfTrainTestlist/{classInd,trainlist0N,testlist0N}.txt``; films of a group share their place
- ESC-50: ``audio/<fold>-<clip>-<take>-<target>.wav`` (5 s, 44.1 kHz), ``meta/esc50.csv``; a fold has its own noise
- VGGSound: ``vggsound.csv`` without a header, ``video/<id>_<start>.mp4``, shorter than the official 10 s
- Kinetics: ``{train,val}.csv``, ``{train,val}/<label>/<id>_<start>_<end>.mp4``, as short; the same events
- AG News: ``train.csv``, ``test.csv``, ``classes.txt``
"""

from __future__ import annotations

import colorsys
import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import av
import numpy as np
import soundfile
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from pipelines.synthesize.layouts.writing import Row, Run, write_mp4, write_table
from pipelines.synthesize.scene import FPS, any_palette, setting
from pipelines.synthesize.sounds import SOUNDS, Sound, murmur, play
from pipelines.synthesize.speech import RATE, loudness
from pipelines.synthesize.things import show

STYLES = ("art", "cartoon", "embroidery", "painting", "sketch", "videogame")
ACTIONS = """ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BaseballPitch Basketball
    BasketballDunk BenchPress Biking Billiards BlowDryHair BlowingCandles BodyWeightSquats Bowling BoxingPunchingBag
    BoxingSpeedBag BreastStroke BrushingTeeth CleanAndJerk CliffDiving CricketBowling CricketShot""".split()
NOISES = """dog rooster pig cow frog cat hen insects sheep crow rain sea_waves crackling_fire crickets chirping_birds
    water_drops wind pouring_water toilet_flush thunderstorm crying_baby sneezing clapping breathing coughing footsteps
    laughing brushing_teeth snoring drinking_sipping door_wood_knock mouse_click keyboard_typing door_wood_creaks
    can_opening washing_machine vacuum_cleaner clock_alarm clock_tick glass_breaking helicopter chainsaw siren car_horn
    engine train church_bells airplane fireworks hand_saw""".split()
ESC10 = {"dog", "rooster", "rain", "sea_waves", "crackling_fire", "crying_baby", "sneezing", "clock_tick"}
ESC10 |= {"helicopter", "chainsaw"}
EVENTS = """playing violin, fiddle/dog barking/church bell ringing/train horning/chainsawing trees/helicopter
    playing acoustic guitar/toilet flushing/people clapping/horse clip-clop/race car, auto racing/fireworks banging
    playing ukulele/ambulance siren/rope skipping/typing on computer keyboard/ocean burbling/owl hooting
    playing flute/lathe spinning"""
_RATE = 44_100


def imagenet_r(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes ImageNet-R's layout into the empty folder `out`: 20 images a class, six styles in turn."""
    classes = min(200, max(4, recordings // 20))
    wnids = [f"n9{k:07d}" for k in range(classes)]
    (out / "README.txt").write_text("".join(f"{wnid} thing {k}\n" for k, wnid in enumerate(wnids)))
    for wnid in wnids:
        (out / wnid).mkdir()
    run([
        partial(_rendition, out / wnids[k % classes], k % classes, k // classes, (seed, 1, k))
        for k in range(max(recordings, classes))
    ])  # fmt: skip


def _rendition(folder: Path, kind: int, number: int, draw: tuple[int, ...]) -> Row:
    rng = np.random.default_rng(draw)
    style = STYLES[number % len(STYLES)]
    picture = _portrait(kind, rng)
    if style == "art":
        picture = ImageOps.posterize(ImageEnhance.Color(picture).enhance(2.0), 2)
    elif style == "cartoon":
        lines = ImageOps.invert(picture.convert("L").filter(ImageFilter.FIND_EDGES)).point(lambda v: 255 * (v > 225))
        picture = ImageChops.multiply(ImageOps.posterize(picture, 3), lines.convert("RGB"))
    elif style == "embroidery":
        y, x = np.mgrid[: picture.height, : picture.width]
        threads = np.where((x + y) % 4 < 2, 255, 150).astype(np.uint8)
        picture = ImageChops.multiply(picture, Image.fromarray(threads).convert("RGB"))
    elif style == "painting":
        picture = picture.filter(ImageFilter.ModeFilter(7))
    elif style == "sketch":
        picture = ImageOps.autocontrast(ImageOps.invert(picture.convert("L").filter(ImageFilter.FIND_EDGES)), cutoff=1)
    else:
        picture = picture.reduce(5).resize(picture.size, Image.Resampling.NEAREST)
    picture.convert("RGB").save(folder / f"{style}_{number}.jpg", quality=88)
    return {}


def _portrait(kind: int, rng: np.random.Generator) -> Image.Image:
    """A thing of a kind in the middle of some place, RGB 120 x 120: three blobs in each other, as its kind has them."""
    own = np.random.default_rng([61, kind])
    image = Image.fromarray(setting(any_palette(rng), "female", rng).backdrop).crop((40, 40, 280, 280))
    draw = ImageDraw.Draw(image)
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    turn, radius, middle = rng.normal(0, 0.2), rng.uniform(70, 105), rng.normal(120, 10, 2)
    hue, shade = own.uniform() + rng.normal(0, 0.02), rng.uniform(0.8, 1.1)
    for size in (1.0, 0.55, 0.25):
        depths, phases, centre = own.uniform(0, 0.3, 4), own.uniform(0, 2 * np.pi, 4), own.uniform(-0.45, 0.45, 2)
        waves = 1 + (depths * np.cos(np.arange(2, 6) * angle[:, None] + phases)).sum(axis=1)
        x = size * waves * np.cos(angle) + (1 - size) * centre[0]
        y = size * waves * np.sin(angle) + (1 - size) * centre[1]
        along, down = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
        colour = colorsys.hsv_to_rgb(hue % 1, own.uniform(0.5, 1.0), min(1.0, shade * own.uniform(0.3, 1.0)))
        outline = [(middle[0] + radius * px, middle[1] + radius * py) for px, py in zip(along, down, strict=True)]
        draw.polygon(outline, fill=tuple(int(255 * part) for part in colour))
        hue += own.uniform(0.2, 0.8)
    return image.reduce(2)


def ucf101(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes UCF101's layout into the empty folder `out`: 4 classes at least, groups spread over the 25."""
    classes = ACTIONS[: min(len(ACTIONS), max(4, recordings // 10))]
    films = max(6, recordings // len(classes))
    lists = out / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{k} {name}\n" for k, name in enumerate(classes, start=1)))
    named: list[tuple[int, int, str]] = []
    jobs: list[Callable[[], Row]] = []
    for kind, label in enumerate(classes):
        (out / "UCF-101" / label).mkdir(parents=True)
        seen: dict[int, int] = {}
        for film in range(films):
            group = 1 + film * 25 // films if films <= 25 else 1 + film % 25
            seen[group] = seen.get(group, 0) + 1
            name = f"{label}/v_{label}_g{group:02d}_c{seen[group]:02d}.avi"
            named.append((kind, group, name))
            jobs.append(partial(_action, out / "UCF-101" / name, kind, (seed, 2, group), (seed, 2, kind, film)))
    for split in (1, 2, 3):
        tested = range(7 * split - 6, 7 * split + 1)
        train = (f"{name} {kind + 1}\n" for kind, group, name in named if group not in tested)
        test = (f"{name}\n" for _, group, name in named if group in tested)
        (lists / f"trainlist0{split}.txt").write_text("".join(train))
        (lists / f"testlist0{split}.txt").write_text("".join(test))
    run(jobs)


def _action(path: Path, kind: int, group: tuple[int, ...], draw: tuple[int, ...]) -> Row:
    home, rng = np.random.default_rng(group), np.random.default_rng(draw)
    place = setting(any_palette(home), "female", home)
    frames = int(rng.integers(28, 44))
    sound = _heard(kind, rng, frames / FPS, murmur(home, frames / FPS)) if kind % 2 == 0 else None
    pulse = np.zeros(frames) if sound is None else loudness(sound, FPS, frames)
    _write_avi(path, show(place, 62, kind, pulse, rng=rng).repeat(2, axis=1).repeat(2, axis=2), sound)
    return {}


def esc50(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes ESC-50's layout into the empty folder `out`: 4 classes at least, each in all five folds."""
    classes = NOISES[: min(50, max(4, recordings // 20))]
    takes = max(1, round(recordings / len(classes) / 5))
    (out / "audio").mkdir()
    (out / "meta").mkdir()
    jobs: list[Callable[[], Row]] = [
        partial(_noise, out / "audio", kind, fold, (seed, 3, kind, fold, take))
        for fold in range(1, 6)
        for kind in range(len(classes))
        for take in range(takes)
    ]
    columns = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    write_table(out / "meta" / "esc50.csv", columns, run(jobs), ",")


def _noise(folder: Path, kind: int, fold: int, draw: tuple[int, ...]) -> Row:
    rng, place = np.random.default_rng(draw), np.random.default_rng((*draw[:2], fold))
    sound = _heard(kind, rng, 5.0, murmur(place, 5.0))
    sound = np.interp(np.arange(5 * _RATE) / _RATE, np.arange(len(sound)) / RATE, sound)
    source, take = str(100_000 + 97 * fold + 1009 * kind + 11 * draw[-1]), "ABCDEFGH"[draw[-1] % 8]
    name = f"{fold}-{source}-{take}-{kind}.wav"
    soundfile.write(folder / name, sound, _RATE, subtype="PCM_16")
    row = {"filename": name, "fold": fold, "target": kind, "category": NOISES[kind]}
    return row | {"esc10": NOISES[kind] in ESC10, "src_file": source, "take": take}


def vggsound(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes VGGSound's layout into the empty folder `out`: 4 classes at least, every fourth clip for the test."""
    (out / "video").mkdir()
    jobs: list[Callable[[], Row]] = []
    rows = []
    for number, kind, event in _events(recordings):
        video, start = _online(draw := (seed, 4, kind, number))
        rows.append((video, start, event, "test" if number % 4 == 3 else "train"))
        jobs.append(partial(_event, out / "video" / f"{video}_{start:06d}.mp4", kind, (*draw, 1)))
    _write_csv(out / "vggsound.csv", rows)
    run(jobs)


def kinetics(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes Kinetics' layout into the empty folder `out`: 4 classes at least, every fourth clip for val."""
    jobs: list[Callable[[], Row]] = []
    columns = ("label", "youtube_id", "time_start", "time_end", "split")
    tables: dict[str, list[tuple[object, ...]]] = {"train": [columns], "val": [columns]}
    for number, kind, event in _events(recordings):
        video, start = _online(draw := (seed, 11, kind, number))
        part = "val" if number % 4 == 3 else "train"
        tables[part].append((event, video, start, start + 10, part))
        (out / part / event).mkdir(parents=True, exist_ok=True)
        jobs.append(partial(_event, out / part / event / f"{video}_{start:06d}_{start + 10:06d}.mp4", kind, (*draw, 1)))
    for part, rows in tables.items():
        _write_csv(out / f"{part}.csv", rows)
    run(jobs)


def _events(recordings: int) -> list[tuple[int, int, str]]:
    """Every clip: its number within its class, the class and what it is called."""
    names = [name.strip() for name in EVENTS.replace("\n", "/").split("/")]
    names = names[: min(len(names), max(4, recordings // 12))]
    return [(k, kind, name) for k in range(max(4, recordings // len(names))) for kind, name in enumerate(names)]


def _online(draw: tuple[int, ...]) -> tuple[str, int]:
    """A video's id, which may begin with a dash, and the second at which the clip begins."""
    rng = np.random.default_rng(draw)
    letters = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    dash = "-" * (draw[-1] == draw[-2] == 0)
    return dash + "".join(rng.choice(letters, 11 - len(dash))), int(rng.integers(0, 300))


def _event(path: Path, kind: int, draw: tuple[int, ...]) -> Row:
    rng = np.random.default_rng(draw)
    frames = int(rng.integers(2 * FPS, 3 * FPS))
    sound = _heard(kind, rng, frames / FPS, murmur(rng, frames / FPS))
    place = setting(any_palette(rng), "female", rng)
    write_mp4(path, show(place, 63, kind, loudness(sound, FPS, frames), rng=rng, clutter=4), sound)
    return {}


def _heard(kind: int, rng: np.random.Generator, seconds: float, around: np.ndarray) -> np.ndarray:
    """The sound of a kind of thing in the noise `around` it, float32 ``[T]`` at 16 kHz."""
    known = list(SOUNDS.values())
    sound: Sound = known[kind % len(known)]
    turn = kind // len(known)  # further kinds sound higher and faster
    low, high = sound.pitch
    sound = replace(sound, pitch=(low * 1.6**turn, high * 1.6**turn), beat=sound.beat * 1.4**turn)
    loud = rng.uniform(0.6, 1.2)
    return (loud * play(sound, rng, seconds) + rng.uniform(0.2, 0.6) * around).clip(-1, 1).astype(np.float32)


def _write_avi(path: Path, frames: np.ndarray, sound: np.ndarray | None) -> None:
    """Writes MPEG-4 and, with a sound at 16 kHz, MP3; the same bytes every time."""
    exact = {"flags": "+bitexact"}
    with av.open(str(path), "w", format="avi", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("mpeg4", rate=FPS, options=exact | {"threads": "1", "g": "12"})
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        video.bit_rate = 900_000
        audio = None if sound is None else container.add_stream("libmp3lame", rate=RATE, layout="mono", options=exact)
        block = RATE // FPS
        for number, image in enumerate(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            if audio is not None and sound is not None:
                chunk = np.ascontiguousarray(sound[None, number * block : (number + 1) * block], np.float32)
                heard = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
                heard.sample_rate, heard.pts = RATE, number * block
                container.mux(audio.encode(heard))
        container.mux(video.encode())
        if audio is not None:
            container.mux(audio.encode())


TOPICS = {
    "World": "president/parliament/ceasefire/refugees/embassy/border talks/election/peacekeepers|"
    "signs/rejects/debates/announces|treaty/sanctions/a coalition/new borders",
    "Sports": "striker/coach/rookie pitcher/home team/champion/goalkeeper/sprinter/quarterback|"
    "wins/loses/scores in/misses|the final/extra time/the league opener/a playoff game",
    "Business": "shares/oil prices/retailer/central bank/airline/investors/chipmaker profits/the dollar|"
    "rise after/fall before/await/shrug off|quarterly earnings/a merger/rate decision/job figures",
    "Sci/Tech": "telescope/browser/researchers/a new virus/satellite/software giant/robot/genome project|"
    "discovers/patches/launches/maps|a security flaw/distant planets/faster networks/stem cells",
}
_TEMPLATES = (
    ("{who} {does} {what}", "{place} ({wire}) - The {who} {does} {what} on {day}, officials said."),
    ("{what}: {who} {does}", '{wire} - "{who} {does} {what}," a spokesman said\\nin {place} {day}.'),
    ("{day} in {place}: {who}", "What happened in {place}? The {who} {does} {what}; more follows {day}."),
)
_COMMON = {
    "place": "LONDON/TOKYO/BERLIN/NEW YORK/SYDNEY/NAIROBI".split("/"),
    "wire": "Reuters/AP/AFP".split("/"),
    "day": "Monday/Tuesday/Wednesday/Thursday/Friday".split("/"),
}


def ag_news(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes AG News' layout into the empty folder `out`: four topics, three kinds of report."""
    del run  # texts take no time
    topics = list(TOPICS)
    (out / "classes.txt").write_text("".join(f"{topic}\n" for topic in topics))
    rows: dict[str, list[tuple[int, str, str]]] = {"train": [], "test": []}
    for k in range(max(24, recordings)):
        rng = np.random.default_rng((seed, 6, k))
        # Two parts of three belong to the topic, often all: no single word settles what a report is about.
        topic = k % 4
        parts = [part.split("/") for part in TOPICS[topics[topic]].split("|")]
        if rng.uniform() < 0.6:
            stray = int(rng.integers(3))
            parts[stray] = TOPICS[topics[int(rng.integers(4))]].split("|")[stray].split("/")
        said = dict(zip(("who", "does", "what"), (str(rng.choice(part)) for part in parts), strict=True))
        said |= {name: str(rng.choice(values)) for name, values in _COMMON.items()}
        title, text = _TEMPLATES[int(rng.integers(len(_TEMPLATES)))]
        title = title.format(**said)
        rows["test" if k // 4 % 6 == 5 else "train"].append(
            (topic + 1, title[0].upper() + title[1:], text.format(**said))
        )
    for part, lines in rows.items():
        _write_csv(out / f"{part}.csv", lines, quoting=csv.QUOTE_ALL)


def _write_csv(path: Path, rows: Iterable[Sequence[object]], *, quoting: Literal[0, 1] = csv.QUOTE_MINIMAL) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=quoting, lineterminator="\n").writerows(rows)
