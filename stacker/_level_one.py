"""Level one: any scikit-learn classifier's probabilities, out-of-fold, in one shape.

scikit-learn's multi-label classifiers answer `predict_proba` in three shapes: a list with one
(n_images, 2) array for each class, one (n_images, n_classes) array, or a sparse matrix. A class
that a fold does not hold has one column, or none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit
from sklearn.base import clone
from sklearn.utils import _safe_indexing

from features.folds import check_folds, make_folds

__all__ = ["STACK_METHODS", "choose_method", "folds_of", "out_of_fold", "read_probabilities"]

STACK_METHODS = ("predict_proba", "decision_function", "predict")

Float = NDArray[np.float32]


def folds_of(
    cv: Any, X: Any, Y: Any, labels: NDArray[Any], groups: Any, random_state: int
) -> NDArray[np.int16]:
    """Fold of every image, -1 where it is never held out.

    Parameters
    ----------
    cv : int, splitter or iterable of (train, test)
    X, Y : as given to `fit`
    labels : 0/1 array of shape (n_images, n_classes)
    groups : array of shape (n_images,) or None
    random_state : int

    Raises
    ------
    ValueError
        For an image that is held out twice, for fewer than two folds, and for a group in two.
    """
    if not hasattr(cv, "split") and not isinstance(cv, Iterable):
        return make_folds(sparse.csr_array(labels), cv, groups, random_state=random_state)
    splits = cv.split(X, Y, groups) if hasattr(cv, "split") else cv
    fold = np.full(len(labels), -1, dtype=np.int16)
    for k, (train, test) in enumerate(splits):
        held = np.arange(len(labels))[test]
        if (fold[held] >= 0).any() or np.intersect1d(np.arange(len(labels))[train], held).size:
            raise ValueError(
                f"cv must hold each image out at most once and never train on it; fold {k} does "
                "not. Give a splitter that partitions the images, without repeats."
            )
        fold[held] = k
    if len(np.unique(fold[fold >= 0])) < 2:
        raise ValueError("cv must make at least two folds of held-out images.")
    if groups is not None:
        check_folds(fold[fold >= 0], np.asarray(groups)[fold >= 0])
    return fold


def out_of_fold(
    estimator: Any, X: Any, Y: NDArray[Any], fold: NDArray[np.int16], method: str, n_classes: int
) -> Float:
    """Probabilities of every held-out image by a clone fitted without its fold; NaN elsewhere.

    Parameters
    ----------
    estimator : scikit-learn classifier
    X : array, DataFrame, sparse matrix or list, n_images rows
    Y : int array of shape (n_images, n_classes) of 0 and 1, or (n_images,) of class positions
    fold : int array of shape (n_images,)
    method : one of `STACK_METHODS`
    n_classes : int

    Returns
    -------
    float32 array of shape (n_images, n_classes)
    """
    found = np.full((len(fold), n_classes), np.nan, dtype=np.float32)
    for k in np.unique(fold[fold >= 0]):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        fitted = clone(estimator).fit(_safe_indexing(X, train), Y[train])
        found[test] = read_probabilities(fitted, _safe_indexing(X, test), method, Y.ndim, n_classes)
    return found


def choose_method(estimator: Any, wanted: str, name: str) -> str:
    """Give the first method of `STACK_METHODS` that an estimator has, or the wanted one.

    Raises
    ------
    ValueError
        Naming the estimator that has none of them.
    """
    tried = STACK_METHODS if wanted == "auto" else (wanted,)
    for method in tried:
        if hasattr(estimator, method):
            return method
    raise ValueError(
        f"estimator {name!r} ({type(estimator).__name__}) must have one of {list(tried)}; it has "
        "none of them."
    )


def read_probabilities(fitted: Any, X: Any, method: str, y_ndim: int, n_classes: int) -> Float:
    """Probabilities of a fitted classifier in one shape, scores through a sigmoid.

    Parameters
    ----------
    fitted : scikit-learn classifier
    X : n_images rows
    method : one of `STACK_METHODS`
    y_ndim : {1, 2}
        1: fitted on class positions, one label an image; 2: on a 0/1 matrix.
    n_classes : int

    Returns
    -------
    float32 array of shape (n_images, n_classes)

    Raises
    ------
    ValueError
        For an answer of another shape.
    """
    answer = getattr(fitted, method)(X)
    classes = getattr(fitted, "classes_", None)
    if y_ndim == 2:
        values = _many_labels(answer, classes, method, n_classes)
    else:
        values = _one_label(answer, np.asarray(classes), method, n_classes)
    if values.ndim != 2 or values.shape[1] != n_classes:
        raise ValueError(
            f"{type(fitted).__name__}.{method} must give one column for each of the {n_classes} "
            f"classes, or a list with one array for each; got shape {values.shape}."
        )
    return np.clip(values, 0, 1).astype(np.float32)


def _many_labels(answer: Any, classes: Any, method: str, n_classes: int) -> NDArray[Any]:
    if isinstance(answer, list):
        each = classes if isinstance(classes, list) else [None] * len(answer)
        columns = [_of_one(np.asarray(a), c) for a, c in zip(answer, each, strict=True)]
        values = np.column_stack(columns)
    else:
        values = answer.toarray() if sparse.issparse(answer) else np.asarray(answer)
    if method == "decision_function":
        return expit(values.reshape(len(values), -1))
    if n_classes == 1 and values.shape[1:] == (2,):
        return values[:, 1:]
    return values.reshape(len(values), -1)


def _of_one(values: NDArray[Any], classes: Any) -> NDArray[Any]:
    """Chance of the label 1 out of one class's answer, (n_images,)."""
    if classes is None:
        return values[:, 1] if values.ndim == 2 and values.shape[1] > 1 else values.ravel()
    place = np.flatnonzero(np.asarray(classes) == 1)
    # A class without a positive in training: only the label 0 has a column.
    return values[:, place[0]] if len(place) else np.zeros(len(values))


def _one_label(
    answer: Any, classes: NDArray[Any], method: str, n_classes: int
) -> NDArray[np.float64]:
    values = np.asarray(answer)
    out = np.zeros((len(values), n_classes))
    if method == "predict":
        out[np.arange(len(values)), values.astype(np.int64)] = 1
        return out
    if method == "decision_function":
        values = expit(values)
        if values.ndim == 1:
            values = np.column_stack([1 - values, values])
    # Classes that the training folds lack have no column.
    out[:, classes.astype(np.int64)] = values
    return out
