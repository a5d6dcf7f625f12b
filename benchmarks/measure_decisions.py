"""The measured tables and pictures of docs/decisions.md.

    python benchmarks/measure_decisions.py openclipart_oof.npz docs/img

The file holds `probabilities` (models, images, classes), `labels`, `fold`, `split_group` and
`classes`. Every score is nested: a fold's rule is fitted on the other folds.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.special import expit, logit

from stacker import FBetaDecision, expected_fbeta_sets, fbeta_score
from stacker.fbeta import fbeta_per_image
from stacker.plots import (
    plot_expected_and_achieved,
    plot_label_counts,
    plot_reliability,
    plot_threshold_curve,
)

AVERAGES = ("samples", "macro", "micro")
RULES = ("global", "group", "class", "max_ratio", "max_affine", "top_k", "expected", "auto")


def nested(probs, Y, fold, groups, **options):
    sets, fitted = np.zeros(Y.shape, np.int8), []
    for f in np.unique(fold):
        train, test = fold != f, fold == f
        decision = FBetaDecision(random_state=0, **options)
        decision.fit(probs[train], Y[train], groups=groups[train])
        sets[test] = decision.predict(probs[test])
        fitted.append(decision)
    return sets, fitted


def interval(gap, groups, n=1000):
    """95% bootstrap interval of a mean over images, whole split groups drawn."""
    codes = np.unique(groups, return_inverse=True)[1]
    total, size = np.bincount(codes, gap), np.bincount(codes)
    draws = np.random.default_rng(0).integers(0, len(size), (n, len(size)))
    return np.percentile(total[draws].sum(1) / size[draws].sum(1), [2.5, 97.5])


def real_table(probs, Y, fold, groups, class_groups):
    base = fbeta_per_image(Y, nested(probs, Y, fold, groups, strategy="global")[0])
    print("| rule | samples | gain over global, 95% | macro | micro |\n|---|---|---|---|---|")
    rows = [(rule, {"strategy": rule}) for rule in RULES]
    rows.insert(3, ("class, shrinkage=0", {"strategy": "class", "shrinkage": 0}))
    for name, options in rows:
        scores = []
        for average in AVERAGES:
            sets, fitted = nested(
                probs, Y, fold, groups, average=average, class_groups=class_groups, **options
            )
            scores.append(fbeta_score(Y, sets, average=average))
            if average == "samples":
                gap = fbeta_per_image(Y, sets) - base
                low, high = interval(gap, groups)
            if name == "auto":
                print(f"<!-- auto, {average}: {[d.strategy_ for d in fitted]} -->")
        print(
            f"| {name} | {scores[0]:.4f} | {gap.mean():+.4f} [{low:+.4f}, {high:+.4f}] "
            f"| {scores[1]:.4f} | {scores[2]:.4f} |"
        )
    fixed = probs >= 0.5
    scores = [f"{fbeta_score(Y, fixed, average=average):.4f}" for average in AVERAGES]
    print(f"| p >= 0.5 | {scores[0]} | | {scores[1]} | {scores[2]} |")
    print(f"uncalibrated exact sets: {fbeta_score(Y, expected_fbeta_sets(probs)):.4f}")


def simulated_table():
    rng = np.random.default_rng(0)
    level = rng.normal(size=(20_000, 1)) * 1.5
    odds = rng.normal(size=(20_000, 60)) * 1.5 - 3.5 + level
    Y = (rng.random(odds.shape) < expit(odds)).astype(np.int8)
    train, test = slice(0, 10_000), slice(10_000, None)
    print("| rule | calibrated | log-odds x 1.6 |\n|---|---|---|")
    columns = {}
    for stretch in (1.0, 1.6):
        probs = expit(stretch * odds).astype(np.float32)
        found = {"raw exact sets": expected_fbeta_sets(probs[test])}
        for rule in ("global", "max_ratio", "expected"):
            decision = FBetaDecision(strategy=rule, random_state=0).fit(probs[train], Y[train])
            found[rule] = decision.predict(probs[test])
        score = {name: fbeta_per_image(Y[test], sets) for name, sets in found.items()}
        columns[stretch] = {name: f"{s.mean():.4f}" for name, s in score.items()}
        for name in ("global", "max_ratio"):
            low, high = interval(score["expected"] - score[name], np.arange(10_000))
            columns[stretch][f"expected - {name}"] = f"[{low:+.4f}, {high:+.4f}]"
    for name in columns[1.0]:
        print(f"| {name} | {columns[1.0][name]} | {columns[1.6][name]} |")


def pictures(probs, Y, fold, groups, folder):
    from matplotlib.figure import Figure

    sets, fitted = nested(probs, Y, fold, groups, strategy="expected")
    calibrated = np.zeros_like(probs)
    for f, decision in zip(np.unique(fold), fitted, strict=True):
        calibrated[fold == f] = decision.calibrator_.transform(probs[fold == f])
    figure = Figure(figsize=(9, 6), layout="constrained")
    ax = figure.subplots(2, 3)
    cut = FBetaDecision(strategy="global").fit(probs, Y).thresholds_[0]
    plot_threshold_curve(probs, Y, cut, ax=ax[0, 0])
    for row, (p, title) in enumerate(((probs, "raw"), (calibrated, "calibrated"))):
        plot_reliability(p, Y, ax=ax[row, 1]).set_title(title)
        plot_expected_and_achieved(p, Y, ax=ax[row, 2]).set_title(title)
    plot_label_counts(Y, sets, ax=ax[1, 0])
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "decisions.png", dpi=90)


def read(path):
    """Logit-mean probabilities, labels, fold and split group of each image, group of each class."""
    with np.load(path, allow_pickle=False) as data:
        p = data["probabilities"].astype(float).clip(1e-6, 1 - 1e-6)
        probs = expit(logit(p).mean(axis=0)).astype(np.float32)
        class_groups = [name.split("::")[0] for name in data["classes"]]
        return probs, data["labels"], data["fold"], data["split_group"], class_groups


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    *parts, class_groups = read(arguments.data)
    pictures(*parts, arguments.folder)
    simulated_table()
    real_table(*parts, class_groups)


if __name__ == "__main__":
    main()
