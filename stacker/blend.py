"""Blends of several models: the baselines to beat, and the base that the stack starts from.

Each is an estimator with ``fit(stack, Y)`` and ``predict_proba(stack)``, usable by itself.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from features.blending import dense_probs
from features.numeric import logit, logit_mean, sigmoid
from features.schema import Stack, as_stack
from stacker._align import read_labels
from stacker._held import fit_held, held_pairs
from stacker._logistic import fit_per_class, fit_pooled
from stacker._proba import join_rows
from stacker.decision import FBetaDecision
from stacker.fbeta import fbeta_per_image

__all__ = [
    "BLENDS",
    "EnsembleSelection",
    "LogisticBlend",
    "LogitMeanBlend",
    "MeanBlend",
    "cross_fit",
]

IMAGES_AT_ONCE = 2048
CLASSES_AT_ONCE = 64
# Beyond so many images a class's negatives are drawn; its positives all count.
MOST_IMAGES = 20_000
# Selection compares log losses that differ in the third digit: this many pairs resolve them.
MOST_PAIRS = 500_000


class MeanBlend(BaseEstimator):
    """Mean of the models' probabilities.

    Examples
    --------
    >>> stack = Stack({"a": [[0.2, 0.4]], "b": [[0.4, 0.8]]})
    >>> MeanBlend().fit(stack).predict_proba(stack).round(2).tolist()
    [[0.30000001192092896, 0.6000000238418579]]
    """

    def fit(self, X: Any, Y: Any = None, groups: ArrayLike | None = None) -> "MeanBlend":
        """Remember the models; nothing else is learned."""
        self.models_ = list(as_stack(X).models)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Blended probabilities, float32 of shape (n_images, n_classes); CSR of a top-k stack."""
        return _blended(_same_models(self, X), lambda probs, classes: probs.mean(axis=0))


class LogitMeanBlend(BaseEstimator):
    """Logistic of the mean logit of the models (recipe B6).

    Examples
    --------
    >>> stack = Stack({"a": [[0.2, 0.5]], "b": [[0.8, 0.5]]})
    >>> LogitMeanBlend().fit(stack).predict_proba(stack).round(2).tolist()
    [[0.5, 0.5]]
    """

    def fit(self, X: Any, Y: Any = None, groups: ArrayLike | None = None) -> "LogitMeanBlend":
        """Remember the models; nothing else is learned."""
        self.models_ = list(as_stack(X).models)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Blended probabilities, float32 of shape (n_images, n_classes); CSR of a top-k stack."""
        return _blended(_same_models(self, X), lambda probs, classes: logit_mean(probs))


class EnsembleSelection(BaseEstimator):
    """Weights by greedy forward selection with replacement (Caruana et al., 2004; recipe D3).

    In each round the model that improves the score of the weighted logit mean the most gets one
    more vote.

    Parameters
    ----------
    n_rounds : int
        Votes given out.
    random_state : int or None
        Seed of the images that are scored, where there are more than 500,000 pairs.
    scoring : {"log_loss", "fbeta"}
        "fbeta": F-beta over samples at the one threshold that is best for it. It is coarser, so
        that early votes decide more by chance; about 100 times slower.
    beta : float
        Of "fbeta".

    Attributes
    ----------
    weights_ : dict of model to float, summing to 1

    Examples
    --------
    >>> good, poor = [[0.9, 0.2], [0.1, 0.8]], [[0.5, 0.5], [0.5, 0.5]]
    >>> Y = [[1, 0], [0, 1]]
    >>> EnsembleSelection().fit({"good": good, "poor": poor}, Y).weights_
    {'good': 1.0, 'poor': 0.0}
    """

    def __init__(
        self,
        n_rounds: int = 20,
        random_state: int | None = 0,
        scoring: str = "log_loss",
        beta: float = 2.0,
    ) -> None:
        self.n_rounds = n_rounds
        self.random_state = random_state
        self.scoring = scoring
        self.beta = beta

    def fit(
        self,
        X: Any,
        Y: Any,
        groups: ArrayLike | None = None,
        validation_set: ArrayLike | None = None,
    ) -> "EnsembleSelection":
        """Choose the weights.

        Parameters
        ----------
        X : Stack of n_images, or what `as_stack` takes
            Out-of-fold probabilities.
        Y : labels of shape (n_images, n_classes)
        groups : ignored
        validation_set : array-like of shape (n_images,), optional
            Name of the validation set of each image (source, target): the mean of the sets'
            scores counts, so that a small set counts as much as a large one.

        Raises
        ------
        ValueError
            For another scoring, and for no rounds.
        """
        if not self.n_rounds >= 1:
            raise ValueError(f"n_rounds must be at least 1. Got {self.n_rounds!r} instead.")
        if self.scoring not in ("log_loss", "fbeta"):
            raise ValueError(
                f"The 'scoring' parameter must be 'log_loss' or 'fbeta'. Got {self.scoring!r}."
            )
        stack = as_stack(X)
        logits, labels, weight = self._sample(stack, _labels(X, stack, Y), validation_set)
        votes = np.zeros(len(stack.models))
        total = np.zeros(labels.shape, dtype=np.float32)
        for n in range(self.n_rounds):
            losses = [self._loss((total + own) / (n + 1), labels, weight) for own in logits]
            best = int(np.argmin(losses))
            votes[best] += 1
            total += logits[best]
        self.models_ = list(stack.models)
        self.weights_ = dict(zip(self.models_, (votes / votes.sum()).tolist(), strict=True))
        return self

    def _sample(
        self, stack: Stack, labels: csr_array, validation_set: ArrayLike | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
        """Logits (n_models, n_images, n_classes), labels and image weights of some images."""
        n_images = max(1, min(len(stack), MOST_PAIRS // len(stack.classes)))
        rng = np.random.default_rng(self.random_state)
        picked = np.sort(rng.choice(len(stack), n_images, replace=False))
        sets = np.zeros(len(stack)) if validation_set is None else np.asarray(validation_set)
        _, code, size = np.unique(sets[picked], return_inverse=True, return_counts=True)
        weight = 1.0 / size[code]
        labels01 = labels[picked].toarray().astype(np.float32)
        return logit(dense_probs(stack[picked])), labels01, weight / weight.sum()

    def _loss(
        self,
        logits: NDArray[np.float32],
        labels: NDArray[np.float32],
        weight: NDArray[np.float64],
    ) -> float:
        """Weighted mean over images of what is to be made small."""
        if self.scoring == "log_loss":
            pairs = np.broadcast_to(weight[:, None], labels.shape)
            return weighted_log_loss(logits, labels, pairs)
        truth, proba = csr_array(labels.astype(np.int8)), sigmoid(logits)
        sets = FBetaDecision(beta=self.beta, strategy="global").fit(proba, truth).predict(proba)
        return -float(np.average(fbeta_per_image(truth, sets, self.beta), weights=weight))

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Blended probabilities, float32 of shape (n_images, n_classes); CSR of a top-k stack."""
        stack = _same_models(self, X)
        weights = list(self.weights_.values())
        return _blended(stack, lambda probs, classes: logit_mean(probs, weights))


class LogisticBlend(BaseEstimator):
    """Logistic regression on the models' logits, per class, shrunk to one pooled over classes.

    The pooled weights are fitted first; each class then gets its own, with a Gaussian prior
    around the pooled ones, so that a class with few positives stays near them.

    Parameters
    ----------
    shrinkage : float
        Precision of that prior, above 0: larger keeps classes nearer to the pooled weights.

    Attributes
    ----------
    pooled_ : float64 array of shape (n_models + 1,)
        Weight of each model's logit, then the intercept.
    coef_ : float64 array of shape (n_classes, n_models + 1)
        The same per class.

    Notes
    -----
    Newton's method, O(n_images * n_classes * n_models**2) a step; memory is bounded by a block
    of classes. Beyond 20,000 images every class takes all of its positives and the negatives
    among 20,000 evenly spaced images, weighted for those left out: a class with few positives
    learns little from more negatives.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> LogisticBlend().fit(X, Y).coef_.shape  # a weight for each model, and the intercept
    (4, 3)
    """

    def __init__(self, shrinkage: float = 10.0) -> None:
        self.shrinkage = shrinkage

    def fit(self, X: Any, Y: Any, groups: ArrayLike | None = None) -> "LogisticBlend":
        """Fit the pooled and the per-class weights on out-of-fold probabilities.

        Parameters
        ----------
        X : Stack of n_images, or what `as_stack` takes
        Y : labels of shape (n_images, n_classes)
        groups : ignored
        """
        if not self.shrinkage > 0:
            raise ValueError(f"shrinkage must be above 0. Got {self.shrinkage!r} instead.")
        stack = as_stack(X)
        labels = _labels(X, stack, Y).tocsc()
        self.models_ = list(stack.models)
        self._class_names = stack.classes  # a model folder has its own
        step = max(1, MOST_PAIRS * 4 // len(stack.classes))
        picked = np.unique(np.linspace(0, len(stack) - 1, min(step, len(stack))).astype(np.int64))
        some = logit(dense_probs(stack[picked]))
        self.pooled_ = fit_pooled(some, labels[picked].toarray().astype(np.float32))
        if stack.is_sparse:
            held = held_pairs(stack)
            self.coef_ = fit_held(held, labels.tocsr(), self.pooled_, float(self.shrinkage))
            return self
        blocks = range(0, len(stack.classes), CLASSES_AT_ONCE)
        self.coef_ = np.concatenate([self._fit_block(stack, labels, start) for start in blocks])
        return self

    def _fit_block(self, stack: Stack, labels: Any, start: int) -> NDArray[np.float64]:
        block = slice(start, min(start + CLASSES_AT_ONCE, len(stack.classes)))
        own = labels[:, block].toarray().T.astype(np.float32)
        rows, weight = _observed(own)
        # Classes first and models last: each class's Newton steps read contiguous memory.
        probs = (np.asarray(p[rows, block], np.float32) for p in stack.probabilities.values())
        logits = np.stack([logit(values).T for values in probs], axis=-1)
        return fit_per_class(logits, own[:, rows], weight, self.pooled_, float(self.shrinkage))

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Blended probabilities, float32 of shape (n_images, n_classes); CSR of a top-k stack."""
        stack = _same_models(self, X)
        coef = self.coef_[self._rows_of(stack)].astype(np.float32)

        def blend(probs: NDArray[np.float32], classes: Any) -> NDArray[np.float32]:
            total = np.broadcast_to(coef[classes, -1], probs.shape[1:]).copy()
            for m, values in enumerate(probs):
                total += coef[classes, m] * logit(values)
            return sigmoid(total)

        return _blended(stack, blend)

    def _rows_of(self, stack: Stack) -> Any:
        """Rows of `coef_` that belong to the classes of a stack, by name where fit had them."""
        names = getattr(self, "_class_names", stack.classes)
        if np.array_equal(names, stack.classes) or set(names) != set(stack.classes):
            return slice(None)  # arrays may stand in for named classes
        return pd.Index(names).get_indexer(pd.Index(stack.classes))


BLENDS: dict[str, Any] = {
    "mean": MeanBlend,
    "logit_mean": LogitMeanBlend,
    "selection": EnsembleSelection,
    "logistic": LogisticBlend,
}


def cross_fit(
    blend: Any, stack: Stack, labels: csr_array, fold: NDArray[np.integer[Any]]
) -> NDArray[np.float32]:
    """Predict each fold by a clone of the blend fitted on the other folds.

    Returns
    -------
    float32 array of shape (n_images, n_classes); CSR array of a top-k stack

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> held_out = cross_fit(LogisticBlend(), Stack(X), csr_array(Y), np.arange(60) % 3)
    >>> held_out.shape
    (60, 4)
    """
    if isinstance(blend, MeanBlend | LogitMeanBlend):  # they read no labels
        return clone(blend).fit(stack, labels).predict_proba(stack)
    # Blends read probabilities alone: vectors are not copied with them.
    bare = stack.only_probabilities()
    parts, rows = [], []
    for k in np.unique(fold):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        parts.append(clone(blend).fit(bare[train], labels[train]).predict_proba(bare[test]))
        rows.append(test)
    return join_rows(parts, rows)


def weighted_log_loss(
    logits: NDArray[np.float32], labels: NDArray[np.float32], weight: NDArray[Any] | None = None
) -> float:
    """Mean log loss (nats) of logits, in float64; 0 where nothing has any weight.

    Examples
    --------
    >>> round(weighted_log_loss(np.zeros(2, np.float32), np.array([0, 1], np.float32)), 4)
    0.6931
    """
    if not logits.size or (weight is not None and not weight.any()):
        return 0.0  # a fold that says nothing about rounds and shrinkage
    return float(np.average(log_losses(logits, labels), weights=weight))


def log_losses(logits: NDArray[np.float32], labels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log loss (nats) of each pair."""
    # log(1 + e^x) - y x, without overflow for large |x|.
    return np.maximum(logits, 0) - labels * logits + np.log1p(np.exp(-np.abs(logits)))


def _labels(X: Any, stack: Stack, Y: Any) -> csr_array:
    if Y is None:
        raise ValueError("Y is missing: give the labels, (n_images, n_classes).")
    return read_labels(X, Y, stack)[0]


def _observed(labels: NDArray[np.float32]) -> tuple[Any, NDArray[np.float32]]:
    """Say which images a block of classes is fitted on, and how many each pair speaks for.

    Parameters
    ----------
    labels : float32 array of shape (n_classes, n_images), 0/1

    Returns
    -------
    positions of n_chosen images, float32 array of shape (n_classes, n_chosen)
    """
    n_images = labels.shape[1]
    if n_images <= MOST_IMAGES:
        return slice(None), np.ones_like(labels)
    drawn = np.linspace(0, n_images - 1, MOST_IMAGES).astype(np.int64)
    rows = np.union1d(drawn, np.flatnonzero(labels.any(axis=0)))
    negatives = n_images - labels.sum(axis=1)
    seen = MOST_IMAGES - labels[:, drawn].sum(axis=1)
    each = negatives / np.maximum(seen, 1)
    weight = np.where(labels[:, rows] > 0, 1.0, each[:, None] * np.isin(rows, drawn))
    return rows, weight.astype(np.float32)


def _same_models(blend: Any, X: Any) -> Stack:
    """Check that the blend is fitted and that the stack has its models."""
    check_is_fitted(blend, "models_")
    stack = as_stack(X)
    if list(stack.models) != blend.models_:
        raise ValueError(
            f"{type(blend).__name__} was fitted on the models {blend.models_}. "
            f"Got {list(stack.models)} instead."
        )
    return stack


def _blended(stack: Stack, blend: Callable[[NDArray[np.float32], Any], NDArray[np.float32]]) -> Any:
    """Apply a function of probabilities (n_models, ...) and their classes to all pairs.

    Of a top-k stack to those that some model holds; the others stay 0 and are not stored.
    """
    if stack.is_sparse:
        held = held_pairs(stack)
        return held.matrix(np.asarray(blend(held.probs, held.classes), dtype=np.float32))
    out = np.empty((len(stack), len(stack.classes)), dtype=np.float32)
    for start in range(0, len(stack), IMAGES_AT_ONCE):
        some = dense_probs(stack[start : start + IMAGES_AT_ONCE])
        out[start : start + IMAGES_AT_ONCE] = blend(some, slice(None))
    return out
