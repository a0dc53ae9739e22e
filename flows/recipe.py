"""A recipe says everything about a stream: which recordings, cut how, in which tasks, learned by what, judged how."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.clip import ClipFormat
from pipelines.variants import Variant
from store.types import Modality, PalimpsestError

NAME = r"^\w[\w.-]*$"


class Part(BaseModel):
    """A frozen part of a recipe; a key that is not one of its fields is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ReaderSpec(Part):
    """Which layout the recordings lie in."""

    name: str = Field(description="a reader of pipelines.readers")
    parameters: dict[str, Any] = Field(default={}, description="the reader's own settings")


class TaskSpec(Part):
    """One task, named by what belongs to it."""

    name: str = Field(description="what people call the task")
    labels: tuple[str, ...] = Field(default=(), description="samples with any of these labels; empty for all labels")
    domains: tuple[str, ...] = Field(default=(), description="samples from any of these domains; empty for all domains")


class StreamSpec(Part):
    """How samples become a sequence of tasks: listed one by one, or drawn by label, domain or time of arrival."""

    scenario: Literal[
        "class-incremental", "task-incremental", "domain-incremental", "modality-incremental", "arrival-incremental"
    ] = Field(
        description="what is new from task to task; task-incremental: classes, each task's identity given at test"
    )
    tasks: tuple[TaskSpec, ...] = Field(default=(), description="the tasks in order; empty to form them by `by`")
    by: Literal["label", "domain", "arrival"] | None = Field(
        default=None, description="what tasks are formed by when none are listed"
    )
    per_task: int = Field(default=1, ge=1, description="labels, domains or arrivals a task")
    order: tuple[str, ...] = Field(default=(), description="labels or domains in order; others follow in order of name")
    order_seed: int | None = Field(default=None, description="shuffles the task order; None keeps it as written")
    blur: float = Field(
        default=0.0,
        ge=0,
        le=1,
        exclude_if=lambda share: not share,  # streams that began before there was such a setting go on
        description="share of a task's training samples that come with other tasks, drawn by key and `order_seed`",
    )

    @model_validator(mode="after")
    def _one_way(self) -> StreamSpec:
        if bool(self.tasks) == bool(self.by):
            raise ValueError("give either `tasks` or `by`, not both and not neither")
        if self.by == "arrival" and (self.order or self.order_seed is not None):
            raise ValueError("arrivals are in the order of their times: give neither `order` nor `order_seed`")
        if self.by == "arrival" and self.blur:
            raise ValueError("arrivals come when they come: give no `blur`")
        if self.scenario == "task-incremental" and not (
            self.by == "label" or self.tasks and all(t.labels for t in self.tasks)
        ):
            raise ValueError(
                "task-incremental needs tasks made of labels: `by: label`, or `labels` for each of `tasks`"
            )
        return self


class LearnerSpec(Part):
    """What learns, and how."""

    backbones: dict[Modality, str] = Field(
        description="for each modality a backbone of the registry, or hub:CHECKPOINT"
    )
    method: str = Field(default="crossmodal-moe", description="a method of learner.methods")
    epochs: int = Field(default=10, ge=1, description="passes over a task's samples; 1 is online learning")
    batch_size: int = Field(default=32, ge=1, description="samples a step")
    lr: float = Field(default=1e-3, gt=0, description="learning rate")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    stages: int = Field(default=2, ge=1, le=4, description="quarters of each backbone, from its end, that get adapters")
    memory: int = Field(default=0, ge=0, description="exemplars kept of past tasks, in samples")
    anchors: int = Field(default=10, ge=1, description="anchors kept of each class and domain")
    max_damaged: int = Field(default=10, ge=0, description="samples with damaged bytes that are skipped, at most")
    anchor_policy: Literal["herding", "kmeans", "boundary", "reservoir"] = Field(
        default="herding", description="which of them are kept"
    )
    labels: Literal["single", "multi"] = Field(
        default="single",
        exclude_if=lambda labels: labels == "single",  # runs that began before there was such a setting go on
        description="multi predicts a set of labels beside the class, which is a sample's first label",
    )
    params: dict[str, Any] = Field(default={}, description="the method's own settings")
    baselines: dict[str, dict[str, Any]] = Field(default={}, description="those of other methods, by name")


class GateSpec(Part):
    """What an update must hold to be promoted, on the val split."""

    max_forgetting: float = Field(
        default=0.15, ge=0, le=1, description="most accuracy that earlier tasks may lose, 0 to 1"
    )
    min_new_accuracy: float = Field(default=0.0, ge=0, le=1, description="least accuracy on the new task, 0 to 1")


class Recipe(Part):
    """All that is needed to go from recordings to a gated, learned stream."""

    name: str = Field(pattern=NAME, description="the stream's name")
    dataset: str = Field(pattern=NAME, description="the data set it reads, in the lake")
    reader: ReaderSpec = Field(description="how recordings are found")
    format: ClipFormat = Field(default_factory=ClipFormat, description="how samples are cut")
    variants: tuple[Variant, ...] = Field(default=(), description="what recordings are put through, each one of these")
    variant_seed: int = Field(default=0, description="which recording gets which variant, babble and gaps")
    group: Literal["label", "domain", "arrival", "none"] = Field(
        default="none", description="what shards are sorted by"
    )
    stream: StreamSpec = Field(description="the sequence of tasks")
    learner: LearnerSpec = Field(description="what learns")
    gate: GateSpec = Field(default=GateSpec(), description="when an update is promoted")


def names() -> tuple[str, ...]:
    """The recipes that come with Palimpsest."""
    return tuple(sorted(path.name[:-5] for path in _packaged().iterdir() if path.name.endswith(".yaml")))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """The recipe called so, or the one in the YAML file at that path.

    Raises:
        PalimpsestError: there is none, or it is not valid; the message names the field.
    """
    text, where = str(name_or_path), Path(name_or_path).expanduser()
    if text in names():
        content = (_packaged() / f"{text}.yaml").read_text()
    elif where.suffix in (".yaml", ".yml") and where.is_file():
        content = where.read_text()
    else:
        raise PalimpsestError(f"no recipe {text!r}: it is neither a YAML file nor one of {', '.join(names())}")
    try:
        return _validated(yaml.safe_load(content), text)
    except yaml.YAMLError as error:
        raise PalimpsestError(f"{text} is not valid YAML: {error}") from error


def datasets() -> tuple[str, ...]:
    """The data sets that packaged recipes read; each has a recipe of its name, which says how it is ingested."""
    return tuple(sorted({load_recipe(name).dataset for name in names()}))


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """`recipe` with settings such as ``learner.epochs=3`` or ``learner.baselines.ewc.penalty=10``; values are YAML.

    Raises:
        PalimpsestError: a setting is not ``key=value``, or the recipe has no such field.
    """
    data = recipe.model_dump(mode="json")
    for setting in settings:
        path, equals, value = setting.partition("=")
        *parents, last = path.strip().split(".")
        if not equals or not last:
            raise PalimpsestError(f"{setting!r} is not a setting: write key=value, such as learner.epochs=3")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})  # what has no place in a recipe is refused below
            if not isinstance(place, dict):
                raise PalimpsestError(f"{path} is no field of recipe {recipe.name}: {parent} has none")
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise PalimpsestError(f"the value of {setting!r} is not valid YAML") from error
    return _validated(data, recipe.name)


def _validated(data: Any, where: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
        raise PalimpsestError(f"recipe {where} is not valid: {faults}") from error


def _packaged() -> Any:
    return resources.files("flows") / "recipes"
