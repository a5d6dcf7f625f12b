"""Keys: one score per (image, class) pair, compared with a threshold.

A key of at most 0 is never selected, one of inf always; label-count bounds are written into the
keys as such. A probability of exactly 0 has a key of 0 under every rule.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numba import njit, prange
from numpy.typing import NDArray

from stacker._fbeta_kernels import _heapify, _pop
from stacker._inputs import Matrix, Rows

__all__ = [
    "Bounds",
    "affine_keys",
    "bounded_keys",
    "fill_required",
    "rank_keys",
    "ratio_keys",
    "row_max",
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


def row_max(rows: Rows) -> Keys:
    """Largest value of each image, 0 for an image without entries."""
    top = np.zeros(rows.n_rows, np.float32)
    filled = np.flatnonzero(np.diff(rows.indptr))
    if len(filled):
        top[filled] = np.maximum.reduceat(rows.values, rows.indptr[filled])
    return top


def ratio_keys(rows: Rows) -> Keys:
    """Probabilities over their image's largest."""
    top = row_max(rows)
    top[top == 0] = 1
    keys: Keys = np.divide(rows.values, np.repeat(top, np.diff(rows.indptr)), dtype=np.float32)
    return keys


def affine_keys(rows: Rows, *, slope: float | None = None, offset: float | None = None) -> Keys:
    """For the rule p >= offset + slope max(p): the key whose threshold is the one not given.

    With `slope` the key is p - slope max(p) and its threshold the offset; with `offset` it is
    (p - offset) / max(p) and its threshold the slope. Neither is ever negative, so a key of 0 or
    less is never selected.
    """
    top = np.repeat(row_max(rows), np.diff(rows.indptr))
    keys = np.full(len(rows.values), -1, np.float32)
    some = rows.values > 0
    if slope is not None:
        keys[some] = rows.values[some] - np.float32(slope) * top[some]
    else:
        keys[some] = (rows.values[some] - np.float32(offset)) / top[some]
    return keys


def rank_keys(rows: Rows, codes: NDArray[np.int32]) -> Keys:
    """One over the rank of a class within its group and image, 1 for the most probable.

    Ranks past MOST_RANKS in the image are not worked out; their key is 0.
    """
    keys = np.zeros(len(rows.values), np.float32)
    _rank(rows.values, rows.indices, rows.indptr, codes, int(codes.max(initial=0)) + 1, keys)
    return keys


def bounded_keys(rows: Rows, keys: Keys, bounds: Bounds) -> Keys:
    """Keys with the label-count bounds in them: inf is forced in, -1 is left out."""
    if not bounds.binding:
        return keys
    keys = keys.copy()
    _bound(keys, rows.indices, rows.indptr, bounds.codes, bounds.low, bounds.high)
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
def _rank(values, indices, indptr, codes, n_groups, keys):  # type: ignore[no-untyped-def]
    for i in prange(len(indptr) - 1):
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
def _bound(keys, indices, indptr, codes, low, high):  # type: ignore[no-untyped-def]
    for i in prange(len(indptr) - 1):
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
