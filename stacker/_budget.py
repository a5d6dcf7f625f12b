"""Label sets under a budget of labels per image, for averages over classes."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from numba import njit
from numpy.typing import ArrayLike, NDArray

from stacker._inputs import Rows, as_rows, check_beta, check_empty_score, check_probs, entry_columns
from stacker.fbeta import as_sets, check_max_labels

__all__ = ["budgeted_sets"]

MOST_ROUNDS = 50
Floats = NDArray[np.float64]


def budgeted_sets(
    proba: ArrayLike,
    max_labels: int,
    beta: float = 2.0,
    empty_score: float = 1.0,
    random_state: int | None = 0,
) -> NDArray[np.int8] | sp.csr_array:
    """Give each image at most `max_labels` labels so that macro F-beta is highest.

    All images are decided together: a rare class gets its labels where they raise its own F-beta
    most, though other classes of the image are more probable.

    Parameters
    ----------
    proba : array-like or sparse matrix of shape (n_images, n_classes)
        Calibrated probabilities in [0, 1] of all images to be decided; what a sparse matrix does
        not store is never predicted.
    max_labels : int
        Most labels of an image.
    beta : float
        Weight of recall against precision, above 0.
    empty_score : float in [0, 1]
        Score of a class that is neither true nor predicted.
    random_state : int or None
        Seed of the order in which images are visited.

    Returns
    -------
    int8 array of shape (n_images, n_classes), or csr_array for sparse input
        0/1 label sets.

    Raises
    ------
    ValueError
        For values outside [0, 1] or a parameter out of range.

    Notes
    -----
    The mean over classes of (1 + beta^2) E[tp] / (beta^2 E[n_true] + n_pred) is raised by block
    coordinate ascent: with the other images fixed, the best set of one image is the classes of
    largest gain, as long as the gain is positive. Three starts (the most probable classes; those
    most probable for their class; none); each ends where no image can be improved on its own, which
    need not be the best of all. Cost O(n_images n_classes) a round. Source: Schultheis, Wydmuch,
    Kotlowski, Babbar and Dembczynski (2023), "Generalized test utilities for long-tail performance
    in extreme multi-label classification". Note that xcolumns 0.0.2 has beta the wrong way round.

    Examples
    --------
    >>> from stacker.decision import budgeted_sets
    >>> budgeted_sets([[0.9, 0.5], [0.9, 0.1]], max_labels=1).tolist()
    [[0, 1], [1, 0]]
    """
    beta2, empty = check_beta(beta) ** 2, check_empty_score(empty_score)
    probs = check_probs(proba, dtype=np.float64)
    most, rows = check_max_labels(max_labels), as_rows(probs)
    columns = entry_columns(rows)
    mean: Floats = np.bincount(columns, rows.values, rows.n_columns).astype(np.float64)
    order = np.random.default_rng(random_state).permutation(rows.n_rows)
    relative = rows.values / np.sqrt(np.maximum(mean, 1e-300))[columns]
    best, chosen = -1.0, np.zeros(len(rows.values), np.int8)
    for keys in (rows.values, relative, np.zeros_like(relative)):
        score, found = _ascend(rows, columns, keys, order, mean, beta2, empty, most)
        if score > best + 1e-12:
            best, chosen = score, found
    return as_sets(chosen, probs)


def _ascend(
    rows: Rows,
    columns: NDArray[np.int32],
    keys: Floats,
    order: NDArray[np.int64],
    mean: Floats,
    beta2: float,
    empty: float,
    most: int,
) -> tuple[float, NDArray[np.int8]]:
    """Score and marks reached from the classes of largest key."""
    chosen = np.zeros(len(rows.values), np.int8)
    _start(keys, rows.indptr, most, chosen)
    picked = chosen > 0
    n_pred = np.bincount(columns[picked], minlength=len(mean)).astype(np.float64)
    tp: Floats = np.bincount(columns[picked], rows.values[picked], len(mean)).astype(np.float64)
    score = _expected_macro(tp, n_pred, mean, beta2, empty)
    for _ in range(MOST_ROUNDS):
        state: tuple[Any, ...] = (mean, beta2, empty, most, tp, n_pred, chosen)
        _visit(order, rows.values, columns, rows.indptr, *state)
        before, score = score, _expected_macro(tp, n_pred, mean, beta2, empty)
        if score <= before + 1e-10:
            break
    return score, chosen


def _expected_macro(
    tp: Floats,
    n_pred: Floats,
    mean: Floats,
    beta2: float,
    empty: float,
) -> float:
    below = beta2 * mean + n_pred
    out = np.full(len(mean), empty)
    np.divide((1 + beta2) * tp, below, out=out, where=below > 0)
    return float(out.mean()) if len(out) else 0.0


@njit(cache=True)
def _start(keys, indptr, most, chosen):  # type: ignore[no-untyped-def]
    """Mark the largest keys of each image that are above 0."""
    for i in range(len(indptr) - 1):
        a, b = indptr[i], indptr[i + 1]
        for e in a + np.argsort(-keys[a:b])[:most]:
            chosen[e] = keys[e] > 0.0


@njit(cache=True)
def _visit(  # type: ignore[no-untyped-def]
    images, values, columns, indptr, mean, beta2, empty, most, tp, n_pred, chosen
):
    """Give each image its best set in turn, the others fixed."""
    top = np.empty(most, np.int64)
    gains = np.empty(most)
    for i in images:
        n = 0
        for e in range(indptr[i], indptr[i + 1]):
            p, c = values[e], columns[e]
            if chosen[e]:
                chosen[e] = 0
                n_pred[c] -= 1
                tp[c] -= p
            if p <= 0.0:
                continue
            below = beta2 * mean[c] + n_pred[c]
            now = tp[c] / below if n_pred[c] > 0 else 0.0
            gain = (tp[c] + p) / (below + 1.0) - now
            if gain > 0.0:
                n = _keep(gain, e, gains, top, n)
        for e in top[:n]:
            chosen[e] = 1
            n_pred[columns[e]] += 1
            tp[columns[e]] += values[e]


@njit(cache=True)
def _keep(gain, entry, gains, top, n):  # type: ignore[no-untyped-def]
    """Put an entry into the list of largest gains, and return its new length."""
    if n == len(top):
        if n == 0 or gain <= gains[n - 1]:
            return n
        n -= 1
    k = n
    while k > 0 and gains[k - 1] < gain:
        gains[k], top[k] = gains[k - 1], top[k - 1]
        k -= 1
    gains[k], top[k] = gain, entry
    return n + 1
