"""A step on the GPU gives what it gives on the CPU."""

from __future__ import annotations

import pytest
import torch

from learner.order import epoch_order
from tests.learner.handmade import CLASSES, make_lake, make_recipe, make_trainer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("method", ["crossmodal-moe", "finetune"])
def test_a_training_step_agrees_with_the_cpu(tmp_path, monkeypatch, method):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    losses: dict[str, list[dict[str, float]]] = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setattr("flows.build.device", lambda device=device: torch.device(device))
        lake = make_lake(tmp_path / device, labels=CLASSES[:4])
        trainer, data = make_trainer(lake, make_recipe(method=method, epochs=1, memory=4))
        first = trainer.task(1, data.names[1], data.tasks[1])
        trainer.learn(first)  # end of task, anchors and predictions run there too
        second = trainer.task(2, data.names[2], data.tasks[2])
        groups = trainer.method.begin_task(second)
        batch = second.train.batch(epoch_order(len(second.train), seed=0, task=2, epoch=0)[:8])
        replay = first.train.batch([0, 1])
        assert {tensor.device.type for tensor in (*batch.tokens.values(), batch.labels)} == {device}
        losses[device] = []
        optimizer = torch.optim.SGD([p for group in groups for p in group["params"]], lr=1e-2)
        for step in range(2):
            terms = trainer.method.loss(batch, replay, torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
            losses[device].append({name: float(value) for name, value in terms.items()})
    for cpu, cuda in zip(losses["cpu"], losses["cuda"], strict=True):
        assert cuda == pytest.approx(cpu, rel=2e-2, abs=2e-3)
