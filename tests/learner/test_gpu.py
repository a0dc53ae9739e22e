"""A step on the GPU gives what it gives on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flows import build, stream
from learner.order import Order
from learner.trainer import Trainer
from store.lake import Lake
from store.ledger import Ledger
from store.types import Split
from tests.learner.handmade import CLASSES, make_lake, make_recipe, make_trainer

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def here(tmp_path: Path) -> Lake:
    return make_lake(tmp_path, labels=CLASSES[:4])


def test_a_training_step_agrees_with_the_cpu(here, monkeypatch):
    """Both go on from one snapshot, with one cache, in the second task: every term of the loss is there."""
    recipe = make_recipe(epochs=1, memory=4)
    monkeypatch.setattr(build, "device", lambda: torch.device("cpu"))
    trainer, data = make_trainer(here, recipe)
    snapshot = trainer.learn(trainer.task(1, data.names[1], data.tasks[1]))
    one = build.run(recipe, method=None, seed=0, overridden=False)
    head, losses = None, []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(build, "device", lambda device=device: torch.device(device))
        trainer = build.trainer(
            here, Ledger(here), recipe, one, snapshot=snapshot, find=data.tasks[1][Split.TRAIN].find
        )
        losses.append(two_steps(trainer, data, device, head))
        head = losses[0].pop("head") if device == "cpu" else None
    assert losses[1] == pytest.approx(losses[0], rel=1e-2, abs=1e-3)


def two_steps(trainer: Trainer, data: stream.StreamData, device: str, head: torch.Tensor | None) -> dict[str, object]:
    task = trainer.task(2, data.names[2], data.tasks[2])
    groups = trainer.method.begin_task(task)
    parameter = trainer.method.modules.get_parameter("head.weight")
    if head is None:
        found: dict[str, object] = {"head": parameter.detach().clone()}
    else:
        found = {}
        parameter.data.copy_(head)  # fresh rows are drawn on the device
    batch = task.train.batch(Order(seed=0, task=2, size=len(task.train), batch=8).step(0)).to(torch.device(device))
    assert {tensor.device.type for tensor in (*batch.tokens.values(), *batch.masks.values(), batch.labels)} == {device}
    optimizer = torch.optim.SGD([p for group in groups for p in group["params"]], lr=1e-2)
    for step in range(2):
        terms = trainer.method.loss(batch, batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        found |= {f"{name} {step}": float(value) for name, value in terms.items()}
    return found


@pytest.mark.parametrize("method", ["crossmodal-moe", "finetune", "joint", "slda"])
def test_whole_runs_work_there(here, monkeypatch, method):
    monkeypatch.setattr(build, "device", lambda: torch.device("cuda"))
    trainer, data = make_trainer(here, make_recipe(method=method, epochs=6, memory=4))
    tasks = []
    for number, name in data.names.items():
        tasks.append(trainer.task(number, name, data.tasks[number]))
        trainer.learn(tasks[-1], tasks[:-1])
    (row,) = trainer.ledger.rows(
        "SELECT new_accuracy FROM step_summary WHERE run_id = ? AND after_task = 2 AND split = 'val' "
        "AND protocol = 'classifier' AND modalities = 'all'",
        [trainer.run_id],
    )
    assert row["new_accuracy"] >= 0.5


def test_features_agree_with_the_cpu(tmp_path, monkeypatch):
    found = []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(build, "device", lambda device=device: torch.device(device))
        lake = make_lake(tmp_path / device, ("imu", "text", "image"), labels=CLASSES[:1])
        trainer, data = make_trainer(lake, make_recipe(modalities=("imu", "text", "image")))
        found.append(trainer.features.batch(data.tasks[1][Split.TRAIN], [0] * 6, [0] * 6))
    for m in found[0].tokens:
        torch.testing.assert_close(found[1].tokens[m].cpu(), found[0].tokens[m], atol=2e-2, rtol=1e-2)
        torch.testing.assert_close(found[1].pooled[m].cpu(), found[0].pooled[m], atol=1e-3, rtol=1e-3)
