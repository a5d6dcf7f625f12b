import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import check_estimator

from stacker._calibration_maps import fit_offsets, log_loss_sum, shifted_log_loss
from stacker.calibration import METHODS, ProbabilityCalibrator, reliability_curve
from stacker.testing import EXPECTED_FAILED_CHECKS


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def simulate(rng, n_images=800, n_classes=12, stretch=1.6, offset=0.0):
    """True probabilities, labels drawn from them, and probabilities with stretched log-odds."""
    odds = rng.normal(size=(n_images, n_classes)) * 1.5 - 1.5
    Y = (rng.random(odds.shape) < expit(odds)).astype(np.int8)
    return expit(odds), Y, expit(stretch * odds + offset).astype(np.float32)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "none"])
def test_every_method_undoes_a_stretch(method, rng):
    """Stretched log-odds come back much closer to the truth."""
    truth, Y, stretched = simulate(rng)
    fixed = ProbabilityCalibrator(method).fit(stretched, Y).transform(stretched)
    assert fixed.dtype == np.float32
    assert np.abs(fixed - truth).mean() < 0.35 * np.abs(stretched - truth).mean()


def test_platt_equals_logistic_regression(rng):
    """The binned Newton fit agrees with the unbinned reference."""
    _, Y, probs = simulate(rng, offset=-0.7)
    odds = logit(probs.astype(float)).clip(-16, 16)
    reference = LogisticRegression(C=1e6, tol=1e-8).fit(odds.reshape(-1, 1), Y.ravel())
    slope, shift = ProbabilityCalibrator("platt").fit(probs, Y).map_["curve"][0]
    assert slope == pytest.approx(reference.coef_[0, 0], rel=5e-3)
    assert shift == pytest.approx(reference.intercept_[0], abs=5e-3)


def test_isotonic_follows_scikit_learn(rng):
    """The map on bins stays close to the unbinned isotonic regression."""
    _, Y, probs = simulate(rng, n_images=3000)
    mine = ProbabilityCalibrator("isotonic").fit(probs, Y).transform(probs)
    reference = IsotonicRegression(out_of_bounds="clip").fit(probs.ravel(), Y.ravel())
    assert np.abs(mine.ravel() - reference.predict(probs.ravel())).mean() < 0.01


@pytest.mark.parametrize("method", ["temperature", "platt", "beta", "isotonic", "venn_abers"])
def test_maps_never_turn_an_order_around(method, rng):
    """A more probable label never becomes less probable than another one of its class."""
    _, Y, probs = simulate(rng)
    fixed = ProbabilityCalibrator(method).fit(probs, 1 - Y).transform(probs)
    order = np.argsort(probs[:, 0])
    assert (np.diff(fixed[order, 0]) >= -1e-7).all()


def test_class_shifts_shrink_with_few_positives(rng):
    """A rare class moves little from the pooled map, a common one nearly all the way."""
    odds = np.full((4000, 2), -1.0)
    odds[:, 1] = -6.0
    Y = (rng.random(odds.shape) < expit(odds + 1.0)).astype(int)
    calibrator = ProbabilityCalibrator("temperature", "class", shrinkage=20).fit(expit(odds), Y)
    eta = calibrator.map_["curve"][0, 0] * odds[0]
    wanted = logit(Y.mean(axis=0)) - eta
    share = calibrator.map_["offset"] / wanted
    assert share[0] > 0.9
    assert 0.2 < share[1] < 0.8


def test_class_shifts_are_the_penalised_optimum(rng):
    """A class stops before its own optimum, or because another one has arrived at its own."""
    eta = np.linspace(-6, 3, 12)
    total = rng.integers(0, 40, (5, 12)) * (rng.random((5, 12)) < 0.6)
    positive = rng.binomial(total, 0.1)
    total[3], positive[3] = 0, 0
    positive[4] = total[4]
    total, positive = total.astype(float), positive.astype(float)
    found = fit_offsets(eta, total, positive, 2.0)
    for c, offset in enumerate(found):
        loss = lambda x, c=c: log_loss_sum(eta + x, total[c], positive[c]) + x**2  # noqa: E731
        assert offset == pytest.approx(minimize_scalar(loss, tol=1e-12).x, abs=1e-5)
    expected = log_loss_sum(eta + found[:, None], total, positive)
    assert shifted_log_loss(eta, found, total, positive) == pytest.approx(expected)


def test_a_group_without_positives_takes_the_pooled_map(rng):
    """No positives must not send a group's probabilities to nought or NaN."""
    _, Y, probs = simulate(rng)
    Y[:, 6:] = 0
    groups = ["a"] * 6 + ["b"] * 6
    fixed = ProbabilityCalibrator("beta", "group", groups).fit(probs, Y).transform(probs)
    assert np.isfinite(fixed).all()
    assert (fixed[:, 6:] > 0).all()


def test_isotonic_of_its_own_needs_five_hundred_positives(rng):
    """Only classes with enough positives leave the pooled map."""
    _, Y, probs = simulate(rng, n_images=3000)
    Y[100:, 1:] = 0
    calibrator = ProbabilityCalibrator("isotonic", "class").fit(probs, Y)
    assert calibrator.map_["of_class"].tolist() == [1] + [0] * 11


def test_auto_picks_the_lowest_cross_validated_log_loss(rng):
    """The table and the choice agree, and stretched input is not left as it is."""
    _, Y, probs = simulate(rng)
    calibrator = ProbabilityCalibrator(random_state=0).fit(probs, Y)
    table = calibrator.cv_results_
    best = table["log_loss"].argmin()
    assert (calibrator.method_, calibrator.scope_) == (table["method"][best], table["scope"][best])
    assert calibrator.method_ != "none"


def test_held_out_folds_do_not_see_their_labels(rng):
    """A fold's log loss is that of maps fitted on the other folds alone."""
    _, Y, probs = simulate(rng, n_images=60, n_classes=3)
    fold = np.arange(60) % 2
    table = ProbabilityCalibrator(cv=fold).fit(probs, Y).cv_results_
    losses = []
    for f in range(2):
        train, test = fold != f, fold == f
        fixed = ProbabilityCalibrator("platt").fit(probs[train], Y[train]).transform(probs[test])
        losses.append(-np.log(np.where(Y[test], fixed, 1 - fixed)).sum())
    row = (table["method"] == "platt") & (table["scope"] == "pooled")
    assert table["log_loss"][row][0] == pytest.approx(sum(losses) / Y.size, rel=2e-3)


@pytest.mark.parametrize("method", ["auto", "beta", "isotonic"])
def test_sparse_and_dense_input_agree(method, rng):
    """Zeros stay zero and are left out of the fit, however they are stored."""
    _, Y, probs = simulate(rng)
    probs[probs < 0.2] = 0
    fold = np.arange(len(Y)) % 3
    dense = ProbabilityCalibrator(method, cv=fold).fit(probs, Y)
    sparse = ProbabilityCalibrator(method, cv=fold).fit(sp.csr_array(probs), sp.csc_array(Y))
    fixed = sparse.transform(sp.csr_array(probs))
    assert isinstance(fixed, sp.csr_array)
    np.testing.assert_allclose(fixed.toarray(), dense.transform(probs), rtol=1e-6)
    assert (fixed.toarray() == 0).sum() == (probs == 0).sum()


def test_pair_rows_are_a_matrix_of_one_column(rng):
    """Rows of (image, class) pairs calibrate like the matrix they come from."""
    _, Y, probs = simulate(rng)
    matrix = ProbabilityCalibrator("beta").fit(probs, Y).transform(probs)
    rows = ProbabilityCalibrator("beta").fit(probs.reshape(-1, 1), Y.reshape(-1, 1))
    np.testing.assert_allclose(rows.transform(probs.reshape(-1, 1)).ravel(), matrix.ravel())


def test_ones_and_tiny_values_stay_finite(rng):
    """float16 rounds 0.9998 to 1: one such wrong label must not break the fit."""
    _, Y, probs = simulate(rng)
    probs[0, 0], Y[0, 0] = 1.0, 0
    probs[1, 0], Y[1, 0] = 1e-30, 1
    fixed = ProbabilityCalibrator("platt").fit(probs, Y).transform(probs)
    assert ((fixed > 0) & (fixed < 1)).all()


@pytest.mark.parametrize("method", ["auto", "beta", "isotonic", "none"])
@pytest.mark.parametrize("scope", ["pooled", "group", "class"])
def test_state_rebuilds_the_calibrator(method, scope, rng):
    """A model is saved as plain values and arrays, without pickle."""
    _, Y, probs = simulate(rng)
    groups = np.arange(12) % 3
    fitted = ProbabilityCalibrator(method, scope, groups).fit(probs, Y)
    again = ProbabilityCalibrator.from_state(fitted.to_state())
    np.testing.assert_array_equal(again.transform(probs), fitted.transform(probs))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"method": "spline"}, "'method'"),
        ({"scope": "image"}, "'scope'"),
        ({"shrinkage": -1}, "'shrinkage'"),
        ({"class_groups": ["a"]}, "class_groups"),
    ],
)
def test_wrong_parameters_are_named(parameters, message, rng):
    """A wrong parameter is an error at fit, with its name."""
    _, Y, probs = simulate(rng, n_images=20)
    with pytest.raises(ValueError, match=message):
        ProbabilityCalibrator(**parameters).fit(probs, Y)


def test_no_positive_labels_and_no_probabilities_are_fine():
    """Nothing to learn from gives small or unchanged probabilities, not an error."""
    probs = np.full((10, 3), 0.3, np.float32)
    none = np.zeros((10, 3), int)
    assert (ProbabilityCalibrator("beta").fit(probs, none).transform(probs) < 0.3).all()
    assert not ProbabilityCalibrator("beta").fit(0 * probs, none).transform(0 * probs).any()


@pytest.mark.parametrize("method", ["auto", "isotonic"])
@pytest.mark.parametrize(
    "convert",
    [
        lambda p: p.astype(np.float16),
        np.asfortranarray,
        lambda p: np.lib.stride_tricks.as_strided(p, writeable=False),
        lambda p: p.astype(np.float64).tolist(),
        lambda p: p[:1],
        lambda p: p[:, :1],
        lambda p: np.where(np.arange(len(p))[:, None] < 10, 0, p),
    ],
    ids=["float16", "fortran", "read-only", "list", "one image", "one class", "zero rows"],
)
def test_every_layout_and_size_is_calibrated(method, convert, rng):
    """Unusual containers and shapes give probabilities of the same shape; zeros stay."""
    _, Y, probs = simulate(rng, n_images=60)
    X = convert(probs)
    shape = np.shape(X)
    fixed = ProbabilityCalibrator(method, cv=2).fit(X, Y[: shape[0], : shape[1]]).transform(X)
    assert fixed.shape == shape
    assert ((fixed >= 0) & (fixed <= 1)).all()
    np.testing.assert_array_equal(fixed == 0, np.asarray(X) == 0)


@pytest.mark.parametrize(
    ("probs", "Y", "message"),
    [
        ([[0.5, np.nan]], [[1, 0]], "NaN at image 0, class 1"),
        ([[0.5, np.inf]], [[1, 0]], "infinity"),
        ([[0.5, 3.0]], [[1, 0]], "Apply a sigmoid"),
        ([[0.5, 0.1]], [[1, 0, 0]], "same shape"),
        ([[0.5, 0.1]], [[1, 2]], "0 and 1 only"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "0 sample"),
        (np.zeros((2, 0)), np.zeros((2, 0)), "0 feature"),
    ],
)
def test_wrong_input_is_refused_with_its_place(probs, Y, message):
    """What cannot be probabilities or labels is an error that says where."""
    with pytest.raises(ValueError, match=message):
        ProbabilityCalibrator().fit(probs, Y)


def test_reliability_curve_of_calibrated_probabilities_lies_on_the_diagonal(rng):
    """Bins hold all non-zero pairs, and rates match within their error."""
    truth, Y, _ = simulate(rng, n_images=4000)
    curve = reliability_curve(truth, Y, n_bins=10)
    assert curve["count"].sum() == truth.size
    assert (np.abs(curve["rate"] - curve["mean_proba"]) < 4 * curve["standard_error"]).all()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_scikit_learn_accepts_the_calibrator(method):
    """Every check that stays within [0, 1] passes; the others are listed with a reason."""
    calibrator = ProbabilityCalibrator(method)
    expected = EXPECTED_FAILED_CHECKS["ProbabilityCalibrator"]
    results = check_estimator(calibrator, expected_failed_checks=expected, on_skip=None)
    assert sum(result["status"] == "passed" for result in results) >= 25
    xfails = [result for result in results if result["status"] == "xfail"]
    assert all("must lie in [0, 1]" in str(result["exception"]) for result in xfails)
