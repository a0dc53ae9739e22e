from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from store.policies import POLICIES, boundary, choose, herding, kmeans, reservoir


@pytest.fixture
def vectors() -> np.ndarray:
    """Three clusters, of 40, 40 and 4."""
    rng = np.random.default_rng(0)
    centres = np.repeat([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], [40, 40, 4], axis=0)
    return centres + rng.normal(scale=0.5, size=(84, 2))


def test_herding_follows_the_mean_and_its_prefixes_are_herdings(vectors: np.ndarray) -> None:
    taken = herding(vectors, 20)
    assert len(set(taken.tolist())) == 20
    assert herding(vectors, 7).tolist() == taken[:7].tolist()
    mean = vectors.mean(axis=0)
    keys = [str(i) for i in range(84)]
    drawn = [np.linalg.norm(vectors[reservoir(keys, 20, seed)].mean(axis=0) - mean) for seed in range(20)]
    assert np.linalg.norm(vectors[taken].mean(axis=0) - mean) < np.median(drawn)
    assert sorted(herding(vectors, 999).tolist()) == list(range(84))


def test_kmeans_keeps_the_rare_mode(vectors: np.ndarray) -> None:
    taken = kmeans(vectors, 3, np.random.default_rng(0))
    assert sorted(np.searchsorted([40, 80], taken, side="right").tolist()) == [0, 1, 2]
    assert taken.tolist() == kmeans(vectors, 3, np.random.default_rng(0)).tolist()
    assert sorted(kmeans(np.ones((5, 2)), 9, np.random.default_rng(0)).tolist()) == list(range(5))


def test_boundary_keeps_what_lies_towards_the_nearest_other_group(vectors: np.ndarray) -> None:
    first, others = vectors[:40], np.array([[10.0, 0.0], [0.0, 99.0]])
    taken = boundary(first, 5, others)
    assert set(taken) <= set(np.argsort(-first[:, 0])[:8])
    assert boundary(first, 3, others).tolist() == taken[:3].tolist()
    alone = boundary(first, 5, np.empty((0, 2)))
    distance = np.linalg.norm(first - first.mean(axis=0), axis=1)
    assert sorted(distance[alone]) == sorted(distance)[-5:]
    assert boundary(first[:0], 5, others).tolist() == []


def test_boundary_counts_groups_that_have_no_candidates(vectors: np.ndarray) -> None:
    groups = ["c"] * 40 + ["e"] * 44
    right = choose(vectors, groups, 5, "boundary")
    left = choose(vectors, groups, 5, "boundary", foreign={"f": np.array([-5.0, 0.0])})
    assert vectors[right[right < 40], 0].mean() > 0 > vectors[left[left < 40], 0].mean()


def test_a_reservoir_is_the_same_whatever_comes_when() -> None:
    keys = [f"k{i}" for i in range(200)]
    at_once = {keys[i] for i in reservoir(keys, 12, 3)}
    kept: list[str] = []
    for start in (150, 40, 0, 90):
        offered = kept + keys[start : start + {150: 50, 40: 50, 0: 40, 90: 60}[start]]
        kept = [offered[i] for i in reservoir(offered, 12, 3)]
    assert set(kept) == at_once
    assert {keys[i] for i in reservoir(keys, 12, 4)} != at_once


def test_a_reservoir_favours_nobody() -> None:
    keys = [f"k{i}" for i in range(20)]
    counts = Counter(int(i) for seed in range(2000) for i in reservoir(keys, 5, seed))
    assert max(abs(counts[i] - 500) for i in range(20)) < 5 * np.sqrt(2000 * 0.25 * 0.75)


@pytest.mark.parametrize("policy", POLICIES)
def test_choose_bounds_every_group(vectors: np.ndarray, policy: str) -> None:
    groups, keys = [("c", "d")] * 40 + [("c", "e")] * 40 + [("f", "d")] * 4, [f"k{i}" for i in range(84)]
    taken = choose(vectors, groups, 6, policy, seed=1, keys=keys)
    assert taken.tolist() == sorted(set(taken.tolist()))
    assert taken.tolist() == choose(vectors, groups, 6, policy, seed=1, keys=keys).tolist()
    assert Counter(groups[i] for i in taken) == {("c", "d"): 6, ("c", "e"): 6, ("f", "d"): 4}
    if policy != "boundary":  # what a group keeps depends on no other
        alone = choose(vectors[:40], groups[:40], 6, policy, seed=1, keys=keys[:40])
        assert [i for i in taken if i < 40] == alone.tolist()
    assert choose(vectors[:0], [], 6, policy).tolist() == []


def test_an_unknown_policy_is_told(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no policy 'oldest'"):
        choose(vectors, [0] * 84, 3, "oldest")
    with pytest.raises(ValueError, match="a key a candidate"):
        choose(vectors, [0] * 84, 3, "reservoir")
