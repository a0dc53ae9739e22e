"""A flash, a click and a jolt at one time come out at one time, whatever the clip's position."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.clip import ClipFormat, cut_all
from pipelines.media import ffmpeg, pyav
from pipelines.readers import reader
from pipelines.synthesize import synthesize
from pipelines.synthesize.layouts.clapper import BOARDS
from store.types import Clip, Modality, Recording

LOOKS = 240  # a second
FORMAT = ClipFormat(frame_hz=LOOKS, frame_size=(16, 12), imu_hz=100.0, jpeg_quality=50)
EDGE = 0.2  # seconds that a clap lies inside a clip to be judged there


@pytest.fixture(scope="module")
def boards(tmp_path_factory) -> tuple[Path, dict[str, Recording]]:
    folder = synthesize("clapper", tmp_path_factory.mktemp("clapper") / "boards", size=len(BOARDS))
    return folder, {recording.domain: recording for recording in reader("folder").recordings(folder)}


def worst(source: Path, recording: Recording, clips: tuple[Clip, ...]) -> dict[str, float]:
    """The largest distance, in seconds, of flash, click and jolt from the claps in the clips."""
    found: dict[str, list[float]] = {"flash": [], "click": [], "jolt": []}
    claps = [float(time) for time in recording.clips[0].text.split()[2:]]
    lit: dict[bytes, bool] = {}
    own = Recording(recording.name, recording.tracks, clips)
    for sample in cut_all(own, FORMAT, source):
        start, length = sample.meta["start_s"], sample.meta["duration_s"]
        looks = start + (np.arange(len(sample.frames)) + 0.5) / LOOKS
        for jpeg in sample.frames:
            lit[jpeg] = lit[jpeg] if jpeg in lit else bool(np.mean(Image.open(io.BytesIO(jpeg))) > 120)
        white = np.array([lit[jpeg] for jpeg in sample.frames])
        heard, heard_at = np.abs(sample.audio.astype(int)), start + np.arange(len(sample.audio)) / 16_000
        felt, felt_at = sample.imu[:, 0], start + np.arange(len(sample.imu)) / FORMAT.imu_hz
        for clap in claps:
            if not start + EDGE < clap < start + length - EDGE:
                continue
            found["flash"].append(looks[white & (np.abs(looks - clap) < 0.15)].mean() - clap)
            near = np.abs(heard_at - clap) < 0.15
            found["click"].append(heard_at[near][heard[near].argmax()] - clap)
            near = np.abs(felt_at - clap) < EDGE
            found["jolt"].append(np.average(felt_at[near], weights=felt[near].clip(0)) - clap)
    assert len(found["flash"]) >= 10
    return {name: float(np.abs(offsets).max()) for name, offsets in found.items()}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_claps_stay_in_time(boards, board):
    source, found = boards
    starts = np.random.default_rng(0).uniform(0, 4.5, 40).round(4).tolist()
    offsets = worst(source, found[board.name], tuple(Clip(start, start + 1.3) for start in starts))
    half_frame = 0.5 / float(board.rate or 60)
    assert offsets["flash"] < half_frame
    assert offsets["click"] < half_frame
    assert offsets["jolt"] < 1 / FORMAT.imu_hz


@pytest.mark.skipif(ffmpeg.executable() is None, reason="no ffmpeg on this machine")
@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_the_filter_graph_shows_the_same_frames(boards, board, monkeypatch):
    source, found = boards
    path = source / found[board.name].tracks[Modality.VIDEO].path
    scan, targets = pyav.scan(path), np.arange(0, 6, 0.0101)
    levels = []
    for frames in (pyav.frames, ffmpeg.frames):
        served = frames(scan, targets, size=(16, 12))
        levels.append({place: picture.mean() for places, picture in served for place in places})
    scan.close()
    assert sorted(levels[0]) == list(range(len(targets)))
    assert levels[1] == pytest.approx(levels[0], abs=2)
