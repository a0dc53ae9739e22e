"""Exemplars as references into shards: a bounded number of samples, balanced over classes and domains."""

from __future__ import annotations

from collections.abc import Sequence

from learner.loader import Example
from learner.order import generator


def rehearse(
    memory: Sequence[Example],
    learnt: Sequence[Example],
    *,
    budget: int,
    seed: int,
    task: int,
    order: Sequence[int] | None = None,
) -> list[Example]:
    """The exemplars after a task.

    Args:
        memory: those kept so far.
        learnt: the task's samples.
        budget: how many to keep in all.
        seed: of the run.
        task: its number.
        order: which of `learnt` come first, by position; None draws them at random by (seed, task).

    Returns:
        At most `budget` examples; the counts of two (class, domain) groups differ by more than one only where a group
        has no more to give.
    """
    if order is None:
        order = generator("memory", seed, task).permutation(len(learnt)).tolist()
    groups: dict[tuple[str, str], list[Example]] = {}
    for example in [*memory, *(learnt[i] for i in order)]:
        groups.setdefault((example.label, example.domain), []).append(example)
    kept: list[Example] = []
    for rank in range(max(map(len, groups.values()), default=0)):
        row = [members[rank] for members in groups.values() if rank < len(members)]
        kept += row[: budget - len(kept)]
    return kept
