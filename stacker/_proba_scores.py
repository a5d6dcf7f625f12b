"""Scores of probabilities: average precision, log loss, calibration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numba import njit, prange
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from stacker._bootstrap import average_precisions, mean_of_known
from stacker._held import mark_labels
from stacker._inputs import check_scored

__all__ = [
    "calibration_curve",
    "calibration_error",
    "class_average_precisions",
    "log_loss",
    "mean_average_precision",
]


def class_average_precisions(Y: Any, proba: Any) -> NDArray[np.float64]:
    """Average precision of each class; NaN where the class has no positive.

    Parameters
    ----------
    Y : 0/1 array or sparse matrix of shape (n_images, n_classes)
    proba : array or CSR of shape (n_images, n_classes)

    Returns
    -------
    array of shape (n_classes,)

    Examples
    --------
    >>> class_average_precisions([[1, 0], [0, 0]], [[0.9, 0.2], [0.1, 0.3]])
    array([ 1., nan])
    """
    truth, probs = check_scored(Y, proba)
    if issparse(probs):
        return _stored_precisions(truth, probs)
    return average_precisions(truth, probs, np.ones((1, truth.shape[0]), dtype=np.float32))[0]


def mean_average_precision(Y: Any, proba: Any) -> float:
    """Mean over classes of the average precision; classes without positives are left out.

    Equal to the mean of scikit-learn's ``average_precision_score`` over the classes with a
    positive; NaN when no class has one. Memory: one block of columns at a time is dense.

    Examples
    --------
    >>> mean_average_precision([[1, 0], [0, 0]], [[0.9, 0.2], [0.1, 0.3]])
    1.0
    """
    return float(mean_of_known(class_average_precisions(Y, proba)))


def log_loss(Y: Any, proba: Any) -> float:
    """Mean binary cross-entropy over all (image, class) pairs, in nats.

    Probabilities are clipped to [1e-7, 1 - 1e-7]: one sure mistake costs at most 16.1.

    Examples
    --------
    >>> round(log_loss([[1, 0]], [[0.5, 0.5]]), 4)
    0.6931
    """
    truth, probs = check_scored(Y, proba)
    total = 0.0
    if issparse(probs):
        y, p, (absent, missed) = _stored(truth, probs)
        p = np.clip(p.astype(np.float64), 1e-7, 1 - 1e-7)
        total = -float(np.where(y, np.log(p), np.log1p(-p)).sum())
        total -= missed * np.log(1e-7) + (absent - missed) * np.log1p(-1e-7)
        return total / float(truth.shape[0] * truth.shape[1])
    for y, p in _blocks(truth, probs):
        p = np.clip(p.astype(np.float64), 1e-7, 1 - 1e-7)
        total -= float(np.where(y, np.log(p), np.log1p(-p)).sum())
    return total / float(truth.shape[0] * truth.shape[1])


def calibration_curve(Y: Any, proba: Any, *, n_bins: int = 15) -> pd.DataFrame:
    """Predicted against observed share of positives, in bins of equal predicted mass.

    With positives in under 1% of the pairs, bins of equal width or equal count put nearly all
    positives into one bin; equal mass gives every bin about as many expected positives.

    Returns
    -------
    DataFrame
        One row a bin: ``predicted``, ``observed`` (means), ``n_pairs``.

    Examples
    --------
    >>> import numpy as np
    >>> Y = np.array([[0, 1], [1, 0]])
    >>> calibration_curve(Y, [[0.1, 0.9], [0.9, 0.1]], n_bins=2)["observed"].round(2).tolist()
    [0.33, 1.0]
    """
    truth, probs = check_scored(Y, proba)
    absent, missed = 0, 0
    if issparse(probs):
        y, p, (absent, missed) = _stored(truth, probs)
    else:
        y, p = truth.toarray().ravel() != 0, probs.ravel()
    order = np.argsort(p, kind="stable")
    p, y = p[order].astype(np.float64), y[order]
    mass = np.cumsum(p)
    bins = np.minimum((mass - p / 2) / max(mass[-1], 1e-12) * n_bins, n_bins - 1).astype(np.intp)
    n_pairs = np.bincount(bins, minlength=n_bins)
    positives = np.bincount(bins, weights=y, minlength=n_bins)
    # What is not stored has probability 0 and comes first of all.
    n_pairs[0] += absent
    positives[0] += missed
    used = n_pairs > 0
    share = np.maximum(n_pairs, 1)
    return pd.DataFrame(
        {
            "predicted": np.bincount(bins, weights=p, minlength=n_bins) / share,
            "observed": positives / share,
            "n_pairs": n_pairs,
        }
    )[used].reset_index(drop=True)


def calibration_error(Y: Any, proba: Any, *, n_bins: int = 15) -> float:
    """Average abs(predicted - observed) of the pair's bin over all pairs.

    Known as expected calibration error (ECE).

    Bins as in `calibration_curve`. Its scale is the share of positives: with 1% positives an
    error of 0.01 is as large as the probabilities themselves.

    Examples
    --------
    >>> calibration_error([[0, 1]], [[0.0, 1.0]])
    0.0
    """
    curve = calibration_curve(Y, proba, n_bins=n_bins)
    gap = (curve["predicted"] - curve["observed"]).abs()
    return float((gap * curve["n_pairs"]).sum() / curve["n_pairs"].sum())


def _stored(
    truth: csr_array, probs: csr_array
) -> tuple[NDArray[np.bool_], NDArray[Any], tuple[int, int]]:
    """Labels and probabilities of the stored pairs; how many others, how many of them labels."""
    y = mark_labels(probs.indptr.astype(np.int64), probs.indices, truth)
    absent = truth.shape[0] * truth.shape[1] - len(y)
    return y, probs.data, (absent, int(truth.count_nonzero()) - int(y.sum()))


def _stored_precisions(truth: csr_array, probs: csr_array) -> NDArray[np.float64]:
    """Average precision of each class; all pairs that are not stored share the last threshold."""
    y = mark_labels(probs.indptr.astype(np.int64), probs.indices, truth)
    by_class = csr_array((np.arange(len(y)), probs.indices, probs.indptr), probs.shape).tocsc()
    positives = np.asarray(truth.sum(axis=0), dtype=np.int64).ravel()
    starts = by_class.indptr.astype(np.int64)
    out = np.empty(truth.shape[1])
    scores = probs.data[by_class.data].astype(np.float32)
    _precisions(scores, y[by_class.data], starts, positives, truth.shape[0], out)
    return out


@njit(parallel=True, cache=True)
def _precisions(scores, truth, starts, positives, n_images, out):  # type: ignore[no-untyped-def]
    for c in prange(len(out)):
        own, marks = scores[starts[c] : starts[c + 1]], truth[starts[c] : starts[c + 1]]
        order = np.argsort(-own, kind="mergesort")
        hits, counted, area = 0, 0, 0.0
        for i in range(len(order)):
            hits += marks[order[i]]
            # What is stored as 0 is tied with what is not stored.
            ends = i + 1 == len(order) or own[order[i + 1]] != own[order[i]]
            if ends and hits > counted and own[order[i]] > 0:
                area += (hits - counted) * hits / (i + 1)
                counted = hits
        area += (positives[c] - counted) * positives[c] / n_images
        out[c] = area / positives[c] if positives[c] > 0 else np.nan


def _blocks(
    truth: csr_array, probs: NDArray[Any] | csr_array, n_rows: int = 4096
) -> Iterator[tuple[NDArray[np.bool_], NDArray[Any]]]:
    """Dense row blocks of labels and probabilities, so that sparse input stays bounded."""
    for start in range(0, truth.shape[0], n_rows):
        rows = slice(start, start + n_rows)
        part = probs[rows]
        dense = part if isinstance(part, np.ndarray) else part.toarray()
        yield truth[rows].toarray() != 0, dense
