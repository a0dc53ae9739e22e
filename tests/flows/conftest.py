"""Recordings and learned streams made by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from flows.update import update
from store import champions
from store.lake import Lake
from store.ledger import Ledger
from tests.learner.handmade import CLASSES, TAUGHT, copied, make_lake, make_recipe, make_trainer

CHAMPION, OTHER = "toy-crossmodal-moe-s0-aaaaaaaa", "toy-finetune-s0-bbbbbbbb"
RIGHT = {CHAMPION: [[4], [3, 4]], OTHER: [[4], [1, 4]]}  # right answers of four, after each task on each task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three recordings with a manifest; the last one cannot be decoded."""
    place = tmp_path / "recordings"
    place.mkdir()
    for name, pitch in (("low", 220), ("high", 880)):
        tone = np.sin(2 * np.pi * pitch * np.arange(4800) / 16000) / 2
        soundfile.write(place / f"{name}.wav", tone.astype(np.float32), 16000)
    (place / "broken.wav").write_text("no sound in here")
    with open(place / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "label", "split"])
        writer.writerows([f"{name}.wav", name, "train"] for name in ("low", "high", "broken"))
    return place


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake with four classes whose features are cached."""
    lake = make_lake(tmp_path_factory.mktemp("four"), labels=CLASSES[:4])
    make_trainer(lake, make_recipe())
    return lake


@pytest.fixture
def here(four: Lake, tmp_path: Path) -> Lake:
    """The same, of one's own."""
    return copied(four, tmp_path)


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake whose stream, that of `TAUGHT`, has a champion; nothing is changed in it."""
    lake = make_lake(tmp_path_factory.mktemp("taught"), TAUGHT.learner.backbones, labels=CLASSES[:4])
    update(lake, TAUGHT)
    return lake


@pytest.fixture
def learned(lake: Lake) -> Ledger:
    """A stream of two tasks, learned by two methods; the first is champion, its second task was refused at first."""
    ledger = Ledger(lake)
    stream = {"stream": "toy", "dataset": "toys", "scenario": "class-incremental", "definition": "{}"}
    ledger.append("streams", [stream])
    ledger.append("quarantined", [{"dataset": "toys", "name": "x.mp4", "reason": "audio ends 3.2 s before <video>"}])
    for task, name in ((1, "first"), (2, "second")):
        key = f"k{task}"
        ledger.append("tasks", [{"stream": "toy", "task": task, "task_name": name, "train": 1, "val": 0, "test": 4}])
        sample = {"dataset": "toys", "key": key, "recording": f"r{task}", "shard": "s.tar", "duration_s": 1.5}
        ledger.append("samples", [sample])
        ledger.append(
            "task_samples", [{"stream": "toy", "task": task, "dataset": "toys", "key": key, "split": "train"}]
        )
        source = {"dataset": "toys", "recording": f"r{task}", "name": name, "source_path": f"{name}.mp4"}
        ledger.append("recordings", [source])
    ledger.append("shards", [{"dataset": "toys", "shard": "s.tar", "batch": "b", "url": "s.tar", "samples": 2}])
    for run, matrix in RIGHT.items():
        method = run.removeprefix("toy-").partition("-s0")[0]
        config = {"run_id": run, "stream": "toy", "scenario": "class-incremental", "method": method, "seed": 0}
        ledger.append("runs", [config | {"trial": run != CHAMPION, "config": "{}", "status": "done"}])
        for after, row in enumerate(matrix, 1):
            _snapshot(ledger, run, after, row)
    snapshots = [f"{CHAMPION}/{task:03d}" for task in (1, 2)]
    champions.promote(lake, ledger, "toy", snapshots[0], expected=None, reason="forgets 0.0%", figures={})
    champions.refuse(lake, ledger, "toy", snapshots[1], reason="forgets 25.0%, more than 15.0%", figures={})
    champions.promote(lake, ledger, "toy", snapshots[1], expected=snapshots[0], reason="by hand", figures={})
    return ledger


def _snapshot(ledger: Ledger, run: str, after: int, row: list[int]) -> None:
    name = f"{run}/{after:03d}"
    sizes = {"parameters": 9000, "trained_parameters": 1234, "memory_bytes": 5678}
    ledger.append("snapshots", [{"snapshot_id": name, "run_id": run, "after_task": after, "path": "p", **sizes}])
    told = {"loss": {"classification": [2.0, 1.0]}, "experts": {"video-0": 2}, "frozen": {"video-0": [1]}, "top_k": 2}
    told |= {"gate_mass": {"video-0": [1.0, 3.0]}, "gate_entropy": {"video-0": 0.2}, "backbone_parameters": 8000}
    if after == 2:  # of the first task only its training samples are known
        use = {"gate_mass": {"video-0": [0.5, 0.5]}, "gate_entropy": {"video-0": 0.0}}
        told |= {"routed": [{"on_task": after, "split": "val", **use}]}
    event = {"event": f"learned {name}", "kind": "learned", "subject": name, "seconds": 1.0}
    ledger.append("events", [event | {"detail": json.dumps(told if run == CHAMPION else {"loss": {}})}])
    rows = [
        {"run_id": run, "after_task": after, "on_task": on, "split": "test", "protocol": protocol, "snapshot_id": name}
        | {"modalities": given, "key": f"{on}-{i}", "label": "right", "predicted": "right" if i < count else "wrong"}
        for on, right in enumerate(row, 1)
        for protocol in ("classifier", "retrieval")
        for given, count in (("all", right), ("audio", 2), ("audio>video", 2))
        if protocol == "retrieval" or ">" not in given
        for i in range(4)
    ]
    for row in rows:
        if row["protocol"] == "retrieval":
            i = int(row["key"][-1])
            row |= {"hit": (1, 2, 7, None)[i], "average_precision": (1.0, 0.4, 0.2, 0.0)[i], "novelty": 0.25}
            row |= {"nearest": ["k1", "k2"]}
    ledger.append("predictions", rows)
