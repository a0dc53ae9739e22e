"""What is found among anchors made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from learner import retrieval
from learner.retrieval import Retrieval, average_precision, vote
from store.anchors import AnchorStore


def store_of(labels: list[str], **spaces: np.ndarray) -> AnchorStore:
    store = AnchorStore()
    rows = [{"key": f"k{i}", "label": label} for i, label in enumerate(labels)]
    store.add(rows, {space: (range(len(labels)), vectors) for space, vectors in spaces.items()})
    return store


@pytest.fixture
def told_apart_by_little() -> tuple[AnchorStore, np.ndarray, list[str]]:
    """Two labels that differ along the first axis; along the second all differ far more, and all share the third."""
    rng = np.random.default_rng(0)
    labels = ["left", "right"] * 40

    def draw() -> np.ndarray:
        side = np.array([-0.3, 0.3] * 40)
        return np.stack([side + rng.normal(0, 0.03, 80), rng.normal(0, 2, 80), np.full(80, 5.0)], 1)

    return store_of(labels, fused=draw()), draw(), labels


def test_what_labels_share_and_how_each_varies_anyway_is_taken_out(told_apart_by_little):
    store, queries, labels = told_apart_by_little
    similarity, ids = Retrieval(store).search("fused", queries, 10)
    assert (np.diff(similarity, axis=1) <= 0).all() and similarity.max() <= 1 + 1e-5
    found = store.labels(ids)
    assert (found == np.array(labels, object)[:, None]).mean() > 0.95
    plain = store.labels(store.search("fused", queries, 10)[1])
    assert (plain == np.array(labels, object)[:, None]).mean() < 0.85


@pytest.mark.parametrize("count", [8, 60], ids=["fewer than dimensions", "more than dimensions"])
def test_similarity_is_the_cosine_after_whitening_by_the_covariance_within_labels(count):
    rng = np.random.default_rng(2)
    x, queries = rng.normal(size=(count, 20)) * np.arange(1, 21), rng.normal(size=(3, 20))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    similarity, ids = Retrieval(store_of(["a", "b"] * (count // 2), fused=x)).search("fused", queries, count)
    within = np.concatenate([x[0::2] - x[0::2].mean(0), x[1::2] - x[1::2].mean(0)])
    covariance = within.T @ within
    shrunk = 0.8 * covariance / (covariance.trace() / 20) + 0.2 * np.eye(20)
    asked, there = queries - x.mean(0), x - x.mean(0)
    products = asked @ np.linalg.solve(shrunk, there.T)
    lengths = [np.sqrt(np.einsum("nd,dn->n", v, np.linalg.solve(shrunk, v.T))) for v in (asked, there)]
    expected = products / lengths[0][:, None] / lengths[1]
    assert similarity == pytest.approx(np.take_along_axis(expected, ids, 1), abs=1e-5)


def test_some_of_many_anchors_tell_as_much_whatever_their_order(told_apart_by_little, monkeypatch):
    store, queries, labels = told_apart_by_little
    monkeypatch.setattr(retrieval, "FITTED_ON", 40)  # every other anchor has the same label
    _, ids = Retrieval(store).search("fused", queries, 10)
    assert (store.labels(ids) == np.array(labels, object)[:, None]).mean() > 0.95


def test_an_anchor_finds_itself_and_a_query_all_there_are(told_apart_by_little):
    store, _, _ = told_apart_by_little
    retrieval = Retrieval(store)
    similarity, ids = retrieval.search("fused", 3 * store.vectors("fused"), 1)
    assert ids[:, 0].tolist() == store.ids("fused").tolist()
    assert similarity == pytest.approx(1, abs=1e-5)
    assert sorted(retrieval.search("fused", np.ones((1, 3)), 1000)[1][0]) == store.ids("fused").tolist()
    assert retrieval.labels("fused") == {"left": 40, "right": 40}


def test_an_anchor_a_label_leaves_plain_centred_cosines():
    vectors = np.eye(3)
    store = store_of(["a", "b", "c"], fused=vectors)
    similarity, ids = Retrieval(store).search("fused", vectors[:1], 3)
    assert ids[0, 0] == 0
    assert similarity[0] == pytest.approx([1, -0.5, -0.5])


def test_one_anchor_is_found_whatever_is_asked():
    store = store_of(["a"], fused=np.ones((1, 4)))
    similarity, ids = Retrieval(store).search("fused", np.eye(4), 5)
    assert ids.tolist() == [[0]] * 4
    assert np.isfinite(similarity).all()


def test_another_modality_is_found_across_the_gap_between_both():
    """Both spaces have the same shape, but each lies in a corner of its own."""
    rng = np.random.default_rng(1)
    labels = list("abcd") * 5
    shape = np.tile(np.eye(6)[:4], (5, 1)) * 0.3 + rng.normal(0, 0.01, (20, 6))
    heard, seen = shape + [0.5, 0, 0, 0, 1, 0], shape + [0, 0, 0, 0, 0, 1]
    store = store_of(labels, audio=heard, video=seen)
    _, ids = Retrieval(store).search("video", heard, 3, asked="audio")
    assert (store.labels(ids) == np.array(labels, object)[:, None]).mean() == 1
    plain = store.labels(store.search("video", heard, 3)[1])
    assert (plain == np.array(labels, object)[:, None]).mean() < 1


@pytest.mark.parametrize(
    ("right", "relevant", "expected"),
    [
        ([1, 0, 1, 0], 2, (1 + 2 / 3) / 2),
        ([0, 0, 1, 1], 2, (1 / 3 + 2 / 4) / 2),
        ([1, 0, 0, 0], 3, 1 / 3),  # two more lie beyond the cut-off
        ([1, 1, 1, 1], 9, 1),  # no more than four can be ranked
        ([0, 0, 0, 0], 2, 0),
        ([0, 0, 0, 0], 0, 0),
    ],
)
def test_average_precision_worked_out_by_hand(right, relevant, expected):
    assert average_precision(np.array([right], bool), [relevant]) == pytest.approx([expected])


def test_votes_weigh_by_similarity():
    similarity = np.array([[0.9, 0.6, 0.6], [0.9, 0.89, 0.89], [0.5, 0.5, 0.1]])
    labels = np.array([["x", "y", "y"], ["x", "y", "y"], ["y", "x", "x"]], object)
    names, shares = vote(similarity, labels)
    weight = np.exp(-3)
    assert names == ["x", "y", "x"]
    assert shares[0] == pytest.approx(1 / (1 + 2 * weight))
    assert vote(similarity[2:, :2], labels[2:, :2]) == (["x"], [0.5])  # of equals the first in the alphabet
