"""Every blend and the stack side by side, each decided on training data alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse import csr_array
from sklearn.base import clone

from features.folds import check_folds, make_folds
from features.schema import Stack
from stacker.blend import (
    EnsembleSelection,
    LogisticBlend,
    LogitMeanBlend,
    MeanBlend,
    cross_fit,
)
from stacker.decision import FBetaDecision
from stacker.evaluation import AVERAGES, Predictions, ScoreTable, score_methods

__all__ = [
    "METHODS",
    "N_STEPS",
    "OutOfFold",
    "as_json",
    "compare",
    "decide_methods",
    "fit_blends",
    "nested_predictions",
]

BLENDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "mean": ("Mean", MeanBlend),
    "logit_mean": ("Logit mean", LogitMeanBlend),
    "selection": ("Ensemble selection", EnsembleSelection),
    "logistic": ("Per-class logistic stacking", LogisticBlend),
}
# Steps told for each outer fold: every blend, the stack, the decisions.
N_STEPS = len(BLENDS) + 2
METHODS = {
    "best_single": "Best single model",
    **{name: title for name, (title, _) in BLENDS.items()},
    "stack": "Pair stack",
}

Probs: TypeAlias = Any  # array or CSR of shape (n_images, n_classes)
Step = Callable[[str], None]


class OutOfFold:
    """Probabilities of one method: out-of-fold on training images, and on new images.

    Parameters
    ----------
    train, test : arrays or CSR of shape (n_train, n_classes), (n_test, n_classes)
    decision : fitted FBetaDecision, optional
        The method's own rule, used for the average that it was fitted to.
    """

    def __init__(self, train: Probs, test: Probs, decision: Any = None) -> None:
        self.train = train
        self.test = test
        self.decision = decision


def compare(
    stack: Stack,
    Y: csr_array,
    fold: ArrayLike,
    model: Any,
    *,
    groups: ArrayLike | None = None,
    average: str | Sequence[str] = "samples",
    n: int = 1000,
    random_state: int | None = 0,
    step: Step | None = None,
) -> ScoreTable:
    """Score every blend and the stack, nested over the folds given.

    What an image is scored with never saw the image or its split group: blends, stack,
    thresholds and the choice of the decision rule are fitted on the other folds.

    Parameters
    ----------
    stack : Stack of n_images
        Out-of-fold predictions of the level-one models.
    Y : csr_array of shape (n_images, n_classes)
    fold : int array of shape (n_images,)
        Outer folds; at least two, none negative.
    model : PairStacker, not fitted
        Cloned for every fold; its beta is the beta of all methods.
    groups : array of shape (n_images,), optional
        Split groups.
    average : {"samples", "macro", "micro"} or several
        Each with decision rules of its own; probabilities are fitted once.
    n : int, default 1000
        Bootstrap resamples.
    step : callable, optional
        Told what is being done, for a progress bar.

    Returns
    -------
    ScoreTable
    """
    beta = float(model.beta)
    methods = nested_predictions(
        stack, Y, fold, model, groups=groups, average=average, random_state=random_state, step=step
    )
    return score_methods(
        Y,
        methods,
        groups,
        beta=beta,
        averages=_several(average),
        with_map=False,
        n=n,
        random_state=random_state,
    )


def as_json(table: ScoreTable, average: str) -> dict[str, Any]:
    """Give the contract's JSON: scores, the best blend, the stack's gain and its interval."""
    metric = str(table.scores.columns[0])
    gain = table.gain(metric)
    return {
        "average": average,
        "scores": {str(name): float(score) for name, score in table.scores[metric].items()},
        "best_blend": table.best_blend[metric],
        "gain": gain.difference,
        "interval": [gain.low, gain.high],
        "n_images": table.n_images,
    }


def nested_predictions(
    stack: Stack,
    Y: csr_array,
    fold: ArrayLike,
    model: Any,
    *,
    groups: ArrayLike | None = None,
    average: str | Sequence[str] = "samples",
    random_state: int | None = 0,
    step: Step | None = None,
) -> dict[str, Predictions]:
    """Nested predictions of every method for every image, in the images' order."""
    folds, codes = np.asarray(fold), None if groups is None else np.asarray(groups)
    if codes is not None:
        check_folds(folds, codes)
    parts: list[dict[str, Predictions]] = []
    rows: list[NDArray[np.intp]] = []
    for k in np.unique(folds):
        train, test = np.flatnonzero(folds != k), np.flatnonzero(folds == k)
        inner = None if codes is None else codes[train]
        tell = _prefixed(step, f"fold {k}: ")
        blends = fit_blends(
            stack[train],
            Y[train],
            stack[test],
            groups=inner,
            fold=folds[train],
            random_state=random_state,
            step=tell,
        )
        tell("pair stack")
        fitted = clone(model).fit(stack[train], Y[train], groups=inner)
        proba = fitted.predict_proba(stack[test])
        blends["stack"] = OutOfFold(fitted.oof_proba_, proba, fitted.decision_)
        tell("decisions")
        parts.append(
            decide_methods(
                blends,
                Y[train],
                groups=inner,
                class_group=stack.class_group,
                averages=_several(average),
                beta=float(model.beta),
                random_state=random_state,
            )
        )
        rows.append(test)
    return _joined(parts, np.argsort(np.concatenate(rows)))


def fit_blends(
    train: Stack,
    Y: csr_array,
    test: Stack,
    *,
    groups: ArrayLike | None = None,
    fold: ArrayLike | None = None,
    random_state: int | None = 0,
    step: Step | None = None,
) -> dict[str, OutOfFold]:
    """Fit every single model's and blend's probabilities, out-of-fold and on the test images.

    Single models are named ``single:<model>``; `decide_methods` picks the best of them.
    """
    folds = _inner_folds(Y, groups, fold, random_state)
    out = {
        f"single:{model}": OutOfFold(values, test.probabilities[model])
        for model, values in train.probabilities.items()
    }
    for name, (title, make) in BLENDS.items():
        (step or _say_nothing)(title.lower())
        out[name] = OutOfFold(
            cross_fit(make(), train, Y, folds),
            make().fit(train, Y, groups=groups).predict_proba(test),
        )
    return out


def decide_methods(
    methods: Mapping[str, OutOfFold],
    Y: csr_array,
    *,
    groups: ArrayLike | None = None,
    class_group: ArrayLike | None = None,
    averages: Sequence[str] = AVERAGES,
    beta: float = 2.0,
    random_state: int | None = 0,
) -> dict[str, Predictions]:
    """Turn probabilities into label sets: for each average the rule fitted to that average.

    Rules are chosen and fitted on the training images' out-of-fold probabilities; the best
    single model is the one with the best training score, too.
    """
    single = _best_single(methods, Y, averages[0], beta)
    out = {}
    for name, title in METHODS.items():
        method = methods[single if name == "best_single" else name]
        rules = {
            average: _rule(method, Y, groups, class_group, average, beta, random_state)
            for average in averages
        }
        model = single.removeprefix("single:")
        out[name] = Predictions(
            title=f"{title} ({model})" if name == "best_single" else title,
            proba=method.test,
            sets={average: rule.predict(method.test) for average, rule in rules.items()},
            strategy={average: rule.strategy_ for average, rule in rules.items()},
            is_blend=name in BLENDS,
        )
    return out


def _rule(
    method: OutOfFold,
    Y: csr_array,
    groups: ArrayLike | None,
    class_group: ArrayLike | None,
    average: str,
    beta: float,
    random_state: int | None,
) -> Any:
    if method.decision is not None and method.decision.average == average:
        return method.decision
    rule = FBetaDecision(
        beta=beta, average=average, class_groups=class_group, random_state=random_state
    )
    return rule.fit(method.train, Y, groups=groups)


def _best_single(methods: Mapping[str, OutOfFold], Y: csr_array, average: str, beta: float) -> str:
    """Name of the single model with the best training score under one threshold."""
    scores = {}
    for name, method in methods.items():
        if name.startswith("single:"):
            rule = FBetaDecision(beta=beta, average=average, strategy="global")
            scores[name] = rule.fit(method.train, Y).score(method.train, Y)
    return max(scores, key=lambda name: scores[name])


def _inner_folds(
    Y: csr_array, groups: ArrayLike | None, fold: ArrayLike | None, random_state: int | None
) -> NDArray[Any]:
    """Folds to cross-fit blends on: those given where they are two or more, else new ones."""
    if fold is not None and len(np.unique(np.asarray(fold))) >= 2:
        return np.asarray(fold)
    return make_folds(Y, n_folds=5, split_group=groups, random_state=random_state or 0)


def _stacked(parts: Sequence[Any]) -> Any:
    return sparse.vstack(parts, format="csr") if sparse.issparse(parts[0]) else np.vstack(parts)


def _joined(parts: list[dict[str, Predictions]], order: NDArray[np.intp]) -> dict[str, Predictions]:
    """One set of predictions out of the folds', rows back in the images' order."""
    return {
        name: Predictions(
            title=METHODS[name],
            proba=_stacked([part[name].proba for part in parts])[order],
            sets={
                average: _stacked([part[name].sets[average] for part in parts])[order]
                for average in first.sets
            },
            strategy={
                average: ", ".join(dict.fromkeys(part[name].strategy[average] for part in parts))
                for average in first.strategy
            },
            is_blend=first.is_blend,
        )
        for name, first in parts[0].items()
    }


def _several(average: str | Sequence[str]) -> list[str]:
    return [average] if isinstance(average, str) else list(average)


def _prefixed(step: Step | None, prefix: str) -> Step:
    return _say_nothing if step is None else lambda text: step(prefix + text)


def _say_nothing(text: str) -> None:
    """Tell nobody."""
