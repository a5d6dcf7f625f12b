"""Agreement of the models, against a loop over rows."""

import math
import statistics

import numpy as np
import pytest


def spread(values):
    """Mean, std, min, max and range of a short list."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.pstdev(values),
        "min": min(values),
        "max": max(values),
        "range": max(values) - min(values),
    }


@pytest.mark.parametrize("of", ["p", "rank"])
@pytest.mark.parametrize("name", ["mean", "std", "min", "max", "range"])
def test_statistics_over_models_equal_a_plain_loop(example, of, name):
    """A statistic taken over classes or images in the models' place would go unseen."""
    got = example.matrix(f"{name}_{of}:models")
    n_models, n_images, n_classes = example.probs.shape
    for i in range(0, n_images, 2):
        for c in range(n_classes):
            values = [float(example.probs[m, i, c]) for m in range(n_models)]
            if of == "rank":
                above = [(example.probs[m, i] > example.probs[m, i, c]).sum() for m in
                         range(n_models)]  # fmt: skip
                values = [math.log1p(int(a)) for a in above]
            assert got[i, c] == pytest.approx(spread(values)[name], rel=1e-5, abs=1e-6)


def test_one_model_always_agrees_with_itself(small_stack, slice_labels, slice_fold, stream):
    """With a single model the spread must be an exact 0, not rounding noise."""
    from features.assemble import PairFeatures
    from features.schema import Stack

    model = small_stack.models[0]
    alone = Stack({model: small_stack.probabilities[model]})
    features = PairFeatures(blocks=("agreement",), candidates=5)
    table = stream(features.fit(alone, slice_labels, slice_fold), alone)
    for name in ("std_p:models", "range_p:models", "std_rank:models", "range_rank:models"):
        assert not table[name].any()
    np.testing.assert_array_equal(table["mean_p:models"], table["max_p:models"])
