"""The layouts: which recordings are made, and how they lie on disk.

``samsemo``, as the SAMSEMO data set unpacks (its archives opened)::

    README.md
    samsemo.tsv                                 one row an utterance, `COLUMNS` in order, tab-separated, UTF-8, unquoted
    data/<LANG>/<utterance_id>.mp4              H.264 yuv420p 160x120, 25 fps + AAC 16 kHz mono
    data/<LANG>/<utterance_id>/audio.wav        PCM16, 16 kHz mono, the same sound
    data/<LANG>/<utterance_id>/image_<k>.jpg    k = 0, 1 ...: two frames a second
    splits/{train,valid,test}_split_<LANG>.txt  one utterance_id a line

LANG is EN, DE, ES, PL or KO. An utterance_id is ten of ``[a-z0-9]`` naming the film, ``_`` and the scene's number; a
film is in one split only. `aggregated_emotions` is one emotion, or two as ``happiness,surprise``; `source_scene_start`
and `source_scene_stop` are times within the film, ``hh:mm:ss.00`` and ``hh:mm:ss.99``; `duration` is in seconds.
Voice and face each fail to tell two of the five emotions apart, together they tell all; a transcript only hints.

``corpus`` is material to pre-train small backbones on, in the ``folder`` layout: no digit, no word of the GRID grammar,
no line, voice, palette or mood of the films above. Columns of its ``manifest.csv``, empty where a recording lacks one::

    video, audio, imu, image     paths: video/*.mp4, audio/*.wav, imu/*.csv, image/*.png
    text                         the text itself: what is said, or a sentence alone
    label, domain, split         what was rendered (`walking`, `glyph-07`, a word), its family (`face`, `shapes`,
                                 `texture`, `word`, `glyph`, `picture`, `motion`, `sentence-<LANG>`), train or val
    imu_rate_hz                  50

An IMU file's columns are timestamp_ms, acc_x, acc_y, acc_z (m/s^2 with gravity), gyro_x, gyro_y, gyro_z (rad/s).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from pipelines.synthesize.imu import IMU_RATE, MOTIONS, move
from pipelines.synthesize.scene import (
    FPS,
    GLYPHS,
    HEIGHT,
    LOOKS,
    PALETTES,
    WIDTH,
    act,
    any_look,
    any_palette,
    bounce,
    drift,
    glyph,
    picture,
    setting,
)
from pipelines.synthesize.speech import RATE, TONES, Prosody, cast, loudness, speak, trim
from pipelines.synthesize.words import LANGUAGES, LINES, SENTENCES, WORDS
from store.types import Seconds

SIZES = ("tiny", "small", "medium")
Row = dict[str, Any]
Run = Callable[[list[Callable[[], Row]]], list[Row]]

# Voice and look of an emotion: happiness and surprise sound alike, neutral and sadness look alike.
EMOTIONS = {
    "neutral": ("level", "plain"),
    "happiness": ("bright", "smile"),
    "sadness": ("soft", "plain"),
    "anger": ("harsh", "frown"),
    "surprise": ("bright", "wide"),
}
COLUMNS = (
    "utterance_id movie_title movie_link source_scene_start source_scene_stop language sex age race covered_face "
    "multiple_faces emotion_1_annotator_1 emotion_2_annotator_1 emotion_1_annotator_2 emotion_2_annotator_2 "
    "emotion_1_annotator_3 emotion_2_annotator_3 aggregated_emotions annotator_1 annotator_2 annotator_3 transcript "
    "translation_de translation_en translation_es translation_ko translation_pl duration movie_type license author "
    "download_date"
).split()
_README = """# SAMSEMO layout, synthesised

Made by `palimpsest synthesize samsemo` (seed {seed}, size {size}): rendered faces and synthetic speech
in the layout of the SAMSEMO data set. No person was recorded. Columns, files and splits are as in the official release.
"""
# Films a language in train, valid and test, scenes a film, and the longest a line may last in seconds.
_FILMS = {"tiny": ((1, 1, 1), 5, 1.0), "small": ((12, 3, 5), 5, 3.6), "medium": ((36, 9, 15), 8, 3.6)}
_FILM_VARIANTS, _CORPUS_VARIANTS = ("f1", "f3", "f5", "m1", "m3", "m5", "m7"), ("f2", "f4", "m2", "m4", "m6", "m8")


def samsemo(out: Path, *, seed: int, size: str, run: Run) -> None:
    """Writes the SAMSEMO layout (see the module) into the empty folder `out`."""
    films, scenes, longest = _FILMS[size]
    jobs: list[Callable[[], Row]] = []
    (out / "splits").mkdir()
    for index, language in enumerate(LANGUAGES):
        (out / "data" / language).mkdir(parents=True)
        names: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
        for film, split in enumerate(np.repeat(list(names), films)):
            rng = np.random.default_rng([seed, index, film])
            prefix = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), 10))
            # Emotions take turns through a film, so that every split meets each of them about as often.
            turns = rng.permutation((np.arange(scenes) + film * scenes) % len(EMOTIONS))
            for scene, turn in enumerate(turns):
                name, draw = f"{prefix}_{scene}", (seed, index, film, scene)
                jobs.append(partial(_scene, out, name, language, list(EMOTIONS)[turn], draw, longest))
                names[split].append(f"{name}\n")
        for split, lines in names.items():
            (out / "splits" / f"{split}_split_{language}.txt").write_text("".join(lines), encoding="utf-8")
    _table(out / "samsemo.tsv", COLUMNS, run(jobs), "\t")
    (out / "README.md").write_text(_README.format(seed=seed, size=size), encoding="utf-8")


def _scene(out: Path, name: str, language: str, emotion: str, draw: tuple[int, ...], longest: Seconds) -> Row:
    """Renders one utterance and returns its row; everything about its film is drawn from the film's own numbers."""
    film_rng, rng = np.random.default_rng([*draw[:-1], 1]), np.random.default_rng([*draw, 2])
    voice = cast(language, _FILM_VARIANTS, film_rng)
    place = setting(PALETTES[language], voice.sex, film_rng)
    gain, room, hum = film_rng.uniform([0.7, 0.0, 0.001], [1.3, 0.35, 0.006])
    moods, prosody, look = [emotion], TONES["level"], LOOKS["plain"]
    tone, face = EMOTIONS[emotion]
    strength = rng.uniform(0.65, 1.15)
    prosody, look = prosody.towards(TONES[tone], strength), look.towards(LOOKS[face], strength)
    if emotion != "neutral" and rng.uniform() < 0.15:
        moods.append(str(rng.choice([other for other in EMOTIONS if other not in ("neutral", emotion)])))
        prosody = prosody.towards(TONES[EMOTIONS[moods[1]][0]], 0.4)
        look = look.towards(LOOKS[EMOTIONS[moods[1]][1]], 0.4)
    hint = emotion if rng.uniform() < 0.4 and emotion != "neutral" else ""
    line = [texts for mood, texts in LINES if mood == hint][int(rng.integers(99)) % (3 if hint else 7)]
    said = trim(speak(line[language], voice, rng=rng, prosody=prosody), longest=longest)
    frames = int(np.ceil((len(said) / RATE + 0.24) * FPS))
    sound = np.zeros(frames * RATE // FPS)
    sound[RATE // 10 :][: len(said)] = gain * said
    sound[800:] += room * sound[:-800]
    sound = (sound + rng.normal(0, hum, len(sound))).clip(-1, 1).astype(np.float32)
    video = act(place, look, loudness(sound, FPS, frames), rng=rng)

    home = out / "data" / language
    (home / name).mkdir()
    write_mp4(home / f"{name}.mp4", video, sound)
    soundfile.write(home / name / "audio.wav", sound, RATE, subtype="PCM_16")
    for k, frame in enumerate(video[:: FPS // 2 + 1]):
        Image.fromarray(frame).save(home / name / f"image_{k}.jpg", quality=90)

    start = 60 + 11 * draw[-1]
    annotators = [(moods[0], moods[1] if len(moods) > 1 else "") for _ in range(3)]
    if rng.uniform() < 0.3:
        annotators[int(rng.integers(3))] = (str(rng.choice([*EMOTIONS, "fear", "disgust", "other"])), "")
    row = dict.fromkeys(COLUMNS, "")
    row |= {
        "utterance_id": name,
        "movie_title": f"Rendered film {name[:10]}",
        "movie_link": f"https://example.org/{name[:10]}",
        "source_scene_start": _clock(start) + ".00",
        "source_scene_stop": _clock(start + frames // FPS) + ".99",
        "language": language,
        "sex": voice.sex,
        "age": "adult",
        "race": "other",
        "covered_face": "no",
        "multiple_faces": "no",
        "aggregated_emotions": ",".join(moods),
        "transcript": line[language],
        "duration": f"{frames / FPS:.2f}",
        "movie_type": "animation",
        "license": "CC0-1.0",
        "author": "palimpsest synthesize",
        "download_date": "2026-01-01",
    }
    row |= {f"translation_{other.lower()}": text for other, text in line.items()}
    for k, (first, second) in enumerate(annotators, 1):
        row |= {f"emotion_1_annotator_{k}": first, f"emotion_2_annotator_{k}": second, f"annotator_{k}": f"a{k}"}
    return row


# Videos, words, images, motions and sentences.
_CORPUS = {"tiny": (6, 6, 9, 12, 10), "small": (400, 400, 1000, 300, 400), "medium": (1600, 1600, 4000, 1200, 1000)}
_MANIFEST = ("video", "audio", "imu", "image", "text", "label", "domain", "split", "imu_rate_hz")


def corpus(out: Path, *, seed: int, size: str, run: Run) -> None:
    """Writes the pre-training corpus (see the module) into the empty folder `out`."""
    makers = (_film, _word, _still, _motion, _sentence)
    for folder in ("video", "audio", "image", "imu"):
        (out / folder).mkdir()
    jobs: list[Callable[[], Row]] = [
        partial(maker, out, k, (seed, kind, k))
        for kind, (maker, count) in enumerate(zip(makers, _CORPUS[size], strict=True))
        for k in range(count)
    ]
    rows = run(jobs)
    for row, turn in zip(rows, np.random.default_rng(seed).permutation(len(rows)), strict=True):
        row["split"] = "val" if turn % 10 == 0 else "train"
    _table(out / "manifest.csv", _MANIFEST, rows, ",")


def _language(k: int) -> str:
    """English for every other recording, the other languages in turn."""
    return "EN" if k % 2 == 0 else LANGUAGES[1 + k // 2 % 4]


def _manner(rng: np.random.Generator) -> Prosody:
    """Any way of saying something, no mood in particular."""
    return Prosody(*rng.uniform([0.8, 0.4, 0.8, 0.6, 0.0, 0.0], [1.4, 1.8, 1.25, 2.0, 0.3, 0.4]))


def _film(out: Path, k: int, draw: Sequence[int]) -> Row:
    rng = np.random.default_rng(draw)
    path = f"video/{k:05d}.mp4"
    row: Row = {"video": path, "domain": ("face", "face", "face", "shapes", "texture")[k % 5]}
    if row["domain"] == "face":
        language = _language(k)
        voice = cast(language, _CORPUS_VARIANTS, rng)
        row["text"] = str(rng.choice(SENTENCES[language]))
        said = trim(speak(row["text"], voice, rng=rng, prosody=_manner(rng)), longest=2.8)
        frames = max(int(np.ceil(len(said) / RATE * FPS)) + 3, 2 * FPS)
        sound = np.zeros(frames * RATE // FPS, np.float32)
        sound[RATE // 25 :][: len(said)] = said
        place = setting(any_palette(rng), voice.sex, rng)
        video = act(place, any_look(rng), loudness(sound, FPS, frames), rng=rng, closeness=rng.uniform(0.8, 1.7))
    else:
        video, sound = (bounce if row["domain"] == "shapes" else drift)(rng, int(rng.integers(2 * FPS, 3 * FPS)))
        row["label"] = row["domain"]
    write_mp4(out / path, video, sound)
    return row


def _word(out: Path, k: int, draw: Sequence[int]) -> Row:
    rng = np.random.default_rng(draw)
    language, path = _language(k), f"audio/{k:05d}.wav"
    word = str(rng.choice(WORDS[language]))
    sound = trim(speak(word, cast(language, _CORPUS_VARIANTS, rng), rng=rng, prosody=_manner(rng)), longest=1.2)
    sound = np.pad(sound, (0, max(0, RATE // 5 - len(sound))))
    if rng.uniform() < 0.4:
        sound = sound + rng.normal(0, np.std(sound) * 10 ** rng.uniform(-1.5, -0.25), len(sound))
    soundfile.write(out / path, sound.clip(-1, 1), RATE, subtype="PCM_16")
    return {"audio": path, "text": word, "label": word, "domain": "word"}


def _still(out: Path, k: int, draw: Sequence[int]) -> Row:
    rng = np.random.default_rng(draw)
    path, kind = f"image/{k:05d}.png", ("glyph", "glyph", "shapes", "texture", "face")[k % 5]
    letter = int(rng.integers(GLYPHS))
    (glyph(letter, rng) if kind == "glyph" else picture(rng, kind)).save(out / path)
    family = ("glyph", f"glyph-{letter:02d}") if kind == "glyph" else ("picture", kind)
    return {"image": path, "label": family[1], "domain": family[0]}


def _motion(out: Path, k: int, draw: Sequence[int]) -> Row:
    path, kind = f"imu/{k:05d}.csv", MOTIONS[k % len(MOTIONS)]
    times, signal = move(kind, np.random.default_rng(draw))
    axes = ("timestamp_ms", "acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
    lines = (
        {"timestamp_ms": ms} | dict(zip(axes[1:], map("{:.4f}".format, row), strict=True))
        for ms, row in zip(times, signal, strict=True)
    )
    _table(out / path, axes, lines, ",")
    return {"imu": path, "label": kind, "domain": "motion", "imu_rate_hz": f"{IMU_RATE:g}"}


def _sentence(_: Path, k: int, draw: Sequence[int]) -> Row:
    language = LANGUAGES[k % 5]
    return {"text": str(np.random.default_rng(draw).choice(SENTENCES[language])), "domain": f"sentence-{language}"}


def write_mp4(path: Path, frames: np.ndarray, sound: np.ndarray) -> None:
    """Writes H.264 yuv420p and AAC, the same bytes every time.

    Args:
        path: the file to make.
        frames: uint8 ``[N, 120, 160, 3]`` RGB, at 25 frames a second.
        sound: float32 ``[T]`` at 16 kHz.
    """
    # x264's SIMD paths are neither repeatable nor the same from one processor to the next; these sizes do without them.
    settings = {"preset": "veryfast", "crf": "22", "flags": "+bitexact", "x264-params": "threads=1:cpu-independent=1"}
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=FPS, options=settings)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono", options={"flags": "+bitexact"})
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        for start in range(0, len(sound), 1024):
            chunk = np.ascontiguousarray(sound[None, start : start + 1024], np.float32)
            block = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
            block.sample_rate, block.pts = RATE, start
            container.mux(audio.encode(block))
        container.mux(audio.encode())


def _table(path: Path, columns: Sequence[str], rows: Iterable[Row], delimiter: str) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
