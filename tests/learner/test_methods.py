"""All methods under one suite of properties, and the formulas of the baselines against numbers worked out by hand."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from flows import build
from flows.recipe import Recipe
from flows.update import evaluate, update
from learner.batch import Batch
from learner.data import ClassIndex, Examples
from learner.losses.classification import among
from learner.losses.distillation import distillation
from learner.methods.base import Context
from learner.methods.derpp import dark_experience
from learner.methods.ewc import elastic, fisher_information
from learner.methods.frozen import BySpace
from learner.methods.icarl import class_means, sigmoid_distillation
from learner.methods.ranpac import RIDGES, RandomRidge
from learner.methods.simplecil import SCALE, Prototypes
from learner.registry import METHODS, exemplars, needs_one_trunk
from learner.trainer import Settings
from store.anchors import AnchorStore
from store.lake import Lake
from store.snapshots import load_snapshot
from store.types import Modality, PalimpsestError
from tests.learner.handmade import CLASSES, SPLITS, copied, damage, ledger, make_lake, make_recipe, make_trainer, same

PARAMS = {"ranpac": {"projected": 64}, "ewc": {"fisher_samples": 6}}
EVERY = 2  # steps between checkpoints; a task has 6
CLOSED = {"simplecil", "slda", "ranpac", "zero-shot"}
ONE_TRUNK = {name for name in METHODS if needs_one_trunk(name)}
CONTRAST = {"contrast by sample", "contrast by class"}
CROSSMODAL = {"classification", "alignment", "distillation", "preservation"}
TERMS: dict[str, tuple[set[str], set[str]]] = {  # of the loss in the first task, and those that the second adds
    "crossmodal-moe": (
        {"classification", "alignment"},
        {"distillation", "preservation", *(f"rehearsal {term}" for term in CROSSMODAL)},
    ),
    "finetune": ({"classification"}, set()),
    "joint": ({"classification"}, set()),
    "ewc": ({"classification"}, {"rehearsal", "penalty"}),
    "lwf": ({"classification"}, {"rehearsal", "distillation"}),
    "er": ({"classification"}, {"rehearsal"}),
    "derpp": ({"classification"}, {"rehearsal", "dark experience"}),
    "icarl": ({"classification"}, {"rehearsal"}),
    "moe-adapters": ({"classification"}, {"rehearsal"}),
    "av-cil": ({"classification", *CONTRAST}, {"rehearsal", "distillation"}),
    "comm": ({"classification"}, {"shift"}),
    "l2p": ({"classification", "choice"}, set()),
    "coda-prompt": ({"classification", "choice"}, set()),
    **{method: (set(), set()) for method in CLOSED},
}


class Stopped(Exception):  # noqa: N818 - it is no error
    """What a test stops an update with."""


def recipe_of(method: str, **learner: Any) -> Recipe:
    settings = {"epochs": 3, "batch_size": 6, "lr": 5e-3, "memory": 8, **learner}
    if method in ONE_TRUNK:
        settings |= {"backbone": "canonical"}
    return make_recipe(modalities=("imu", other(method)), method=method, params=PARAMS.get(method, {}), **settings)


def other(method: str) -> str:
    """The modality beside the IMU."""
    return "image" if method in ONE_TRUNK else "text"


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake with four classes, some samples of which lack the IMU, whose features are cached."""
    some = lambda label, number: {"imu"} if number % 5 in (1, 4) else set()  # noqa: E731
    lake = make_lake(tmp_path_factory.mktemp("methods"), ("imu", "text", "image"), labels=CLASSES[:4], lacks=some)
    for method in ("slda", "comm"):
        make_trainer(lake, recipe_of(method))
    return lake


@dataclass(frozen=True)
class Learnt:
    """One run in a lake where nothing disturbed it, and in one where it was killed in its second task.

    Attributes:
        steps: of the second task, as told after the kill.
    """

    method: str
    recipe: Recipe
    whole: Lake
    killed: Lake
    run_id: str
    steps: list[int]


@pytest.fixture(scope="module", params=METHODS)
def learnt(request: pytest.FixtureRequest, four: Lake, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    method: str = request.param
    recipe, steps = recipe_of(method), []
    whole, killed = (copied(four, tmp_path_factory.mktemp(f"{method}-{place}")) for place in ("whole", "killed"))

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("task 2/") and done == EVERY + 2:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "Settings", partial(Settings, checkpoint_every=EVERY))
        run_id = update(whole, recipe).run_id
        with suppress(Stopped):
            update(killed, recipe, progress=stop)
        update(killed, recipe, progress=lambda what, done, _: steps.append(done) if what[:5] == "task " else None)
    return Learnt(method, recipe, whole, killed, run_id, steps)


def outcome(lake: Lake) -> list[Any]:
    """All that a run left behind, but for the times."""
    rows = ledger(lake).rows("SELECT * EXCLUDE recorded_at FROM snapshots ORDER BY ALL")
    return [rows, [load_snapshot(lake, row["snapshot_id"]) for row in rows], predictions(lake)]


def predictions(lake: Lake) -> list[dict[str, Any]]:
    return ledger(lake).rows("SELECT * EXCLUDE recorded_at FROM predictions ORDER BY ALL")


def losses(lake: Lake) -> list[dict[str, list[float]]]:
    """The mean of each term by epoch, in each task."""
    rows = ledger(lake).rows("SELECT detail FROM events WHERE kind = 'learned' ORDER BY subject")
    return [json.loads(row["detail"])["loss"] for row in rows]


def test_it_learns_above_chance(learnt):
    (row,) = ledger(learnt.whole).rows(
        "FROM stream_summary WHERE split = 'test' AND protocol = 'classifier' AND modalities = 'all'"
    )
    assert row["tasks"] == 2
    assert row["average_accuracy"] > 0.5  # chance is 3/8


def test_killed_in_a_task_it_ends_bit_for_bit_the_same(learnt):
    assert learnt.steps[:1] == ([] if learnt.method in CLOSED else [EVERY + 1])  # after the checkpoint
    assert same(outcome(learnt.killed), outcome(learnt.whole))


def test_every_term_of_its_loss_counts(learnt):
    first, second = losses(learnt.whole)
    at_once, later = TERMS[learnt.method]
    assert (set(first), set(second)) == (at_once, at_once | later)
    assert all(np.isfinite(values).all() and np.any(values) for values in [*first.values(), *second.values()])


def test_frozen_experts_stay(learnt):
    trees = [load_snapshot(learnt.whole, f"{learnt.run_id}/00{number}")["method"] for number in (1, 2)]
    if learnt.method in CLOSED | ONE_TRUNK:
        assert not any("network" in tree for tree in trees)
        return
    first, second = (tree["network"] for tree in trees)
    frozen = {(name, e) for name, experts in first["structure"]["frozen"].items() for e in experts}
    assert bool(frozen) == (learnt.method in {"crossmodal-moe", "moe-adapters"})
    keys = [f"encoder.adapters.{name}.experts.{part}.{e}" for name, e in frozen for part in ("down", "up")]
    assert all(same(first["tensors"][key], second["tensors"][key]) for key in keys)


def test_a_snapshot_restored_predicts_the_same(learnt):
    before = predictions(learnt.whole)
    evaluate(learnt.whole, learnt.recipe)
    assert predictions(learnt.whole) == before
    assert len({row["snapshot_id"] for row in before}) == 2


def test_every_modality_may_be_missing(learnt):
    rows = predictions(learnt.whole)
    sets = {row["modalities"] for row in rows if row["protocol"] == "classifier"}
    assert sets == {"imu", other(learnt.method), "all"}
    assert all(0 <= row["confidence"] <= 1 + 1e-6 for row in rows)  # NaN is not


def test_memory_holds_exemplars_where_they_are_used(learnt):
    kept = load_snapshot(learnt.whole, f"{learnt.run_id}/002")["memory"]
    assert len(kept) == (0 if exemplars(learnt.method) == "unused" else 8)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake whose second task has the IMU in its val and test samples alone."""
    unseen = lambda label, number: {"imu"} if label > "bee" and SPLITS[number % len(SPLITS)] == "train" else set()  # noqa: E731
    few = {"labels": CLASSES[:4], "lacks": unseen, "numbers": range(len(SPLITS))}
    lake = make_lake(tmp_path_factory.mktemp("sparse"), ("imu", "text", "image"), **few)
    for method in ("slda", "comm"):
        make_trainer(lake, recipe_of(method))
    return lake


@pytest.fixture(scope="module", params=METHODS)
def surprised(request: pytest.FixtureRequest, sparse: Lake, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A method, a lake where it learnt from `sparse`, if it can without exemplars, and how many batches it held.

    Methods consolidate in batches of one here.
    """
    lake, batches = copied(sparse, tmp_path_factory.mktemp(request.param)), Examples.batches
    given: list[weakref.ref[torch.Tensor]] = []
    held: list[int] = []

    def single(self: Examples, size: int = 64) -> Iterator[Batch]:
        for batch in batches(self, 1 if size == 64 else size):
            given.append(weakref.ref(batch.tokens[Modality(other(request.param))]))
            held.append(sum(tokens() is not None for tokens in given))
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Examples, "batches", single)
        memory = 4 if exemplars(request.param) == "needed" else 0
        update(lake, recipe_of(request.param, epochs=1, memory=memory))
    return request.param, lake, max(held)


def test_a_modality_may_be_met_for_the_first_time_in_the_test(surprised):
    method, lake, _ = surprised
    rows = [row for row in predictions(lake) if row["on_task"] == 2 and row["protocol"] == "classifier"]
    assert {row["modalities"] for row in rows} == {"imu", other(method), "all"}
    assert all(0 <= row["confidence"] <= 1 + 1e-6 for row in rows)  # NaN is not


def test_tokens_are_let_go_batch_by_batch(surprised):
    _, _, held = surprised
    assert held <= 3


NEEDY = [name for name in METHODS if exemplars(name) == "needed"]


@pytest.mark.parametrize("method", NEEDY)
def test_exemplars_may_all_be_damaged(tmp_path, method):
    """Two of the first task's, which are all that a memory of two keeps."""
    lake = make_lake(tmp_path, labels=CLASSES[:4], numbers=range(len(SPLITS)))
    recipe = recipe_of(method, memory=2, epochs=1)
    stop_in_the_second_task(lake, recipe)
    keys = exemplars_of(lake)
    damage(lake, "train", 24, keys)
    shutil.rmtree(lake.cache)
    assert sorted(update(lake, recipe).damaged) == sorted(keys) == sorted(exemplars_of(lake))
    assert "rehearsal" not in losses(lake)[1]
    assert all(0 <= row["confidence"] <= 1 + 1e-6 for row in predictions(lake))  # NaN is not


def test_exemplars_may_be_corrected_to_classes_that_come_later(four, tmp_path):
    lake, recipe = copied(four, tmp_path), recipe_of("av-cil", epochs=1)
    stop_in_the_second_task(lake, recipe)
    for key, label in zip(sorted(exemplars_of(lake)), ("cat", "zebra"), strict=False):
        (sample,) = ledger(lake).rows("SELECT * EXCLUDE recorded_at FROM samples WHERE key = ?", [key])
        ledger(lake).append("samples", [sample | {"labels": [label]}])
    assert update(lake, recipe).learned == ["cat+dog"]
    assert np.isfinite(losses(lake)[1]["rehearsal"]).all()


def stop_in_the_second_task(lake: Lake, recipe: Recipe) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("task 2/"):
            raise Stopped

    with pytest.raises(Stopped):
        update(lake, recipe, progress=stop)


def exemplars_of(lake: Lake) -> list[str]:
    """Keys of those kept by the last snapshot."""
    rows = ledger(lake).rows("SELECT snapshot_id FROM snapshots ORDER BY after_task")
    return load_snapshot(lake, rows[-1]["snapshot_id"])["memory"]


@pytest.mark.parametrize("method", NEEDY)
def test_what_cannot_do_without_exemplars_says_so(four, method):
    with pytest.raises(PalimpsestError, match=f"method {method} rehearses exemplars and the recipe keeps none"):
        make_trainer(four, recipe_of(method, memory=0))


def test_cross_entropy_among_some_classes():
    logits = torch.tensor([[9.0, 1.0, 9.0, 3.0]])
    expected = -log_softmax(torch.tensor([1.0, 3.0]), 0)[1]
    assert among(logits, torch.tensor([3]), torch.tensor([1, 3])).item() == pytest.approx(expected.item())


def test_cross_entropy_among_one_class_is_over_all():
    logits = torch.tensor([[9.0, 1.0, 3.0]])
    expected = -log_softmax(logits[0], 0)[1]
    assert among(logits, torch.tensor([1]), torch.tensor([1])).item() == pytest.approx(expected.item())


def test_moe_adapters_see_one_modality_each(four):
    trainer, data = make_trainer(four, recipe_of("moe-adapters"))
    task = trainer.task(1, data.names[1], data.tasks[1])
    trainer.method.begin_task(task)
    for parameter in trainer.method.modules.parameters():
        torch.nn.init.normal_(parameter)
    batch = next(task.train.batches())
    together = trainer.method.embed(batch)
    for m in batch.masks:
        there = batch.masks[m].any(1)
        assert torch.allclose(trainer.method.embed(batch.only([m]))[m][there], together[m][there], atol=1e-6)
    assert not any("context" in name for name, _ in trainer.method.modules.named_parameters())
    assert not hasattr(trainer.method, "teacher")  # it would be a copy for nothing


def test_lwf_distils_at_its_temperature():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * np.log(3.0), 0.0]])
    # At T = 2 the teacher says (3/4, 1/4), the student (1/2, 1/2).
    expected = 4 * (0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5))
    assert distillation(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_ewc_weighs_the_distance_by_fisher_information_and_lets_new_rows_go():
    now, then = {"w": torch.tensor([3.0, 1.0, 50.0])}, {"w": torch.tensor([1.0, 1.0])}
    assert elastic(now, then, {"w": torch.tensor([0.5, 9.0])}).item() == 0.5 * 0.5 * 2**2


def test_fisher_information_of_a_logistic_regression():
    w = torch.nn.Parameter(torch.tensor([0.0]))
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])
    losses = (torch.nn.functional.binary_cross_entropy_with_logits(w[0] * a, b) for a, b in zip(x, y, strict=True))
    # d/dw -log p = (1/2 - y) x at w = 0: -1/2 and 1.
    assert fisher_information({"w": w}, losses)["w"].tolist() == [(0.25 + 1.0) / 2]


def test_er_counts_each_exemplar_as_a_new_sample(four):
    trainer, data = make_trainer(four, recipe_of("er"))
    task = trainer.task(1, data.names[1], data.tasks[1])
    trainer.method.begin_task(task)
    new, few, together = (task.train.batch(positions) for positions in (range(6), range(6, 8), range(8)))
    # Routers take part with noise, but untrained adapters add nothing.
    terms = trainer.method.loss(new, few, torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(trainer.method.predict(together), together.labels)
    assert sum(terms.values()).item() == pytest.approx(expected.item(), rel=1e-5)


def test_derpp_compares_logits_over_the_classes_known_then():
    logits = torch.tensor([[1.0, 2.0, 9.0], [4.0, 5.0, 6.0], [7.0, 7.0, 7.0]], requires_grad=True)
    stored = [torch.tensor([0.0, 0.0]), torch.tensor([4.0, 5.0, 3.0]), torch.empty(0)]
    assert dark_experience(logits, stored).item() == pytest.approx((1 + 4 + 0 + 0 + 9) / 5)
    assert dark_experience(logits, [torch.empty(0)] * 3).item() == 0


def test_icarl_takes_old_targets_from_the_former_model_and_new_ones_from_labels():
    zero = torch.zeros(1, 3)
    former = torch.tensor([[np.log(3.0), 0.0]], dtype=torch.float32)  # sigmoids 3/4 and 1/2
    found = sigmoid_distillation(zero + torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2]), former, torch.tensor([2]))
    by_hand = np.log1p(np.exp(-1.0)) + 0.25 * 1.0 + 2 * np.log(2.0)  # -log s(1) + (1 - t) 1 with t = 3/4
    assert found.item() == pytest.approx(by_hand, rel=1e-6)
    alone = sigmoid_distillation(zero, torch.tensor([2]), None, torch.tensor([0, 1, 2]))
    assert alone.item() == pytest.approx(3 * np.log(2.0), rel=1e-6)


def test_icarl_means_are_directions_of_the_exemplars():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    means = class_means(vectors, torch.tensor([0, 0, 2]), 3)
    assert means.numpy() == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [0, 0], [0, -1]]))


def test_icarl_without_a_mean_of_any_class_is_undecided(four):
    trainer, data = make_trainer(four, recipe_of("icarl"))
    task = trainer.task(1, data.names[1], data.tasks[1])
    trainer.method.begin_task(task)
    trainer.method.recall(Examples(trainer.features, [], trainer.index))
    found = trainer.method.predict(next(task.test.batches())).softmax(1)
    assert torch.equal(found, torch.full_like(found, 0.5))


def test_simplecil_prototypes_are_means_whatever_the_portions():
    x, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 5.0]]).double(), torch.tensor([0, 0, 1])
    once, twice = Prototypes(2), Prototypes(2)
    once.grow(3)
    once.update(x, labels)
    twice.grow(1)
    twice.update(x[:1], labels[:1])
    twice.grow(3)
    twice.update(x[1:], labels[1:])
    found = once.scores(torch.tensor([[0.0, 7.0]]).double())
    assert found.numpy() == pytest.approx(SCALE * np.array([[0.5**0.5, 1.0, 0.0]]))
    assert once.met.tolist() == [True, True, False]
    assert torch.equal(found, twice.scores(torch.tensor([[0.0, 7.0]]).double()))


@pytest.mark.parametrize("others", [[0, 1], []])
def test_a_modality_has_no_say_on_classes_that_it_has_not_met(others):
    """Side by side or alone, what was met is not set back; a modality that met nothing is as if it were not there."""
    backbones = {m: SimpleNamespace(pooled_dim=3, blocks=[]) for m in (Modality.IMU, Modality.TEXT)}
    method = BySpace(Context(backbones, 1, ClassIndex(), AnchorStore(), torch.device("cpu")), Prototypes)
    for modality, classes in (("imu", [0, 1, 2]), ("text", others)):
        method.readouts[modality].grow(3)
        taken = torch.eye(3, dtype=torch.float64)[classes], torch.tensor(classes, dtype=torch.int64)
        method.readouts[modality].update(*taken)
    masks = {m: torch.ones(1, 1, dtype=torch.bool) for m in (Modality.IMU, Modality.TEXT)}
    x = {Modality.IMU: torch.tensor([[3.0, 0.0, 4.0]]), Modality.TEXT: torch.tensor([[3.0, 4.0, 0.0]])}
    nothing = torch.zeros(1, dtype=torch.int64)
    found = method.predict(Batch({}, masks, x, nothing, nothing))
    imu, text = np.array([0.6, 0.0, 0.8]), np.array([0.6, 0.8, 0.7]) if others else np.zeros(3)
    assert found[0].numpy() == pytest.approx(SCALE * (imu + text) / 2)


def test_ranpac_solves_the_ridge_regression_of_all_tasks_at_once():
    torch.manual_seed(0)
    x, labels = torch.randn(60, 5).double(), torch.arange(60) % 3
    readout = RandomRidge(5, 16)
    readout.grow(2)
    readout.update(x[:30], labels[:30] % 2)
    readout.grow(3)
    readout.update(x[30:], labels[30:])
    readout.calibrate(x[:20], labels[:20])
    ridge = float(readout.statistics["ridge"])
    h = np.maximum(x.numpy() @ readout.statistics["projection"].numpy(), 0)
    y = np.eye(3)[np.concatenate([labels[:30].numpy() % 2, labels[30:].numpy()])]

    def solve(strength: float) -> np.ndarray:
        return np.linalg.solve(h.T @ h + strength * np.eye(16), h.T @ y)

    assert readout.scores(x).numpy() == pytest.approx(h @ solve(ridge), abs=1e-8)
    errors = [((h[:20] @ solve(float(r)) - np.eye(3)[labels[:20]]) ** 2).mean() for r in RIDGES]
    assert ridge == float(RIDGES[int(np.argmin(errors))])
    readout.calibrate(x[:0], labels[:0])  # no held-out sample: the former ridge stays
    assert float(readout.statistics["ridge"]) == ridge
    assert readout.scores(x).numpy() == pytest.approx(h @ solve(ridge), abs=1e-8)
    assert readout.nbytes == 8 * (16 * 16 + 2 * 16 * 3 + 1)  # both sums, the weights and the ridge


def test_ranpac_takes_no_ridge_from_a_modality_without_training_samples():
    readout = RandomRidge(5, 16)
    readout.grow(2)
    readout.calibrate(torch.ones(4, 5).double(), torch.arange(4) % 2)
    assert not readout.met.any()
    assert float(readout.statistics["ridge"]) == 1
