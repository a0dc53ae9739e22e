from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from store.policies import choose, herding, kmeans, random


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
    drawn = [
        np.linalg.norm(vectors[random(vectors, 20, np.random.default_rng(s))].mean(axis=0) - mean) for s in range(20)
    ]
    assert np.linalg.norm(vectors[taken].mean(axis=0) - mean) < min(drawn)
    assert sorted(herding(vectors, 999).tolist()) == list(range(84))


def test_kmeans_keeps_the_rare_mode(vectors: np.ndarray) -> None:
    taken = kmeans(vectors, 3, np.random.default_rng(0))
    assert sorted(np.searchsorted([40, 80], taken, side="right").tolist()) == [0, 1, 2]
    assert taken.tolist() == kmeans(vectors, 3, np.random.default_rng(0)).tolist()
    assert sorted(kmeans(np.ones((5, 2)), 9, np.random.default_rng(0)).tolist()) == list(range(5))


@pytest.mark.parametrize("policy", ["herding", "kmeans", "random"])
def test_choose_bounds_every_group_and_depends_on_no_other(vectors: np.ndarray, policy: str) -> None:
    groups = [("c", "d")] * 40 + [("c", "e")] * 40 + [("f", "d")] * 4
    taken = choose(vectors, groups, 6, policy, seed=1)
    assert taken.tolist() == sorted(set(taken.tolist())) == choose(vectors, groups, 6, policy, seed=1).tolist()
    assert Counter(groups[i] for i in taken) == {("c", "d"): 6, ("c", "e"): 6, ("f", "d"): 4}
    alone = choose(vectors[:40], groups[:40], 6, policy, seed=1)
    assert [i for i in taken if i < 40] == alone.tolist()
    assert choose(vectors[:0], [], 6, policy).tolist() == []


def test_an_unknown_policy_is_told(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no policy 'oldest'"):
        choose(vectors, [0] * 84, 3, "oldest")
