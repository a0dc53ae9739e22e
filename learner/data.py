"""A task's samples as the learner sees them: numbered classes, and features by position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from learner.batch import Batch
from learner.features import TrunkFeatures
from learner.loader import Example, ahead


@dataclass(slots=True)
class ClassIndex:
    """The stream's class numbers, and those of its groups (a class in one domain), in order of arrival."""

    classes: list[str] = field(default_factory=list)
    groups: list[tuple[str, str]] = field(default_factory=list)

    def add(self, groups: Iterable[tuple[str, str]]) -> None:
        """Number the labels and the pairs of label and domain that are new, in alphabetical order."""
        pairs = sorted(groups)
        self.classes += [c for c in dict.fromkeys(label for label, _ in pairs) if c not in self.classes]
        self.groups += [pair for pair in pairs if pair not in self.groups]

    @property
    def class_of_group(self) -> list[int]:
        """The class number of each group."""
        return [self.classes.index(label) for label, _ in self.groups]

    def numbers(self, examples: Sequence[Example]) -> tuple[list[int], list[int]]:
        """Class and group numbers of `examples`; -1 for those not met yet."""
        classes = {label: i for i, label in enumerate(self.classes)}
        groups = {pair: i for i, pair in enumerate(self.groups)}
        return (
            [classes.get(example.label, -1) for example in examples],
            [groups.get((example.label, example.domain), -1) for example in examples],
        )


class Examples:
    """Samples by position, with their features and numbers."""

    def __init__(self, features: TrunkFeatures, examples: Sequence[Example], index: ClassIndex):
        self.features, self.examples, self.index = features, examples, index

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def classes(self) -> list[int]:
        """The class numbers that occur, ascending."""
        return sorted(set(self.index.numbers(self.examples)[0]))

    def batch(self, positions: Iterable[int] | np.ndarray) -> Batch:
        """The samples at `positions`, on the CPU; those that cannot be read are left out."""
        chosen = [self.examples[i] for i in positions]
        return self.features.batch(chosen, *self.index.numbers(chosen))

    def batches(self, size: int = 64) -> Iterator[Batch]:
        """All samples in order, on the device; those that cannot be read are left out, and there may be none left."""
        parts = (range(start, min(start + size, len(self))) for start in range(0, len(self), size))
        for batch in ahead(self.batch, parts, min(1, self.features.workers)):
            if len(batch):
                yield batch.to(self.features.device)


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a stream.

    Attributes:
        number: 1 for the first.
        labels: of what it is made by the recipe; empty where it is not made of labels.
        train: what is learnt from.
        val: for choices and the gate.
        test: for tables.
    """

    number: int
    name: str
    train: Examples
    val: Examples
    test: Examples
    labels: frozenset[str] = frozenset()
