"""Pre-train the `tiny` backbones on unlabelled recordings of this lake."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from flows.build import device
from learner import registry
from learner.backbones.tiny import SPECS
from learner.loader import Example
from learner.pretrain import pretrain as fill_in
from store.lake import Lake, put
from store.ledger import Ledger
from store.types import PalimpsestError

Progress = Callable[[str, int, int], None]


def pretrain(
    lake: Lake,
    dataset: str = "corpus",
    *,
    out: Path | None = None,
    steps: int = 600,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> list[Path]:
    """Pre-train every tiny backbone that a data set has signals for, and the canonical trunk, on its train split.

    Args:
        lake: holds the data set.
        dataset: unlabelled recordings; labels are never read.
        out: a folder for the weights; the lake's own, where they take the place of those that ship, by default.
        steps: optimiser steps a backbone; half as many more for the trunk that all modalities share.
        seed: the same seed on the same shards gives the same weights.
        progress: told which backbone, steps done and steps in all.

    Returns:
        The files written.

    Raises:
        PalimpsestError: the data set holds no train samples.
    """
    rows = Ledger(lake).rows(
        "SELECT * FROM sample_index WHERE dataset = ? AND split = 'train' ORDER BY shard, \"offset\"",
        [dataset],
    )
    if not rows:
        raise PalimpsestError(
            f"data set {dataset} holds no train samples in {lake.root}: make some with `palimpsest synthesize corpus "
            f"--out DIR`, then `palimpsest ingest folder --as {dataset} --source DIR`"
        )
    examples = [Example.from_row(row, lake) for row in rows]
    there = {modality for example in examples for modality in example.modalities}
    written = []
    names = [*SPECS, registry.CANONICAL]
    for name in [name for name in names if there & {model.modality for model in registry.untrained(name)}]:
        tell = partial(_tell, progress, name)
        taken = steps * 3 // 2 if name == registry.CANONICAL else steps
        data = fill_in(name, examples, steps=taken, seed=seed, device=device(), progress=tell)
        written.append((out or lake.backbones) / f"{name}.safetensors")
        put(written[-1], data)
    return written


def _tell(progress: Progress, name: str, done: int, total: int, loss: float) -> None:
    progress(name, done, total)
