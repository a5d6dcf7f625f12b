import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator

from stacker import FBetaDecision, fbeta_score
from stacker.testing import EXPECTED_FAILED_CHECKS

STRATEGIES = (
    "global",
    "group",
    "class",
    "max_ratio",
    "max_affine",
    "top_k",
    "expected",
    "argmax",
    "auto",
)
AVERAGES = ("samples", "macro", "micro")


# ------------------------------------------------------------------------------ label bounds


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bounds_on_the_image_hold_under_every_rule(strategy, simulate):
    """No image has fewer or more labels than asked for, zeros or not."""
    probs, Y = simulate(60)
    probs[0] = 0
    options = {"strategy": strategy, "min_labels": 1, "max_labels": 3, "cv": 2}
    for X in (probs, sp.csr_array(probs)):
        counts = FBetaDecision(**options).fit(X, Y).predict(X).sum(axis=1)
        assert counts.min() >= 1
        assert counts.max() <= 3


@pytest.mark.parametrize("strategy", ["global", "group", "max_ratio", "expected"])
def test_bounds_per_class_group_hold(strategy, simulate):
    """As in the first place's system: 0 to 3 cultures and 1 to 8 tags."""
    probs, Y = simulate(60)
    groups = np.array(["culture"] * 5 + ["tag"] * 4)
    bounds = {"min_labels": {"tag": 1}, "max_labels": {"culture": 2, "tag": 3}}
    sets = (
        FBetaDecision(strategy=strategy, class_groups=groups, **bounds).fit(probs, Y).predict(probs)
    )
    culture, tag = sets[:, :5].sum(axis=1), sets[:, 5:].sum(axis=1)
    assert culture.max() <= 2
    assert tag.min() >= 1
    assert tag.max() <= 3


def test_thresholds_are_best_under_the_bounds(simulate):
    """The search knows the bounds: no other threshold scores higher with them."""
    probs, Y = simulate(50, 6)
    decision = FBetaDecision(strategy="global", min_labels=1, max_labels=2).fit(probs, Y)
    rank = np.argsort(np.argsort(-probs, axis=1), axis=1)
    wanted = max(
        fbeta_score(Y, ((probs >= cut) & (rank < 2)) | (rank < 1)) for cut in [*np.unique(probs), 2]
    )
    assert decision.score(probs, Y) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("strategy", ["global", "max_ratio", "max_affine"])
def test_forced_labels_are_the_most_probable(strategy):
    """Where nothing reaches the threshold a lower bound takes the best, not a probability of 0."""
    probs, Y = np.array([[0.0, 0.5], [0.0, 0.4]]), np.zeros((2, 2), dtype=int)
    decision = FBetaDecision(strategy=strategy, min_labels=1).fit(probs, Y)
    assert decision.predict(probs).tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_labels": 3, "max_labels": 2}, "min_labels <= max_labels"),
        ({"min_labels": -1}, "0 <= min_labels"),
        ({"max_labels": {"nowhere": 2}}, "unknown class groups"),
        ({"max_labels": {"a": 2}, "min_labels": 1}, "must be a dict"),
        ({"max_labels": 0, "min_labels": {"a": 0}}, "max_labels must be a dict"),
        ({"max_labels": 1.5}, "whole number"),
        ({"min_labels": {"a": 3, "b": 3}, "max_labels": {"a": 2, "b": 1}}, "=2 for group 'a'"),
        ({"max_labels": dict.fromkeys("uvwxyz", 1)}, r"'y'\]; known: \['a', 'b'\]"),
    ],
)
def test_impossible_bounds_are_refused(bounds, message, simulate):
    """Contradicting or misnamed bounds are errors at fit, which name the first of them."""
    probs, Y = simulate(20)
    with pytest.raises(ValueError, match=message):
        FBetaDecision(strategy="global", class_groups=["a"] * 5 + ["b"] * 4, **bounds).fit(probs, Y)


# --------------------------------------------------------------------------- every strategy


@pytest.mark.parametrize("strategy", STRATEGIES[:-1])
def test_a_named_strategy_is_the_one_in_use(strategy, simulate):
    """Nothing else is tried, and nothing chosen, where the user chose."""
    decision = FBetaDecision(strategy=strategy).fit(*simulate(20))
    assert (decision.strategy_, decision.cv_results_) == (strategy, {})


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("average", AVERAGES)
def test_sparse_and_dense_input_give_the_same_sets(strategy, average, simulate):
    """The rules read stored entries; what is not stored is 0 and never predicted."""
    if strategy == "auto" and average != "samples":
        pytest.skip("auto is made of the other strategies")
    probs, Y = simulate(80)
    probs[probs < 0.05] = 0
    options = {"strategy": strategy, "average": average, "cv": 2, "random_state": 0}
    dense = FBetaDecision(**options).fit(probs, Y).predict(probs)
    sparse = FBetaDecision(**options).fit(sp.csr_array(probs), sp.csc_array(Y))
    sets = sparse.predict(sp.coo_array(probs))
    assert dense.dtype == np.int8
    assert isinstance(sets, sp.csr_array)
    np.testing.assert_array_equal(sets.toarray(), dense)
    assert not dense[probs == 0].any()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("average", AVERAGES)
def test_a_sparse_matrix_without_entries_gives_empty_sets(strategy, average, simulate):
    """New images for which no model holds anything have no labels; there was a broadcast error."""
    probs, Y = simulate(40)
    options = {"strategy": strategy, "average": average, "cv": 2, "class_groups": list("aaabbbccc")}
    decision = FBetaDecision(**options).fit(sp.csr_array(probs), Y)
    assert decision.predict(sp.csr_array((3, 9))).shape == (3, 9)
    nothing = sp.csr_array((2500, 9))  # enough images for a sample of them
    assert decision.fit(nothing, sp.csr_array((2500, 9), dtype=int)).predict(nothing).nnz == 0


def test_a_class_that_training_never_holds_is_never_expected(simulate):
    """Dense and sparse training agree on it: in a dense one any probability was enough later."""
    probs, Y = simulate(80)
    seen = probs * (np.arange(9) > 0)
    decision = FBetaDecision(strategy="expected", average="macro")
    for X in (seen, sp.csr_array(seen)):
        assert decision.fit(X, Y).thresholds_[0] >= 2
        assert not decision.predict(probs)[:, 0].any()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_state_rebuilds_the_decision(strategy, simulate):
    """A decision is saved as a flat dict of plain values and arrays, without pickle."""
    probs, Y = simulate(80)
    groups = np.array(["a", "b", "c"] * 3)
    options = {"class_groups": groups, "max_labels": {"a": 1}, "cv": 2}
    fitted = FBetaDecision(strategy=strategy, **options).fit(probs, Y)
    state = fitted.to_state()
    plain = (str, int, float, bool, type(None), np.ndarray)
    assert all(isinstance(value, plain) for value in state.values())
    again = FBetaDecision.from_state(state)
    np.testing.assert_array_equal(again.predict(probs), fitted.predict(probs))
    assert again.score(probs, Y) == fitted.score(probs, Y)


def test_a_state_of_another_version_is_refused(simulate):
    """Models that were saved once stay readable: today's version is the first."""
    state = FBetaDecision(strategy="global").fit(*simulate(20)).to_state()
    assert state["version"] == 1
    with pytest.raises(ValueError, match=r"must have version 1\. Got 2; save the model again"):
        FBetaDecision.from_state(state | {"version": 2})


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "case", ["no positives", "one class", "one image", "zero rows", "all zero", "all one"]
)
def test_degenerate_input_gives_sets_not_errors(strategy, case, simulate):
    """Edge cases of the data are answered: right shape, 0/1, nothing for rows of zeros."""
    probs, Y = simulate(30)
    if case == "no positives":
        Y[:] = 0
    elif case == "one class":
        probs, Y = probs[:, :1], Y[:, :1]
    elif case == "one image":
        probs, Y = probs[:1], Y[:1]
    elif case == "zero rows":
        probs[::2] = 0
    else:
        probs[:] = case == "all one"
    sets = FBetaDecision(strategy=strategy, cv=2).fit(probs, Y).predict(probs)
    assert sets.shape == Y.shape
    assert set(np.unique(sets)) <= {0, 1}
    assert not sets[probs == 0].any()
    if case == "no positives" and strategy not in ("argmax", "expected"):
        assert not sets.any()


@pytest.mark.parametrize("strategy", ["global", "expected"])
@pytest.mark.parametrize(
    "convert",
    [
        lambda p: p.astype(np.float16),
        np.asfortranarray,
        lambda p: p.astype(np.float64),
        lambda p: np.lib.stride_tricks.as_strided(p, writeable=False),
        lambda p: p.tolist(),
    ],
    ids=["float16", "fortran", "float64", "read-only", "list"],
)
def test_layout_and_precision_do_not_matter(strategy, convert, simulate):
    """Every layout gives the sets of the same numbers in C order."""
    probs, Y = simulate(40)
    probs = probs.astype(np.float16).astype(np.float32)
    plain = FBetaDecision(strategy=strategy, random_state=0).fit(probs, Y).predict(probs)
    other = FBetaDecision(strategy=strategy, random_state=0).fit(convert(probs), Y.tolist())
    np.testing.assert_array_equal(other.predict(convert(probs)), plain)


@pytest.mark.parametrize("strategy", ["global", "max_ratio", "max_affine", "class", "top_k"])
def test_order_of_images_does_not_matter(strategy, rng, simulate):
    """Shuffled images fit the same rule and get equally shuffled sets."""
    probs, Y = simulate(200)
    order = rng.permutation(200)
    sets = FBetaDecision(strategy=strategy).fit(probs, Y).predict(probs)
    shuffled = FBetaDecision(strategy=strategy).fit(probs[order], Y[order]).predict(probs[order])
    np.testing.assert_array_equal(shuffled, sets[order])


@pytest.mark.parametrize(
    ("probs", "Y", "message"),
    [
        ([[0.5, np.nan]], [[1, 0]], "finite: it contains NaN at image 0, class 1"),
        ([[0.5, np.inf]], [[1, 0]], "contains infinity"),
        ([[0.5, -1.0]], [[1, 0]], "Apply a sigmoid"),
        ([[0.5, 3.0]], [[1, 0]], "value 3"),
        ([[0.5, 0.1]], [[1, 0, 0]], "same shape"),
        ([[0.5, 0.1]], [[1, 2]], "0 and 1 only"),
        ([0.5, 0.1], [1, 0], "two-dimensional"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "0 sample"),
        (np.zeros((2, 0)), np.zeros((2, 0)), "0 feature"),
        ([[0.5, 0.1]], None, "requires y"),
    ],
)
def test_wrong_input_is_refused_with_its_place(probs, Y, message):
    """What cannot be probabilities or labels is an error that says where."""
    with pytest.raises(ValueError, match=message):
        FBetaDecision(strategy="global").fit(probs, Y)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"strategy": "grid"}, "'strategy'"),
        ({"average": "weighted"}, "'average'"),
        ({"beta": 0}, "'beta'"),
        ({"empty_score": 1.5}, "'empty_score'"),
        ({"shrinkage": -0.5}, "'shrinkage'"),
        ({"class_groups": ["a"]}, "class_groups"),
        ({"cv": 1}, "'cv'"),
        ({"cv": [0, 1]}, "or name the fold of each image by a whole number: shape"),
        ({"cv": "store"}, "a number of folds, a splitter, or name the fold"),
        ({"cv": [([0], [1]), ([1], [0, 2])]}, "a number of folds, a splitter, or name the fold"),
        ({"cv": np.zeros(20, int)}, "must make at least two folds, each with images"),
        ({"cv": np.full(20, -1)}, "must make at least two folds"),
    ],
)
def test_wrong_parameters_are_named(parameters, message, simulate):
    """A wrong parameter is an error at fit, with its name."""
    probs, Y = simulate(20)
    with pytest.raises(ValueError, match=message):
        FBetaDecision(**parameters).fit(probs, Y)


def test_predict_refuses_other_classes_and_an_unfitted_rule(simulate):
    """The number of classes is checked, and fit comes first."""
    probs, Y = simulate(20)
    with pytest.raises(NotFittedError):
        FBetaDecision().predict(probs)
    decision = FBetaDecision(strategy="global", shrinkage=0).fit(probs, Y)
    for other in (probs[:, :5], np.hstack([probs, probs])):
        with pytest.raises(ValueError, match="expecting 9 features"):
            decision.predict(other)


def test_decision_goes_through_cross_val_score(simulate):
    """It is a scikit-learn estimator: cloned, cross-validated, scored by its own metric."""
    probs, Y = simulate(90)
    decision = FBetaDecision(strategy="global", average="micro")
    scores = cross_val_score(clone(decision), probs, Y, cv=3)
    by_hand = decision.fit(probs[30:], Y[30:]).score(probs[:30], Y[:30])
    assert scores[0] == pytest.approx(by_hand)


@pytest.mark.parametrize("strategy", ["global", "expected"])
def test_scikit_learn_accepts_the_decision(strategy):
    """Every check that stays within [0, 1] passes; the others are listed with a reason."""
    decision = FBetaDecision(strategy=strategy, cv=2)
    expected = EXPECTED_FAILED_CHECKS["FBetaDecision"]
    results = check_estimator(decision, expected_failed_checks=expected, on_skip=None)
    assert sum(result["status"] == "passed" for result in results) >= 25
    xfails = [result for result in results if result["status"] == "xfail"]
    assert all("must lie in [0, 1]" in str(result["exception"]) for result in xfails)


def test_scikit_learn_knows_what_goes_in_and_comes_out():
    """Meta-estimators ask the tags: with wrong ones they refuse sparse input or 2-D labels."""
    tags = get_tags(FBetaDecision())
    assert tags.input_tags.sparse
    assert tags.input_tags.positive_only
    target = tags.target_tags
    assert target.required
    assert target.two_d_labels
    assert target.multi_output
