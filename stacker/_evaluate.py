"""Score a fitted stack, its base beside it, on labelled images that it never saw."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from features.schema import Stack
from features.store import FeatureStore
from stacker._align import align_stack, is_unnamed, read_known, read_stack
from stacker._compare import decide_methods, fit_blends
from stacker._frame_order import in_image_order, index_of
from stacker.evaluation import (
    AVERAGES,
    Predictions,
    ScoreTable,
    evaluate_sets,
    frequency_bins,
    score_by_bin,
    score_methods,
)
from stacker.leakage import were_fitted_on
from stacker.report import HeldOut

__all__ = ["Evaluation", "evaluate", "evaluate_model", "held_out_of", "training_labels"]


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """How good a fitted stack is on images that it never saw, baselines beside it.

    Attributes
    ----------
    table : ScoreTable
        F-beta (samples, macro, micro) and mAP by method, with the intervals of the stack's gain.
    scores : DataFrame of shape (n_methods, n_metrics)
        The same and log loss and calibration error; label sets by the rule of the model's own
        average.
    by_group, by_frequency : DataFrames
        The same within each class group, and within bins of the classes' numbers of positives;
        indexed by (method, bin).
    """

    table: ScoreTable
    scores: pd.DataFrame
    by_group: pd.DataFrame
    by_frequency: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers and names, ready for JSON."""
        bins = {"by_group": self.by_group, "by_frequency": self.by_frequency}
        return {
            **self.table.to_dict(),
            "all_scores": self.scores.to_dict(orient="index"),
            **{
                name: {m: frame.loc[m].to_dict(orient="index") for m in self.scores.index}
                for name, frame in bins.items()
            },
        }


def evaluate(
    model: Any,
    X: Any,
    Y: Any = None,
    groups: ArrayLike | None = None,
    *,
    trained_on: Any = None,
    n: int = 1000,
    random_state: int | None = 0,
) -> Evaluation:
    """Score a fitted stack on labelled images that it never saw.

    Parameters
    ----------
    model : fitted PairStacker
    X, Y
        As for `PairStacker.score`; a store's images without labels are left out.
    groups : array-like of shape (n_images,), optional
        Split groups for the bootstrap; a store brings its own.
    trained_on : FeatureStore or (X, Y), optional
        What the model was fitted on: puts every blend and the best single model, fitted on it,
        beside the stack, and counts frequencies there. Without it the base alone is beside it.
    n : int, default 1000
        Bootstrap resamples.
    random_state : int or None, default 0

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        For other classes, or when `trained_on` holds other images than the model was fitted on.

    Examples
    --------
    >>> from stacker import PairStacker
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> model = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1).fit(X, Y)
    >>> found = evaluate(model, X, Y, n=20)  # give images that it was not fitted on
    >>> list(found.table.scores.index)
    ['base', 'stack']
    """
    stack, labels, known = labelled_images(model, X, Y)
    if groups is None and isinstance(X, FeatureStore):
        groups = X.split_group
    # A store's images without labels are in groups, too; of frames and arrays all have labels.
    named = X if isinstance(X, Stack | FeatureStore) else stack
    ids = index_of(Y) if is_unnamed(X) else named.image_ids
    groups = in_image_order(groups, ids, "groups")
    own = None if groups is None else np.asarray(groups)[known]
    methods, counts = _base_and_stack(model, stack), np.asarray(labels.sum(axis=0)).ravel()
    if trained_on is not None:
        both = trained_on if isinstance(trained_on, tuple) else (trained_on, None)
        train, train_labels, _ = labelled_images(model, *both)
        methods |= _baselines(model, train, train_labels, stack)
        counts = np.asarray(train_labels.sum(axis=0)).ravel()
    beta = float(model.beta)
    table = score_methods(labels, methods, own, beta=beta, n=n, random_state=random_state)
    group_names, group_codes = np.unique(model.class_group_, return_inverse=True)
    by = {
        "by_group": (group_codes, group_names.tolist()),
        "by_frequency": frequency_bins(counts),
    }
    sets = {name: method.sets[model.average] for name, method in methods.items()}
    scores = {
        name: evaluate_sets(labels, sets[name], method.proba, beta=beta)
        for name, method in methods.items()
    }
    frames = {
        key: pd.concat(
            {
                name: score_by_bin(labels, sets[name], method.proba, codes, names, beta=beta)
                for name, method in methods.items()
            },
            names=["method"],
        )
        for key, (codes, names) in by.items()
    }
    return Evaluation(table, pd.DataFrame.from_dict(scores, orient="index"), **frames)


def labelled_images(model: Any, X: Any, Y: Any) -> tuple[Stack, csr_array, NDArray[np.intp]]:
    """Labelled images in the model's order of models and classes, and their positions in X."""
    if isinstance(X, FeatureStore):
        X = X.without_skipped()
    return read_known(X, Y, model.seen_)


def _base_and_stack(model: Any, stack: Stack) -> dict[str, Predictions]:
    base = model.base_.predict(stack)[0]
    if were_fitted_on(model, base):
        logger.warning(
            "these look like the images that the model was fitted on: the scores are too high. "
            "Score it on others, or see oof_score_ and `stacker compare`."
        )
    return {
        "base": _as_decided(f"Base: {model.base_name_}", base, model.base_decision_, is_blend=True),
        "stack": _as_decided("Pair stack", model.predict_proba(stack), model.decision_),
    }


def _baselines(model: Any, train: Stack, labels: csr_array, test: Stack) -> dict[str, Predictions]:
    """Every blend and the best single model, fitted on the training images."""
    known = model.folds_ >= 0
    if len(train) != int(known.sum()):
        raise ValueError(
            f"trained_on holds {len(train):,} labelled images; the model was fitted on "
            f"{int(known.sum()):,}. Give what `fit` was given."
        )
    fold = model.folds_[known]
    blends = fit_blends(train, labels, test, fold=fold, random_state=model.random_state or 0)
    decided = decide_methods(
        {**blends, "stack": next(iter(blends.values()))},
        labels,
        class_group=model.class_group_,
        averages=AVERAGES,
        beta=float(model.beta),
        random_state=model.random_state or 0,
    )
    return {name: method for name, method in decided.items() if name != "stack"}


def evaluate_model(model: Any, store: Any, *, n: int = 1000) -> ScoreTable:
    """Score the stack and its base on every labelled image of a store.

    Parameters
    ----------
    model : fitted PairStacker
    store : FeatureStore
        Labelled images; its classes are matched by name.
    n : int, default 1000
        Bootstrap resamples.

    Returns
    -------
    ScoreTable
        Rows "base" and "stack". Both use the rule fitted with the model, for all averages.

    Raises
    ------
    ValueError
        If the model's classes are not all in the store.
    """
    return held_out_of(model, store, n=n).table


def held_out_of(model: Any, store: Any, *, n: int = 1000) -> HeldOut:
    """Give predictions and scores of stack and base on a store's labelled images."""
    stack = store.to_stack()
    labels = labels_for(model, store)
    methods = _base_and_stack(model, align_stack(read_stack(stack), model.seen_))
    table = score_methods(labels, methods, store.split_group, beta=float(model.beta), n=n)
    return HeldOut(store.image_ids, labels, methods, table, stack, store.split_group)


def training_labels(model: Any, store: Any) -> csr_array:
    """Give the labels of the images that a model was fitted on, in the rows of `oof_proba_`.

    Raises
    ------
    ValueError
        If the store has another number of labelled images than the model was fitted on.
    """
    if store.n_images != len(model.folds_):
        raise ValueError(
            f"the model was fitted on {len(model.folds_):,} images, but {store.path} has "
            f"{store.n_images:,} labelled ones. Give the store that `stacker fit` read."
        )
    return labels_for(model, store)


def _as_decided(title: str, proba: Any, decision: Any, *, is_blend: bool = False) -> Predictions:
    sets = decision.predict(proba)
    return Predictions(
        title,
        proba,
        dict.fromkeys(AVERAGES, sets),
        dict.fromkeys(AVERAGES, decision.strategy_),
        is_blend,
    )


def labels_for(model: Any, store: Any) -> csr_array:
    """Give a store's labels with the model's classes as columns.

    Raises
    ------
    ValueError
        If the model's classes are not all in the store.
    """
    position = {name: column for column, name in enumerate(store.classes)}
    missing = [str(name) for name in model.classes_ if name not in position]
    if missing:
        raise ValueError(
            f"{len(missing):,} of the model's classes are not in {store.path}, first: "
            f"{missing[:3]}. Use a store made with the same label vocabulary."
        )
    columns: NDArray[np.intp] = np.array([position[name] for name in model.classes_])
    return csr_array(store.labels.tocsc()[:, columns])
