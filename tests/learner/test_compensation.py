"""Stored vectors follow their space when it moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from learner.compensation import fit_drift
from tests.learner.handmade import make_lake, make_recipe, make_trainer

SPACES = ("fused", "imu", "text")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_an_affine_drift_is_found():
    old = torch.randn(200, 5, dtype=torch.float64) * torch.tensor([3.0, 1.0, 1.0, 0.5, 0.2])
    matrix, offset = torch.eye(5) + 0.3 * torch.randn(5, 5), torch.randn(5)
    new = old @ matrix.T.double() + offset
    found, shift, residual = fit_drift(old, new, ridge=1e-9)
    torch.testing.assert_close(found, matrix.double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shift, offset.double(), atol=1e-4, rtol=1e-4)
    assert residual.abs().max() < 1e-6


def test_what_it_has_not_seen_stays_put():
    """Directions in which the current task does not vary are left as they are."""
    old = torch.zeros(50, 4, dtype=torch.float64)
    old[:, :2] = torch.randn(50, 2, dtype=torch.float64)
    new = old.clone()
    new[:, :2] *= 2
    matrix, offset, _ = fit_drift(old, new)
    torch.testing.assert_close(matrix[2:, 2:], torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(matrix[:2, :2], 2 * torch.eye(2, dtype=torch.float64), atol=0.1, rtol=0)


def test_where_nothing_varies_the_map_is_a_shift():
    old = torch.ones(4, 3, dtype=torch.float64)
    matrix, offset, residual = fit_drift(old, old + 2)
    torch.testing.assert_close(matrix, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(offset, torch.full((3,), 2.0, dtype=torch.float64))
    assert not residual.any()


def test_the_residual_is_the_covariance_of_the_noise():
    old = torch.randn(4000, 3, dtype=torch.float64)
    noise = torch.randn(4000, 3, dtype=torch.float64) * torch.tensor([0.1, 0.5, 1.0])
    *_, residual = fit_drift(old, old + noise)
    torch.testing.assert_close(residual.diagonal(), torch.tensor([0.01, 0.25, 1.0]).double(), atol=0.06, rtol=0.1)


def test_a_few_samples_pull_no_stored_vector_far():
    old = torch.randn(3, 20, dtype=torch.float64)
    matrix, offset, _ = fit_drift(old, old + 0.01 * torch.randn(3, 20, dtype=torch.float64))
    other = torch.randn(50, 20, dtype=torch.float64)
    assert ((other @ matrix.T + offset) - other).norm(dim=1).max() < 0.5 * other.norm(dim=1).min()


def test_compensated_anchors_lie_nearer_to_true_re_encodings(tmp_path):
    """After a task that moved the network, with no sample of the earlier task at hand."""
    lake = make_lake(tmp_path, labels=("ant", "bee", "cat", "dog"), numbers=range(20), splits=("train",))
    params = {"plasticity": 1.0, "preservation": 0.0, "distillation": 0.0}
    trainer, data = make_trainer(lake, make_recipe(epochs=2, lr=1e-2, params=params))
    first = trainer.task(1, data.names[1], data.tasks[1])
    trainer.learn(first)
    stale = {space: (ids := trainer.anchors.ids(space), trainer.anchors.vectors(space, ids)) for space in SPACES}
    trainer.learn(trainer.task(2, data.names[2], data.tasks[2]), [first])
    position = {example.key: i for i, example in enumerate(first.train.examples)}
    for space, (ids, vectors) in stale.items():
        keys = trainer.anchors.rows(ids)["key"].to_pylist()
        with torch.no_grad():
            embedded = trainer.method.embed(first.train.batch([position[key] for key in keys]))[space]
        true = F.normalize(embedded).numpy()
        before = np.linalg.norm(vectors - true, axis=1).mean()
        after = np.linalg.norm(trainer.anchors.vectors(space, ids) - true, axis=1).mean()
        assert before > 0.02, space  # it did move
        assert after < 0.6 * before, space
