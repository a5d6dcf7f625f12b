"""Choices of the default fit, each against its other: the start of boosting, the feature folds.

    python benchmarks/measure_choices.py openclipart_oof.npz [--folds 0,1,2,3,4] [--jobs 1]

Fitted on the other outer folds, scored on the one: F2 (samples) and log loss an image, and the
default's gain in F2 with a paired bootstrap over split groups. Feeds the tables of docs/fitting.md.
"""

import argparse
from typing import Any

import numpy as np
from measure import table
from nested_openclipart import Data, read
from sklearn.model_selection import PredefinedSplit

from stacker import PairStacker
from stacker._training_set import read_training_set
from stacker.evaluation import paired_bootstrap
from stacker.fbeta import fbeta_per_image


def default(data: Data, inside: np.ndarray, jobs: int) -> PairStacker:
    """Fit with the defaults: boosting starts from the logit mean, features take about 20 folds."""
    stack, labels, _, groups = data
    model = PairStacker(n_jobs=jobs, random_state=0)
    return model.fit(stack[inside], labels[inside], groups=groups[inside])


def from_logistic(data: Data, inside: np.ndarray, jobs: int) -> PairStacker:
    """Boosting starts from the per-class logistic blend."""
    stack, labels, _, groups = data
    model = PairStacker(base="logistic", n_jobs=jobs, random_state=0)
    return model.fit(stack[inside], labels[inside], groups=groups[inside])


def five_feature_folds(data: Data, inside: np.ndarray, jobs: int) -> PairStacker:
    """Features take boosting's own five folds: the same ones as by default, given as a splitter."""
    stack, labels, _, groups = data
    train = read_training_set(
        stack[inside], labels[inside], groups[inside], None, None, cv=5, random_state=0
    )
    model = PairStacker(cv=PredefinedSplit(train.fold), n_jobs=jobs, random_state=0)
    return model.fit(stack[inside], labels[inside])


CHOICES = {
    "default": default,
    "boosting starts from the logistic blend": from_logistic,
    "features take five folds": five_feature_folds,
}


def log_loss(labels: np.ndarray, proba: np.ndarray) -> float:
    """Log loss an image: the sum over classes, mean over images."""
    clipped = np.clip(proba.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.where(labels > 0, np.log(clipped), np.log1p(-clipped)).sum(axis=1).mean())


def measure(data: Data, folds: list[int], jobs: int) -> str:
    """Table of all choices over some outer folds."""
    stack, labels, fold, groups = data
    scores: dict[str, list[Any]] = {name: [] for name in CHOICES}
    losses: dict[str, list[float]] = {name: [] for name in CHOICES}
    for k in folds:
        inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        true = labels[outside].toarray()
        for name, choice in CHOICES.items():
            proba = (model := choice(data, inside, jobs)).predict_proba(stack[outside])
            scores[name].append(fbeta_per_image(true, model.decision_.predict(proba)))
            losses[name].append(log_loss(true, proba))
            print(k, name, scores[name][-1].mean(), losses[name][-1], flush=True)
    which = np.concatenate([groups[fold == k] for k in folds])
    own = np.concatenate(scores["default"])
    rows = []
    for name in CHOICES:
        other = np.concatenate(scores[name])
        gain, low, high = paired_bootstrap(own, other, which, random_state=0)
        ahead = "" if name == "default" else f"{gain:+.4f} [{low:+.4f}, {high:+.4f}]"
        rows.append([name, f"{other.mean():.4f}", f"{np.mean(losses[name]):.3f}", ahead])
    return table(["", "F2 samples", "log loss an image", "default ahead by"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--folds", default="0,1,2,3,4")
    parser.add_argument("--jobs", type=int, default=None)
    options = parser.parse_args()
    print(measure(read(options.path), [int(k) for k in options.folds.split(",")], options.jobs))


if __name__ == "__main__":
    main()
