import os
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.model_selection import GroupKFold

from stacker import FBetaDecision, expected_fbeta_sets, fbeta_score
from stacker.fbeta import fbeta_per_image

# The whole file is not shipped (tests/data/README.md); name it to run the slow tests on it.
OPENCLIPART = Path(os.environ.get("PAIRSTACK_OOF", "openclipart_oof.npz"))


def test_auto_takes_the_simplest_rule_within_one_standard_error(simulate):
    """The table, the rule of choice and the choice agree."""
    probs, Y = simulate(300)
    decision = FBetaDecision(random_state=0, cv=4).fit(probs, Y)
    table = decision.cv_results_
    near = table["gap_to_best"] <= table["gap_standard_error"] + 1e-12
    assert decision.strategy_ == table["strategy"][near.argmax()]
    assert table["chosen"].sum() == 1
    assert len({len(column) for column in table.values()}) == 1


def test_auto_keeps_groups_of_images_together(simulate):
    """A splitter sees the split groups that fit was given."""
    probs, Y = simulate(60)
    groups = np.repeat(np.arange(20), 3)
    seen = []

    class Recorder(GroupKFold):
        def split(self, X, y=None, groups=None):
            seen.append(groups)
            return super().split(X, y, groups)

    FBetaDecision(cv=Recorder(3)).fit(probs, Y, groups=groups)
    np.testing.assert_array_equal(seen[0], groups)


def test_auto_never_scores_a_rule_on_its_own_rows(rng, simulate):
    """With random labels every cross-validated score is that of held-out rows."""
    probs, _ = simulate(200)
    Y = rng.random(probs.shape) < 0.2
    fold = np.arange(200) % 2
    table = FBetaDecision(cv=fold).fit(probs, Y).cv_results_
    by_hand = []
    for f in range(2):
        rule = FBetaDecision(strategy="class").fit(probs[fold != f], Y[fold != f])
        by_hand.append(rule.score(probs[fold == f], Y[fold == f]))
    row = table["strategy"] == "class"
    assert table["mean_score"][row][0] == pytest.approx(np.mean(by_hand))


def test_expected_sets_win_on_calibrated_probabilities():
    """On simulated calibrated probabilities the exact rule beats thresholds, interval above 0."""
    rng = np.random.default_rng(1)
    level = rng.normal(size=(3000, 1)) * 1.5
    odds = rng.normal(size=(3000, 40)) * 1.5 - 3 + level
    gain = gains_over_rules(rng, odds, expit(odds))
    assert (gain > 0).all()


def test_expected_sets_win_on_stretched_probabilities_after_calibration():
    """Log-odds stretched by 1.6 hurt the raw exact rule; the strategy calibrates first."""
    rng = np.random.default_rng(2)
    level = rng.normal(size=(3000, 1)) * 1.5
    odds = rng.normal(size=(3000, 40)) * 1.5 - 3 + level
    stretched = expit(1.6 * odds)
    gain = gains_over_rules(rng, odds, stretched)
    assert (gain > 0).all()
    Y = rng.random(odds.shape) < expit(odds)
    raw = fbeta_score(Y, expected_fbeta_sets(stretched))
    calibrated = FBetaDecision(strategy="expected").fit(stretched[:1500], Y[:1500])
    assert fbeta_score(Y[1500:], calibrated.predict(stretched[1500:])) > raw + 0.01


def gains_over_rules(rng, odds, probs):
    """Lower ends of 95% intervals of the held-out gain over a threshold and a ratio."""
    Y = (rng.random(odds.shape) < expit(odds)).astype(int)
    train, test = slice(0, 1500), slice(1500, None)
    score = {
        name: fbeta_per_image(
            Y[test], FBetaDecision(strategy=name).fit(probs[train], Y[train]).predict(probs[test])
        )
        for name in ("global", "max_ratio", "expected")
    }
    lower = []
    for name in ("global", "max_ratio"):
        gap = score["expected"] - score[name]
        lower.append(gap.mean() - 1.96 * gap.std() / np.sqrt(len(gap)))
    return np.array(lower)


def test_shrunk_class_thresholds_beat_raw_and_global_on_a_long_tail():
    """With few positives a class, its own threshold overfits and the global one underfits."""
    rng = np.random.default_rng(3)
    n_classes = 150
    shift = rng.normal(size=n_classes) * 1.0
    odds = rng.normal(size=(4000, n_classes)) * 2 - 5.5
    Y = (rng.random(odds.shape) < expit(odds + shift)).astype(int)
    probs = expit(odds)
    train, test = slice(0, 2000), slice(2000, None)

    def macro(**options):
        decision = FBetaDecision(average="macro", **options).fit(probs[train], Y[train])
        return decision.score(probs[test], Y[test])

    shrunk, raw = macro(strategy="class"), macro(strategy="class", shrinkage=0)
    assert shrunk > max(raw, macro(strategy="global"))


# ------------------------------------------------------------------------------- real data


@pytest.mark.slow
@pytest.mark.skipif(not OPENCLIPART.exists(), reason="development data not here")
def test_openclipart_targets_are_reached():
    """Strictly nested on real predictions: auto >= 0.722, shrunk macro thresholds win."""
    data = np.load(OPENCLIPART)
    p = data["probabilities"].astype(float).clip(1e-6, 1 - 1e-6)
    probs = expit(logit(p).mean(axis=0)).astype(np.float32)
    Y, fold, groups = data["labels"], data["fold"], data["split_group"]

    def nested(**options):
        sets = np.zeros_like(Y)
        for f in range(5):
            train, test = fold != f, fold == f
            decision = FBetaDecision(random_state=0, **options)
            decision.fit(probs[train], Y[train], groups=groups[train])
            sets[test] = decision.predict(probs[test])
        return sets

    assert fbeta_score(Y, nested()) >= 0.722
    macro = {
        name: fbeta_score(Y, nested(average="macro", **options), average="macro")
        for name, options in {
            "shrunk": {"strategy": "class"},
            "raw": {"strategy": "class", "shrinkage": 0},
            "global": {"strategy": "global"},
        }.items()
    }
    assert macro["shrunk"] > max(macro["raw"], macro["global"])
