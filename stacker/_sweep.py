"""Exact threshold search: rule out what cannot win, sort the rest once, sweep every cut-off.

A *unit* is what the average runs over: an image (``"samples"``), a class (``"macro"``) or
everything (``"micro"``). Walking down the sorted keys, each step adds one pair to one unit, so the
mean F-beta of every possible cut-off costs O(N log N) for all of them together.

Most pairs need no sorting. Below a key at which unit u has n_pred predictions, its F-beta is at
most (1 + beta^2) n / (beta^2 n + max(n, n_pred)) with n its true labels; where the mean of that
falls under an F-beta already reached, no cut-off can be best. One pass over the pairs, counted in
octaves of the key, finds this floor.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numba import njit, prange
from numpy.typing import NDArray

from stacker._inputs import Rows

__all__ = ["NOTHING", "Counts", "Pairs", "add_selected", "best_cut", "class_cuts", "find_pairs"]

# A threshold above every key: nothing is selected but what a lower bound forces (key inf).
NOTHING = 4.0
N_BUCKETS = 32
Flat = tuple[NDArray[Any], ...]  # keys, indices, indptr, label indices, label indptr
UNIT_KINDS = {"samples": 0, "macro": 1, "micro": 2}


class Pairs(NamedTuple):
    """(image, class) pairs that a threshold may select."""

    keys: NDArray[np.float32]  # scores above 0; the threshold is one of their midpoints
    units: NDArray[np.int32]
    hits: NDArray[np.bool_]  # whether the label is true
    columns: NDArray[np.int32]

    def take(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> "Pairs":
        """Select pairs."""
        return Pairs(self.keys[which], self.units[which], self.hits[which], self.columns[which])


class Counts(NamedTuple):
    """True, predicted and correctly predicted labels of each unit."""

    n_true: NDArray[np.int64]
    n_pred: NDArray[np.int64]
    tp: NDArray[np.int64]

    def fbeta(self, *, beta: float, empty_score: float) -> NDArray[np.float64]:
        """F-beta of each unit."""
        below = beta**2 * self.n_true + self.n_pred
        scores = np.full(below.shape, empty_score, dtype=np.float64)
        np.divide((1 + beta**2) * self.tp, below, out=scores, where=below > 0)
        return scores


def nothing_selected(labels: sp.csr_array, average: str) -> Counts:
    """Count each unit before anything is predicted."""
    if average == "samples":
        n_true = np.diff(labels.indptr).astype(np.int64)
    elif average == "macro":
        n_true = np.bincount(labels.indices, minlength=labels.shape[1]).astype(np.int64)
    else:
        n_true = np.array([labels.nnz], dtype=np.int64)
    return Counts(n_true, np.zeros_like(n_true), np.zeros_like(n_true))


def find_pairs(
    rows: Rows,
    labels: sp.csr_array,
    codes: NDArray[np.int32],
    average: str,
    beta: float,
    empty_score: float,
    *,
    own_cut: bool = False,
) -> tuple[Pairs, Counts]:
    """Pairs that the best thresholds may select, and the counts that forced pairs give.

    Parameters
    ----------
    rows : Rows
        Keys (float32): at most 0 is never selected, inf always.
    labels : csr_array of shape (n_images, n_classes)
        True labels.
    codes : int32 array of shape (n_classes,)
        Classes of one code share a threshold.
    average, beta, empty_score
        The metric.
    own_cut : bool
        Codes are classes, units are classes: each class has a best F-beta of its own, which
        gives a floor of its own.
    """
    start = nothing_selected(labels, average)
    kind = UNIT_KINDS[average]
    flat = (rows.values, rows.indices, rows.indptr, labels.indices, labels.indptr)
    metric = {"beta": beta, "empty_score": empty_score}
    if own_cut:
        floor = _class_floors(_buckets(flat, codes, -1, kind, len(start.n_true)), start, metric)
    else:
        floor = _group_floors(flat, codes, kind, start, metric)[codes]
    keys, units, hits, columns = _gather(*flat, floor, kind)
    pairs = Pairs(keys, units, hits, columns)
    forced = np.isinf(keys)
    if forced.any():
        return pairs.take(~forced), add_selected(start, pairs.take(forced), NOTHING)
    return pairs, start


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
    order = np.argsort(-pairs.keys)
    keys, units, hits, _ = pairs.take(order)
    counts = (start.n_true, start.n_pred.copy(), start.tp.copy())
    last, total = _sweep(keys, units, hits, *counts, beta * beta, empty_score)
    return _between(keys, last), total / len(start.n_true)


def class_cuts(
    pairs: Pairs, start: Counts, *, beta: float, empty_score: float
) -> NDArray[np.float64]:
    """Best threshold of each class by its own F-beta; NaN for a class without true labels."""
    order = np.lexsort((-pairs.keys, pairs.columns))
    keys, _, hits, columns = pairs.take(order)
    edges = np.searchsorted(columns, np.arange(len(start.n_true) + 1))
    cuts = np.full(len(start.n_true), np.nan)
    for c in np.flatnonzero(start.n_true):
        mine = slice(edges[c], edges[c + 1])
        tp = start.tp[c] + np.cumsum(hits[mine])
        n_pred = start.n_pred[c] + np.arange(1, len(tp) + 1)
        score = (1 + beta**2) * tp / (beta**2 * start.n_true[c] + n_pred)
        score[:-1][keys[mine][1:] == keys[mine][:-1]] = -1.0  # equal keys go together
        best = int(score.argmax()) if len(score) and score.max() > 0 else -1
        cuts[c] = _between(keys[mine], best)
    return cuts


def add_selected(start: Counts, pairs: Pairs, threshold: float) -> Counts:
    """Add the pairs with ``key >= threshold`` to the counts."""
    chosen = pairs.keys >= np.float32(threshold)
    n_units = len(start.n_true)
    n_pred = np.bincount(pairs.units[chosen], minlength=n_units)
    tp = np.bincount(pairs.units[chosen & pairs.hits], minlength=n_units)
    return Counts(start.n_true, start.n_pred + n_pred, start.tp + tp)


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


# ------------------------------------------------------------------------------------ floors


class Buckets(NamedTuple):
    """Pairs and hits of each unit with a key in a bucket or above it."""

    n_pred: NDArray[np.int64]  # (N_BUCKETS, n_units)
    tp: NDArray[np.int64]


def _buckets(flat: Flat, codes: NDArray[np.int32], code: int, kind: int, n_units: int) -> Buckets:
    counts = _count_buckets(*flat, codes, code, kind, n_units)
    per_bucket = (part.sum(axis=0, dtype=np.int64).T[::-1] for part in counts)
    return Buckets(*(np.cumsum(part, axis=0)[::-1] for part in per_bucket))


def _group_floors(
    flat: Flat, codes: NDArray[np.int32], kind: int, start: Counts, metric: dict[str, float]
) -> NDArray[np.float32]:
    """Floor of the keys for each code, valid for every joint choice of thresholds."""
    n_codes = int(codes.max(initial=0)) + 1
    n_units = len(start.n_true)
    everything = _buckets(flat, codes, -1, kind, n_units)
    reached = max(
        Counts(start.n_true, n_pred, tp).fbeta(**metric).mean()
        for n_pred, tp in zip(*everything, strict=True)
    )
    floors = np.empty(n_codes, np.float32)
    for g in range(n_codes):
        mine = everything if n_codes == 1 else _buckets(flat, codes, g, kind, n_units)
        floors[g] = _floor(mine, start, metric, reached)
    return floors


def _floor(buckets: Buckets, start: Counts, metric: dict[str, float], reached: float) -> np.float32:
    """Lowest key at which a mean F-beta of `reached` is still possible."""
    # From the top bucket down: the bound only falls, so the first miss ends the search.
    for b in range(N_BUCKETS - 1, 0, -1):
        if _bound(buckets.n_pred[b], start.n_true, metric).mean() < reached - 1e-9:
            return _bucket_edge(b)
    return np.float32(0.0)


def _bound(
    n_pred: NDArray[np.int64], n_true: NDArray[np.int64], metric: dict[str, float]
) -> NDArray[np.float64]:
    """Highest F-beta of each unit with at least n_pred predictions: all true labels among them."""
    return Counts(n_true, np.maximum(n_pred, n_true), n_true).fbeta(**metric)


def _class_floors(buckets: Buckets, start: Counts, metric: dict[str, float]) -> NDArray[np.float32]:
    """Floor of each class, from its own best F-beta over the bucket edges."""
    n_true = np.broadcast_to(start.n_true, buckets.n_pred.shape)
    reached = Counts(n_true, buckets.n_pred, buckets.tp).fbeta(**metric).max(axis=0)
    beaten = _bound(buckets.n_pred, n_true, metric) < reached - 1e-9
    # Low buckets are beaten, high ones are not; no class without true labels needs a pair.
    edges = np.array([_bucket_edge(b) for b in range(N_BUCKETS)], np.float32)
    last = np.maximum(beaten.sum(axis=0) - 1, 0)
    return np.where(start.n_true > 0, edges[last], np.float32(np.inf))


def _bucket_edge(b: int) -> np.float32:
    """Smallest key of a bucket: one an octave, the last from 2 upwards, the first from 0."""
    bits = np.array([b - (N_BUCKETS - 1) + 128], np.uint32) << np.uint32(23)
    return np.float32(bits.view(np.float32)[0]) if b > 0 else np.float32(0.0)


@njit(cache=True)
def _bucket(bits):  # type: ignore[no-untyped-def]
    """Bucket of the bits of a positive float32."""
    b = (bits >> 23) - 128 + (N_BUCKETS - 1)
    return min(max(b, 0), N_BUCKETS - 1)


@njit(parallel=True, cache=True)
def _count_buckets(  # type: ignore[no-untyped-def]
    keys, indices, indptr, label_indices, label_indptr, codes, code, kind, n_units
):
    """Pairs and hits of each unit in each bucket, over the classes of one code (-1: all)."""
    n_images = len(indptr) - 1
    bits = keys.view(np.int32)
    n_chunks = min(n_images, 8)
    n_parts = 1 if kind == 0 else n_chunks
    total = np.zeros((n_parts, n_units, N_BUCKETS), np.int32)
    hits = np.zeros((n_parts, n_units, N_BUCKETS), np.int32)
    for chunk in prange(n_chunks):
        marked = np.zeros(len(codes), np.bool_)
        part = np.int64(chunk) if n_parts > 1 else np.int64(0)
        for i in range(chunk * n_images // n_chunks, (chunk + 1) * n_images // n_chunks):
            for e in range(label_indptr[i], label_indptr[i + 1]):
                marked[label_indices[e]] = True
            for e in range(indptr[i], indptr[i + 1]):
                if bits[e] <= 0:  # a float32 and its bits have the same sign
                    continue
                c = indices[e] if len(indices) else e - indptr[i]
                if code >= 0 and codes[c] != code:
                    continue
                u = i if kind == 0 else (c if kind == 1 else 0)
                b = _bucket(bits[e])
                total[part, u, b] += 1
                hits[part, u, b] += marked[c]
            for e in range(label_indptr[i], label_indptr[i + 1]):
                marked[label_indices[e]] = False
    return total, hits


@njit(parallel=True, cache=True)
def _gather(  # type: ignore[no-untyped-def]
    keys, indices, indptr, label_indices, label_indptr, floor, kind
):
    """Pairs whose key is above 0 and at least their class's floor."""
    n_images = len(indptr) - 1
    starts = np.zeros(n_images + 1, np.int64)
    for i in prange(n_images):
        n = 0
        for e in range(indptr[i], indptr[i + 1]):
            c = indices[e] if len(indices) else e - indptr[i]
            n += keys[e] > 0 and keys[e] >= floor[c]
        starts[i + 1] = n
    for i in range(n_images):
        starts[i + 1] += starts[i]
    n = starts[n_images]
    out_keys, units = np.empty(n, np.float32), np.empty(n, np.int32)
    hits, columns = np.empty(n, np.bool_), np.empty(n, np.int32)
    for i in prange(n_images):
        at = starts[i]
        label, last = label_indptr[i], label_indptr[i + 1]
        for e in range(indptr[i], indptr[i + 1]):
            c = indices[e] if len(indices) else e - indptr[i]
            if not (keys[e] > 0 and keys[e] >= floor[c]):
                continue
            while label < last and label_indices[label] < c:
                label += 1
            out_keys[at], columns[at] = keys[e], c
            hits[at] = label < last and label_indices[label] == c
            units[at] = i if kind == 0 else (c if kind == 1 else 0)
            at += 1
    return out_keys, units, hits, columns
