"""Each loss term at the points where its value is known, and whom its gradient reaches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from learner.losses.alignment import alignment
from learner.losses.distillation import distillation
from learner.losses.preservation import in_batch, preservation, to_anchors
from store.types import Modality

A, V, T = Modality.AUDIO, Modality.VIDEO, Modality.TEXT


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rotation(d: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_preservation_is_zero_when_nothing_moves(temperature):
    x, anchors = randn(6, 5), randn(6, 7, 5)
    assert preservation(to_anchors(x, anchors), to_anchors(x, anchors), temperature=temperature) == 0
    assert preservation(in_batch(x), in_batch(x), temperature=temperature) == 0


def test_preservation_is_zero_under_one_joint_rotation():
    x, anchors, turn = randn(6, 5), randn(6, 7, 5), rotation(5)
    moved = to_anchors(x @ turn, anchors @ turn)
    assert preservation(moved, to_anchors(x, anchors)).abs() < 1e-12


def test_preservation_in_the_batch_is_zero_under_a_rotation_of_the_features_alone():
    x = randn(6, 5)
    assert preservation(in_batch(x @ rotation(5)), in_batch(x)).abs() < 1e-12


def test_preservation_sees_what_moves_alone():
    x, anchors, turn = randn(6, 5), randn(6, 7, 5), rotation(5)
    assert preservation(to_anchors(x @ turn, anchors), to_anchors(x, anchors)) > 0.1
    shifted = x + 0.3 * randn(6, 5)
    assert preservation(in_batch(shifted), in_batch(x)) > 1e-3


def test_preservation_is_the_mean_divergence_of_the_rows():
    now, then = randn(4, 6), randn(4, 6)
    expected = F.kl_div((now / 0.3).log_softmax(1), (then / 0.3).softmax(1), reduction="batchmean")
    torch.testing.assert_close(preservation(now, then, temperature=0.3), expected)


def test_preservation_leaves_the_teacher_alone():
    student, teacher, anchors = randn(6, 5).requires_grad_(), randn(6, 5).requires_grad_(), randn(6, 7, 5)
    (
        preservation(to_anchors(student, anchors), to_anchors(teacher, anchors))
        + preservation(in_batch(student), in_batch(teacher))
    ).backward()
    assert teacher.grad is None or not teacher.grad.any()
    assert student.grad.isfinite().all()
    assert student.grad.any()


def test_a_sample_is_not_its_own_neighbour():
    x = randn(4, 5)
    spread = torch.stack([x[0], 5 * x[1], 0.1 * x[2], x[3]])
    torch.testing.assert_close(in_batch(spread), in_batch(x))  # cosines
    assert torch.isinf(in_batch(x).diagonal()).all()


def test_alignment_falls_when_true_pairs_match():
    labels = torch.arange(8) % 4
    class_means = F.normalize(randn(4, 16))
    a = class_means[labels] + 0.3 * F.normalize(randn(8, 16))
    matched = {A: a, V: class_means[labels] + 0.3 * F.normalize(randn(8, 16))}
    crossed = {A: a, V: matched[V].roll(1, 0)}
    there = torch.ones(8, 2, dtype=torch.bool)
    near = alignment(matched, there, labels, margin=2.0)
    far = alignment(crossed, there, labels, margin=2.0)
    assert 0 < near < far - 1


def test_alignment_asks_nothing_past_the_margin():
    labels = torch.arange(6)
    a = randn(6, 16)
    v = (a + 0.05 * randn(6, 16)).requires_grad_()
    there = torch.ones(6, 2, dtype=torch.bool)
    relaxed = alignment({A: a, V: v}, there, labels, margin=0.7)
    relaxed.backward()
    assert relaxed == 0
    assert not v.grad.any()
    v.grad = None
    alignment({A: a, V: v}, there, labels, margin=2.0).backward()
    assert v.grad.any()


def test_alignment_follows_its_gradient_up_to_the_margin():
    """Descending it brings pairs together but leaves modalities room of their own."""
    labels = torch.arange(6)
    z = {m: randn(6, 16).requires_grad_() for m in (A, V)}
    there = torch.ones(6, 2, dtype=torch.bool)
    optimizer = torch.optim.Adam(z.values(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        alignment(z, there, labels, margin=0.7).backward()
        optimizer.step()
    cosine = F.cosine_similarity(z[A], z[V])
    assert (cosine >= 0.7 - 1e-6).all()
    assert (cosine < 0.95).all()


@pytest.mark.parametrize("margin", [0.7, 2.0])
def test_alignment_does_not_collapse_what_varies_in_a_modality(margin):
    """Not even where it never stops asking: in each modality classes stay as far apart as they were."""
    labels = torch.arange(24) % 6
    z = {m: randn(24, 16).requires_grad_() for m in (A, V)}
    before = {m: F.normalize(x.detach()).var(0).sum() for m, x in z.items()}
    optimizer = torch.optim.Adam(z.values(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        alignment(z, torch.ones(24, 2, dtype=torch.bool), labels, margin=margin).backward()
        optimizer.step()
    for m, x in z.items():
        assert F.normalize(x).var(0).sum() > 0.8 * before[m]


def test_alignment_counts_every_sample_of_the_class_as_a_pair():
    labels = torch.tensor([0, 0, 1, 1])
    z = randn(4, 8)
    there = torch.ones(4, 2, dtype=torch.bool)
    swapped = {A: z, V: z[[1, 0, 3, 2]]}  # partners swapped within their classes
    torch.testing.assert_close(
        alignment(swapped, there, labels, margin=2.0), alignment({A: z, V: z}, there, labels, margin=2.0)
    )


def test_alignment_is_zero_with_one_modality():
    labels = torch.arange(4)
    assert alignment({A: randn(4, 8)}, torch.ones(4, 1, dtype=torch.bool), labels) == 0
    only_audio = torch.tensor([[True, False]]).repeat(4, 1)
    assert alignment({A: randn(4, 8), V: randn(4, 8)}, only_audio, labels) == 0


def test_alignment_ignores_what_is_missing():
    labels = torch.arange(6) % 3
    z = {A: randn(6, 8), V: randn(6, 8), T: randn(6, 8)}
    there = torch.ones(6, 3, dtype=torch.bool)
    there[0, 1] = there[3, 1] = there[2, 0] = there[5, 2] = False
    garbage = {m: torch.where(there[:, i, None], v, torch.tensor(1e3).double()) for i, (m, v) in enumerate(z.items())}
    torch.testing.assert_close(alignment(z, there, labels), alignment(garbage, there, labels))


def test_distillation_is_zero_for_equals_and_follows_its_formula():
    student, teacher = randn(5, 4), randn(5, 4)
    assert distillation(teacher, teacher) == 0
    torch.testing.assert_close(distillation(teacher + 3, teacher), torch.tensor(0.0).double(), atol=1e-12, rtol=0)
    expected = 4 * F.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="batchmean")
    torch.testing.assert_close(distillation(student, teacher), expected)


def test_distillation_leaves_the_teacher_alone():
    student, teacher = randn(5, 4).requires_grad_(), randn(5, 4).requires_grad_()
    distillation(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()
