from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from learner.anchoring import keep_anchors
from learner.data import Examples, Task
from learner.losses.preservation import preservation, to_anchors
from learner.trainer import Trainer
from store.anchors import AnchorStore
from store.policies import POLICIES
from tests.learner.handmade import CLASSES, make_lake, make_recipe, make_trainer


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Task]:
    """A trainer, and a task of two classes with ten samples each."""
    lake = make_lake(tmp_path_factory.mktemp("anchoring"), labels=CLASSES[:2], splits=("train",))
    trainer, data = make_trainer(lake, make_recipe())
    task = trainer.task(1, data.names[1], data.tasks[1])
    trainer.method.begin_task(task)
    return trainer, task


def part(task: Task, number: int, positions: list[int]) -> Task:
    train = Examples(task.train.features, [task.train.examples[i] for i in positions], task.train.index)
    return replace(task, number=number, train=train)


def none_kept(task: Task) -> Examples:
    return Examples(task.train.features, [], task.train.index)


def keep(
    store: AnchorStore, learner: tuple[Trainer, Task], task: Task, policy: str = "herding", bound: int = 3
) -> None:
    keep_anchors(store, learner[0].method, task, none_kept(task), per_group=bound, policy=policy, seed=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_class_that_goes_on_arriving_keeps_its_bound(learner, policy):
    store, (_, task) = AnchorStore(), learner
    for number, positions in enumerate((range(0, 20, 4), range(1, 20, 4), range(2, 20, 2)), 1):
        keep(store, learner, part(task, number, [*positions]), policy)
        assert max(Counter(store.table["label"].to_pylist()).values()) == 3
        assert store.ids("fused").tolist() == store.table["anchor"].to_pylist()
    if policy in ("herding", "kmeans", "reservoir"):
        assert len(set(store.table["task"].to_pylist())) > 1  # of former anchors, too


def test_a_reservoir_is_that_of_all_at_once(learner):
    whole, portions, (_, task) = AnchorStore(), AnchorStore(), learner
    keep(whole, learner, task, "reservoir")
    for number, positions in enumerate((range(12, 20), range(3, 12), range(3)), 1):
        keep(portions, learner, part(task, number, [*positions]), "reservoir")
    assert sorted(whole.table["key"].to_pylist()) == sorted(portions.table["key"].to_pylist())


def test_other_classes_are_left_alone(learner):
    store, (_, task) = AnchorStore(), learner
    keep(store, learner, part(task, 1, [i for i, e in enumerate(task.train.examples) if e.label == "ant"]), bound=5)
    before = store.vectors("fused")
    keep(store, learner, part(task, 2, [i for i, e in enumerate(task.train.examples) if e.label == "bee"]), bound=2)
    assert Counter(store.table["label"].to_pylist()) == {"ant": 5, "bee": 2}
    np.testing.assert_array_equal(store.vectors("fused")[:5], before)


def test_a_sample_that_comes_again_is_one_anchor(learner):
    store, (_, task) = AnchorStore(), learner
    keep(store, learner, task, bound=20)
    keep(store, learner, part(task, 2, [3, 4]), bound=20)
    keys = store.table["key"].to_pylist()
    assert len(keys) == len(set(keys)) == 20
    again = {task.train.examples[i].key for i in (3, 4)}
    assert {key for key, number in zip(keys, store.table["task"].to_pylist(), strict=True) if number == 2} == again


def test_exemplars_give_their_anchors_the_present_representations(learner):
    store, (trainer, task) = AnchorStore(), learner
    keep(store, learner, task)
    true = {space: store.vectors(space) for space in store.spaces}
    for space in store.spaces:
        store.carry(space, lambda former: former[:, ::-1])
    keys = store.table["key"].to_pylist()
    memory = Examples(task.train.features, [e for e in task.train.examples if e.key in keys[:2]], task.train.index)
    empty = part(task, 2, [i for i, e in enumerate(task.train.examples) if e.key not in keys][:1])
    keep_anchors(store, trainer.method, empty, memory, per_group=20, policy="herding", seed=0)
    for space, vectors in true.items():
        near = np.isclose(store.vectors(space, store.ids(space)[:6]), vectors[:6], atol=1e-5).all(axis=1)
        known = store.rows(store.ids(space)[:6])["key"].to_pylist()
        assert near.tolist() == [key in keys[:2] for key in known]


@pytest.fixture(scope="module")
def second_task(tmp_path_factory: pytest.TempPathFactory):
    """A method in its second task, with anchors of the first, and a batch."""
    lake = make_lake(tmp_path_factory.mktemp("second"), labels=CLASSES[:4])
    trainer, data = make_trainer(lake, make_recipe(anchors=4, epochs=1))
    trainer.learn(trainer.task(1, data.names[1], data.tasks[1]))
    task = trainer.task(2, data.names[2], data.tasks[2])
    trainer.method.begin_task(task)
    with torch.no_grad():  # so that the student differs from the teacher
        for parameter in trainer.method.modules.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return trainer.method, task.train.batch(range(8))


def term(method, batch) -> torch.Tensor:
    return method.loss(batch, None, torch.Generator().manual_seed(7))["preservation"].detach()


def test_the_loss_is_what_search_and_vectors_make_it(second_task, monkeypatch):
    method, batch = second_task
    params = replace(method.params, modality_dropout=0.0, strangers=0, neighbours=5)
    monkeypatch.setattr(method, "params", params)
    store, generator, expected = method.context.anchors, torch.Generator().manual_seed(7), []
    torch.rand(8, generator=generator), torch.randint(2, (8,), generator=generator)
    noise = torch.randn(8, method.params.shape.experts, generator=generator)
    with torch.no_grad():
        now, then = method.network(batch, noise), method.teacher(batch)
    pairs = {**{str(m): (now.z[m], then.z[m]) for m in now.z}, "fused": (now.fused, then.fused)}
    for space, (student, teacher) in pairs.items():
        ids = store.search(space, teacher.numpy(), 5)[1]
        anchors = torch.from_numpy(store.vectors(space, ids.ravel()).reshape(*ids.shape, -1))
        expected.append(preservation(to_anchors(student, anchors), to_anchors(teacher, anchors)))
    assert len(expected) == 3
    assert term(method, batch) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)
    assert term(method, batch) > 1e-4


def test_the_loss_does_not_depend_on_who_is_first(second_task, monkeypatch):
    method, batch = second_task
    store, network = method.context.anchors, method.network
    found, asked, ran = [float(term(method, batch))], threading.Event(), threading.Event()
    relations, forward = AnchorStore.relations, network.forward

    def search_last(*args, **kwargs):
        assert ran.wait(60)
        return relations(*args, **kwargs)

    def search_first(*args, **kwargs):
        result = relations(*args, **kwargs)
        asked.set()
        return result

    def forward_first(*args):
        result = forward(*args)
        ran.set()
        return result

    def forward_last(*args):
        assert asked.wait(60)
        return forward(*args)

    for search, run in ((search_last, forward_first), (search_first, forward_last)):
        monkeypatch.setattr(AnchorStore, "relations", search)
        monkeypatch.setattr(network, "forward", run)
        found.append(float(term(method, batch)))
    assert found == [found[0]] * 3
    assert len(store) == 8


def test_an_approximate_search_gives_nearly_the_same_loss(second_task, monkeypatch):
    method, batch = second_task
    store = AnchorStore(exact=100)
    rng = np.random.default_rng(0)
    for start in range(0, 2000, 500):
        vectors = {}
        for space, known in method.embed(batch).items():
            crowd = F.normalize(known)[torch.from_numpy(rng.integers(8, size=500))].numpy()
            vectors[space] = np.arange(500), crowd + rng.normal(scale=0.05, size=crowd.shape)
        store.add([{"key": f"{start + i}"} for i in range(500)], vectors)
    monkeypatch.setattr(method, "context", replace(method.context, anchors=store))
    approximate = float(term(method, batch))
    store.exact = 2000
    assert approximate == pytest.approx(float(term(method, batch)), rel=0.02)
