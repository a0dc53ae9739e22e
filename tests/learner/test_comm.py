"""Modalities that come one after the other through one trunk, aligned with the names of their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flows.recipe import Recipe
from flows.update import update
from learner import registry
from learner.data import Task
from learner.methods.comm import Comm
from learner.modules.prompts import blended, prompted
from learner.modules.text_anchors import least_map, random_anchors, text_anchors
from learner.trainer import Trainer
from store.lake import Lake
from store.ledger import Ledger
from store.types import Modality, PalimpsestError
from tests.learner.handmade import CLASSES, copied, make_lake, make_recipe, make_trainer

SEEN, MOVED = CLASSES[:2], CLASSES[2:4]
IMAGE, IMU = Modality.IMAGE, Modality.IMU


def recipe_of(*, order: tuple[tuple[str, ...], ...] = (SEEN, MOVED), **params: Any) -> Recipe:
    tasks = [{"name": "+".join(labels), "labels": list(labels)} for labels in order]
    scenario = {"scenario": "modality-incremental", "tasks": tasks}
    learner = {"method": "comm", "params": params, "epochs": 3, "lr": 3e-3}
    return make_recipe(modalities=("imu", "image"), backbone="canonical", stream=scenario, **learner)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Two classes that are seen and two that are felt, whose features are cached."""
    lacks = lambda label, number: {"imu"} if label in SEEN else {"image"}  # noqa: E731
    lake = make_lake(tmp_path_factory.mktemp("comm"), ("imu", "image"), labels=CLASSES[:4], lacks=lacks)
    make_trainer(lake, recipe_of())
    return lake


def learnt(lake: Lake, folder: Path, *, tasks: int, **params: Any) -> tuple[Trainer, Comm, list[Task]]:
    """A trainer that has learnt so many tasks."""
    trainer, data = make_trainer(copied(lake, folder), recipe_of(**params))
    done: list[Task] = []
    for number in range(1, tasks + 1):
        task = trainer.task(number, data.names[number], data.tasks[number])
        trainer.learn(task, done)
        done.append(task)
    assert isinstance(trainer.method, Comm)
    return trainer, trainer.method, done


@pytest.fixture(scope="module")
def first(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Comm, list[Task]]:
    """What has met pictures; nothing is changed in it."""
    return learnt(lake, tmp_path_factory.mktemp("first"), tasks=1)


@pytest.fixture(scope="module")
def both(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Comm, list[Task]]:
    """What has met pictures, then movements; nothing is changed in it."""
    return learnt(lake, tmp_path_factory.mktemp("both"), tasks=2)


def test_with_nothing_before_it_a_modality_is_plainly_prompt_tuned(lake, tmp_path):
    """Its own prompts alone count; they are not averaged with anything, and nothing is held."""
    trainer, method, (task,) = learnt(lake, tmp_path, tasks=1)
    batch = next(task.train.batches())
    (view,) = method.views(batch)
    own = method.prompts[None, view.modality].expand(len(view.tokens), -1, -1, -1)
    plain = prompted(method.trunk, view.tokens, view.mask, own)
    assert torch.equal(method.embed(batch)["image"][view.rows], plain)
    unnamed, _ = method.predict_unnamed(view.tokens, view.mask, view.pooled)
    assert torch.equal(unnamed, method.predict(batch)[view.rows])
    (row,) = trainer.ledger.rows("SELECT list(DISTINCT term) AS terms FROM loss_terms")
    assert row["terms"] == ["classification"]
    task_begins = method.prompts.detach().clone()
    method.former = torch.randn_like(task_begins)
    method.end_task(task)  # were it the first, nothing of what was before would be taken over
    assert not torch.equal(method.prompts, task_begins)
    method.tasks[:] = 0
    with torch.no_grad():
        method.prompts.copy_(task_begins)
    method.end_task(task)
    assert torch.equal(method.prompts, task_begins)


def test_a_modality_that_joins_leaves_what_others_say_of_their_classes(first, both):
    _, method, tasks = first
    before = method.predict(next(tasks[0].test.batches()))
    trainer, method, tasks = both
    after = method.predict(next(tasks[0].test.batches()))
    assert torch.equal(after.argmax(1), before.argmax(1))
    (row,) = trainer.ledger.rows("""
        SELECT forgetting, average_accuracy FROM stream_summary
        WHERE split = 'test' AND protocol = 'classifier' AND modalities = 'all'""")
    assert row["forgetting"] == 0 and row["average_accuracy"] > 0.9


def test_anchors_stay_near_what_they_would_be_encoded_as_when_their_modality_learns_again(tmp_path):
    """Its prompts move its features; anchors whose samples are gone move along, alone and fused."""
    lake = make_lake(tmp_path, ("imu", "image"), labels=CLASSES[:4], lacks=lambda label, number: {"imu"})
    order = (CLASSES[:2], CLASSES[2:4])
    trainer, method, tasks = learnt(lake, tmp_path / "again", tasks=2, order=order, regularise=False)
    store = trainer.anchors
    ids = dict(zip(store.table["key"].to_pylist(), store.table["anchor"].to_pylist(), strict=True))
    old = tasks[0].train
    batch = old.batch([i for i, one in enumerate(old.examples) if one.key in ids])
    assert len(batch) == 6
    for space, now in method.embed(batch).items():
        true = torch.nn.functional.normalize(now).numpy()
        kept = store.vectors(space, [ids[one.key] for one in batch.examples])
        assert (kept * true).sum(1).min() > 0.99


def test_views_without_names_are_told_apart_and_classified_as_well(both):
    trainer, _, _ = both
    rows = trainer.ledger.rows("""
        SELECT on_task, identified, agnostic_loss FROM modality_identification
        WHERE after_task = 2 AND split = 'test' AND modalities = 'all' ORDER BY on_task""")
    assert [(row["on_task"], row["identified"]) for row in rows] == [(1, 1.0), (2, 1.0)]
    assert all(row["agnostic_loss"] == pytest.approx(0, abs=0.01) for row in rows)


def test_what_is_not_asked_for_is_measured_by_accuracy_alone(lake, tmp_path):
    here = copied(lake, tmp_path)
    update(here, recipe_of(), method="slda")
    assert Ledger(here).rows("FROM modality_identification") == []
    found = Ledger(here).rows("SELECT DISTINCT identified FROM predictions WHERE protocol = 'agnostic'")
    assert found == [{"identified": None}]


@pytest.mark.parametrize("method", ["slda", "simplecil", "comm"])
def test_a_sample_scores_the_same_whatever_modalities_lie_beside_it(tmp_path, method):
    lacks = lambda label, number: {"imu"} if number % 2 else set()  # noqa: E731
    lake = make_lake(tmp_path, ("imu", "image"), labels=SEEN, lacks=lacks)
    recipe = make_recipe(modalities=("imu", "image"), backbone="canonical", method=method, epochs=1)
    trainer, data = make_trainer(lake, recipe)
    task = trainer.task(1, data.names[1], data.tasks[1])
    trainer.learn(task)
    together = trainer.method.predict(task.train.batch(range(6)))
    alone = torch.cat([trainer.method.predict(task.train.batch([i])) for i in range(6)])
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-3)


def test_trunks_of_their_own_are_refused_and_give_no_agnostic_answers(tmp_path):
    lake = make_lake(tmp_path, ("imu", "image"), labels=SEEN)
    with pytest.raises(PalimpsestError, match="Comm has one trunk for all modalities: in learner.backbones name"):
        make_trainer(lake, make_recipe(modalities=("imu", "image"), method="comm"))
    update(lake, make_recipe(modalities=("imu", "image"), method="slda"))
    assert Ledger(lake).rows("SELECT count(*) AS n FROM predictions WHERE protocol = 'agnostic'") == [{"n": 0}]


@pytest.mark.parametrize("params", [{"realign": "samples"}, {"realign": "never"}, {"relevance": False}, {"rank": 4}])
def test_each_part_can_be_switched(lake, tmp_path, params):
    trainer, _, _ = learnt(lake, tmp_path, tasks=2, **params)
    (row,) = trainer.ledger.rows("""
        SELECT average_accuracy FROM stream_summary
        WHERE split = 'test' AND protocol = 'classifier' AND modalities = 'all'""")
    assert row["average_accuracy"] > 0.7


def test_another_way_to_realign_is_refused(lake):
    with pytest.raises(PalimpsestError, match="realign is discriminants, samples or never, not 'always'"):
        make_trainer(lake, recipe_of(realign="always"))


def test_weights_of_prompts_sum_to_one_and_own_ones_have_their_least(lake, tmp_path, monkeypatch):
    """Seen at the trunk: prompts of modality m are made to be m everywhere, so that the blend tells the weights."""
    _, method, tasks = learnt(lake, tmp_path, tasks=2, relevance=False)
    batch, given = next(tasks[1].train.batches()), []
    monkeypatch.setattr("learner.methods.comm.prompted", lambda *args: given.append(args[3]) or prompted(*args))
    with torch.no_grad():
        method.prompts.copy_(torch.arange(2.0)[:, None, None, None].expand_as(method.prompts))
    method.embed(batch)  # the IMU comes first: 0
    assert given[-1].unique().tolist() == [0.25]  # of 0.5 that both share alike, half
    method.predict_unnamed(batch.tokens[IMU], batch.masks[IMU], batch.pooled[IMU])
    assert given[-1].unique().tolist() == [0.5]


def test_names_are_scored_met_or_not(both):
    trainer, method, tasks = both
    batch = next(tasks[1].test.batches())
    classes = trainer.index.classes
    assert torch.allclose(method.predict_names(batch, classes), method.predict(batch), atol=1e-4)
    some = method.predict_names(batch, [classes[3], "zebra"])
    assert some.shape == (len(batch), 2)
    assert torch.allclose(some[:, 0], method.predict(batch)[:, 3], atol=1e-4)
    assert len(some[:, 1].unique()) > 1


def test_names_mean_nothing_beside_random_anchors(lake, tmp_path):
    _, method, tasks = learnt(lake, tmp_path, tasks=1, anchors="random")
    with pytest.raises(PalimpsestError, match="names mean nothing to a stream whose anchors are random"):
        method.predict_names(next(tasks[0].test.batches()), ["zebra"])


def test_a_modality_costs_a_covariance_and_a_class_a_mean(first, both, lake, tmp_path):
    (_, one, _), (_, two, _) = first, both
    image, imu = (one.names.index(name) for name in ("image", "imu"))
    number, width = 8, two.width  # bytes
    assert two.spaces[image].nbytes == one.spaces[image].nbytes
    # The IMU brings a covariance, for each class so far a mean, a count and an owner, and is one of the inputs.
    brought = width * width + 4 * (width + 2) + (width + 2)
    assert two.nbytes - one.nbytes <= number * brought
    assert one.spaces[imu].nbytes < number * width  # of what was never met there is nothing
    _, small, _ = learnt(lake, tmp_path, tasks=2, rank=4)
    assert small.spaces[0].nbytes < 0.02 * two.spaces[0].nbytes


class TestTextAnchors:
    @pytest.fixture
    def encoder(self, tmp_path: Path) -> Any:
        return registry.backbones({Modality.TEXT: "tiny"}, Lake(tmp_path / "lake"), torch.device("cpu"))[Modality.TEXT]

    def cosines(self, anchors: Tensor) -> Tensor:
        return anchors @ anchors.T

    def test_they_are_unit_vectors_one_a_name_whatever_the_others(self, encoder):
        anchors = text_anchors(encoder, ["living_room", "seven", "blue"])
        assert torch.allclose(anchors.norm(dim=1), torch.ones(3), atol=1e-5)
        assert torch.allclose(anchors[1:2], text_anchors(encoder, ["seven"]), atol=1e-6)
        assert torch.allclose(anchors[:1], text_anchors(encoder, ["living room"]), atol=1e-6)

    def test_names_differ_by_what_they_add_to_a_sentence(self, encoder):
        """The sentences themselves, which all share, would draw them together."""
        cosines = self.cosines(text_anchors(encoder, ["seven", "blue", "kitchen", "bathroom"]))
        assert cosines[~torch.eye(4, dtype=torch.bool)].max() < 0.9

    def test_a_map_gives_discriminants_up_to_what_they_have_in_common(self):
        torch.manual_seed(0)
        weight, bias, x = torch.randn(6, 3).double(), torch.randn(3).double() - 100, torch.randn(5, 6).double()
        anchors = random_anchors(4, 8)
        matrix, offset = least_map(weight, bias, anchors[:3])
        scores, wanted = (x @ matrix + offset) @ anchors.T.double(), x @ weight + bias
        assert torch.allclose(scores[:, :3], wanted - wanted.mean(1, keepdim=True), atol=1e-5)
        assert scores[:, 3].abs().max() < 1e-5  # of a name that none of them is like nothing is said

    def test_random_ones_are_orthogonal_and_stay_as_more_come(self):
        assert torch.allclose(self.cosines(random_anchors(5, 8)), torch.eye(5), atol=1e-6)
        assert torch.equal(random_anchors(3, 8), random_anchors(5, 8)[:3])
        with pytest.raises(PalimpsestError, match="no more than 8 vectors of 8 numbers are orthogonal, and 9 are"):
            random_anchors(9, 8)


def test_prompts_come_before_each_of_the_last_blocks_and_leave_no_token_behind(tmp_path):
    models = registry.backbones({IMAGE: "canonical", IMU: "canonical"}, Lake(tmp_path / "lake"), torch.device("cpu"))
    trunk = models[IMAGE]
    h, mask = torch.randn(2, trunk.tokens, trunk.dim), torch.ones(2, trunk.tokens, dtype=torch.bool)
    none = prompted(trunk, h, mask, torch.empty(2, 2, 0, trunk.dim))
    through = h
    for block in trunk.blocks[-2:]:
        through = block.attend(through, mask)
        through = through + block.feed(through)
    assert torch.equal(none, trunk.pool(through, mask))
    assert not torch.allclose(prompted(trunk, h, mask, torch.randn(2, 2, 3, trunk.dim)), none, atol=1e-3)


def test_pools_are_blended_by_weight():
    pools = torch.randn(3, 2, 4, 5)
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.25, 0.25]])
    found = blended(pools, weights)
    assert torch.allclose(found[0], pools[1])
    assert torch.allclose(found[1], 0.5 * pools[0] + 0.25 * pools[1] + 0.25 * pools[2])
