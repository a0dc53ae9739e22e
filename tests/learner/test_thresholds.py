"""Thresholds of labels, worked out by hand."""

from __future__ import annotations

import numpy as np

from learner.thresholds import f1_thresholds


def test_a_threshold_lies_where_f1_is_best():
    posteriors = np.array([[0.9, 0.2], [0.6, 0.7], [0.4, 0.1]])
    truth = np.array([[True, False], [True, True], [False, False]])
    np.testing.assert_allclose(f1_thresholds(posteriors, truth), [0.5, 0.45])


def test_equal_posteriors_are_not_parted():
    posteriors, truth = np.array([[0.6], [0.6], [0.2]]), np.array([[True], [False], [False]])
    np.testing.assert_allclose(f1_thresholds(posteriors, truth), [0.4])


def test_a_class_that_all_have_is_told_even_at_zero():
    posteriors, truth = np.array([[1.0], [0.0], [0.0]]), np.ones((3, 1), bool)
    assert (posteriors >= f1_thresholds(posteriors, truth)).all()


def test_without_held_out_samples_half_is_the_threshold():
    np.testing.assert_allclose(f1_thresholds(np.empty((0, 2)), np.empty((0, 2), bool)), [0.5, 0.5])
