"""Two processes under torchrun: they share the steps, and one that is killed goes on bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from learner.batch import Batch
from learner.distributed import Ranks
from store.lake import Lake
from store.ledger import Ledger
from store.snapshots import load_snapshot
from tests.learner.handmade import CLASSES, copied, make_lake, make_recipe, make_trainer, same

ROOT = Path(__file__).parents[2]


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `ranked.py` in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launch, "-m", "tests.learner.ranked", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def done(process: subprocess.CompletedProcess[str]) -> bool:
    """Whether it ended well; what it wrote is shown where it did not."""
    print(process.stdout, process.stderr)
    return process.returncode == 0


def outcome(lake: Lake) -> list[Any]:
    ledger = Ledger(lake)
    names = [row["snapshot_id"] for row in ledger.rows("SELECT snapshot_id FROM snapshots ORDER BY ALL")]
    predictions = ledger.rows("SELECT * EXCLUDE recorded_at FROM predictions ORDER BY ALL")
    losses = ledger.rows("SELECT subject, detail FROM events WHERE kind = 'learned' ORDER BY ALL")
    return [[load_snapshot(lake, name) for name in names], predictions, losses]


def test_ranks_average_gather_and_agree(tmp_path):
    assert done(torchrun("sums", tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for found in (first, second):
        assert found["average"] == [[1.5, 3.0], [0.5]]
        assert found["plain"] == [0, 1, 0]
        assert found["told"] == {"by": 0}
    assert first["gradient"] == [[4.0, 4.0]]  # 2 x, from both ranks
    assert second["gradient"] == [[8.0, 8.0]] * 2


@pytest.mark.slow
def test_two_ranks_end_bit_for_bit_the_same_after_a_kill(tmp_path):
    whole = make_lake(tmp_path / "whole", labels=CLASSES[:4])
    killed = copied(whole, tmp_path / "killed")
    assert done(torchrun("update", whole.root))
    expected = outcome(whole)
    assert len(expected[0]) == 2
    for step in (4, 5):  # in the first task and, going on from step 3 of it, in the second
        assert not done(torchrun("update", killed.root, step))
    assert done(torchrun("update", killed.root))
    assert same(outcome(killed), expected)


@dataclass(frozen=True)
class Apart(Ranks):
    """One of several ranks, without the others: what it would have shared is kept."""

    gradients: list[float] = field(default_factory=list)

    def wait(self) -> None:
        pass

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        self.gradients.append(float(next(iter(parameters)).grad.flatten()[0]))


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_a_step_without_overlap_or_gap(tmp_path, world):
    """Each sample has a gradient of its own; the mean over the ranks is that of the step, also of a short last one."""
    lake = make_lake(tmp_path, labels=CLASSES[:2])
    found = []
    for ranks in (Apart(), *(Apart(rank, world) for rank in range(world))):
        trainer, data = make_trainer(copied(lake, tmp_path / f"{ranks.world}-{ranks.rank}"), make_recipe(batch_size=5))
        trainer.ranks = ranks
        task = trainer.task(1, data.names[1], data.tasks[1])
        number = {example.key: 2.0**i for i, example in enumerate(task.train.examples)}

        def loss(batch: Batch, replay: Any, generator: Any, method=trainer.method, number=number) -> dict[str, Any]:
            parameter = next(p for p in method.modules.parameters() if p.requires_grad)
            return {"x": parameter.flatten()[0] * np.mean([number[example.key] for example in batch.examples])}

        trainer.method.loss = loss
        trainer.learn(task)
        found.append(ranks.gradients)
    whole, *parts = np.array(found)
    assert len(whole) == 2 * 3
    np.testing.assert_allclose(np.mean(parts, axis=0), whole, rtol=1e-5)
