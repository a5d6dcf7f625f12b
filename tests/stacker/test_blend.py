"""Blends: formulas, weights, shrinkage and cross-fitting."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

from features import Stack
from features.numeric import logit
from stacker._logistic import fit_per_class, fit_pooled
from stacker.blend import (
    BLENDS,
    EnsembleSelection,
    LogisticBlend,
    LogitMeanBlend,
    MeanBlend,
    cross_fit,
    weighted_log_loss,
)


@pytest.fixture
def noisy():
    """A good model, a useless one, and their labels: 200 images x 5 classes."""
    rng = np.random.default_rng(3)
    labels = (rng.random((200, 5)) < 0.3).astype(np.int8)
    signal = 1 / (1 + np.exp(-(3.0 * labels - 2 + rng.normal(0, 1, labels.shape))))
    return Stack({"good": signal, "noise": rng.random(labels.shape)}), csr_array(labels)


def test_mean_and_logit_mean_are_the_formulas(noisy):
    """A blend in the wrong space, or with the wrong weights, differs from the plain formula."""
    stack, _ = noisy
    a, b = (np.asarray(p, dtype=np.float64) for p in stack.probabilities.values())
    np.testing.assert_allclose(MeanBlend().fit(stack).predict_proba(stack), (a + b) / 2, atol=1e-6)
    odds = np.sqrt(a / (1 - a) * b / (1 - b))
    expected = odds / (1 + odds)
    np.testing.assert_allclose(
        LogitMeanBlend().fit(stack).predict_proba(stack), expected, atol=1e-5
    )


def test_selection_prefers_the_better_model(noisy):
    """Greedy selection that ignored the labels would give the noise half of the votes."""
    stack, labels = noisy
    weights = EnsembleSelection().fit(stack, labels).weights_
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["good"] > 0.7


def test_selection_first_vote_is_the_exhaustive_best(noisy):
    """With one round, the choice equals the single model with the lowest log loss."""
    stack, labels = noisy
    dense = labels.toarray().astype(np.float32)
    losses = {m: weighted_log_loss(logit(p), dense) for m, p in stack.probabilities.items()}
    weights = EnsembleSelection(n_rounds=1).fit(stack, labels).weights_
    assert max(weights, key=weights.get) == min(losses, key=losses.get)


def test_selection_weighs_validation_sets_equally(noisy):
    """A small second set on which the other model is right must count as much as the large one."""
    stack, labels = noisy
    flipped = {
        "good": stack.probabilities["good"].copy(),
        "noise": stack.probabilities["noise"].copy(),
    }
    small = slice(0, 20)
    flipped["noise"][small] = np.where(labels.toarray()[small], 0.95, 0.05)
    flipped["good"][small] = 0.5
    sets = np.array(["target"] * 20 + ["source"] * 180)
    alone = EnsembleSelection().fit(Stack(flipped), labels).weights_["noise"]
    both = EnsembleSelection().fit(Stack(flipped), labels, validation_set=sets).weights_["noise"]
    assert both > alone


def test_selection_by_f_beta_is_not_below_the_best_single_model(noisy):
    """The first vote goes to the model with the best F-beta, and sets still count equally."""
    stack, labels = noisy
    from stacker import FBetaDecision

    scores = {
        m: FBetaDecision(strategy="global").fit(p, labels).score(p, labels)
        for m, p in stack.probabilities.items()
    }
    first = EnsembleSelection(n_rounds=1, scoring="fbeta").fit(stack, labels).weights_
    assert first[max(scores, key=scores.get)] == 1
    blend = EnsembleSelection(n_rounds=5, scoring="fbeta").fit(stack, labels)
    proba = blend.predict_proba(stack)
    rule = FBetaDecision(strategy="global").fit(proba, labels)
    assert rule.score(proba, labels) >= max(scores.values()) - 0.01
    with pytest.raises(ValueError, match="'scoring' parameter must be"):
        EnsembleSelection(scoring="auc").fit(stack, labels)


def test_pooled_logistic_equals_scikit_learn(noisy):
    """The pooled fit is an ordinary logistic regression over all pairs."""
    stack, labels = noisy
    logits = np.stack([logit(p) for p in stack.probabilities.values()])
    ours = fit_pooled(logits, labels.toarray().astype(np.float32))
    theirs = LogisticRegression(C=1e6, tol=1e-8).fit(
        logits.reshape(2, -1).T, labels.toarray().ravel()
    )
    np.testing.assert_allclose(ours[:2], theirs.coef_[0], atol=5e-3)
    assert ours[2] == pytest.approx(theirs.intercept_[0], abs=5e-3)


def test_per_class_weights_move_from_pooled_to_own_as_shrinkage_falls(noisy):
    """Strong shrinkage gives the pooled weights, weak shrinkage the class's own fit."""
    stack, labels = noisy
    logits = np.stack([logit(p).T for p in stack.probabilities.values()], axis=-1)
    own = labels.toarray().T.astype(np.float32)
    prior, one = np.array([0.3, 0.3, -1.0]), np.ones_like(own)
    np.testing.assert_allclose(fit_per_class(logits, own, one, prior, 1e9)[0], prior, atol=1e-5)
    alone = LogisticRegression(C=1e6, tol=1e-8).fit(logits[0], own[0])
    found = fit_per_class(logits, own, one, prior, 1e-6)[0]
    np.testing.assert_allclose(found, [*alone.coef_[0], alone.intercept_[0]], rtol=2e-2, atol=2e-2)


def test_weights_of_pairs_are_those_of_scikit_learn(noisy):
    """A pair of weight two counts as two pairs, one of weight nought as none."""
    stack, labels = noisy
    logits = np.stack([logit(p).T for p in stack.probabilities.values()], axis=-1)
    own = labels.toarray().T.astype(np.float32)
    weight = np.random.default_rng(0).integers(0, 3, own.shape).astype(np.float32)
    found = fit_per_class(logits, own, weight, np.zeros(3), 1e-6)[0]
    alone = LogisticRegression(C=1e6, tol=1e-8).fit(logits[0], own[0], weight[0])
    np.testing.assert_allclose(found, [*alone.coef_[0], alone.intercept_[0]], rtol=2e-2, atol=2e-2)


def test_many_images_are_drawn_from_without_moving_the_blend(monkeypatch):
    """Negatives that are left out bend the probabilities, or a rare class's positives are lost."""
    rng = np.random.default_rng(4)
    prior = np.array([0.3, 0.05, 0.002, 0.0])
    labels = (rng.random((8000, 4)) < prior).astype(np.int8)
    probs = {
        m: 1 / (1 + np.exp(-(3.0 * labels - 4 + rng.normal(0, 1.5, labels.shape)))) for m in "ab"
    }
    stack, new = Stack(probs)[:4000], Stack(probs)[4000:]
    whole = LogisticBlend().fit(stack, labels[:4000]).predict_proba(new)
    monkeypatch.setattr("stacker.blend.MOST_IMAGES", 1000)
    drawn = LogisticBlend().fit(stack, labels[:4000]).predict_proba(new)
    # Unweighted, the mean probability would be up to four times as high.
    np.testing.assert_allclose(drawn.mean(axis=0), whole.mean(axis=0), rtol=0.1)
    lost, best = (weighted_log_loss(logit(p), labels[4000:]) for p in (drawn, whole))
    assert lost < 1.005 * best


def test_logistic_blend_beats_the_mean_on_new_images(noisy):
    """Calibrated weights must lower the held-out log loss against the plain mean."""
    stack, labels = noisy
    fold = np.arange(200) % 4
    dense = labels.toarray().astype(np.float32)
    loss = {
        name: weighted_log_loss(logit(cross_fit(BLENDS[name](), stack, labels, fold)), dense)
        for name in ("mean", "logistic")
    }
    assert loss["logistic"] < loss["mean"]


def test_cross_fit_does_not_see_the_fold_it_predicts(noisy):
    """Changing the labels of a fold must leave that fold's predictions alone."""
    stack, labels = noisy
    fold = np.arange(200) % 4
    changed = labels.toarray()
    changed[fold == 1] = 1 - changed[fold == 1]
    before = cross_fit(LogisticBlend(), stack, labels, fold)
    after = cross_fit(LogisticBlend(), stack, csr_array(changed), fold)
    np.testing.assert_array_equal(before[fold == 1], after[fold == 1])
    assert not np.array_equal(before[fold == 0], after[fold == 0])


def test_a_blend_refuses_other_models(noisy):
    """Predicting with other models than the fitted ones would mix up the weights."""
    stack, labels = noisy
    blend = LogisticBlend().fit(stack, labels)
    with pytest.raises(ValueError, match="was fitted on the models"):
        blend.predict_proba(Stack({"other": stack.probabilities["good"]}))


def test_shrinkage_must_be_positive(noisy):
    """Without a prior a class without positives has no finite weights."""
    with pytest.raises(ValueError, match="shrinkage must be above 0"):
        LogisticBlend(shrinkage=0).fit(*noisy)


def test_selection_without_rounds_is_refused(noisy):
    """No votes made every weight, and every prediction, NaN."""
    with pytest.raises(ValueError, match="n_rounds must be at least 1"):
        EnsembleSelection(n_rounds=0).fit(*noisy)
