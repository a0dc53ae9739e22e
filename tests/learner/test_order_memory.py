"""The order of a stream and what is rehearsed: pure functions of seed, task, epoch and step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from learner.loader import READ_AHEAD, Example, ahead
from learner.memory import rehearse
from learner.order import Order, generator, shuffled
from store.shards import Entry


def epoch(order: Order, number: int = 0) -> list[int]:
    return [i for step in range(number * order.steps, (number + 1) * order.steps) for i in order.step(step).tolist()]


@pytest.mark.parametrize("size", [1, 2, 3, 8, 50, 257])
def test_every_epoch_is_a_permutation_that_its_key_alone_decides(size):
    order = Order(seed=1, task=2, size=size, batch=8)
    first = epoch(order, 3)
    np.random.default_rng(0).random(10)
    assert sorted(first) == list(range(size))
    assert epoch(Order(seed=1, task=2, size=size, batch=8), 3) == first
    if size > 8:
        others = [Order(2, 2, size, 8), Order(1, 3, size, 8)]
        assert first not in [epoch(order, 4), *(epoch(other, 3) for other in others)]


def test_the_order_does_not_depend_on_the_size_of_a_step():
    assert epoch(Order(0, 1, 50, 7)) == epoch(Order(0, 1, 50, 50)) == epoch(Order(0, 1, 50, 1))


def test_all_permutations_are_as_likely():
    found = Counter(tuple(shuffled(np.arange(4), 4, "x", i)) for i in range(2400))
    assert len(found) == 24
    assert sum((count - 100) ** 2 / 100 for count in found.values()) < 50  # chi-squared, 23 degrees: p = 0.001


def test_ten_million_samples_take_no_more_room_than_ten():
    order = Order(seed=0, task=1, size=10_000_000, batch=64)
    drawn = np.concatenate([order.step(step) for step in (0, 1, 77_777, order.steps - 1)])
    assert len(set(drawn.tolist())) == 256
    assert 0 <= drawn.min() and drawn.max() < order.size
    assert abs(drawn.mean() / order.size - 0.5) < 0.1


def test_the_order_is_that_of_every_machine():
    """A checkpoint holds no order: these numbers must never change."""
    assert generator("order", 0, 1, 0).integers(1 << 30, size=3).tolist() == [367649441, 959407158, 638338089]
    assert Order(0, 1, 8, 8).step(0).tolist() == [5, 1, 7, 2, 0, 6, 3, 4]


@pytest.mark.parametrize(("size", "drawn"), [(20, 8), (5, 5), (0, 0)])
def test_replay_draws_without_repetition(size, drawn):
    order = Order(0, 1, 100, 8)
    picked = order.replay(size, 4)
    assert len(picked) == len(set(picked.tolist())) == drawn
    assert all(0 <= i < size for i in picked)
    assert (order.replay(size, 4) == picked).all()


def test_replay_reaches_everything_and_differs_from_step_to_step():
    draws = [tuple(Order(0, 1, 100, 8).replay(20, step)) for step in range(30)]
    assert len(set(draws)) == 30
    assert {i for draw in draws for i in draw} == set(range(20))


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_what_is_read_ahead_comes_in_order_and_only_a_little_ahead(workers):
    asked: list[int] = []
    found = ahead(lambda i: asked.append(i) or i * i, range(100), workers)
    assert [next(found) for _ in range(10)] == [i * i for i in range(10)]
    assert len(asked) <= 10 + READ_AHEAD * workers
    found.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_goes_wrong_ahead_is_raised_where_it_is_due(workers):
    found = ahead(lambda i: 1 // (3 - i), range(10), workers)
    assert [next(found) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)


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


def test_memory_stays_balanced_over_domains_after_every_task():
    memory: list[Example] = []
    for task, domain in enumerate(("en", "de", "es"), 1):
        learnt = [*examples("a", 30, domain), *examples("b", 30, domain)]
        memory = rehearse(memory, learnt, budget=20, seed=0, task=task)
        held = Counter((e.label, e.domain) for e in memory)
        assert len(held) == 2 * task and len(memory) == 20
        assert max(held.values()) - min(held.values()) <= 1


def test_newcomers_are_drawn_by_seed_and_task():
    learnt = examples("a", 50)
    one = rehearse([], learnt, budget=10, seed=0, task=1)
    assert one == rehearse([], learnt, budget=10, seed=0, task=1)
    assert one != rehearse([], learnt, budget=10, seed=1, task=1)
    assert one != learnt[:10]


def test_no_budget_keeps_nothing():
    assert rehearse([], examples("a", 5), budget=0, seed=0, task=1) == []
