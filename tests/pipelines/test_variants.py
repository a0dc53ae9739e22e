"""Variants: real recordings made worse by a known amount, the same way every time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.clip import ClipFormat, cut_all
from pipelines.readers import reader
from pipelines.variants import Variant, Varied
from store.types import Modality

FORMAT = ClipFormat(frames=1, frame_size=None, jpeg_quality=100)


@pytest.fixture
def talks(tmp_path, make_sound) -> Path:
    """Twelve sounds, four of each split."""
    splits = [("train", "val", "test")[number % 3] for number in range(12)]
    for number in range(12):
        make_sound(tmp_path / f"{number}.wav", seed=number, hz=16_000, seconds=0.2 + 0.1 * number)
    rows = (f"{number}.wav,a,{split}" for number, split in enumerate(splits))
    (tmp_path / "manifest.csv").write_text("\n".join(["audio,label,split", *rows]))
    return tmp_path


def varied(source: Path, *variants: Variant, seed: int = 0):
    return list(Varied(reader("folder"), variants, seed).recordings(source))


@pytest.mark.parametrize("snr_db", [0.0, -10.0, 20.0])
def test_babble_is_as_loud_as_asked_and_of_the_same_split(talks, snr_db):
    plain = {one.name: one for one in varied(talks, Variant())}
    for one in varied(talks, Variant(name="babble", snr_db=snr_db, talkers=2)):
        (clean,), (noisy,) = cut_all(plain[one.name], FORMAT, talks), cut_all(one, FORMAT, talks)
        own, mixed = clean.audio.astype(float), noisy.audio.astype(float)
        share = own @ mixed / (own @ own)
        babble = mixed - share * own
        assert 10 * np.log10((share * own).var() / babble.var()) == pytest.approx(snr_db, abs=1)
        assert mixed.std() == pytest.approx(own.std(), rel=0.05)
        assert {plain[str(track.path)].split for track in one.shift.babble} == {one.split}
        assert one.tracks[Modality.AUDIO] not in one.shift.babble


def test_the_same_seed_gives_the_same_variants_and_another_seed_others(talks):
    kinds = [Variant(), Variant(name="babble", snr_db=0.0), Variant(name="dark", light=0.2)]
    assert varied(talks, *kinds) == varied(talks, *kinds)
    assert varied(talks, *kinds) != varied(talks, *kinds, seed=1)
    assert len({one.domain for one in varied(talks, *kinds)}) > 1


def test_a_variant_is_another_recording_with_bytes_of_its_own(talks):
    (plain, *_), (dark, *_) = varied(talks, Variant()), varied(talks, Variant(light=0.5))
    assert plain.content_id(talks) != dark.content_id(talks)


@pytest.fixture
def film(tmp_path, make_video) -> Path:
    make_video(tmp_path / "a.mp4", frames=10)
    (tmp_path / "manifest.csv").write_text("video\na.mp4\n")
    return tmp_path


def picture(source: Path, variant: Variant) -> np.ndarray:
    (one,) = varied(source, variant)
    (sample,) = cut_all(one, FORMAT, source)
    return np.asarray(Image.open(io.BytesIO(sample.frames[0])).convert("L"), float)


def test_darkness_and_blur_change_the_picture_by_as_much_as_asked(film):
    plain, dark = picture(film, Variant()), picture(film, Variant(light=0.25))
    assert dark.mean() == pytest.approx(0.25 * plain.mean(), abs=1)
    blurred = picture(film, Variant(blur=0.05))
    assert blurred.mean() == pytest.approx(plain.mean(), rel=0.05)
    edge = np.abs(np.diff(plain.mean(0))).max(), np.abs(np.diff(blurred.mean(0))).max()
    assert edge[1] < 0.4 * edge[0]


@pytest.mark.parametrize(("drop", "left"), [("audio", "video"), ("video", "audio")])
def test_a_dropped_track_is_a_missing_modality(film, drop, left):
    (one,) = varied(film, Variant(drop=(Modality(drop),)))
    (sample,) = cut_all(one, FORMAT, film)
    assert sample.modalities == (Modality(left),)
    assert set(sample.meta["tracks"]) == {left}


def test_tracks_drop_out_of_a_share_of_the_recordings(talks):
    shifted = [one.shift is not None for one in varied(talks, Variant(drop=(Modality.IMU,), drop_share=0.5))]
    assert 0 < sum(shifted) < len(shifted)


def test_more_recordings_make_no_other_of_those_known(talks, make_sound):
    variant = Variant(name="babble", snr_db=0.0, talkers=2)
    before = {one.name: one.content_id(talks) for one in varied(talks, variant)}
    make_sound(talks / "12.wav", seed=12)
    (talks / "manifest.csv").write_text((talks / "manifest.csv").read_text() + "\n12.wav,a,train")
    after = {one.name: one.content_id(talks) for one in varied(talks, variant)}
    assert before.items() <= after.items()


def test_a_voice_that_cannot_be_heard_costs_no_one_else(talks):
    (talks / "0.wav").write_bytes((talks / "0.wav").read_bytes()[:100])
    (talks / "3.wav").unlink()
    for one in varied(talks, Variant(snr_db=0.0, talkers=4)):
        if one.name not in ("0.wav", "3.wav"):
            assert len(list(cut_all(one, FORMAT, talks))) == 1


def test_copies_fall_into_one_split_and_variant(tmp_path, make_sound):
    for number in range(8):
        make_sound(tmp_path / f"{number}.wav", seed=number)
        (tmp_path / f"copy{number}.wav").write_bytes((tmp_path / f"{number}.wav").read_bytes())
    found = varied(tmp_path, Variant(), Variant(name="dark", light=0.5))
    assert len({(one.content_id(tmp_path), one.split) for one in found}) == 8
