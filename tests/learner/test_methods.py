"""All methods under one suite of properties, and the formulas of the baselines against numbers worked out by hand."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from flows import build
from flows.recipe import Recipe
from flows.update import evaluate, update
from learner.batch import Batch
from learner.data import ClassIndex
from learner.losses.classification import among
from learner.losses.distillation import distillation
from learner.methods.base import Context
from learner.methods.derpp import dark_experience
from learner.methods.ewc import elastic, fisher_information
from learner.methods.frozen import ByModality
from learner.methods.icarl import class_means, sigmoid_distillation
from learner.methods.ranpac import RIDGES, RandomRidge
from learner.methods.simplecil import SCALE, Prototypes
from learner.registry import METHODS, exemplars
from learner.trainer import Settings
from store.anchors import AnchorStore
from store.lake import Lake
from store.ledger import Ledger
from store.snapshots import load_snapshot
from store.types import Modality, PalimpsestError
from tests.learner.handmade import CLASSES, copied, make_lake, make_recipe, make_trainer, same

PARAMS = {"ranpac": {"projected": 64}, "ewc": {"fisher_samples": 6}}
EVERY = 2  # steps between checkpoints; a task has 6


class Stopped(Exception):  # noqa: N818 - it is no error
    """What a test stops an update with."""


def recipe_of(method: str, **learner: Any) -> Recipe:
    settings = {"epochs": 3, "batch_size": 6, "lr": 5e-3, "memory": 8, **learner}
    return make_recipe(method=method, params=PARAMS.get(method, {}), **settings)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake with four classes, some samples of which lack the IMU, whose features are cached."""
    some = lambda label, number: {"imu"} if number % 5 in (1, 4) else set()  # noqa: E731
    lake = make_lake(tmp_path_factory.mktemp("methods"), labels=CLASSES[:4], lacks=some)
    make_trainer(lake, make_recipe())
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


@cache
def ledger(lake: Lake) -> Ledger:
    """One connection a lake: it sees every new row, and opening another takes a while."""
    return Ledger(lake)


def outcome(lake: Lake) -> list[Any]:
    """All that a run left behind, but for the times."""
    rows = ledger(lake).rows("SELECT * EXCLUDE recorded_at FROM snapshots ORDER BY ALL")
    return [rows, [load_snapshot(lake, row["snapshot_id"]) for row in rows], predictions(lake)]


def predictions(lake: Lake) -> list[dict[str, Any]]:
    return ledger(lake).rows("SELECT * EXCLUDE recorded_at FROM predictions ORDER BY ALL")


def test_it_learns_above_chance(learnt):
    (row,) = ledger(learnt.whole).rows(
        "FROM stream_summary WHERE split = 'test' AND protocol = 'classifier' AND modalities = 'all'"
    )
    assert row["tasks"] == 2
    assert row["average_accuracy"] > 0.5  # chance is 3/8


def test_killed_in_a_task_it_ends_bit_for_bit_the_same(learnt):
    assert learnt.steps[:1] in ([], [EVERY + 1])  # after the checkpoint; nothing for methods without steps
    assert same(outcome(learnt.killed), outcome(learnt.whole))


def test_a_snapshot_restored_predicts_the_same(learnt):
    before = predictions(learnt.whole)
    evaluate(learnt.whole, learnt.recipe)
    assert predictions(learnt.whole) == before
    assert len({row["snapshot_id"] for row in before}) == 2


def test_every_modality_may_be_missing(learnt):
    rows = predictions(learnt.whole)
    assert {row["modalities"] for row in rows if row["protocol"] == "classifier"} == {"imu", "text", "all"}
    assert all(0 <= row["confidence"] <= 1 + 1e-6 for row in rows)  # NaN is not


def test_memory_holds_exemplars_where_they_are_used(learnt):
    kept = load_snapshot(learnt.whole, f"{learnt.run_id}/002")["memory"]
    assert len(kept) == (0 if learnt.method == "joint" else 8)


@pytest.mark.parametrize("method", [name for name in METHODS if exemplars(name) == "needed"])
def test_what_cannot_do_without_exemplars_says_so(four, tmp_path, method):
    with pytest.raises(PalimpsestError, match=f"method {method} rehearses exemplars and the recipe keeps none"):
        make_trainer(copied(four, tmp_path), recipe_of(method, memory=0))


@pytest.mark.parametrize("method", ["ewc", "lwf", "moe-adapters"])
def test_without_exemplars_it_learns(four, tmp_path, method):
    assert update(copied(four, tmp_path), recipe_of(method, memory=0, epochs=1)).learned == ["ant+bee", "cat+dog"]


def test_cross_entropy_among_some_classes():
    logits = torch.tensor([[9.0, 1.0, 9.0, 3.0]])
    expected = -log_softmax(torch.tensor([1.0, 3.0]), 0)[1]
    assert among(logits, torch.tensor([3]), torch.tensor([1, 3])).item() == pytest.approx(expected.item())


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
    readouts = {"imu": Prototypes(3), "text": Prototypes(3)}
    for modality, classes in (("imu", [0, 1, 2]), ("text", others)):
        readouts[modality].grow(3)
        readouts[modality].update(torch.eye(3, dtype=torch.float64)[classes], torch.tensor(classes, dtype=torch.int64))
    context = Context({}, 1, ClassIndex(), AnchorStore(), torch.device("cpu"))
    masks = {m: torch.ones(1, 1, dtype=torch.bool) for m in (Modality.IMU, Modality.TEXT)}
    x = {Modality.IMU: torch.tensor([[3.0, 0.0, 4.0]]), Modality.TEXT: torch.tensor([[3.0, 4.0, 0.0]])}
    nothing = torch.zeros(1, dtype=torch.int64)
    found = ByModality(context, readouts).predict(Batch({}, masks, x, nothing, nothing))
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
