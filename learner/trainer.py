"""The one training loop: tasks in order, exact resume at every step, a snapshot after each task."""

from __future__ import annotations

import json
import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learner import registry
from learner.anchoring import keep_anchors
from learner.backbones.base import Backbone
from learner.batch import Batch
from learner.checkpoint import (
    drop_checkpoint,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
    to_arrays,
    to_tensors,
)
from learner.data import ClassIndex, Examples, Task
from learner.distributed import Ranks
from learner.evaluate import predictions
from learner.features import TrunkFeatures
from learner.index import Rows
from learner.loader import Example, ahead
from learner.memory import rehearse
from learner.methods.base import Context, Herds, ParameterGroup, Recalls
from learner.order import Order, generator
from store.anchors import AnchorStore
from store.lake import Lake
from store.ledger import Ledger
from store.snapshots import load_anchors, load_snapshot, save_snapshot, snapshot_id
from store.types import Modality, PalimpsestError, Split

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run learns.

    Attributes:
        method: registry name.
        seed: of initialisation, order and noise.
        stages: quarters of each backbone that are adapted.
        memory: exemplars kept in all; 0 keeps none.
        anchors: kept per class and domain.
        anchor_policy: how they are chosen, one of `store.policies.POLICIES`.
        warmup: share of a task's steps over which the learning rate rises.
        checkpoint_every: steps between checkpoints.
        max_damaged: samples that cannot be read and are skipped; one more ends the run.
        labels: whether a ``single`` label is predicted, or a set of them, ``multi``, beside it.
        params: the method's own.
    """

    method: str = "crossmodal-moe"
    seed: int = 0
    stages: int = 2
    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.0
    memory: int = 0
    anchors: int = 10
    anchor_policy: str = "herding"
    warmup: float = 0.1
    clip: float = 1.0
    checkpoint_every: int = 50
    max_damaged: int = 10
    labels: str = "single"
    params: Mapping[str, Any] | None = None


class Trainer:
    """A run that learns one task after the other.

    Args:
        lake: where checkpoints and snapshots go.
        ledger: of the same lake.
        run_id: names the run.
        backbones: frozen, by modality.
        features: cached trunk features of the same backbones.
        settings: how to learn.
        device: where to compute.
        ranks: the processes that share each step; the first one consolidates, measures and writes.
        snapshot: what to go on from; None starts fresh.
        find: the samples with these keys, to find exemplars again.
        reading: nothing will be learnt, so anchors stay on disk.
    """

    def __init__(
        self,
        *,
        lake: Lake,
        ledger: Ledger,
        run_id: str,
        backbones: Mapping[Modality, Backbone],
        features: TrunkFeatures,
        settings: Settings,
        device: torch.device,
        ranks: Ranks | None = None,
        snapshot: str | None = None,
        find: Callable[[Sequence[str]], list[Example]] = lambda keys: [],
        reading: bool = False,
    ):
        self.lake, self.ledger, self.run_id, self.settings = lake, ledger, run_id, settings
        self.features, self.device, self.snapshot = features, device, snapshot
        self.ranks = ranks or Ranks()
        state = load_snapshot(lake, snapshot) if snapshot else None
        self.anchors = load_anchors(lake, snapshot, state, mapped=reading) if snapshot and state else AnchorStore()
        self.index = ClassIndex(*state["index"]) if state else ClassIndex()
        self.index.groups = [(label, domain) for label, domain in self.index.groups]
        self.memory = find(state["memory"]) if state else []
        digests = {str(m): f"{b.name} {b.digest}" for m, b in backbones.items()}
        if state and state["backbones"] != digests:
            raise PalimpsestError(
                f"run {run_id} was learnt on other backbones, {state['backbones']}, than those found now, {digests}. "
                f"Put the former weights back into {lake.backbones}, or begin a new run by renaming the stream."
            )
        self._digests = digests
        context = Context(
            backbones, settings.stages, self.index, self.anchors, device, self.ranks.gather, self._further
        )
        self._seed_torch("init", 0)
        self.method = registry.method(settings.method, context, settings.params or {})
        if registry.exemplars(settings.method) == "needed" and not settings.memory:
            raise PalimpsestError(
                f"method {settings.method} rehearses exemplars and the recipe keeps none: --set learner.memory=500"
            )
        if state:
            try:
                self.method.load_state_dict(to_tensors(state["method"]))
            except (KeyError, RuntimeError) as error:
                raise PalimpsestError(
                    f"snapshot {snapshot} was written by another version of Palimpsest ({error}): go on with that "
                    "version, or begin a new run by renaming the stream; its samples stay as they are"
                ) from error
        frozen = {id(p): p for b in backbones.values() for p in b.parameters()}  # type: ignore[attr-defined]
        self.frozen_parameters = sum(p.numel() for p in frozen.values())

    def task(self, number: int, name: str, splits: Mapping[Split, Rows], labels: Iterable[str] = ()) -> Task:
        """A task over this run's features and class numbers; its training classes are numbered now."""
        self.index.add(splits[Split.TRAIN].groups)
        train, val, test = (Examples(self.features, splits[split], self.index) for split in Split)
        return Task(number, name, train, val, test, frozenset(labels))

    def learn(self, task: Task, earlier: Sequence[Task] = (), progress: Progress = lambda done, total: None) -> str:
        """Learn `task`, measure and keep a snapshot; a checkpoint of this very task is taken up where it stopped.

        The snapshot's ledger row comes last, so a snapshot that exists has been measured.

        Args:
            task: the next one.
            earlier: the tasks before it, for methods that learn from all that was seen.
            progress: told steps done and steps in all.

        Returns:
            The snapshot's id.

        Raises:
            PalimpsestError: no training sample of the task can be read, or more are damaged than the settings allow.
        """
        if next(task.train.batches(), None) is None:
            raise PalimpsestError(
                f"none of the {len(task.train)} training samples of task {task.number} {task.name} can be read: "
                "run the same ingest again"
            )
        begun, settings = time.monotonic(), self.settings
        train = task.train
        if self.method.scope == "seen":
            everything = reduce(operator.add, (one.train.examples for one in [*earlier, task]))
            train = Examples(self.features, everything, self.index)
        self._seed_torch("begin", task.number)
        groups = self.method.begin_task(task)
        losses = self._train(task, train, groups, progress) if groups else {}
        if self.ranks.leads:
            self.method.end_task(task)
            keep_anchors(
                self.anchors,
                self.method,
                task,
                Examples(self.features, self.memory, self.index),
                per_group=settings.anchors,
                policy=settings.anchor_policy,
                seed=settings.seed,
            )
            if settings.memory and registry.exemplars(settings.method) != "unused":
                self.memory = rehearse(
                    self.memory,
                    task.train.examples,
                    budget=settings.memory,
                    seed=settings.seed,
                    task=task.number,
                    order=self.method.herd(task, settings.memory) if isinstance(self.method, Herds) else None,
                )
                if isinstance(self.method, Recalls):
                    self.method.recall(Examples(self.features, self.memory, self.index))
            seen = [*earlier, task]
            self.measure(seen)
            name = snapshot_id(self.run_id, task.number)
            sizes = {"samples": len(train), "backbone_parameters": self.frozen_parameters}
            detail = {"loss": losses, **sizes, **self.method.explain(seen)}
            event = {"event": f"learned {name}", "kind": "learned", "subject": name, "detail": json.dumps(detail)}
            self.ledger.append("events", [{**event, "seconds": time.monotonic() - begun}])
            self._save(task)
            drop_checkpoint(self._checkpoint)
        self.ranks.wait()
        self.snapshot = snapshot_id(self.run_id, task.number)
        return self.snapshot

    def _further(self, modality: Modality, name: str) -> Backbone:
        return registry.backbones({modality: name}, self.lake, self.device)[modality]

    @property
    def _checkpoint(self) -> Path:
        return self.lake.run(self.run_id) / "checkpoint"

    def _train(
        self, task: Task, train: Examples, groups: list[ParameterGroup], progress: Progress
    ) -> dict[str, list[float]]:
        """All steps of a task; returns the mean of each loss term by epoch."""
        settings = self.settings
        optimizer = torch.optim.AdamW(
            [dict(group) for group in groups], lr=settings.lr, weight_decay=settings.weight_decay
        )
        parameters = [parameter for group in groups for parameter in group["params"]]
        order = Order(settings.seed, task.number, len(train), settings.batch_size)
        total, start = order.steps * settings.epochs, 0
        sums: dict[str, list[float]] = {}
        place = {**asdict(order), "parent": self.snapshot, "total": total, "threads": torch.get_num_threads()}
        place |= {"anchors": self.anchors.version}
        parts = self.method.state_dict()
        if saved := load_checkpoint(self._checkpoint, place, method=parts, slots=len(parameters)):
            self.method.load_state_dict(saved["method"])
            restore_optimizer(optimizer, saved["optimizer"])
            start, sums = saved["step"], {name: list(values) for name, values in saved["losses"].items()}
        rehearsed = Examples(self.features, self.memory, self.index)

        def fetch(step: int) -> tuple[Batch, Batch | None, float]:
            """What this rank learns from and rehearses at `step`, and its share of the step in units of a rank's."""
            learnt, drawn = order.step(step), order.replay(len(rehearsed), step)
            batch = self._of_rank(train, learnt)
            share = len(learnt[self.ranks.rank :: self.ranks.world]) * self.ranks.world / len(learnt)
            replay = self._of_rank(rehearsed, drawn) if len(drawn) else None
            return batch, replay if replay is not None and len(replay) else None, share

        for step, (batch, replay, share) in enumerate(ahead(fetch, range(start, total), self.features.workers), start):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * group["scale"] * _schedule(step, total, settings.warmup)
            if len(batch):
                terms = self.method.loss(batch, replay, self._generator(task.number, step))
                optimizer.zero_grad(set_to_none=True)
                (share * torch.stack(list(terms.values())).sum()).backward()
                self.ranks.average(parameters)
                torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
                optimizer.step()
                for name, value in terms.items():
                    means = sums.setdefault(name, [0.0] * settings.epochs)
                    means[step // order.steps] += value.item() / order.steps
            progress(step + 1, total)
            if self.ranks.leads and (step + 1) % settings.checkpoint_every == 0 and step + 1 < total:
                state = {"place": place, "step": step + 1, "losses": sums, "method": self.method.state_dict()}
                save_checkpoint(self._checkpoint, state, optimizer)
        return sums

    def _of_rank(self, examples: Examples, positions: np.ndarray) -> Batch:
        """This rank's part of a step; a rank for which nothing is left takes the first sample, for no share of it."""
        mine = positions[self.ranks.rank :: self.ranks.world]
        batch = examples.batch(mine if len(mine) else positions[:1])
        if self.ranks.world > 1 and not len(batch):
            raise PalimpsestError("all samples of a step are damaged: ingest them again, or learn in one process")
        return batch.to(self.device)

    def measure(self, tasks: Sequence[Task]) -> None:
        """Predict all of `tasks` as the model is now, and commit the predictions."""
        after = tasks[-1].number
        row = {"run_id": self.run_id, "after_task": after, "snapshot_id": snapshot_id(self.run_id, after)}
        found = predictions(self.method, self.anchors, tasks, several=self.settings.labels == "multi")
        self.ledger.append("predictions", [{**row, **p} for p in found])

    def _save(self, task: Task) -> str:
        trained = sum(p.numel() for p in self.method.modules.parameters() if p.requires_grad)
        tree = {
            "method": self.method.state_dict(),
            "index": [self.index.classes, [list(group) for group in self.index.groups]],
            "memory": [example.key for example in self.memory],
            "backbones": self._digests,
        }
        return save_snapshot(
            self.lake,
            self.ledger,
            run_id=self.run_id,
            after_task=task.number,
            tree=to_arrays(tree),
            anchors=self.anchors,
            parent=self.snapshot,
            parameters=self.frozen_parameters + sum(p.numel() for p in self.method.modules.parameters()),
            trained_parameters=trained,
            memory_bytes=self.method.nbytes + self.anchors.nbytes + sum(e.entry.size for e in self.memory),
        )

    def _generator(self, task: int, step: int) -> torch.Generator:
        """The source of a step's randomness, of its own on every rank."""
        key = (self.settings.seed, task, step, *([self.ranks.rank] if self.ranks.rank else []))
        return torch.Generator().manual_seed(int(generator("step", *key).integers(2**63)))

    def _seed_torch(self, *key: int | str) -> None:
        torch.manual_seed(int(generator(self.settings.seed, *key).integers(2**63)))


def _schedule(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then half a cosine to zero."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
