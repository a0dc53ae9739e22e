"""Our ER and DER++ beside those of Avalanche, on real recordings: do they come to the same accuracies?

python -m infra.bench.avalanche [--work DIR] [--source DIR] [--seeds 5] [--json]

SOURCE, or `PALIMPSEST_DATA`, holds mnist-t10k, fsdd and imu-digits, as folders or .tar.xz archives. They make the
stream `digits`: five tasks of two classes, seen and heard, an IMU in 15 % of the samples. In each seed both sides begin
with one network, whose head has all classes from the start since Avalanche's DER asks for that, and learn from the same
samples with as many epochs, batches and exemplars, under one optimiser, schedule and clipping. What is left to each are
its order, its exemplars (on both sides drawn at a task's end, at random, the same number a class), how a step draws
from them (here anew, there in passes over the memory) and its loss.

They agree where the paired 95 % t-interval of the difference over seeds holds 0, or the means are less than 2 points
apart. Five seeds tell about 4 points of average and 8 of last accuracy from chance: they exclude nothing finer.
"""

from __future__ import annotations

import copy
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flows import build, stream
from flows.ingest import ingest
from flows.recipe import load_recipe, override
from infra.bench.common import Bound, arguments, made, note, report
from learner.backbones.base import Backbone, frozen_dim
from learner.batch import Batch
from learner.data import Task
from learner.modules.network import Network, router_noise
from learner.trainer import Settings, Trainer, _schedule
from store.lake import Lake
from store.ledger import Ledger
from store.types import Modality

SOURCES = ("mnist-t10k", "fsdd", "imu-digits")
SETTINGS = (
    *("learner.stages=1", "learner.epochs=1", "learner.batch_size=16", "learner.lr=3e-3", "learner.memory=500"),
    "learner.baselines.derpp={alpha: 0.2, beta: 0.5}",
)
METHODS = ("er", "derpp")
POINTS = 2
ABSENT = """avalanche-lib is not installed here; it brings much along, so give it an environment of its own:
    make bench VENV=.venv-bench EXTRAS=cpu,bench BENCH=avalanche"""


class Unmeasured(Trainer):
    """A run that leaves measuring to the benchmark."""

    def measure(self, tasks: Sequence[Task]) -> None:
        """Nothing."""


def pack(batch: Batch, backbones: Mapping[Modality, Backbone]) -> Tensor:
    """All that a network sees of a batch as one tensor ``[B, F]``, the only input that Avalanche's replay takes."""
    parts = []
    for m, backbone in backbones.items():
        short = backbone.tokens - batch.tokens[m].shape[1]
        tokens, mask = F.pad(batch.tokens[m], (0, 0, 0, short)), F.pad(batch.masks[m].float(), (0, short))
        parts += [tokens.flatten(1), mask, batch.pooled[m]]
    return torch.cat(parts, 1)


class Packed(nn.Module):
    """A network that takes what `pack` gives."""

    def __init__(self, network: Network, seed: int):
        super().__init__()
        self.network, self.noise = network, torch.Generator().manual_seed(seed)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits ``[B, C]``; while training the routers get noise, as in our methods."""
        backbones = self.network.encoder.backbones
        widths = ((2 * b.tokens * b.dim, b.tokens, frozen_dim(b)) for b in backbones.values())
        parts = iter(rows.split([width for of_one in widths for width in of_one], 1))
        tokens, masks, pooled = {}, {}, {}
        for m, backbone in backbones.items():
            tokens[m] = next(parts).unflatten(1, (backbone.tokens, 2 * backbone.dim))
            masks[m], pooled[m] = next(parts) > 0, next(parts)
        unknown = torch.full((len(rows),), -1)
        noise = router_noise(self.network, len(rows), self.noise) if self.training else None
        return self.network(Batch(tokens, masks, pooled, unknown, unknown), noise).logits


@torch.no_grad()
def accuracies(network: Network, tests: Sequence[Batch]) -> list[float]:
    """On each task, in per cent."""
    return [100 * (network(test).logits.argmax(1) == test.labels).double().mean().item() for test in tests]


def ours(trainer: Trainer, tasks: Sequence[Task], tests: Sequence[Batch]) -> list[list[float]]:
    """Accuracy on each task met, after each task."""
    found = []
    for number, task in enumerate(tasks, 1):
        trainer.learn(task, tasks[: number - 1])
        found.append(accuracies(trainer.method.network, tests[:number]))  # type: ignore[attr-defined]
    return found


def theirs(
    network: Network, settings: Settings, tasks: Sequence[tuple[Tensor, Tensor]], tests: Sequence[Batch]
) -> list[list[float]]:
    """The same by Avalanche, for tasks of packed samples ``[n, F]`` and labels ``[n]``."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as dataset
    from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin, SupervisedPlugin
    from avalanche.training.storage_policy import ClassBalancedBuffer
    from avalanche.training.supervised import DER, Naive

    class LikeOurs(SupervisedPlugin):  # type: ignore[misc]
        """In each task a fresh optimiser, warm-up and half a cosine; clipped gradients."""

        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            strategy.optimizer.state.clear()
            self.step, self.total = 0, settings.epochs * -(-len(strategy.experience.dataset) // settings.batch_size)

        def before_training_iteration(self, strategy: Any, **_: Any) -> None:
            for group in strategy.optimizer.param_groups:
                group["lr"] = settings.lr * _schedule(self.step, self.total, settings.warmup)
            self.step += 1

        def before_update(self, strategy: Any, **_: Any) -> None:
            nn.utils.clip_grad_norm_(strategy.model.parameters(), settings.clip)

    model = Packed(network, settings.seed)
    common = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": settings.batch_size,
        "train_epochs": settings.epochs,
        "evaluator": EvaluationPlugin(),
    }
    if settings.method == "er":
        memory = ReplayPlugin(settings.memory, storage_policy=ClassBalancedBuffer(settings.memory))
        strategy = Naive(**common, plugins=[LikeOurs(), memory])
    else:
        strategy = DER(**common, plugins=[LikeOurs()], mem_size=settings.memory, **(settings.params or {}))
    found = []
    torch.manual_seed(settings.seed)
    benchmark = benchmark_from_datasets(train=[dataset(x, y, task_labels=0) for x, y in tasks])
    for number, experience in enumerate(benchmark.train_stream, 1):
        strategy.train(experience)
        found.append(accuracies(network, tests[:number]))
    return found


def figures(found: Sequence[Sequence[float]]) -> dict[str, float]:
    """As in `store/views.sql`."""
    steps = [float(np.mean(step)) for step in found]
    return {"average accuracy": float(np.mean(steps)), "last accuracy": steps[-1]}


def compared(method: str, figure: str, pairs: np.ndarray) -> tuple[dict[str, Any], Bound]:
    """A row and its bound, of our and Avalanche's figures ``[seeds, 2]``."""
    from scipy.stats import ttest_rel

    apart = float((pairs[:, 0] - pairs[:, 1]).mean())
    low, high = map(float, ttest_rel(*pairs.T).confidence_interval(0.95))
    row: dict[str, Any] = {"method": method, "figure": figure, "seeds": len(pairs)}
    for name, column in zip(("ours", "Avalanche"), pairs.T, strict=True):
        row |= {name: f"{column.mean():.1f} ± {column.std(ddof=1):.1f}"}
    row |= {"difference": f"{apart:+.1f} [{low:+.1f}, {high:+.1f}]"}
    beyond = 0.0 if low <= 0 <= high else abs(apart)
    return row, Bound(f"{method}, {figure}: points apart where that is no chance", beyond, POINTS)


def unpacked(source: Path, target: Path) -> Path:
    """The folder that holds all SOURCES, if need be made from archives."""
    if all((source / name).is_dir() for name in SOURCES):
        return source

    archives = [source / f"{name}.tar.xz" for name in SOURCES]
    if absent := [str(archive) for archive in archives if not archive.is_file()]:
        raise SystemExit(f"no such file: {', '.join(absent)}; {source} must hold {', '.join(SOURCES)} as folders or so")

    def extract(folder: Path) -> None:
        for archive in archives:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")

    return made(target, extract)


def main() -> int:
    """Learn by turns and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--source", type=Path, default=os.environ.get("PALIMPSEST_DATA"), help="recordings or archives")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    if find_spec("avalanche") is None:
        parser.exit(1, f"{ABSENT}\n")
    if given.source is None:
        parser.error(f"say by --source or PALIMPSEST_DATA where {', '.join(SOURCES)} lie")
    # The package index's torchvision is built for CUDA: beside a CPU torch its operators are not there to be wrapped.
    operators = torch.library.Library("torchvision", "FRAGMENT")
    with suppress(RuntimeError):  # they are there
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    recipe = override(load_recipe("digits"), SETTINGS)
    found: dict[tuple[str, str], list[list[float]]] = {}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        lake = Lake(Path(folder))
        ledger = Ledger(lake)
        note("ingest")
        ingest(lake, recipe.dataset, source=unpacked(given.source, work / "digits"))
        stream.seal(ledger, recipe)
        first = build.run(recipe, method=METHODS[0], seed=0, overridden=True)
        data = stream.load(ledger, recipe, build.modalities(ledger, recipe, first))
        features = build.features(lake, ledger, recipe, first)
        features.prepare(data.shards(data.names))
        backbones = features.backbones
        for method in METHODS:
            for seed in range(given.seeds):
                note(f"{method}, seed {seed}")
                one = build.run(recipe, method=method, seed=seed, overridden=True)
                trainer = Unmeasured(
                    lake=lake,
                    ledger=ledger,
                    run_id=one.run_id,
                    backbones=backbones,
                    features=features,
                    settings=one.settings,
                    device=features.device,
                )
                tasks = [trainer.task(number, name, data.tasks[number]) for number, name in data.names.items()]
                trainer.method.network.head.grow(len(trainer.index.classes))
                network = copy.deepcopy(trainer.method.network, {id(b): b for b in backbones.values()})
                tests = [task.test.batch(range(len(task.test))) for task in tasks]
                batches = [task.train.batch(range(len(task.train))) for task in tasks]
                packed = [(pack(batch, backbones), batch.labels) for batch in batches]
                begun = time.process_time()
                both = [figures(ours(trainer, tasks, tests))]
                between = time.process_time()
                both.append(figures(theirs(network, one.settings, packed, tests)))
                note(f"  {between - begun:.0f} s and {time.process_time() - between:.0f} s of CPU; {both}")
                for figure in both[0]:
                    found.setdefault((method, figure), []).append([one[figure] for one in both])
    rows, bounds = zip(*(compared(*of, np.array(pairs)) for of, pairs in found.items()), strict=True)
    return report(rows, bounds, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
