"""Paired bootstrap over split groups, from sums kept per group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

__all__ = [
    "Interval",
    "average_precisions",
    "group_codes",
    "interval_of_fbeta",
    "interval_of_means",
    "interval_of_resampled",
    "resampled_map",
]

# Resampling weights of one batch of replicates, as numbers held at once (32 MB of float32).
BATCH_CELLS = 8_000_000


class Interval(NamedTuple):
    """A difference of two scores with its 95% bootstrap interval.

    Examples
    --------
    >>> gain = Interval(0.02, 0.01, 0.03)
    >>> gain.low > 0
    True
    """

    difference: float
    low: float
    high: float


def group_codes(groups: ArrayLike | None, n_images: int) -> NDArray[np.intp]:
    """Split groups as codes 0..n_groups-1; every image on its own when there are none.

    Examples
    --------
    >>> group_codes(["b", "a", "b"], 3).tolist()
    [1, 0, 1]
    """
    if groups is None:
        return np.arange(n_images)
    values = np.asarray(groups)
    if values.shape != (n_images,):
        raise ValueError(
            f"groups must give one split group an image, shape ({n_images},); got {values.shape}"
        )
    return np.unique(values, return_inverse=True)[1]


def interval_of_means(
    per_image_a: NDArray[np.float64],
    per_image_b: NDArray[np.float64],
    codes: NDArray[np.intp],
    *,
    n: int,
    random_state: int | None,
) -> Interval:
    """Interval of mean(a) - mean(b) over resampled groups."""
    difference = per_image_a - per_image_b
    sums = np.bincount(codes, weights=difference)
    sizes = np.bincount(codes).astype(np.float64)

    def replicate(weights: NDArray[np.float32]) -> NDArray[np.float64]:
        return (weights @ sums) / (weights @ sizes)

    return _interval(replicate, len(sums), float(difference.mean()), n, random_state)


def interval_of_fbeta(
    labels: csr_array,
    sets_a: csr_array,
    sets_b: csr_array,
    codes: NDArray[np.intp],
    *,
    beta: float,
    macro: bool,
    empty_score: float,
    n: int,
    random_state: int | None,
) -> Interval:
    """Interval of macro (or micro) F-beta of a minus that of b over resampled groups.

    A class whose true labels all fall out of a resample is left out of that resample's mean:
    scored as empty, it would jump to 1 for the method that never predicts it, and the interval
    would lean to that side.
    """
    member = _membership(codes)
    both = [_GroupSums(member, labels, sets, macro=macro) for sets in (sets_a, sets_b)]
    has_true = both[0].has_true()

    def replicate(weights: NDArray[np.float32]) -> NDArray[np.float64]:
        a, b = (sums.fbeta(weights, beta, empty_score) for sums in both)
        lost = has_true[:, None] & (both[0].n_true(weights) == 0)
        return mean_of_known(np.where(lost, np.nan, a - b).T)

    whole = replicate(np.ones((1, member.shape[0]), dtype=np.float32))[0]
    width = labels.shape[1] if macro else 1
    return _interval(replicate, member.shape[0], float(whole), n, random_state, width=width)


class _GroupSums:
    """True positives, predicted and true labels of each group (and class, for macro)."""

    def __init__(
        self, member: csr_array, labels: csr_array, sets: csr_array, *, macro: bool
    ) -> None:
        counts = [
            csr_array(member @ part) for part in (labels.multiply(sets).tocsr(), sets, labels)
        ]
        if macro:
            self.sums = [csr_array(part.T) for part in counts]
        else:
            self.sums = [csr_array(np.asarray(part.sum(axis=1))[None]) for part in counts]

    def fbeta(
        self, weights: NDArray[np.float32], beta: float, empty_score: float
    ) -> NDArray[np.float64]:
        """F-beta of each class (or of all pairs) and replicate: (n_units, n_replicates)."""
        hits, predicted, true = (part @ weights.T.astype(np.float64) for part in self.sums)
        below = predicted + beta**2 * true
        score = np.full(below.shape, empty_score)
        np.divide((1 + beta**2) * hits, below, out=score, where=below > 0)
        return score

    def n_true(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """Count true labels of each unit and replicate: (n_units, n_replicates)."""
        return np.asarray(self.sums[2] @ weights.T.astype(np.float64))

    def has_true(self) -> NDArray[np.bool_]:
        """Which units have a true label at all: (n_units,)."""
        return np.asarray(self.sums[2].sum(axis=1)).ravel() > 0


def resampled_map(
    labels: csr_array,
    proba: NDArray[np.floating] | csr_array,
    codes: NDArray[np.intp],
    *,
    n: int,
    random_state: int | None,
) -> NDArray[np.float64]:
    """Mean average precision as it is (first) and over n resamples: shape (n + 1,)."""
    n_groups, width = int(codes.max()) + 1, max(labels.shape)
    batches = [np.ones((1, n_groups), dtype=np.float32)]
    values = []
    for weights in chain(batches, _resampled(n_groups, n, random_state, width=width)):
        values.append(mean_of_known(average_precisions(labels, proba, weights[:, codes])))
    return np.concatenate(values)


def interval_of_resampled(a: NDArray[np.float64], b: NDArray[np.float64]) -> Interval:
    """Interval of a - b from `resampled_map` of both with the same groups and seed."""
    return _percentiles(float(a[0] - b[0]), a[1:] - b[1:])


def mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=-1)
    count = known.sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def average_precisions(
    labels: csr_array,
    proba: NDArray[np.floating] | csr_array,
    weights: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Average precision of every class under every weighting of the images.

    Parameters
    ----------
    labels : csr_array of shape (n_images, n_classes)
        Non-zero where the image has the class.
    proba : array or csr_array of shape (n_images, n_classes)
        Scores; what a sparse array does not store counts as 0. Equal scores share a threshold.
    weights : float32 array of shape (n_weightings, n_images)
        How often each image counts.

    Returns
    -------
    array of shape (n_weightings, n_classes)
        NaN for a class without (weighted) positives.

    Examples
    --------
    >>> import numpy as np
    >>> y = csr_array(np.array([[1], [0], [1]]))
    >>> p = np.array([[0.9], [0.8], [0.7]])
    >>> average_precisions(y, p, np.ones((1, 3), dtype=np.float32)).round(4)
    array([[0.8333]])
    """
    n_images, n_classes = labels.shape
    out = np.empty((len(weights), n_classes))
    step = max(1, BATCH_CELLS // max(1, n_images))
    by_class = labels.tocsc()
    by_image = np.ascontiguousarray(weights.T)
    columns = None if isinstance(proba, np.ndarray) else proba.tocsc()
    for start in range(0, n_classes, step):
        part = slice(start, min(start + step, n_classes))
        scores = proba[:, part] if columns is None else columns[:, part].toarray()
        truth = by_class[:, part].toarray() != 0
        out[:, part] = _average_precisions(
            np.ascontiguousarray(scores.T, dtype=np.float32),
            np.ascontiguousarray(truth.T),
            by_image,
        )
    return out


@njit(parallel=True, cache=True)
def _average_precisions(scores, truth, weights):  # type: ignore[no-untyped-def] # pragma: no cover
    """Compute area under the precision-recall steps: scores (class, image), weights (image, w)."""
    n_classes, n_images = scores.shape
    n_weightings = weights.shape[1]
    out = np.empty((n_weightings, n_classes))
    for c in prange(n_classes):
        order = np.argsort(-scores[c], kind="mergesort")
        # All weightings advance together, a vector at a time, through one sorted list: the images
        # passed, the hits among them, the hits that are in the area already.
        seen = np.zeros(n_weightings, dtype=np.float32)
        hits = np.zeros(n_weightings, dtype=np.float32)
        counted = np.zeros(n_weightings, dtype=np.float32)
        area = np.zeros(n_weightings)
        left = truth[c].sum()
        pending = False
        for i in range(n_images):
            row = order[i]
            seen += weights[row]
            if truth[c, row]:
                hits += weights[row]
                left -= 1
                pending = True
            # Equal scores go together: the area grows at the last of them.
            ends = i + 1 == n_images or scores[c, order[i + 1]] != scores[c, row]
            if ends and pending:
                for w in range(n_weightings):
                    if hits[w] > counted[w]:
                        area[w] += (hits[w] - counted[w]) * hits[w] / seen[w]
                        counted[w] = hits[w]
                pending = False
                if left == 0:
                    break
        for w in range(n_weightings):
            out[w, c] = area[w] / hits[w] if hits[w] > 0 else np.nan
    return out


def _membership(codes: NDArray[np.intp]) -> csr_array:
    """Build the indicator matrix (n_groups, n_images) that sums images into groups."""
    n_images = len(codes)
    cells = (codes, np.arange(n_images))
    return csr_array((np.ones(n_images), cells), shape=(int(codes.max()) + 1, n_images))


def _interval(
    replicate: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    n_groups: int,
    difference: float,
    n: int,
    random_state: int | None,
    *,
    width: int = 1,
) -> Interval:
    """Percentile interval (2.5% to 97.5%) of `replicate` over resampled groups."""
    batches = _resampled(n_groups, n, random_state, width=max(n_groups, width))
    return _percentiles(difference, np.concatenate([replicate(weights) for weights in batches]))


def _percentiles(difference: float, values: NDArray[np.float64]) -> Interval:
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(difference, float("nan"), float("nan"))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(difference, float(low), float(high))


def _resampled(
    n_groups: int, n: int, random_state: int | None, *, width: int
) -> Iterator[NDArray[np.float32]]:
    """Batches of how often each group is drawn: float32 arrays (n_batch, n_groups)."""
    rng = np.random.default_rng(random_state)
    size = max(1, min(n, BATCH_CELLS // width))
    for start in range(0, n, size):
        rows = min(size, n - start)
        # Row by row from one stream, so the batch size does not change the draws.
        drawn = rng.integers(n_groups, size=(rows, n_groups))
        drawn += np.arange(rows)[:, None] * n_groups
        counts = np.bincount(drawn.ravel(), minlength=rows * n_groups)
        yield counts.reshape(rows, n_groups).astype(np.float32)
