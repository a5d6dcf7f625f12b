"""The combinations block: which columns it writes, and what stands in them."""

import logging
from itertools import combinations

import numpy as np
import pytest

from features.assemble import PairFeatures
from features.numeric import logit

EPSILON = np.float64(np.float32(1e-6))
FOLD = {
    "sum": lambda a, b: a + b,
    "diff": lambda a, b: a - b,
    "prod": lambda a, b: a * b,
    "ratio": lambda a, b: a / (b + EPSILON),
}
SYMBOL = {"sum": "+", "diff": "-", "prod": "*", "ratio": "/"}


def reference(values, models, order):
    """Every column by name, folded from the left in float64; values (n_models, n_rows)."""
    out = {}
    for size in range(2, order + 1):
        for chosen in combinations(range(len(models)), size):
            for name, step in FOLD.items():
                column = values[chosen[0]].astype(np.float64)
                for m in chosen[1:]:
                    column = step(column, values[m].astype(np.float64))
                out[f"{name}:{SYMBOL[name].join(models[m] for m in chosen)}"] = column
    return out


def fitted(stack, labels, fold, **options):
    """Features of the combinations block alone, for every class."""
    blocks = (("combinations", options),)
    return PairFeatures(blocks=blocks, candidates=None).fit(stack, labels, fold)


@pytest.mark.parametrize("order", [2, 3])
def test_columns_equal_plain_arithmetic(small_stack, slice_labels, slice_fold, stream, order):
    """A slip in the kernel would mix up models, operators or the order of a triple."""
    features = fitted(small_stack, slice_labels, slice_fold, order=order, max_subsets=99)
    some = small_stack[::10]
    table = stream(features, some)
    values = np.stack([p[table.image, table.cls] for p in some.probabilities.values()])
    expected = reference(values, some.models, order)
    assert features.feature_names_ == list(expected)
    for name, column in expected.items():
        np.testing.assert_allclose(table[name], column, rtol=2e-6, atol=1e-7, err_msg=name)


def test_both_spaces_stand_side_by_side(small_stack, slice_labels, slice_fold, stream):
    """With space="both" the logit columns would overwrite or follow the wrong probabilities."""
    features = fitted(small_stack, slice_labels, slice_fold, space="both")
    some = small_stack[::25]
    table = stream(features, some)
    values = np.stack([p[table.image, table.cls] for p in some.probabilities.values()])
    plain = reference(values, some.models, 2)
    logits = reference(np.stack([logit(v) for v in values]), some.models, 2)
    assert features.feature_names_ == [*plain, *(f"logit_{name}" for name in logits)]
    for name, column in logits.items():
        got = table[f"logit_{name}"]
        np.testing.assert_allclose(got, column, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(table[name], plain[name], rtol=2e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("space", ["prob", "logit"])
def test_only_the_chosen_operators_are_written(
    small_stack, slice_labels, slice_fold, stream, space
):
    """A dropped operator would shift the columns behind it under wrong names."""
    some = small_stack[::25]
    models = small_stack.models
    features = fitted(
        small_stack, slice_labels, slice_fold, operators=("ratio", "sum"), space=space
    )
    whole = stream(fitted(small_stack, slice_labels, slice_fold, space=space), some)
    table = stream(features, some)
    prefix = "" if space == "prob" else "logit_"
    names = [
        f"{prefix}{name}:{SYMBOL[name].join(pair)}"
        for pair in combinations(models, 2)
        for name in ("sum", "ratio")
    ]
    assert features.feature_names_ == names
    for name in names:
        np.testing.assert_array_equal(table[name], whole[name])


def test_past_max_subsets_the_least_correlated_pairs_stay(
    small_stack, slice_labels, slice_fold, caplog
):
    """Dropped pairs must be the ones that tell least, and the log must say so."""
    with caplog.at_level(logging.INFO, logger="features"):
        features = fitted(small_stack, slice_labels, slice_fold, max_subsets=4, operators=("diff",))
    values = [logit(p).ravel() for p in small_stack.probabilities.values()]
    pairs = list(combinations(range(6), 2))
    correlation = [np.corrcoef(values[a], values[b])[0, 1] for a, b in pairs]
    kept = sorted(np.argsort(correlation, kind="stable")[:4])
    expected = [f"diff:{small_stack.models[pairs[j][0]]}-{small_stack.models[pairs[j][1]]}"
                for j in kept]  # fmt: skip
    assert features.feature_names_ == expected
    assert "4 least correlated" in caplog.text


def test_past_max_subsets_triples_are_cut_too(small_stack, slice_labels, slice_fold):
    """Ten models have 165 pairs and triples: an order of 3 must not slip past the limit."""
    features = fitted(
        small_stack, slice_labels, slice_fold, order=3, max_subsets=20, operators=("sum",)
    )
    values = [logit(p).ravel() for p in small_stack.probabilities.values()]
    correlation = np.corrcoef(values)
    subsets = [s for size in (2, 3) for s in combinations(range(6), size)]
    strength = [np.mean([correlation[a, b] for a, b in combinations(s, 2)]) for s in subsets]
    kept = sorted(np.argsort(np.round(strength, 9), kind="stable")[:20])
    names = ["sum:" + "+".join(small_stack.models[m] for m in subsets[j]) for j in kept]
    assert features.feature_names_ == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order must be 2 or 3. Got 4"),
        ({"space": "log"}, "space must be one of .* Got 'log'"),
        ({"operators": ("sum", "power")}, "operators must be some of .*'power'"),
        ({"operators": ()}, "operators must be some of"),
        ({"max_subsets": 0}, "max_subsets must be at least 1. Got 0"),
        ({"depth": 3}, "block 'combinations' has no option 'depth'; it has: .*'max_subsets'"),
    ],
)
def test_wrong_options_are_refused_by_name(small_stack, slice_labels, slice_fold, options, message):
    """A misspelled option would be ignored and the user would believe it worked."""
    with pytest.raises(ValueError, match=message):
        fitted(small_stack, slice_labels, slice_fold, **options)


def test_one_model_has_nothing_to_combine(small_stack, slice_labels, slice_fold):
    """With one model the block would write no column and say nothing."""
    from features.schema import Stack

    model = small_stack.models[0]
    alone = Stack({model: small_stack.probabilities[model]})
    with pytest.raises(ValueError, match="'combinations' needs two models or more"):
        fitted(alone, slice_labels, slice_fold)
