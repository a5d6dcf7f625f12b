"""Scores, breakdowns and paired intervals."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import average_precision_score

from stacker._bootstrap import _GroupSums, _membership, average_precisions, group_codes
from stacker.evaluation import (
    Predictions,
    bootstrap_fbeta,
    bootstrap_map,
    calibration_curve,
    calibration_error,
    class_average_precisions,
    evaluate_sets,
    frequency_bins,
    log_loss,
    mean_average_precision,
    paired_bootstrap,
    score_by_bin,
    score_methods,
)
from stacker.fbeta import fbeta_score


@pytest.fixture
def case():
    """40 images, 7 classes (the last without positives), coarse scores with many ties."""
    rng = np.random.default_rng(0)
    Y = (rng.random((40, 7)) < 0.3).astype(np.int8)
    Y[:, 6] = 0
    proba = np.round(np.clip(0.3 * Y + 0.6 * rng.random(Y.shape), 0, 1), 1)
    return Y, proba, rng.integers(12, size=40)


def test_average_precision_equals_scikit_learn_with_ties_and_weights(case):
    """A tie broken by row order would make the score depend on how images are sorted."""
    Y, proba, _ = case
    weights = np.random.default_rng(1).integers(0, 3, size=(2, 40)).astype(np.float32)
    found = average_precisions(csr_array(Y), proba, weights)
    for w in range(2):
        for c in range(6):
            wanted = average_precision_score(Y[:, c], proba[:, c], sample_weight=weights[w])
            assert found[w, c] == pytest.approx(wanted)
    assert np.isnan(found[:, 6]).all()


def test_map_leaves_out_classes_without_positives(case):
    """A class that cannot be ranked must not drag the mean to zero or to NaN."""
    Y, proba, _ = case
    each = class_average_precisions(Y, proba)
    assert np.isnan(each[6])
    assert mean_average_precision(Y, proba) == pytest.approx(each[:6].mean())
    assert np.isnan(mean_average_precision(np.zeros((3, 2), dtype=int), np.zeros((3, 2))))


def test_sparse_and_dense_probabilities_score_alike(case):
    """What a top-k matrix does not store counts as zero, nowhere as missing."""
    Y, proba, groups = case
    proba = np.where(proba > 0.4, proba, 0)
    sets = (proba > 0.5).astype(np.int8)
    dense = evaluate_sets(Y, sets, proba)
    assert evaluate_sets(csr_array(Y), csr_array(sets), csr_array(proba)) == pytest.approx(dense)
    a = bootstrap_map(Y, proba, 1 - proba, groups, n=30)
    b = bootstrap_map(csr_array(Y), csr_array(proba), csr_array(1 - proba), groups, n=30)
    assert a == pytest.approx(b)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_group_sums_equal_the_score_of_repeated_images(case, average):
    """A resample by weights is the same as a resample that copies the groups' rows."""
    Y, proba, groups = case
    sets = (proba > 0.5).astype(np.int8)
    codes = group_codes(groups, 40)
    times = np.random.default_rng(2).integers(0, 3, size=codes.max() + 1)
    rows = np.repeat(np.arange(40), times[codes])
    sums = _GroupSums(_membership(codes), csr_array(Y), csr_array(sets), macro=average == "macro")
    found = sums.fbeta(times[None].astype(np.float32), 2.0, 1.0).mean()
    assert found == pytest.approx(fbeta_score(Y[rows], sets[rows], 2.0, average))


@pytest.mark.parametrize("average", ["samples", "macro", "micro"])
def test_the_difference_is_the_difference_of_the_scores(case, average):
    """The point estimate beside an interval must be the one that the table shows."""
    Y, proba, groups = case
    a, b = (proba > 0.5).astype(np.int8), (proba > 0.3).astype(np.int8)
    found = bootstrap_fbeta(Y, a, b, groups, average=average, n=200)
    wanted = fbeta_score(Y, a, 2.0, average) - fbeta_score(Y, b, 2.0, average)
    assert found.difference == pytest.approx(wanted)
    assert found.low < found.difference < found.high
    assert found == bootstrap_fbeta(Y, a, b, groups, average=average, n=200)


def test_a_class_lost_in_a_resample_does_not_pull_the_macro_interval():
    """Lost classes score 1 for the method that never predicts them: the interval leant to it."""
    rng = np.random.default_rng(0)
    n, c = 200, 150
    Y = np.zeros((n, c), dtype=np.int8)
    Y[rng.integers(n, size=2 * c), np.repeat(np.arange(c), 2)] = 1
    eager = np.maximum(Y * (rng.random(Y.shape) < 0.7), rng.random(Y.shape) < 0.03).astype(np.int8)
    shy = (Y * (rng.random(Y.shape) < 0.4)).astype(np.int8)
    found = bootstrap_fbeta(Y, eager, shy, average="macro", n=300)
    middle = (found.low + found.high) / 2
    assert found.low < found.difference < found.high
    assert abs(middle - found.difference) < 0.25 * (found.high - found.low)


def test_the_interval_is_wider_when_images_come_in_groups():
    """Ten copies of an image are one observation: resampling images alone would overstate."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=50)
    copies = np.repeat(scores, 10)
    alone = paired_bootstrap(scores, np.zeros(50), n=2000)
    grouped = paired_bootstrap(copies, np.zeros(500), np.repeat(np.arange(50), 10), n=2000)
    naive = paired_bootstrap(copies, np.zeros(500), n=2000)
    assert grouped == pytest.approx(alone)
    assert naive.high - naive.low < 0.5 * (grouped.high - grouped.low)


def test_the_interval_covers_the_normal_theory():
    """2.5% and 97.5% of the resampled means lie about 1.96 standard errors out."""
    values = np.random.default_rng(3).normal(size=400)
    found = paired_bootstrap(values, np.zeros(400), n=4000)
    error = values.std() / 20
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_the_batch_size_does_not_change_the_interval(case, monkeypatch):
    """The memory bound is no part of the result."""
    Y, proba, groups = case
    a, b = (proba > 0.5).astype(np.int8), (proba > 0.3).astype(np.int8)
    whole = bootstrap_fbeta(Y, a, b, groups, average="macro", n=50)
    monkeypatch.setattr("stacker._bootstrap.BATCH_CELLS", 100)
    assert bootstrap_fbeta(Y, a, b, groups, average="macro", n=50) == whole


def test_calibration_error_is_zero_for_true_probabilities_and_not_for_stretched_ones():
    """The error must react to overconfidence, which ruins expected-F decisions."""
    rng = np.random.default_rng(0)
    p = rng.beta(0.3, 3, size=(2000, 20))
    Y = (rng.random(p.shape) < p).astype(np.int8)
    curve = calibration_curve(Y, p)
    assert curve["n_pairs"].sum() == p.size
    assert curve["predicted"].is_monotonic_increasing
    assert calibration_error(Y, p) < 0.01 < calibration_error(Y, p**2)


def test_log_loss_equals_the_formula(case):
    """Clipping keeps one sure mistake finite and changes nothing else."""
    Y, proba, _ = case
    p = np.clip(proba.astype(np.float32).astype(float), 1e-7, 1 - 1e-7)
    assert log_loss(Y, proba) == pytest.approx(-(np.log(np.where(Y, p, 1 - p))).mean())


def test_frequency_bins_name_their_ranges():
    """A class exactly on an edge belongs to the bin that starts there."""
    codes, names = frequency_bins([0, 1, 4, 5, 9, 10, 499, 500])
    assert [names[c] for c in codes] == [
        "0",
        "1-4",
        "1-4",
        "5-9",
        "5-9",
        "10-19",
        "100-499",
        "500+",
    ]


def test_scores_by_bin_are_the_scores_of_those_columns(case):
    """A bin's row must not mix in the other classes."""
    Y, proba, _ = case
    sets = (proba > 0.5).astype(np.int8)
    codes = np.array([0, 1, 0, 1, 0, 1, 1])
    table = score_by_bin(Y, sets, proba, codes, ["even", "odd", "never"])
    assert list(table.index) == ["even", "odd"]
    columns = np.flatnonzero(codes == 1)
    wanted = evaluate_sets(Y[:, columns], sets[:, columns], proba[:, columns])
    assert table.loc["odd", list(wanted)].to_dict() == pytest.approx(wanted)
    assert table.loc["odd", "n_positives"] == Y[:, columns].sum()


def test_the_table_sets_the_stack_against_the_best_blend(case):
    """The best blend is chosen by each metric and never is a single model."""
    Y, proba, groups = case
    sets = {a: (proba > 0.4).astype(np.int8) for a in ("samples", "macro", "micro")}
    worse = dict.fromkeys(sets, np.ones_like(Y))
    methods = {
        "best_single": Predictions("Best single model", proba, dict.fromkeys(sets, Y)),
        "mean": Predictions("Mean", 1 - proba, worse, is_blend=True),
        "logit_mean": Predictions("Logit mean", proba, sets, is_blend=True),
        "stack": Predictions("Pair stack", proba, dict.fromkeys(sets, Y)),
    }
    table = score_methods(Y, methods, groups, n=50)
    assert set(table.best_blend.values()) == {"logit_mean"}
    assert table.gain("map").difference == 0
    assert table.gain("f2_macro").low > 0
    as_dict = table.to_dict()
    assert as_dict["scores"]["stack"]["f2_micro"] == 1
    assert as_dict["interval"]["f2_samples"][0] <= as_dict["gain"]["f2_samples"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_bootstrap([1, 2], [1]), "same order; got shapes"),
        (lambda: paired_bootstrap([1, 2], [1, 2], ["a"]), "one split group an image"),
        (lambda: evaluate_sets([[1, 0]], [[1]]), "same shape"),
        (
            lambda: bootstrap_fbeta([[1]], [[1]], [[1]], average="weighted"),
            "average must be one of",
        ),
    ],
)
def test_unequal_inputs_are_refused(call, message):
    """A comparison over different images would look like a result."""
    with pytest.raises(ValueError, match=message):
        call()
