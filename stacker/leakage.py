"""Are these predictions out of fold? Signs of a model that has seen the images it predicts.

Both checks look at labels that a model cannot know unless it was trained on them:

unseen classes
    A class whose positives all lie in one fold has none in that fold's training images. An honest
    model ranks its positives among the fold's images at random, whatever the class.
against the others
    Of the positives that the other models find least likely, each is compared with a negative of
    the same class that they find as likely. An honest model prefers the positive often, a model
    that remembers it always.

A warning is no proof: a model that was pretrained on labelled pictures of the same classes shows
the first sign too.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse
from scipy.spatial.distance import cdist

from features.schema import Stack

__all__ = ["Suspicion", "suspect_in_sample", "warn_in_sample", "were_fitted_on"]

logger = logging.getLogger("stacker.estimator")

# Six honest models on 300 images of openclipart reach at most 0.75 against the others.
UNSEEN_LIMIT, UNSEEN_LEAST = 0.9, 10
OTHERS_LIMIT, OTHERS_LEAST = 0.98, 50
HARDEST_SHARE = 0.1
MOST_PAIRS = 1000
# At most so many classes, and so many probabilities of each model, are looked at.
MOST_CLASSES, MOST_CELLS = 200, 20_000_000
# Of so many images so large a share must be their own nearest, to be those of `fit`; by chance
# about one is. Training images reach 0.9 to 1 with a logistic base on 180 images.
IMAGES_COMPARED, MOST_ALIKE = 100, 0.5

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Suspicion:
    """One sign that a model's predictions are in-sample.

    Attributes
    ----------
    model : str
    check : str
        "unseen classes" or "against the others".
    value : float
        Share of pairs of a positive and a negative that the model orders rightly.
    n : int
        Classes, or pairs, that it was measured on.

    Examples
    --------
    >>> print(Suspicion("a", "unseen classes", 0.99, 12))  # doctest: +ELLIPSIS
    model 'a' looks as if it was trained on the images it predicts: it ranks the positives of 12 ...
    """

    model: str
    check: str
    value: float
    n: int

    def __str__(self) -> str:
        """Say it to the user."""
        how = {
            "unseen classes": f"it ranks the positives of {self.n:,} classes that lie in one fold "
            f"alone, so that no honest fold model has seen one",
            "against the others": f"it orders {self.n:,} positives that the other models find "
            f"unlikely, and as unlikely negatives,",
        }[self.check]
        return (
            f"model {self.model!r} looks as if it was trained on the images it predicts: {how} "
            f"rightly in {self.value:.1%} of all cases. Give out-of-fold predictions: each "
            "image's from a model that was trained without it."
        )


def warn_in_sample(stack: Stack, labels: csr_array, fold: NDArray[Any]) -> None:
    """Log a warning for every sign of in-sample predictions.

    Examples
    --------
    >>> warn_in_sample(Stack({"a": [[0.5]]}), csr_array([[1]]), np.array([0]))  # too few to tell
    """
    for found in suspect_in_sample(stack, labels, fold):
        logger.warning("%s", found)


def suspect_in_sample(stack: Stack, labels: csr_array, fold: NDArray[Any]) -> list[Suspicion]:
    """Look for models that were trained on the images they predict.

    Parameters
    ----------
    stack : Stack of n_images
    labels : csr_array of shape (n_images, n_classes)
    fold : int array of shape (n_images,)

    Returns
    -------
    list of Suspicion
        Empty where nothing is suspect, or where there is too little to tell.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = csr_array((rng.random((400, 20)) < 0.1).astype(np.int8))
    >>> honest = {"a": rng.random((400, 20)), "b": rng.random((400, 20))}
    >>> fold = np.arange(400) % 5
    >>> suspect_in_sample(Stack(honest), labels, fold)
    []
    >>> seen = np.clip(labels.toarray() * 0.8 + 0.1 * rng.random((400, 20)), 0, 1)
    >>> [found.check for found in suspect_in_sample(Stack({**honest, "c": seen}), labels, fold)]
    ['against the others']
    """
    columns = csr_array(labels).tocsc()
    found = _unseen_classes(stack, columns, np.asarray(fold))
    return found + _against_the_others(stack, columns)


def _unseen_classes(stack: Stack, labels: Any, fold: NDArray[Any]) -> list[Suspicion]:
    """Rank positives of classes of one fold among that fold's images."""
    classes = _some(_classes_of_one_fold(labels, fold), len(stack))
    if len(classes) < UNSEEN_LEAST:
        return []
    found = []
    for model, values in _columns(stack, classes).items():
        areas = []
        for k, c in enumerate(classes):
            positives = labels.indices[labels.indptr[c] : labels.indptr[c + 1]]
            negatives = fold == fold[positives[0]]
            negatives[positives] = False
            if negatives.any():
                areas.append(_auc(values[positives, k], values[negatives, k]))
        if len(areas) >= UNSEEN_LEAST and np.mean(areas) > UNSEEN_LIMIT:
            found.append(Suspicion(model, "unseen classes", float(np.mean(areas)), len(areas)))
    return found


def _classes_of_one_fold(labels: Any, fold: NDArray[Any]) -> NDArray[np.intp]:
    """Classes that have positives in one fold alone."""
    folds = np.unique(fold)
    if len(folds) < 2:
        return np.empty(0, dtype=np.intp)
    indicator = csr_array((fold[:, None] == folds).astype(np.int32))
    counts = csr_array(indicator.T @ labels)
    counts.eliminate_zeros()
    return np.flatnonzero(np.bincount(counts.indices, minlength=labels.shape[1]) == 1)


def _some(classes: NDArray[np.intp], n_images: int) -> NDArray[np.intp]:
    """Pick as many classes as can be looked at quickly, the same ones each time."""
    most = int(np.clip(MOST_CELLS // max(n_images, 1), UNSEEN_LEAST, MOST_CLASSES))
    return np.sort(np.random.default_rng(0).permutation(classes)[:most])


def _columns(stack: Stack, classes: NDArray[np.intp]) -> dict[str, Float]:
    """Each model's probabilities of some classes, float32 (n_images, n_picked)."""
    picked = {model: values[:, classes] for model, values in stack.probabilities.items()}
    dense = {m: v.toarray() if isinstance(v, csr_array) else v for m, v in picked.items()}
    return {model: np.asarray(values, dtype=np.float32) for model, values in dense.items()}


def _against_the_others(stack: Stack, labels: Any) -> list[Suspicion]:
    """Compare positives that the other models find unlikely with negatives as unlikely."""
    counts = np.diff(labels.indptr)
    classes = _some(np.flatnonzero(counts), len(stack))
    if len(stack.models) < 2 or not len(classes):
        return []
    columns = _columns(stack, classes)
    total = np.sum(list(columns.values()), axis=0)
    truth = labels[:, classes].toarray() > 0
    found = []
    for model, own in columns.items():
        others = (total - own) / (len(columns) - 1)
        image, k = np.nonzero(truth)
        hard = np.argsort(others[image, k], kind="stable")
        hard = hard[: int(len(hard) * HARDEST_SHARE)][:MOST_PAIRS]
        if len(hard) < OTHERS_LEAST:
            continue
        share = _share_ordered(own, others, truth, image[hard], k[hard])
        if share > OTHERS_LIMIT:
            found.append(Suspicion(model, "against the others", share, len(hard)))
    return found


def _share_ordered(
    own: Float,
    others: Float,
    truth: NDArray[np.bool_],
    image: NDArray[np.intp],
    column: NDArray[np.intp],
) -> float:
    """Share of positives that the model finds likelier than their negatives; ties are half."""
    wins = []
    for k in np.unique(column):
        free = np.flatnonzero(~truth[:, k])
        if not len(free):
            continue
        free = free[np.argsort(others[free, k], kind="stable")]
        mine = image[column == k]
        place = np.searchsorted(others[free, k], others[mine, k]).clip(0, len(free) - 1)
        rival = own[free[place], k]
        wins += ((own[mine, k] > rival) + 0.5 * (own[mine, k] == rival)).tolist()
    return float(np.mean(wins)) if wins else 0.0


def _auc(positive: Float, negative: Float) -> float:
    """Share of pairs in which the positive has the higher value; ties are half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    not_above = np.searchsorted(ordered, positive, side="right")
    return float((below + not_above).mean() / (2 * len(negative)))


def were_fitted_on(model: Any, base: Any) -> bool:
    """Whether images look like those that a stack was fitted on, in the same order.

    Parameters
    ----------
    model : fitted PairStacker
    base : float array of shape (n_images, n_classes), or CSR
        Probabilities of the model's base for the images.

    Returns
    -------
    bool
        True where, among up to 100 images, most have their own out-of-fold probabilities
        nearest to what the base says now. Parts of the training images are not recognised, nor
        are very few images, whose out-of-fold base differs too much.

    Examples
    --------
    >>> from stacker import PairStacker
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> model = PairStacker(cv=3, blocks=("logits",), base="mean", random_state=0).fit(X, Y)
    >>> new = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> [were_fitted_on(model, model.base_.predict(Stack(x))[0]) for x in (X, new)]
    [True, False]
    """
    held_out = model.oof_base_proba_
    if base.shape != held_out.shape:
        return False
    some = np.linspace(0, base.shape[0] - 1, min(base.shape[0], IMAGES_COMPARED)).astype(int)
    now, then = (p[some].toarray() if issparse(p) else p[some] for p in (base, held_out))
    far = cdist(now, then, "cityblock")
    return bool((far.argmin(axis=1) == np.arange(len(some))).mean() > MOST_ALIKE)
