"""Recipe -> objects: the only place where settings become backbones, features and trainers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from flows.recipe import Recipe
from learner import registry
from learner.distributed import Ranks
from learner.features import TrunkFeatures
from learner.loader import Damage, Example
from learner.modules.encoder import before_stages, first_adapters
from learner.trainer import Settings, Trainer
from store.lake import Lake
from store.ledger import Ledger
from store.types import Modality, PalimpsestError


@dataclass(frozen=True, slots=True)
class Run:
    """A run's identity: (stream, method, seed, configuration digest).

    Attributes:
        trial: any departure from the recipe's own configuration; trials are never gated.
    """

    run_id: str
    digest: str
    trial: bool
    settings: Settings


def device() -> torch.device:
    """The GPU where there is one; on a CPU one thread, unless ``OMP_NUM_THREADS`` says otherwise.

    Small models lose more to two threads that wait for each other than they gain, and a run resumes bit-identical only
    under the number of threads that it began with.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # under torchrun each process has its own
        return torch.device("cuda")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    return torch.device("cpu")


def run(recipe: Recipe, *, method: str | None, seed: int, overridden: bool) -> Run:
    """The run that a recipe, a method and a seed name.

    Raises:
        PalimpsestError: the recipe has settings for a method that does not exist.
    """
    spec = recipe.learner
    chosen = method or spec.method
    if strange := sorted(spec.baselines.keys() - registry.METHODS):
        raise PalimpsestError(f"learner.baselines names {', '.join(strange)}; there are: {', '.join(registry.METHODS)}")
    params = spec.baselines.get(chosen, {}) | (spec.params if chosen == spec.method else {})
    settings = Settings(
        method=chosen,
        seed=seed,
        params=params,
        **{
            name: getattr(spec, name)
            for name in type(spec).model_fields
            if name not in ("method", "params", "baselines", "backbones")
        },
    )
    learner = spec.model_dump(exclude={"max_damaged", "baselines"})  # skipping, or settings for others, change no run
    described = {"dataset": recipe.dataset, "stream": recipe.stream.model_dump(), "learner": learner}
    text = json.dumps({**described, "method": chosen, "params": params, "overridden": overridden}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    trial = overridden or chosen != spec.method or seed != 0
    return Run(f"{recipe.name}-{chosen}-s{seed}-{digest}", digest, trial, settings)


def modalities(ledger: Ledger, recipe: Recipe, one: Run) -> list[str]:
    """What a run looks at: those of the recipe's modalities that its data set had when the run began."""
    if begun := ledger.rows("SELECT modalities FROM runs WHERE run_id = ?", [one.run_id]):
        return begun[0]["modalities"]
    rows = ledger.rows(
        "SELECT DISTINCT unnest(modalities) AS modality FROM sample_index WHERE dataset = ?", [recipe.dataset]
    )
    return [name for name in recipe.learner.backbones if name in {row["modality"] for row in rows}]


def features(lake: Lake, ledger: Ledger, recipe: Recipe, one: Run, *, workers: int = 0) -> TrunkFeatures:
    """The frozen features that `one` learns from; `workers` threads read ahead."""
    where = device()
    names = {modality: recipe.learner.backbones[Modality(modality)] for modality in modalities(ledger, recipe, one)}
    models = registry.backbones(names, lake, where)
    trunk: Mapping[Modality, int | None]
    if registry.needs_one_trunk(one.settings.method):
        trunk = before_stages(models, one.settings.stages)
    else:
        trunk = first_adapters(models, one.settings.stages, (one.settings.params or {}).get("adapted_blocks", 0))
    return TrunkFeatures(lake, models, trunk, where, Damage(one.settings.max_damaged), workers)


def trainer(
    lake: Lake,
    ledger: Ledger,
    recipe: Recipe,
    one: Run,
    *,
    snapshot: str | None,
    find: Callable[[Sequence[str]], list[Example]] = lambda keys: [],
    ranks: Ranks | None = None,
    workers: int = 0,
    reading: bool = False,
) -> Trainer:
    """A trainer for `one` that goes on from `snapshot`; `find` finds its exemplars, `workers` threads read ahead.

    One for `reading` only leaves the anchors on disk.
    """
    frozen = features(lake, ledger, recipe, one, workers=workers)
    return Trainer(
        lake=lake,
        ledger=ledger,
        run_id=one.run_id,
        backbones=frozen.backbones,
        features=frozen,
        settings=one.settings,
        device=frozen.device,
        ranks=ranks,
        snapshot=snapshot,
        find=find,
        reading=reading,
    )
