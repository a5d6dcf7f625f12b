"""Keys: one score per (image, class) pair, compared with a threshold.

A key of at most 0 is never selected, one of inf always; label-count bounds are written into the
keys as such. A probability of exactly 0 has a key of 0 under every rule.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numba import njit, prange
from numpy.typing import NDArray

from stacker._inputs import CHUNK, Matrix, Rows, over_rows

__all__ = [
    "Bounds",
    "affine_keys",
    "bounded_keys",
    "fill_required",
    "rank_keys",
    "ratio_keys",
    "shifted_keys",
]

Keys = NDArray[np.float32]
MOST_RANKS = 64


class Bounds(NamedTuple):
    """The fewest and most labels an image may have of each group of classes."""

    codes: NDArray[np.int32]  # (n_classes,) group of each class; all 0 for bounds on the image
    low: NDArray[np.int64]  # (n_groups,)
    high: NDArray[np.int64]  # (n_groups,)

    @property
    def binding(self) -> bool:
        """Whether any image could be touched by them."""
        sizes = np.bincount(self.codes, minlength=len(self.low))
        return bool((self.low > 0).any() or (self.high < sizes).any())


def ratio_keys(rows: Rows) -> Keys:
    """Probabilities over their image's largest."""
    return affine_keys(rows, offset=0.0)


def affine_keys(rows: Rows, *, slope: float | None = None, offset: float | None = None) -> Keys:
    """For the rule p >= offset + slope max(p): the key whose threshold is the one not given.

    With `slope` the key is p - slope max(p) and its threshold the offset; with `offset` it is
    (p - offset) / max(p) and its threshold the slope. Neither is ever negative, so a key of 0 or
    less is never selected; that of a probability of 0 is the lowest of all.
    """
    keys = np.empty(len(rows.values), np.float32)
    given = np.float32(slope if offset is None else offset)
    args = (rows.values, rows.indptr, given, slope is not None, keys)
    over_rows(rows, _affine, _affine_threads, *args)
    return keys


@njit(parallel=True, cache=True)
def _affine_threads(values, indptr, given, is_slope, keys, n_chunks):  # type: ignore[no-untyped-def]
    for c in prange(n_chunks):
        _affine(
            values, indptr, given, is_slope, keys, c * CHUNK, min((c + 1) * CHUNK, len(indptr) - 1)
        )


@njit(cache=True)
def _affine(values, indptr, given, is_slope, keys, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        top = np.float32(0.0)
        for e in range(indptr[i], indptr[i + 1]):
            top = max(top, values[e])
        for e in range(indptr[i], indptr[i + 1]):
            if values[e] <= 0:
                # Below all others: a lower bound on labels takes the largest keys.
                keys[e] = np.float32(-np.inf)
            elif is_slope:
                keys[e] = values[e] - given * top
            else:
                keys[e] = (values[e] - given) / top


def shifted_keys(rows: Rows, shift: NDArray[np.float64]) -> Keys:
    """Probabilities with the log-odds of each class shifted; no logarithm per pair is needed."""
    keys = np.empty(len(rows.values), np.float32)
    args = (rows.values, rows.indices, rows.indptr, np.exp(shift), keys)
    over_rows(rows, _shift, _shift_threads, *args)
    return keys


@njit(parallel=True, cache=True)
def _shift_threads(values, indices, indptr, factor, keys, n_chunks):  # type: ignore[no-untyped-def]
    for c in prange(n_chunks):
        a, b = c * CHUNK, min((c + 1) * CHUNK, len(indptr) - 1)
        _shift(values, indices, indptr, factor, keys, a, b)


@njit(cache=True)
def _shift(values, indices, indptr, factor, keys, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        for e in range(indptr[i], indptr[i + 1]):
            yes = values[e] * factor[indices[e] if len(indices) else e - indptr[i]]
            keys[e] = yes / (1.0 - values[e] + yes) if yes > 0.0 else 0.0


def rank_keys(rows: Rows, codes: NDArray[np.int32]) -> Keys:
    """One over the rank of a class within its group and image, 1 for the most probable.

    Ranks past MOST_RANKS in the image are not worked out; their key is 0.
    """
    keys = np.zeros(len(rows.values), np.float32)
    taken = int(codes.max(initial=0)) + 1
    args = (rows.values, rows.indices, rows.indptr, codes, taken, keys)
    over_rows(rows, _rank, _rank_threads, *args)
    return keys


def bounded_keys(rows: Rows, keys: Keys, bounds: Bounds) -> Keys:
    """Keys with the label-count bounds in them: inf is forced in, -1 is left out."""
    if not bounds.binding:
        return keys
    keys = keys.copy()
    args = (keys, rows.indices, rows.indptr, bounds.codes, bounds.low, bounds.high)
    over_rows(rows, _bound, _bound_threads, *args)
    return keys


def fill_required(probs: Matrix, bounds: Bounds) -> Matrix:
    """Store zeros where a sparse row has fewer entries of a group than its lower bound."""
    if not sp.issparse(probs) or not (bounds.low > 0).any():
        return probs
    # With the first `low` classes of each group stored, every row has enough entries.
    needed = [np.flatnonzero(bounds.codes == g)[:n] for g, n in enumerate(bounds.low)]
    columns = np.concatenate(needed)
    held = probs.tocoo()
    rows = np.concatenate([held.row, np.repeat(np.arange(probs.shape[0]), len(columns))])
    columns = np.concatenate([held.col, np.tile(columns, probs.shape[0])])
    data = np.concatenate([held.data, np.zeros(len(rows) - held.nnz, held.dtype)])
    filled = sp.csr_array(sp.coo_array((data, (rows, columns)), shape=probs.shape))
    filled.sum_duplicates()
    return filled


@njit(parallel=True, cache=True)
def _rank_threads(  # type: ignore[no-untyped-def]
    values, indices, indptr, codes, n_groups, keys, n_chunks
):
    for c in prange(n_chunks):
        a, b = c * CHUNK, min((c + 1) * CHUNK, len(indptr) - 1)
        _rank(values, indices, indptr, codes, n_groups, keys, a, b)


@njit(cache=True)
def _rank(  # type: ignore[no-untyped-def]
    values, indices, indptr, codes, n_groups, keys, start, stop
):
    for i in range(start, stop):
        a, b = indptr[i], indptr[i + 1]
        order = np.arange(b - a)
        taken = np.zeros(n_groups, np.int64)
        _heapify(values[a:b], order)
        for k in range(min(b - a, MOST_RANKS)):
            _pop(values[a:b], order, k)
            j = order[k]
            g = codes[indices[a + j] if len(indices) else j]
            taken[g] += 1
            if values[a + j] > 0:
                keys[a + j] = 1.0 / taken[g]


@njit(parallel=True, cache=True)
def _bound_threads(keys, indices, indptr, codes, low, high, n_chunks):  # type: ignore[no-untyped-def]
    for c in prange(n_chunks):
        a, b = c * CHUNK, min((c + 1) * CHUNK, len(indptr) - 1)
        _bound(keys, indices, indptr, codes, low, high, a, b)


@njit(cache=True)
def _bound(keys, indices, indptr, codes, low, high, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        a, b = indptr[i], indptr[i + 1]
        row = keys[a:b].copy()
        order = np.arange(b - a)
        taken = np.zeros(len(low), np.int64)
        _heapify(row, order)
        for k in range(b - a):
            _pop(row, order, k)
            j = order[k]
            g = codes[indices[a + j] if len(indices) else j]
            taken[g] += 1
            if taken[g] <= low[g]:
                keys[a + j] = np.inf
            elif taken[g] > high[g]:
                keys[a + j] = -1.0


# The classes are a heap stored backwards, so that popping fills `order` from its start: most
# classes are never sorted.
@njit(cache=True)
def _heapify(p, order):  # type: ignore[no-untyped-def]
    heap = order[::-1]
    for root in range(len(heap) // 2 - 1, -1, -1):
        _sift(p, heap, root, len(heap))


@njit(cache=True)
def _pop(p, order, k):  # type: ignore[no-untyped-def]
    """Move the k-th most probable position to ``order[k]``, once those before it are there."""
    heap = order[::-1]
    stop = len(heap) - 1 - k
    heap[0], heap[stop] = heap[stop], heap[0]
    _sift(p, heap, 0, stop)


@njit(cache=True)
def _sift(p, heap, root, stop):  # type: ignore[no-untyped-def]
    """Restore the heap of ``heap[:stop]`` below `root`."""
    if stop <= root:
        return
    moved = heap[root]
    while 2 * root + 1 < stop:
        child = 2 * root + 1
        if child + 1 < stop and _before(p, heap[child + 1], heap[child]):
            child += 1
        if not _before(p, heap[child], moved):
            break
        heap[root] = heap[child]
        root = child
    heap[root] = moved


@njit(cache=True)
def _before(p, i, j):  # type: ignore[no-untyped-def]
    """Whether position i is taken before position j."""
    return p[i] > p[j] or (p[i] == p[j] and i < j)
