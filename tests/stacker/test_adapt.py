"""Prior shift without labels, and adaptation with a few hundred."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.special import expit, logit
from sklearn.base import clone

from stacker import FBetaDecision, fbeta_score
from stacker.adapt import PriorShift, TargetAdapter
from stacker.evaluation import log_loss


def simulate(n, prior, rng, believed=None, strength=2.0):
    """Labels at `prior`, and exact probabilities of a model that believes in another prior."""
    believed = prior if believed is None else believed
    Y = (rng.random((n, len(prior))) < prior).astype(np.int8)
    seen = rng.normal(size=Y.shape) + strength * Y
    odds = strength * seen - strength**2 / 2
    return Y, expit(odds + logit(believed)), expit(odds + logit(prior))


@pytest.fixture(scope="module")
def shifted():
    """Twenty classes whose frequencies change by factors between 1/4 and 4."""
    rng = np.random.default_rng(0)
    source_prior = rng.uniform(0.02, 0.2, size=20)
    target_prior = expit(logit(source_prior) + rng.uniform(-1.4, 1.4, size=20))
    Y, source, _ = simulate(6000, source_prior, rng)
    Y_target, target, exact = simulate(3000, target_prior, rng, believed=source_prior)
    return Y, source, Y_target, target, exact, target_prior


def plain_em(proba, prior, steps=2000):
    """Run the iteration of Saerens et al. as the paper prints it."""
    target = prior.copy()
    for _ in range(steps):
        yes, no = proba * target / prior, (1 - proba) * (1 - target) / (1 - prior)
        target = (yes / (yes + no)).mean(axis=0)
    return target


def test_without_shrinkage_it_is_the_published_em(shifted):
    """The solver and the plain iteration reach the same frequencies, up to binning."""
    Y, source, _, target, _, _ = shifted
    fitted = PriorShift(shrinkage=0, calibrate=False, trust=1).fit(source, Y, target)
    np.testing.assert_allclose(
        fitted.target_prior_, plain_em(target, fitted.source_prior_), rtol=0.02
    )


@pytest.mark.parametrize("method", ["em", "moments"])
def test_the_frequencies_of_new_images_are_found(shifted, method):
    """Estimates lie near the truth and the moved probabilities near the exact ones."""
    Y, source, Y_target, target, exact, prior = shifted
    fitted = PriorShift(method).fit(source, Y, target)
    error = np.abs(logit(fitted.target_prior_) - logit(prior))
    assert error.mean() < 0.15
    moved = fitted.transform(target)
    lost, best = log_loss(Y_target, target), log_loss(Y_target, exact)
    assert log_loss(Y_target, moved) - best < 0.1 * (lost - best)


@pytest.mark.parametrize("method", ["em", "moments"])
def test_no_shift_moves_nothing(method):
    """Where the frequencies are the same, "auto" shrinks the noise away."""
    rng = np.random.default_rng(1)
    prior = rng.uniform(0.005, 0.05, size=40)
    Y, source, _ = simulate(3000, prior, rng)
    target = simulate(500, prior, rng)[1]
    fitted = PriorShift(method).fit(source, Y, target)
    raw = PriorShift(method, shrinkage=0).fit(source, Y, target)
    assert np.abs(fitted.shift_).mean() < 0.15
    assert np.abs(fitted.shift_).mean() < 0.5 * np.abs(raw.shift_).mean()


@pytest.mark.parametrize("method", ["em", "moments"])
def test_other_images_are_not_taken_for_other_frequencies(method):
    """One theme grows, and with it twelve labels; the probabilities are right as they are.

    Each class's frequency did change, so estimates class by class are believed, and do harm.
    """
    rng = np.random.default_rng(0)
    level = np.where(np.arange(12) % 2 == np.array([[0], [1]]), -0.5, -3.5)

    def images(n, share):
        theme = (rng.random(n) < share).astype(int)
        p = expit(level[theme] + rng.normal(0, 0.5, (n, 12)))
        return p, (rng.random(p.shape) < p).astype(np.int8)

    (source, Y), (target, Y_target) = images(3000, 0.5), images(3000, 0.85)
    as_is = log_loss(Y_target, target)
    fitted = PriorShift(method).fit(source, Y, target)
    believed = PriorShift(method, trust=1).fit(source, Y, target)
    assert log_loss(Y_target, fitted.transform(target)) < 1.05 * as_is
    assert log_loss(Y_target, believed.transform(target)) > 1.5 * as_is


def test_rare_classes_take_the_common_shift():
    """One positive says nothing about its class: it moves as all classes do."""
    rng = np.random.default_rng(2)
    prior = np.r_[np.full(10, 0.2), np.full(10, 0.0005)]
    Y, source, _ = simulate(4000, prior, rng)
    target = simulate(1000, expit(logit(prior) + 1), rng, believed=prior)[1]
    fitted = PriorShift(shrinkage=20).fit(source, Y, target)
    assert fitted.common_shift_ == pytest.approx(1, abs=0.15)
    np.testing.assert_allclose(fitted.shift_[10:], fitted.common_shift_, atol=0.25)


def test_works_without_source_labels(shifted):
    """The probabilities' own mean stands in for the frequency."""
    _, source, Y_target, target, exact, _ = shifted
    moved = PriorShift().fit(source, None, target).transform(target)
    lost, best = log_loss(Y_target, target), log_loss(Y_target, exact)
    assert log_loss(Y_target, moved) - best < 0.1 * (lost - best)


def test_overconfident_source_probabilities_are_calibrated_first(shifted):
    """EM believes its probabilities: stretched ones ruin it unless calibrated."""
    Y, source, Y_target, target, _, _ = shifted
    stretch = lambda p: expit(1.6 * logit(np.clip(p, 1e-6, 1 - 1e-6)))  # noqa: E731
    losses = [
        log_loss(
            Y_target,
            PriorShift(calibrate=calibrate)
            .fit(stretch(source), Y, stretch(target))
            .transform(stretch(target)),
        )
        for calibrate in (True, False)
    ]
    assert losses[0] < losses[1]
    assert losses[0] < log_loss(Y_target, target)


def test_sparse_input_gives_the_same_shift(shifted):
    """What a top-k matrix stores moves as in the dense one; zeros stay."""
    _, source, _, target, _, _ = shifted
    source, target = np.where(source > 0.05, source, 0), np.where(target > 0.05, target, 0)
    dense = PriorShift().fit(source, None, target)
    sparse = PriorShift().fit(csr_array(source), None, csr_array(target))
    np.testing.assert_allclose(sparse.shift_, dense.shift_, atol=1e-4)
    moved = sparse.transform(csr_array(target))
    np.testing.assert_allclose(moved.toarray(), dense.transform(target), atol=1e-4)


def test_the_adapter_beats_the_unadapted_rule_on_the_target(shifted):
    """A few hundred labelled target images pay when frequencies and calibration have moved."""
    Y, source, Y_target, target, _, _ = shifted
    stretched = expit(1.5 * logit(np.clip(target, 1e-6, 1 - 1e-6)) + 0.7)
    old = FBetaDecision(strategy="expected", random_state=0).fit(source, Y)
    adapter = TargetAdapter(strategy="expected", random_state=0)
    adapter.fit(source, Y, stretched[:300], Y_target[:300])
    before = fbeta_score(Y_target[300:], old.predict(stretched[300:]))
    after = fbeta_score(Y_target[300:], adapter.predict(stretched[300:]))
    assert after > before + 0.02
    calibrated = adapter.predict_proba(stretched[300:])
    assert log_loss(Y_target[300:], calibrated) < log_loss(Y_target[300:], stretched[300:])


def test_estimators_clone_and_repeat(shifted):
    """Parameters are stored as given; one seed gives one answer."""
    Y, source, Y_target, target, _, _ = shifted
    assert clone(PriorShift("moments", shrinkage=3.0)).get_params()["shrinkage"] == 3.0
    sets = [
        TargetAdapter(random_state=3)
        .fit(source[:500], Y[:500], target[:200], Y_target[:200])
        .predict(target)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(sets[0], sets[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: PriorShift("mean").fit(p, None, p), "'method' parameter must be one of"),
        (lambda p: PriorShift(shrinkage=-1).fit(p, None, p), "'shrinkage' parameter"),
        (lambda p: PriorShift(trust=2).fit(p, None, p), "'trust' parameter must be 'auto' or a"),
        (lambda p: PriorShift().fit(p), "proba_target is missing"),
        (lambda p: PriorShift().fit(p, None, p[:, :1]), "both must have the same"),
        (lambda p: PriorShift().fit(p, None, p).transform(p[:, :1]), "is expecting 2 features"),
        (lambda p: TargetAdapter(source_share=1).fit(p, p > 1, p, p > 1), "'source_share'"),
    ],
)
def test_bad_arguments_are_named(call, message):
    """A wrong argument must say what would be right."""
    with pytest.raises(ValueError, match=message):
        call(np.full((4, 2), 0.5))
