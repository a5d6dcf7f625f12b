"""From probabilities to label sets: pairstack's rules beside its peers', on the same probabilities.

    PYTHONPATH=benchmarks .venv-peers/bin/python benchmarks/peers/decisions.py openclipart_oof.npz

The probabilities are the logistic blend's, out of fold. A rule is fitted on four outer folds and
chooses the sets of the fifth; CPU time is that of all five fits and predictions.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
from data import Part, read
from measure import table
from one import best_threshold
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import fbeta_score as sklearn_fbeta
from sklearn.metrics import make_scorer
from sklearn.model_selection import TunedThresholdClassifierCV

from stacker import FBetaDecision, fbeta_score
from stacker.blend import LogisticBlend

Rule = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Given(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose one column is the probability itself."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Given":
        """Nothing to learn."""
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probability of 0 and of 1."""
        return np.concatenate([1 - X, X], axis=1)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Cut at a half."""
        return (X[:, 0] >= 0.5).astype(int)


def one_threshold(proba: np.ndarray, labels: np.ndarray, new: np.ndarray) -> np.ndarray:
    return (new >= best_threshold(proba, labels)).astype(np.int8)


def tuned_per_class(proba: np.ndarray, labels: np.ndarray, new: np.ndarray) -> np.ndarray:
    scorer = make_scorer(sklearn_fbeta, beta=2, zero_division=0)
    out = np.zeros(new.shape, np.int8)
    for c in range(labels.shape[1]):
        if labels[:, c].any():
            given = FrozenEstimator(Given().fit(proba, labels))
            tuned = TunedThresholdClassifierCV(given, scoring=scorer, cv="prefit", refit=False)
            out[:, c] = tuned.fit(proba[:, [c]], labels[:, c]).predict(new[:, [c]])
    return out


def xcolumns_macro(proba: np.ndarray, labels: np.ndarray, new: np.ndarray) -> np.ndarray:
    from xcolumns.block_coordinate import predict_using_bc_with_0approx

    def f2(tp: float, fp: float, fn: float, tn: float) -> float:
        return 5 * tp / (4 * (tp + fn) + tp + fp + 1e-6)

    sets = predict_using_bc_with_0approx(new.astype(np.float32), f2, k=0, seed=0)
    return np.asarray(sets > 0, dtype=np.int8)


def ours(average: str) -> Rule:
    def rule(proba: np.ndarray, labels: np.ndarray, new: np.ndarray) -> np.ndarray:
        return FBetaDecision(average=average, random_state=0).fit(proba, labels).predict(new)

    return rule


RULES: dict[str, Rule] = {
    "plain grid, one threshold": one_threshold,
    "scikit-learn TunedThresholdClassifierCV, per class": tuned_per_class,
    "xcolumns, block coordinate, macro F2": xcolumns_macro,
    "**pairstack**, for F2 samples": ours("samples"),
    "**pairstack**, for F2 macro": ours("macro"),
    "**pairstack**, for F2 micro": ours("micro"),
}


def out_of_fold(data: Part) -> np.ndarray:
    """Let the logistic blend predict every image from the other folds."""
    out = np.empty(data.labels.shape, np.float32)
    for fold in range(int(data.fold.max()) + 1):
        inside = data.fold == fold
        blend = LogisticBlend().fit(data.stack[~inside], csr_array(data.labels[~inside]))
        out[inside] = blend.predict_proba(data.stack[inside])
    return out


def decisions(data: Part) -> str:
    """Scores and seconds of every rule."""
    warnings.simplefilter("ignore")
    proba, rows = out_of_fold(data), []
    for name, rule in RULES.items():
        sets, start = np.zeros(data.labels.shape, np.int8), time.process_time()
        for fold in range(int(data.fold.max()) + 1):
            inside = data.fold == fold
            sets[inside] = rule(proba[~inside], data.labels[~inside], proba[inside])
        seconds = time.process_time() - start
        scores = [fbeta_score(data.labels, sets, average=a) for a in ("samples", "macro", "micro")]
        rows.append([name, *(f"{score:.4f}" for score in scores), f"{seconds:.1f}"])
    return table(["rule", "F2 samples", "F2 macro", "F2 micro", "CPU s"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    print(decisions(read(parser.parse_args().path)))
