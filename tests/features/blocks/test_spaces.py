"""The spaces in which images are compared: projection and rounding, against float64."""

import numpy as np
import pytest
from scipy.stats import norm

from features.assemble import stack_blend
from features.blocks.spaces import (
    encode,
    fit_scores,
    fit_space,
    normal_scores,
    quantise,
    space_names,
    space_values,
)


def reference_codes(train, values, n_dimensions):
    """Principal axes, half-whitened, each row scaled to +-127: everything in float64."""
    mean = train.mean(axis=0)
    centred = train - mean
    variance, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    variance, axes = variance[::-1][:n_dimensions], axes[:, ::-1][:, :n_dimensions]
    projected = (values - mean) @ (axes * variance**-0.25)
    return projected * 127 / np.abs(projected).max(axis=1, keepdims=True)


@pytest.mark.parametrize("space", ["embedding:lite0", "imagenet:lite0", "blend"])
def test_similarity_equals_that_of_an_exact_projection(slice_stack, space):
    """Rounding to int8 may move a cosine by a hundredth, not change who is near."""
    values = space_values(slice_stack, stack_blend(slice_stack), space)[:, ::6]
    projection = fit_space(values, n_dimensions=8)
    codes = encode(values[:40], projection)
    exact = reference_codes(values.astype(np.float64), values[:40].astype(np.float64), 8)
    assert codes.values.shape == (40, 8)
    np.testing.assert_allclose(cosines(codes.values), cosines(exact), atol=0.02)
    lengths = np.linalg.norm(codes.values.astype(np.float64), axis=1)
    np.testing.assert_allclose(codes.norms, lengths, rtol=1e-6)


def cosines(vectors):
    unit = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return unit @ unit.T


def test_the_space_of_predictions_is_the_square_root(slice_stack, slice_fold):
    """Plain probabilities would let one certain class drown all the others."""
    blend = np.array([[0.25, 0.01]], dtype=np.float32)
    np.testing.assert_allclose(space_values(slice_stack, blend, "blend"), [[0.5, 0.1]])
    names = ["embedding:lite0", "embedding:lite1", "imagenet:lite0", "image_stats", "blend"]
    assert space_names(slice_stack) == names


def test_images_without_any_direction_have_similarity_zero():
    """A zero vector would divide by zero."""
    codes = quantise(np.zeros((2, 3), dtype=np.float32))
    assert codes.values.tolist() == [[0, 0, 0]] * 2
    assert codes.norms.tolist() == [1, 1]
    flat = np.ones((5, 4), dtype=np.float32)
    assert not encode(flat, fit_space(flat)).values.any()


def test_normal_scores_are_the_normal_quantiles_of_mid_ranks():
    """A statistic that many images share must not be torn apart, nor a missing one lead astray."""
    values = np.array([[5.0], [1.0], [5.0], [9.0], [np.nan]], dtype=np.float32)
    knots = np.array([[1.0], [5.0], [5.0], [9.0]], dtype=np.float32)
    expected = norm.ppf([0.5, 0.125, 0.5, 0.875, 0.5])
    np.testing.assert_allclose(normal_scores(values, knots)[:, 0], expected, atol=1e-6)


def test_a_missing_statistic_takes_no_others_with_it(rng):
    """One NaN made every quantile of its column NaN, and all images alike in it."""
    values = rng.lognormal(size=(200, 3)).astype(np.float32)
    holed = values.copy()
    holed[7, 0], holed[9, 0], holed[:, 2] = np.nan, np.inf, np.nan
    found = fit_scores(holed)
    there = np.delete(np.arange(200), [7, 9])
    np.testing.assert_array_equal(found.knots[:, 1], fit_scores(values).knots[:, 1])
    np.testing.assert_allclose(
        normal_scores(holed, found.knots)[there, 0],
        normal_scores(values, fit_scores(values[there]).knots)[there, 0],
        atol=0.1,
    )
    assert not normal_scores(holed, found.knots)[[7, 9], 0].any()
    assert np.isfinite(found.axes).all()


def test_similarity_of_statistics_falls_with_their_distance(rng):
    """Without the lift two images far out in one direction would count as the same."""
    values = rng.lognormal(size=(400, 6)).astype(np.float32)
    projection = fit_scores(values)
    scores = normal_scores(values, projection.knots)
    vectors = np.clip((scores - projection.mean) @ projection.axes, -3, 3)
    lifted = np.hstack([vectors, np.full((400, 2), 3.0)])
    codes = encode(values, projection)
    np.testing.assert_allclose(cosines(codes.values), cosines(lifted), atol=0.01)
    assert np.mean(vectors**2) == pytest.approx(1, abs=0.1)
