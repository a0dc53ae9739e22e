"""The order of a stream and what is rehearsed: pure functions of seed, task, epoch and step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from learner.loader import Example
from learner.memory import rehearse
from learner.order import epoch_order, generator, replay_order
from store.shards import Entry


def test_the_order_is_a_permutation_that_its_key_alone_decides():
    order = epoch_order(50, seed=1, task=2, epoch=3)
    np.random.default_rng(0).random(10)
    assert (epoch_order(50, seed=1, task=2, epoch=3) == order).all()
    assert sorted(order.tolist()) == list(range(50))
    for other in ({"seed": 2}, {"task": 3}, {"epoch": 4}):
        assert (epoch_order(50, **{"seed": 1, "task": 2, "epoch": 3, **other}) != order).any()


def test_the_order_is_that_of_every_machine():
    """A checkpoint holds no order: these numbers must never change."""
    assert generator("order", 0, 1, 0).integers(1 << 30, size=3).tolist() == [367649441, 959407158, 638338089]
    assert epoch_order(8, seed=0, task=1, epoch=0).tolist() == [2, 3, 4, 6, 0, 5, 1, 7]


@pytest.mark.parametrize(("size", "count", "drawn"), [(20, 8, 8), (5, 8, 5), (0, 8, 0)])
def test_replay_draws_without_repetition(size, count, drawn):
    picked = replay_order(size, count, seed=0, task=1, step=4)
    assert len(picked) == len(set(picked.tolist())) == drawn
    assert all(0 <= i < size for i in picked)
    assert (replay_order(size, count, seed=0, task=1, step=4) == picked).all()


def test_replay_reaches_everything_and_differs_from_step_to_step():
    draws = [tuple(replay_order(20, 8, seed=0, task=1, step=step)) for step in range(30)]
    assert len(set(draws)) == 30
    assert {i for draw in draws for i in draw} == set(range(20))


def examples(label: str, count: int, domain: str = "") -> list[Example]:
    entry = Entry("", 0, 1, "")
    return [Example(f"{domain}{label}{i}", "d", f"r{i}", label, domain, (), "s", "s.tar", entry) for i in range(count)]


def counts(memory: list[Example]) -> Counter[str]:
    return Counter(example.label for example in memory)


def test_memory_stays_within_its_budget_and_balanced_after_every_task():
    memory: list[Example] = []
    for task, labels in enumerate(("ab", "cd", "e", "fg"), 1):
        learnt = [example for label in labels for example in examples(label, 30)]
        former = {example.key for example in memory}
        memory = rehearse(memory, learnt, budget=20, seed=0, task=task)
        assert len(memory) == len({example.key for example in memory}) == 20
        assert max(counts(memory).values()) - min(counts(memory).values()) <= 1
        assert {e.key for e in memory} <= former | {e.key for e in learnt}  # what was let go never comes back
    assert len(counts(memory)) == 7


def test_a_group_with_little_gives_its_room_to_the_others():
    memory = rehearse([], [*examples("a", 2), *examples("b", 30), *examples("c", 30)], budget=12, seed=0, task=1)
    assert counts(memory) == {"a": 2, "b": 5, "c": 5}


def test_domains_of_a_class_are_groups_of_their_own():
    learnt = [*examples("a", 30, "en"), *examples("a", 5, "de"), *examples("b", 5, "en")]
    memory = rehearse([], learnt, budget=9, seed=0, task=1)
    assert Counter((e.label, e.domain) for e in memory) == {("a", "en"): 3, ("a", "de"): 3, ("b", "en"): 3}


def test_newcomers_are_drawn_by_seed_and_task():
    learnt = examples("a", 50)
    one = rehearse([], learnt, budget=10, seed=0, task=1)
    assert one == rehearse([], learnt, budget=10, seed=0, task=1)
    assert one != rehearse([], learnt, budget=10, seed=1, task=1)
    assert one != learnt[:10]


def test_no_budget_keeps_nothing():
    assert rehearse([], examples("a", 5), budget=0, seed=0, task=1) == []
