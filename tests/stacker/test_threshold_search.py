import itertools

import numpy as np
import pytest

from stacker import FBetaDecision, _sweep, fbeta_score

AVERAGES = ("samples", "macro", "micro")


def best_by_search(keys, Y, average, beta=2.0, empty_score=1.0):
    """Highest F-beta over every distinct threshold on the keys, by trying each."""
    cuts = [*np.unique(keys[keys > 0]), np.inf]
    score = [fbeta_score(Y, keys >= cut, beta, average, empty_score) for cut in cuts]
    return max(score)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("empty_score", [0.0, 1.0])
def test_global_threshold_is_the_best_of_all(average, empty_score, simulate):
    """The sweep with its floor finds what trying every cut-off finds, ties included."""
    for n_images in (1, 3, 40):
        probs, Y = simulate(n_images, 7)
        probs = np.round(probs, 1)
        options = {"average": average, "empty_score": empty_score}
        decision = FBetaDecision(strategy="global", **options).fit(probs, Y)
        wanted = best_by_search(probs, Y, average, empty_score=empty_score)
        assert decision.score(probs, Y) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("average", AVERAGES)
def test_ratio_to_the_maximum_is_the_best_of_all(average, simulate):
    """The ratio is searched exactly too."""
    probs, Y = simulate(60, 7)
    decision = FBetaDecision(strategy="max_ratio", average=average).fit(probs, Y)
    wanted = best_by_search(probs / probs.max(axis=1, keepdims=True), Y, average)
    assert decision.score(probs, Y) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("average", AVERAGES)
def test_top_k_is_the_best_number(average, simulate):
    """k is the best of all numbers of labels."""
    probs, Y = simulate(60, 7)
    decision = FBetaDecision(strategy="top_k", average=average).fit(probs, Y)
    rank = np.argsort(np.argsort(-probs, axis=1), axis=1)
    wanted = max(fbeta_score(Y, rank < k, 2.0, average) for k in range(8))
    assert decision.score(probs, Y) == pytest.approx(wanted, abs=1e-12)


def test_raw_class_thresholds_reach_the_best_macro_score(simulate):
    """Without shrinkage every class has its own best threshold."""
    probs, Y = simulate(80, 6)
    Y[0] = 1
    decision = FBetaDecision(strategy="class", average="macro", shrinkage=0).fit(probs, Y)
    wanted = np.mean([best_by_search(probs[:, [c]], Y[:, [c]], "macro") for c in range(6)])
    assert decision.score(probs, Y) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("strategy", ["global", "group", "max_ratio", "class"])
@pytest.mark.parametrize("guess", ["sample", "too high"])
def test_leaving_pairs_out_changes_no_threshold(average, strategy, guess, monkeypatch, simulate):
    """The search on few pairs ends where the search on all of them does, whatever it guesses."""
    probs, Y = simulate(300, 60)
    options = {"average": average, "strategy": strategy, "class_groups": np.arange(60) % 2}
    wanted = FBetaDecision(**options).fit(probs, Y)
    monkeypatch.setattr(_sweep, "N_SAMPLE", 40)
    if guess == "too high":
        high = np.float32(0.6)
        monkeypatch.setattr(_sweep, "_guess_floors", lambda s, c: np.full(c.max() + 1, high))
        monkeypatch.setattr(_sweep, "_guess_class_floors", lambda s: np.full(60, high))
    found = FBetaDecision(**options).fit(probs, Y)
    np.testing.assert_allclose(found.thresholds_, wanted.thresholds_, rtol=1e-12)


def test_group_thresholds_beat_every_pair_on_a_grid(simulate):
    """Coordinate sweeps find two thresholds at least as good as a grid's best."""
    probs, Y = simulate(100, 6)
    probs[:, 3:] **= 2
    groups = np.array(["culture"] * 3 + ["tag"] * 3)
    decision = FBetaDecision(strategy="group", class_groups=groups).fit(probs, Y)
    grid = np.linspace(0.01, 0.9, 30)
    wanted = max(
        fbeta_score(Y, probs >= np.repeat([a, b], 3)) for a, b in itertools.product(grid, grid)
    )
    assert decision.score(probs, Y) >= wanted
    assert len(np.unique(decision.thresholds_)) == 2


def test_affine_rule_is_at_least_as_good_as_its_parts(simulate):
    """offset + slope max(p) includes one threshold and one ratio."""
    probs, Y = simulate(200)
    scores = {
        name: FBetaDecision(strategy=name).fit(probs, Y).score(probs, Y)
        for name in ("global", "max_ratio", "max_affine")
    }
    assert scores["max_affine"] >= max(scores.values()) - 1e-5


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_expected_count_thresholds_are_the_best_of_all(average, simulate):
    """The fixed point F / (1 + beta^2) maximises the F-beta of expected counts."""
    probs, Y = simulate()
    decision = FBetaDecision(strategy="expected", average=average).fit(probs, Y)
    calibrated = decision.calibrator_.transform(probs).astype(float)
    columns = calibrated.T if average == "macro" else calibrated.reshape(1, -1)
    for p, cut in zip(columns, decision.thresholds_, strict=average == "macro"):
        ranked = np.sort(p)[::-1]
        score = 5 * np.cumsum(ranked) / (4 * p.sum() + np.arange(1, len(p) + 1))
        assert cut == pytest.approx(score.max() / 5, rel=1e-5)
