"""The combination kernel by itself: any number of models, any values, any operators."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from features.combinations import (
    OPERATORS,
    combine,
    least_correlated,
    model_subsets,
    operator_mask,
)

LIMIT = np.finfo(np.float32).max


def plain(values, subset, name):
    """One number by plain float32 arithmetic, folded from the left, clipped to finite."""
    out = values[subset[0]]
    for m in subset[1:]:
        b = values[m]
        with np.errstate(over="ignore"):
            out = {
                "sum": lambda a, b: a + b,
                "diff": lambda a, b: a - b,
                "prod": lambda a, b: a * b,
                "ratio": lambda a, b: np.clip(a / (b + np.float32(1e-6)), -LIMIT, LIMIT),
            }[name](out, b)
    return out


def combined(values, order, operators):
    chosen = model_subsets(values.shape[1], order)
    out = np.full((len(values), len(chosen) * len(operators)), np.nan, dtype=np.float32)
    combine(values, chosen, operator_mask(operators), out)
    return out


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("operators", [OPERATORS, ("diff",), ("prod", "ratio")])
def test_every_subset_and_operator_has_its_column(order, operators, rng):
    """The fast path of pairs and the general one must agree with plain arithmetic, bit for bit."""
    values = rng.random((50, 4)).astype(np.float32)
    out = combined(values, order, operators)
    subsets = [s for size in range(2, order + 1) for s in combinations(range(4), size)]
    wanted = [name for name in OPERATORS if name in operators]
    for row in range(50):
        expected = [plain(values[row], s, name) for s in subsets for name in wanted]
        assert out[row].tolist() == [float(v) for v in expected]


@given(arrays(np.float32, (3, 3), elements=st.floats(0, 1, width=32)))
@settings(max_examples=60, deadline=None)
def test_any_probabilities_give_finite_combinations(values):
    """0 / 0 or a tiny denominator would put NaN or infinity into the booster's bins."""
    assert np.isfinite(combined(values, 3, OPERATORS)).all()


def test_a_buffer_of_another_shape_is_refused():
    """A short row would write over the next one."""
    values = np.zeros((4, 3), dtype=np.float32)
    with pytest.raises(ValueError, match=r"out must have shape \(4, 12\).*out.shape=\(4, 11\)"):
        combine(values, model_subsets(3), operator_mask(OPERATORS), np.empty((4, 11), np.float32))


def test_a_constant_model_counts_as_redundant(rng):
    """A model that always says the same correlates with nothing; it must not win for that."""
    probs = rng.random((40, 3)).astype(np.float32)
    probs[:, 1] = 0.5
    assert least_correlated(probs, model_subsets(3), 1).tolist() == [[0, 2]]
