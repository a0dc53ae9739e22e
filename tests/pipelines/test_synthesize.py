"""Synthesised data sets: complete layouts, real containers, the same bytes again, and something in them to learn."""

from __future__ import annotations

import csv
import hashlib
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

import pipelines.synthesize.layouts.corpus
from pipelines.synthesize import LAYOUTS, synthesize
from pipelines.synthesize.imu import MOTIONS, move
from pipelines.synthesize.layouts.samsemo import COLUMNS, EMOTIONS
from pipelines.synthesize.layouts.writing import write_mp4
from pipelines.synthesize.scene import LOOKS, PALETTES, act, setting
from pipelines.synthesize.speech import RATE, TONES, cast, loudness, speak, trim
from pipelines.synthesize.words import LANGUAGES, LINES, SENTENCES, WORDS
from store.types import PalimpsestError

_GRID = (
    "bin lay place set blue green red white at by in with again now please soon "
    "zero one two three four five six seven eight nine ten"
)


@pytest.fixture(scope="module")
def samsemo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize("samsemo", tmp_path_factory.mktemp("data") / "samsemo", size="tiny", seed=3)


@pytest.fixture(scope="module")
def rows(samsemo: Path) -> list[dict[str, str]]:
    with open(samsemo / "samsemo.tsv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize("corpus", tmp_path_factory.mktemp("data") / "corpus", size="tiny", seed=3)


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _split(root: Path, split: str, language: str) -> list[str]:
    return (root / "splits" / f"{split}_split_{language}.txt").read_text().split()


def test_samsemo_has_the_official_columns_and_every_file(samsemo: Path, rows: list[dict[str, str]]) -> None:
    assert list(rows[0]) == COLUMNS and len(COLUMNS) == 32
    assert {row["language"] for row in rows} == set(LANGUAGES)
    for row in rows:
        home = samsemo / "data" / row["language"]
        assert (home / f"{row['utterance_id']}.mp4").stat().st_size > 0
        assert (home / row["utterance_id"] / "audio.wav").is_file()
        assert len(list((home / row["utterance_id"]).glob("image_*.jpg"))) >= 2
        assert row["transcript"] == row[f"translation_{row['language'].lower()}"] != ""
        assert set(row["aggregated_emotions"].split(",")) <= set(EMOTIONS)


def test_samsemo_splits_cover_the_table_and_share_no_film(samsemo: Path, rows: list[dict[str, str]]) -> None:
    listed: list[str] = []
    for language in LANGUAGES:
        names = {split: _split(samsemo, split, language) for split in ("train", "valid", "test")}
        films = [{name.split("_")[0] for name in part} for part in names.values()]
        assert not (films[0] & films[1] or films[0] & films[2] or films[1] & films[2])
        assert len(names["test"]) >= 0.2 * sum(map(len, names.values()))
        listed += [name for part in names.values() for name in part]
        heard = {row["aggregated_emotions"].split(",")[0] for row in rows if row["utterance_id"] in names["train"]}
        assert heard == set(EMOTIONS)
    assert sorted(listed) == sorted(row["utterance_id"] for row in rows)


def test_videos_decode_with_their_sound(samsemo: Path, rows: list[dict[str, str]]) -> None:
    for row in rows[::17]:
        path = samsemo / "data" / row["language"] / row["utterance_id"]
        with av.open(str(path.with_suffix(".mp4"))) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert video.average_rate == 25 and video.pix_fmt == "yuv420p" and video.codec_context.name == "h264"
            assert (audio.rate, audio.codec_context.name) == (RATE, "aac")
            frames = sum(1 for _ in container.decode(video=0))
        with av.open(str(path.with_suffix(".mp4"))) as container:
            heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        wave, rate = soundfile.read(path / "audio.wav")
        assert rate == RATE
        assert (
            frames / 25
            == pytest.approx(float(row["duration"]), abs=0.005)
            == pytest.approx(len(wave) / RATE, abs=0.005)
        )
        assert len(heard) == pytest.approx(len(wave), abs=1024)
        assert np.corrcoef(heard[: len(wave)], wave[: len(heard)])[0, 1] > 0.9  # and no delay between the two


def test_same_seed_same_bytes_another_seed_other_bytes(corpus: Path, tmp_path: Path) -> None:
    again = synthesize("corpus", tmp_path / "again", size="tiny", seed=3, workers=2)
    other = synthesize("corpus", tmp_path / "other", size="tiny", seed=4)
    assert _digests(again) == _digests(corpus)
    assert not set(_digests(other).values()) & set(_digests(corpus).values())


def test_encoding_is_repeatable(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    voice = cast("DE", ["f1"], rng)
    frames = act(setting(PALETTES["DE"], voice.sex, rng), LOOKS["smile"], rng.uniform(0, 1, 40), rng=rng)
    sound = rng.normal(0, 0.1, 40 * RATE // 25).astype(np.float32)
    for name in ("one.mp4", "two.mp4"):
        write_mp4(tmp_path / name, frames, sound)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_folder_in_use_is_refused_and_left_alone(layout: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(PalimpsestError, match="not an empty folder"):
        synthesize(layout, tmp_path, size="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PalimpsestError, match="samsemo"):
        synthesize("samsamo", tmp_path / "a")
    with pytest.raises(PalimpsestError, match="small"):
        synthesize("samsemo", tmp_path / "a", size="huge")


def test_nothing_half_made_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(out: Path, **_: object) -> None:
        (out / "half").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr(pipelines.synthesize.layouts.corpus, "corpus", fail)
    with pytest.raises(OSError, match="disk full"):
        synthesize("corpus", tmp_path / "out", size="tiny")
    assert not list(tmp_path.iterdir())


def _prosody(sound: np.ndarray) -> np.ndarray:
    """Log pitch and log loudness over the louder frames."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, 640)[::160] * np.hanning(640)
    power = np.abs(np.fft.rfft(frames, 2048)) ** 2
    loud = power.sum(1) > np.median(power.sum(1))
    lag = 40 + np.fft.irfft(power[loud])[:, 40:220].argmax(1)
    return np.array([np.log(RATE / lag).mean(), np.log(power[loud].sum(1)).mean()])


@pytest.mark.parametrize("backend", ["espeak-ng", "formants"])
def test_emotion_can_be_heard(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearest mean of pitch and loudness tells the tones apart in speakers it never met, in either backend."""
    if backend == "formants":
        monkeypatch.setattr(shutil, "which", lambda _: None)
    elif not shutil.which("espeak-ng"):
        pytest.skip("espeak-ng is not installed")
    features: dict[str, list[np.ndarray]] = {tone: [] for tone in TONES}
    for speaker in range(8):
        for tone, prosody in TONES.items():
            rng = np.random.default_rng(speaker)
            voice = cast("ES", ["m1", "m3"], rng)
            sound = speak(LINES[speaker % 7][1]["ES"], voice, rng=rng, prosody=prosody)
            assert sound.dtype == np.float32 and 0.4 < len(sound) / RATE < 5 and np.abs(sound).max() <= 1
            features[tone].append(_prosody(sound))
    table = np.array([features[tone] for tone in TONES])
    scale = table.std((0, 1))
    means = table[:, :5].mean(1) / scale
    nearest = np.argmin(((table[:, 5:, None] / scale - means) ** 2).sum(-1), axis=-1)
    assert np.mean(nearest == np.arange(len(TONES))[:, None]) >= 0.6  # chance is 0.25


def test_without_espeak_every_language_still_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    spectra = []
    for language in LANGUAGES:
        rng = np.random.default_rng(0)
        said = trim(speak(LINES[0][1][language], cast(language, ["f1"], rng), rng=rng))
        assert 0.8 < len(said) / RATE < 5 and 0.03 < said.std() < 0.12
        spectra.append(np.log(np.abs(np.fft.rfft(said[: RATE // 2])) + 1e-3))
    assert np.abs(np.diff(spectra, axis=0)).mean(1).min() > 0.1


def test_the_mouth_follows_the_voice() -> None:
    rng = np.random.default_rng(0)
    sound = np.concatenate([np.zeros(RATE), rng.normal(0, 0.2, RATE)])
    level = loudness(sound, 25, 50)
    assert level[:20].max() < 0.01 and level[30:].min() > 0.5
    place = setting(PALETTES["EN"], "female", rng)
    shut, wide = (act(place, LOOKS["plain"], np.full(1, v), rng=np.random.default_rng(1))[0] for v in (0, 1))
    moved = np.abs(shut.astype(int) - wide).max(-1) > 40
    assert moved[60:].sum() > 20 * max(1, moved[:50].sum())


def test_corpus_manifest_lists_what_is_there(corpus: Path) -> None:
    with open(corpus / "manifest.csv", encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    named = {row[column] for row in listed for column in ("video", "audio", "imu", "image", "depth") if row[column]}
    assert named == {name for name in _digests(corpus) if name != "manifest.csv"}
    assert {row["split"] for row in listed} == {"train", "val"}
    for row in listed:
        if row["imu"]:
            table = np.loadtxt(corpus / row["imu"], delimiter=",", skiprows=1)
            assert np.all(np.diff(table[:, 0]) > 0) and np.median(np.diff(table[:, 0])) == pytest.approx(20, abs=1)
        if row["audio"]:
            assert 0.2 <= soundfile.info(corpus / row["audio"]).duration <= 1.2
        if row["video"]:
            with av.open(str(corpus / row["video"])) as container:
                assert container.streams.audio and 1.9e6 < (container.duration or 0) < 3.2e6


def test_corpus_says_nothing_that_is_evaluated() -> None:
    lines = {text.lower() for _, texts in LINES for text in texts.values()}
    for language in LANGUAGES:
        assert not lines & {sentence.lower() for sentence in SENTENCES[language]}
        words = {word.lower() for text in (*SENTENCES[language], *WORDS[language]) for word in text.split()}
        assert not words & set(_GRID.split()) and all(len(word) > 1 or language == "KO" for word in words)


def test_motion_holds_gravity_and_tells_kinds_apart() -> None:
    energy = {}
    for kind in MOTIONS:
        times, signal = move(kind, np.random.default_rng(0))
        assert signal.shape == (len(times), 6) == (250, 6) and np.isfinite(signal).all()
        energy[kind] = signal.std(0).sum()
        if kind == "resting":
            assert np.linalg.norm(signal[:, :3].mean(0)) == pytest.approx(9.81, abs=0.2)
    assert energy["resting"] < 0.2 * min(value for kind, value in energy.items() if kind != "resting")
