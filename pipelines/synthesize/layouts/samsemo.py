"""SAMSEMO, as the data set unpacks, its archives opened.

The layout::

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
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from pipelines.synthesize.layouts.writing import Row, Run, clock, write_mp4, write_table
from pipelines.synthesize.scene import FPS, LOOKS, PALETTES, act, setting
from pipelines.synthesize.speech import RATE, TONES, cast, loudness, speak, trim
from pipelines.synthesize.words import LANGUAGES, LINES
from store.types import Seconds

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

Made by `palimpsest synthesize samsemo` (seed {seed}): rendered faces and synthetic speech
in the layout of the SAMSEMO data set. No person was recorded. Columns, files and splits are as in the official release.
"""
_SCENES = 5  # a film
_VARIANTS = ("f1", "f3", "f5", "m1", "m3", "m5", "m7")


def samsemo(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes the SAMSEMO layout (see the module) into the empty folder `out`: three films a language at least."""
    total = max(3, round(recordings / len(LANGUAGES) / _SCENES))
    held, tested = max(1, round(0.15 * total)), max(1, round(0.25 * total))
    films = total - held - tested, held, tested
    longest = 3.6 if total > 3 else 1.0  # the smallest is for tests
    jobs: list[Callable[[], Row]] = []
    (out / "splits").mkdir()
    for index, language in enumerate(LANGUAGES):
        (out / "data" / language).mkdir(parents=True)
        names: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
        for film, split in enumerate(np.repeat(list(names), films)):
            rng = np.random.default_rng([seed, index, film])
            prefix = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), 10))
            # Emotions take turns through a film, so that every split meets each of them about as often.
            turns = rng.permutation((np.arange(_SCENES) + film * _SCENES) % len(EMOTIONS))
            for scene, turn in enumerate(turns):
                name, draw = f"{prefix}_{scene}", (seed, index, film, scene)
                jobs.append(partial(_scene, out, name, language, list(EMOTIONS)[turn], draw, longest))
                names[split].append(f"{name}\n")
        for split, lines in names.items():
            (out / "splits" / f"{split}_split_{language}.txt").write_text("".join(lines), encoding="utf-8")
    write_table(out / "samsemo.tsv", COLUMNS, run(jobs), "\t")
    (out / "README.md").write_text(_README.format(seed=seed), encoding="utf-8")


def _scene(out: Path, name: str, language: str, emotion: str, draw: tuple[int, ...], longest: Seconds) -> Row:
    """Renders one utterance and returns its row; everything about its film is drawn from the film's own numbers."""
    film_rng, rng = np.random.default_rng([*draw[:-1], 1]), np.random.default_rng([*draw, 2])
    voice = cast(language, _VARIANTS, film_rng)
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
        "source_scene_start": clock(start) + ".00",
        "source_scene_stop": clock(start + frames // FPS) + ".99",
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
