"""The Gaussian readout against the textbook, in pieces, with spaces missing, and when a space moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.checkpoint import to_arrays, to_tensors
from learner.modules.heads import GaussianReadout, GaussianSpace, Prior
from store.snapshots import load_tree, save_tree

WIDTHS = {"a": 4, "b": 3}
ALL = torch.ones(1, 2, dtype=torch.bool)


def make_data(n: int = 60, groups: int = 3, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Correlated Gaussians: one mean a group, one covariance for all, over both spaces."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % groups
    mix = rng.normal(size=(7, 7)) * np.linspace(0.3, 3, 7)
    x = rng.normal(size=(groups, 7))[labels] * 4 + rng.normal(size=(n, 7)) @ mix
    joined = torch.from_numpy(x)
    return {"a": joined[:, :4], "b": joined[:, 4:]}, torch.from_numpy(labels)


def fitted(features: dict[str, Tensor], presence: Tensor, groups: Tensor) -> GaussianReadout:
    readout = GaussianReadout({space: v.shape[1] for space, v in features.items()})
    readout.update(features, presence.expand(len(groups), -1), groups, torch.arange(5))
    return readout


def textbook(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Linear discriminant scores with a pooled covariance shrunk to its diagonal by Chen et al.'s (2010) eq. 23."""
    groups, d, n = y.max() + 1, x.shape[1], len(x)
    means = np.stack([x[y == g].mean(0) for g in range(groups)])
    pooled = sum(np.cov(x[y == g].T, bias=True) * (y == g).sum() for g in range(groups)) / (n - groups)
    deviation = np.sqrt(np.diag(pooled))
    R = pooled / np.outer(deviation, deviation)
    square, trace = np.trace(R @ R), np.trace(R)
    rho = min(1.0, ((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * (square - trace**2 / d)))
    S = ((1 - rho) * R + rho * np.eye(d)) * np.outer(deviation, deviation)
    weight = np.linalg.solve(S, means.T)
    return test @ weight - 0.5 * (means.T * weight).sum(0)


@pytest.mark.parametrize("space", ["a", "b"])
def test_a_space_is_read_by_linear_discriminant_analysis(space):
    features, groups = make_data()
    test, _ = make_data(20, seed=5)
    one = torch.ones(1, 1, dtype=torch.bool)
    scores = fitted({space: features[space]}, one, groups).scores({space: test[space]}, one.expand(20, -1))
    expected = textbook(features[space].numpy(), groups.numpy(), test[space].numpy())
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)


def test_the_evidence_of_the_spaces_adds_up():
    features, groups = make_data()
    both, there = fitted(features, ALL, groups), ALL.expand(60, -1)
    parts = [both.scores(features, there & torch.tensor(only)) for only in ([True, False], [False, True])]
    torch.testing.assert_close(both.scores(features, there), parts[0] + parts[1])


def test_a_stream_in_pieces_gives_what_all_at_once_gives():
    features, groups = make_data()
    whole = fitted(features, ALL, groups)
    pieces = GaussianReadout(WIDTHS)
    for part in (slice(0, 25), slice(25, 26), slice(26, 60)):
        some = {space: v[part] for space, v in features.items()}
        pieces.update(some, ALL.expand(len(groups[part]), -1), groups[part], torch.arange(3))
    torch.testing.assert_close(pieces.scores(features, ALL.expand(60, -1)), whole.scores(features, ALL.expand(60, -1)))


def test_later_groups_join_without_moving_earlier_means():
    features, groups = make_data()
    readout = GaussianReadout(WIDTHS)
    for g in (0, 2, 1):
        mine = groups == g
        readout.update(
            {s: v[mine] for s, v in features.items()}, ALL.expand(int(mine.sum()), -1), groups[mine], torch.arange(3)
        )
    whole = fitted(features, ALL, groups)
    torch.testing.assert_close(readout.scores(features, ALL.expand(60, -1)), whole.scores(features, ALL.expand(60, -1)))


def test_a_space_that_a_sample_lacks_is_integrated_out():
    """A readout that was fitted on the other space alone scores the same."""
    features, groups = make_data()
    both = fitted(features, ALL, groups)
    alone = fitted({"a": features["a"]}, torch.ones(1, 1, dtype=torch.bool), groups)
    only_a = torch.tensor([[True, False]]).expand(60, -1)
    torch.testing.assert_close(
        both.scores(features, only_a), alone.scores({"a": features["a"]}, torch.ones(60, 1, dtype=torch.bool))
    )
    assert not torch.allclose(both.scores(features, only_a), both.scores(features, ALL.expand(60, -1)), atol=0.1)


def test_what_is_missing_in_training_leaves_no_trace():
    features, groups = make_data()
    presence = torch.ones(60, 2, dtype=torch.bool)
    presence[::2, 1] = False
    spoilt = {"a": features["a"], "b": torch.where(presence[:, 1:], features["b"], torch.tensor(1e6).double())}
    one, other = fitted(features, presence, groups), fitted(spoilt, presence, groups)
    torch.testing.assert_close(one.scores(features, presence), other.scores(spoilt, presence))
    # Space b by itself is that of the samples that have it.
    there = presence[:, 1]
    alone = fitted({"b": features["b"][there]}, torch.ones(1, 1, dtype=torch.bool), groups[there])
    only_b = torch.tensor([[False, True]]).expand(60, -1)
    torch.testing.assert_close(
        one.scores(features, only_b), alone.scores({"b": features["b"]}, torch.ones(60, 1, dtype=torch.bool))
    )


def test_spaces_never_seen_together_still_make_a_decision():
    features, groups = make_data()
    presence = torch.tensor([[True, False], [False, True]]).repeat(30, 1)
    scores = fitted(features, presence, groups).scores(features, ALL.expand(60, -1))
    assert scores.isfinite().all()
    assert (scores.argmax(1) == groups).float().mean() > 0.5


def test_groups_that_a_space_never_met_are_neither_favoured_nor_ruled_out_by_it():
    features, groups = make_data()
    presence = torch.stack([torch.ones(60, dtype=torch.bool), groups != 2], 1)
    readout = fitted(features, presence, groups)
    scores = readout.scores(features, torch.tensor([[False, True]]).expand(60, -1))
    assert scores.shape == (60, 3)
    torch.testing.assert_close(scores[:, 2], scores[:, :2].mean(1))


def test_held_out_samples_tell_how_far_a_space_can_be_trusted():
    """Space b, fitted on its own noise, is sure and wrong; held-out classes cool it and the honest space decides."""
    rng = torch.Generator().manual_seed(0)
    groups = torch.arange(40) % 2

    def draw() -> dict[str, Tensor]:
        noise = torch.randn(40, 34, generator=rng, dtype=torch.float64)
        return {"a": noise[:, :4] + 1.2 * groups[:, None], "b": noise[:, 4:]}

    readout, held_out, test, here = fitted(draw(), ALL, groups), draw(), draw(), ALL.expand(40, -1)

    def surprise() -> float:
        return float(torch.nn.functional.cross_entropy(readout.scores(test, here), groups))

    before = surprise()
    alone = readout.scores(test, torch.tensor([[True, False]]).expand(40, -1))
    readout.calibrate(held_out, here, groups)
    assert surprise() < 0.8 * before
    cooled = readout.scores(test, torch.tensor([[True, False]]).expand(40, -1))
    torch.testing.assert_close(cooled.argmax(1), alone.argmax(1))  # by itself a space decides as before
    again = readout.scores(test, here)
    readout.calibrate(held_out, here, torch.full((40,), -1))  # classes nobody knows teach nothing
    assert torch.equal(readout.scores(test, here), again)


def domains(n: int, *, spread: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples ``[n, 6]`` of two classes in two domains that move each class's mean by `spread`; groups and classes."""
    rng = torch.Generator().manual_seed(seed)
    groups = torch.arange(n) % 4
    means = torch.tensor([[0.0, 0.0], [0.0, spread], [1.5, 0.0], [1.5, -spread]], dtype=torch.float64)
    x = torch.randn(n, 6, generator=rng, dtype=torch.float64)
    x[:, :2] += means[groups]
    return x, groups, groups // 2


@pytest.mark.parametrize(("spread", "pull"), [(6.0, 0.0), (0.0, torch.inf)])
def test_held_out_samples_tell_whether_domains_count(spread, pull):
    priors = [Prior(isotropic=True, pull=p) for p in (torch.inf, 0.0)]
    here, owner = torch.ones(1, 1, dtype=torch.bool), torch.tensor([0, 0, 1, 1])
    x, groups, _ = domains(24, spread=spread, seed=0)
    held_out, _, classes = domains(200, spread=spread, seed=1)
    readout = GaussianReadout({"a": 6}, priors)
    readout.update({"a": x}, here.expand(24, -1), groups, owner)
    readout.calibrate({"a": held_out}, here.expand(200, -1), classes)
    assert readout.spaces["a"].prior.pull == pull


def test_at_infinite_pull_domains_change_nothing():
    x, groups, classes = domains(60, spread=2.0, seed=0)
    here = torch.ones(60, 1, dtype=torch.bool)
    apart, at_once = (GaussianReadout({"a": 6}, [Prior(pull=torch.inf)]) for _ in range(2))
    apart.update({"a": x}, here, groups, torch.tensor([0, 0, 1, 1]))
    at_once.update({"a": x}, here, classes, torch.arange(2))
    found, expected = (r.scores({"a": x}, here).softmax(1) for r in (apart, at_once))
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)  # degrees of freedom count groups, not classes


@pytest.mark.parametrize("sign", [1, -1])
def test_a_doubted_space_speaks_only_where_it_helps(sign):
    """Space b still says what it said when it was fitted, or by now the opposite."""
    rng, groups, here = torch.Generator().manual_seed(0), torch.arange(80) % 2, ALL.expand(80, -1)

    def draw(sign: int) -> dict[str, Tensor]:
        noise = torch.randn(80, 8, generator=rng, dtype=torch.float64)
        return {"a": noise[:, :4] + groups[:, None], "b": noise[:, 4:] + sign * groups[:, None]}

    readout = GaussianReadout({"a": 4, "b": 4}, doubted="b")
    readout.update(draw(1), here, groups, torch.arange(2))
    readout.calibrate(draw(sign), here, groups)
    test = draw(sign)
    alone = readout.scores(test, torch.tensor([[True, False]]).expand(80, -1))
    assert torch.equal(readout.scores(test, here), alone) is (sign < 0)


@pytest.mark.parametrize("frequent", [True, False])
def test_held_out_samples_tell_whether_frequent_classes_are_likelier(frequent):
    """Nine in ten of what is learnt are of class 0, and all of it looks alike; held-out samples go on so or do not."""
    rng, here = torch.Generator().manual_seed(0), torch.ones(100, 1, dtype=torch.bool)
    rare, often = (torch.arange(100) % 10 == 0).long(), torch.arange(100) % 2
    x, held_out, test = torch.randn(3, 100, 4, generator=rng, dtype=torch.float64)
    readout = GaussianReadout({"a": 4})
    readout.update({"a": x}, here, rare, torch.arange(2))
    before = readout.scores({"a": test}, here)
    readout.calibrate({"a": held_out}, here, rare if frequent else often)
    nothing = readout.scores({"a": test}, torch.zeros_like(here)).softmax(1)
    torch.testing.assert_close(nothing[0], torch.tensor([0.9, 0.1] if frequent else [0.5, 0.5]))
    found = readout.scores({"a": test}, here).argmax(1)
    assert not found.any() if frequent else torch.equal(found, before.argmax(1))


def test_a_sample_with_nothing_gets_no_opinion():
    features, groups = make_data()
    assert not fitted(features, ALL, groups).scores(features, torch.zeros(60, 2, dtype=torch.bool)).any()


def test_fewer_samples_than_dimensions_are_enough():
    rng = torch.Generator().manual_seed(0)
    groups = torch.arange(8) % 2
    wide = torch.randn(8, 50, generator=rng, dtype=torch.float64) + 3 * groups[:, None]
    readout = fitted({"a": wide}, torch.ones(1, 1, dtype=torch.bool), groups)
    scores = readout.scores({"a": wide}, torch.ones(8, 1, dtype=torch.bool))
    assert (scores.argmax(1) == groups).all()


def test_following_an_exact_map_equals_refitting():
    features, groups = make_data()
    rng = torch.Generator().manual_seed(1)
    matrix = torch.randn(4, 4, generator=rng, dtype=torch.float64)
    offset = torch.randn(4, generator=rng, dtype=torch.float64)
    moved = {"a": features["a"] @ matrix.T + offset, "b": features["b"]}
    carried = fitted(features, ALL, groups)
    carried.transport("a", matrix, offset, torch.zeros(4, 4))
    here = ALL.expand(60, -1)
    torch.testing.assert_close(carried.scores(moved, here), fitted(moved, ALL, groups).scores(moved, here))


def test_a_space_that_drifted_beyond_explanation_counts_for_less():
    """Where space a says group 0 and space b says group 1, doubt about a tips the scales."""
    eye = torch.eye(2, dtype=torch.float64)
    groups = torch.arange(80) % 2
    rng = torch.Generator().manual_seed(0)
    x = {s: 2 * eye[groups] + torch.randn(80, 2, generator=rng, dtype=torch.float64) for s in "ab"}
    readout, here = fitted(x, ALL, groups), ALL
    torn = {"a": 2 * eye[:1], "b": 1.6 * eye[1:]}
    assert readout.scores(torn, here).argmax() == 0
    before = readout.scores(torn, torch.tensor([[True, False]])).diff().abs()
    readout.transport("a", eye, torch.zeros(2), 3 * eye)
    assert readout.scores(torn, here).argmax() == 1
    assert readout.scores(torn, torch.tensor([[True, False]])).diff().abs() < 0.5 * before


def test_its_state_goes_to_disk_and_back(tmp_path):
    features, groups = make_data()
    readout = fitted(features, ALL, groups)
    readout.transport("b", 2 * torch.eye(3), torch.ones(3), 0.1 * torch.eye(3))
    save_tree(tmp_path / "state", to_arrays(readout.state_dict()))
    other = GaussianReadout(WIDTHS)
    other.load_state_dict(to_tensors(load_tree(tmp_path / "state")))
    here = ALL.expand(60, -1)
    assert torch.equal(other.scores(features, here), readout.scores(features, here))
    assert other.nbytes == readout.nbytes > 0
    other.update(features, here, groups, torch.arange(3))  # and it goes on learning
    readout.update(features, here, groups, torch.arange(3))
    assert torch.equal(other.scores(features, here), readout.scores(features, here))


@pytest.mark.parametrize("groups", [2, 5])
def test_its_memory_does_not_grow_with_the_samples(groups):
    one = fitted(*_with_presence(30, groups))
    many = fitted(*_with_presence(300, groups))
    assert one.nbytes == many.nbytes


def _with_presence(n: int, groups: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    features, labels = make_data(n, groups)
    return features, ALL, labels


def space_of(x: Tensor, groups: Tensor, rank: int | None = None) -> GaussianSpace:
    space = GaussianSpace(x.shape[1], [Prior(isotropic=True)], rank)
    space.update(x, groups, torch.arange(int(groups.max()) + 1))
    return space


@pytest.mark.parametrize("samples", [3, 400], ids=["fewer than dimensions", "more than dimensions"])
def test_samples_of_a_group_have_its_mean_and_the_shrunk_covariance_of_all(samples):
    features, groups = make_data(3 * samples)
    space = space_of(torch.cat(list(features.values()), 1), groups)
    drawn = space.draw(1, 60_000, torch.Generator().manual_seed(0))
    inverse, _ = space.discriminant(torch.eye(7, dtype=torch.float64), space.prior)  # weights are S^-1 times the means
    away = drawn.mean(0) - space.means[1]
    assert away @ inverse @ away < 0.001
    assert torch.allclose(inverse @ drawn.T.cov(), torch.eye(7, dtype=torch.float64), atol=0.05)


def test_a_covariance_is_compressed_to_directions_and_a_diagonal():
    torch.manual_seed(0)
    x = torch.randn(500, 2).double() @ torch.randn(2, 30).double() * 3 + torch.randn(500, 30).double()
    groups = torch.arange(500) % 4
    whole, small, diagonal = (space_of(x, groups, rank) for rank in (None, 2, 0))
    for space in (whole, small, diagonal):
        space.compress()
    assert torch.allclose(small.scatter.diagonal(), whole.scatter.diagonal())
    assert (small.scatter - whole.scatter).norm() < 0.2 * (diagonal.scatter - whole.scatter).norm()
    assert torch.equal(diagonal.scatter, whole.scatter.diagonal().diag())
    assert diagonal.nbytes < small.nbytes < 0.5 * whole.nbytes
    again = GaussianSpace(30, [Prior(isotropic=True)], 2)
    again.take(small.state())
    assert torch.equal(again.scatter, small.scatter)
    assert again.state().keys() == small.state().keys() and "scatter" not in small.state()
    small.update(x[:8], groups[:8], torch.arange(4))
    small.transport(2 * torch.eye(30), torch.zeros(30), torch.eye(30))
    small.compress()
    again.take(small.state())
    assert torch.equal(again.doubt, small.doubt) and torch.allclose(small.doubt, torch.eye(30).double())
