"""Material to pre-train small backbones on, in the ``folder`` layout.

It holds no digit, no word of the GRID grammar, no room of `nyu-depth` or `sun-rgbd`, and no line, voice, palette or
mood of the films of `samsemo`.
Columns of its ``manifest.csv``, empty where a recording lacks one::

    video, audio, imu,           paths: video/*.mp4, audio/*.wav, imu/*.csv, image/*.png, depth/*.png (16 bit, mm)
    image, depth
    text                         the text itself: what is said, or a sentence alone
    label, domain, split         what was rendered (`walking`, `glyph-07`, a word), its family (`face`, `shapes`,
                                 `texture`, `word`, `glyph`, `picture`, `motion`, `sentence-<LANG>`, `room`), and
                                 train or val
    imu_rate_hz                  50

An IMU file's columns are timestamp_ms, acc_x, acc_y, acc_z (m/s^2 with gravity), gyro_x, gyro_y, gyro_z (rad/s).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from pipelines.synthesize.depth import CAMERAS, any_room, view
from pipelines.synthesize.imu import IMU_RATE, MOTIONS, move
from pipelines.synthesize.layouts.writing import Row, Run, write_mp4, write_table
from pipelines.synthesize.scene import FPS, GLYPHS, act, any_look, any_palette, bounce, drift, glyph, picture, setting
from pipelines.synthesize.speech import RATE, Prosody, cast, loudness, speak, trim
from pipelines.synthesize.words import LANGUAGES, SENTENCES, WORDS

_VARIANTS = ("f2", "f4", "m2", "m4", "m6", "m8")
# Of videos, words, images, motions, sentences and rooms.
_SHARES, _LEAST = (0.16, 0.16, 0.4, 0.12, 0.16, 0.12), (6, 6, 9, 12, 10, 4)
_MANIFEST = ("video", "audio", "imu", "image", "depth", "text", "label", "domain", "split", "imu_rate_hz")


def corpus(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes the pre-training corpus (see the module) into the empty folder `out`."""
    makers = (_film, _word, _still, _motion, _sentence, _room)
    for folder in ("video", "audio", "image", "imu", "depth"):
        (out / folder).mkdir()
    counts = [max(least, round(share * recordings)) for share, least in zip(_SHARES, _LEAST, strict=True)]
    jobs: list[Callable[[], Row]] = [
        partial(maker, out, k, (seed, kind, k))
        for kind, (maker, count) in enumerate(zip(makers, counts, strict=True))
        for k in range(count)
    ]
    rows = run(jobs)
    for row, turn in zip(rows, np.random.default_rng(seed).permutation(len(rows)), strict=True):
        row["split"] = "val" if turn % 10 == 0 else "train"
    write_table(out / "manifest.csv", _MANIFEST, rows, ",")


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
        voice = cast(language, _VARIANTS, rng)
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
    sound = trim(speak(word, cast(language, _VARIANTS, rng), rng=rng, prosody=_manner(rng)), longest=1.2)
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
    write_table(out / path, axes, lines, ",")
    return {"imu": path, "label": kind, "domain": "motion", "imu_rate_hz": f"{IMU_RATE:g}"}


def _sentence(_: Path, k: int, draw: Sequence[int]) -> Row:
    language = LANGUAGES[k % 5]
    return {"text": str(np.random.default_rng(draw).choice(SENTENCES[language])), "domain": f"sentence-{language}"}


def _room(out: Path, k: int, draw: Sequence[int]) -> Row:
    rng = np.random.default_rng(draw)
    path, camera = f"depth/{k:05d}.png", CAMERAS[str(rng.choice(sorted(CAMERAS)))]
    _, depth, _ = view(any_room(rng), rng, rng, camera)
    Image.fromarray(depth).save(out / path)
    return {"depth": path, "domain": "room"}
