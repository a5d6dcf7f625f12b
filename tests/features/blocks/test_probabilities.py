"""Probabilities and logits: each model's number, found by the row's image and class."""

import math

import numpy as np
import pytest

LOW, HIGH = float(np.float32(1e-5)), float(np.float32(1 - 1e-5))


def log_odds(p):
    """Plain log-odds of one probability, clipped so that 0 and 1 stay finite."""
    p = min(max(float(np.float32(p)), LOW), HIGH)
    return math.log(p) - math.log1p(-p)


def test_each_row_holds_its_own_pair_of_image_and_class(example):
    """A shifted gather would give rows the probabilities of other images or classes."""
    for m, model in enumerate(example.query.models):
        np.testing.assert_array_equal(example.matrix(f"p:{model}"), example.probs[m])


def test_logits_equal_the_log_odds_of_each_number(example):
    """A wrong clip would make 0 and 1 infinite, or flatten small probabilities."""
    for m, model in enumerate(example.query.models):
        expected = np.vectorize(log_odds)(example.probs[m])
        np.testing.assert_allclose(example.matrix(f"logit:{model}"), expected, rtol=1e-5, atol=1e-6)


def test_the_blend_is_the_logistic_of_the_mean_logit(example):
    """A mean of probabilities in the blend's place would rank the candidates otherwise (B6)."""
    mean = np.mean([np.vectorize(log_odds)(p) for p in example.probs], axis=0)
    expected = 1 / (1 + np.exp(-mean))
    np.testing.assert_allclose(example.blend, expected, rtol=2e-5, atol=1e-6)
    assert example.matrix("logit:blend") == pytest.approx(mean, rel=1e-3, abs=1e-3)
