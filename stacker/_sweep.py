"""Exact threshold search: sort the scores once, then sweep every cut-off.

A *unit* is what the average runs over: an image (``"samples"``), a class (``"macro"``) or
everything (``"micro"``). Walking down the sorted scores, each step adds one pair to one unit, so
the mean F-beta of every possible cut-off costs O(N log N) for all of them together.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["NOTHING", "Counts", "Pairs", "add_selected", "best_cut", "mean_fbeta"]

# A threshold above every score: nothing is selected but what a lower bound forces.
NOTHING = 2.0


class Pairs(NamedTuple):
    """(image, class) pairs that a threshold may select."""

    keys: NDArray[np.float32]  # scores; the threshold is one of their midpoints
    units: NDArray[np.int32]
    hits: NDArray[np.bool_]  # whether the label is true

    def take(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> "Pairs":
        """Pairs at these positions."""
        return Pairs(self.keys[which], self.units[which], self.hits[which])


class Counts(NamedTuple):
    """True, predicted and correctly predicted labels of each unit."""

    n_true: NDArray[np.int64]
    n_pred: NDArray[np.int64]
    tp: NDArray[np.int64]


def best_cut(
    pairs: Pairs, start: Counts, *, beta: float, empty_score: float
) -> tuple[float, float]:
    """Threshold with the highest mean F-beta over units, and that F-beta.

    Parameters
    ----------
    pairs : Pairs
        Pairs open to selection: those with ``key >= threshold`` are added to `start`.
    start : Counts
        Counts before any of them is selected.
    beta, empty_score : float
        As in `stacker.fbeta.fbeta_score`.

    Returns
    -------
    threshold : float
        Half-way between two neighbouring keys; `NOTHING` when selecting none is best.
    score : float
        Mean F-beta over units at that threshold.
    """
    order = np.argsort(-pairs.keys, kind="stable")
    keys, units, hits = pairs.take(order)
    counts = (start.n_true, start.n_pred.copy(), start.tp.copy())
    last, total = _sweep(keys, units, hits, *counts, beta * beta, empty_score)
    return _between(keys, last), total / len(start.n_true)


def add_selected(start: Counts, pairs: Pairs, threshold: float) -> Counts:
    """Add the pairs to the counts: those with ``key >= threshold``."""
    chosen = pairs.keys >= np.float32(threshold)
    n_units = len(start.n_true)
    n_pred = np.bincount(pairs.units[chosen], minlength=n_units)
    tp = np.bincount(pairs.units[chosen & pairs.hits], minlength=n_units)
    return Counts(start.n_true, start.n_pred + n_pred, start.tp + tp)


def mean_fbeta(counts: Counts, *, beta: float, empty_score: float) -> float:
    """Mean F-beta over units."""
    below = beta**2 * counts.n_true + counts.n_pred
    scores = np.full(len(below), empty_score)
    np.divide((1 + beta**2) * counts.tp, below, out=scores, where=below > 0)
    return float(scores.mean())


def _between(keys: NDArray[np.float32], last: int) -> float:
    """Return a threshold that selects keys[:last + 1] and no more."""
    if last < 0:
        return NOTHING
    if last + 1 == len(keys):
        return float(keys[last])
    middle = np.float32((float(keys[last]) + float(keys[last + 1])) / 2)
    return float(middle if middle > keys[last + 1] else keys[last])


@njit(cache=True)
def _sweep(keys, units, hits, n_true, n_pred, tp, beta2, empty):  # type: ignore[no-untyped-def]
    """Last position of the best prefix (-1: none) and the sum of F-beta over units there."""
    total = 0.0
    for u in range(len(n_true)):
        total += _ratio(tp[u], n_true[u], n_pred[u], beta2, empty)
    best, last = total, -1
    for e in range(len(keys)):
        u = units[e]
        before = _ratio(tp[u], n_true[u], n_pred[u], beta2, empty)
        n_pred[u] += 1
        tp[u] += hits[e]
        total += _ratio(tp[u], n_true[u], n_pred[u], beta2, empty) - before
        # Equal keys go together; rounding in the running sum must not look like a gain.
        at_end = e + 1 == len(keys) or keys[e + 1] < keys[e]
        if at_end and total > best + 1e-9:
            best, last = total, e
    return last, best


@njit(cache=True)
def _ratio(tp, n_true, n_pred, beta2, empty):  # type: ignore[no-untyped-def]
    below = beta2 * n_true + n_pred
    return (1.0 + beta2) * tp / below if below > 0 else empty
