"""numba kernels for the metric: labels that two sparse 0/1 matrices share, by image and by class.

A few images at a time, the labels of the first matrix are marked in a table that fits the
processor's nearest cache, and those of the second looked up in it. With about four labels an image
a loop over each image's labels costs mostly mispredicted branches, so both passes run over all
labels of the batch: `steps` moves from one image's part of the table to the next.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numba import njit, prange
from numpy.typing import NDArray

__all__ = [
    "Counts",
    "Totals",
    "count_by_class",
    "count_by_image",
    "score_images",
    "total_over_images",
]

SERIAL_LABELS = 100_000
N_PARTS = 4  # fixed, so that sums do not depend on the number of threads
BATCH = 32  # images marked at once ...
TABLE = 32_768  # ... as far as the table holds them, a byte for each class


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


class Totals(NamedTuple):
    """What an average over images or over everything needs."""

    score: float  # sum of the F-beta of images
    n_scored: int  # images with a score: all but empty ones when their score is NaN
    n_true: int
    n_pred: int
    tp: int


def count_by_image(truth: sp.csr_array, pred: sp.csr_array) -> Counts:
    """Count the labels of each image of two canonical CSR matrices."""
    hits = np.empty(truth.shape[0], np.int32)
    _by_image(truth, pred, 1.0, 0.0, hits, np.empty(0))
    return Counts(np.diff(truth.indptr), np.diff(pred.indptr), hits.astype(np.int64))


def score_images(
    truth: sp.csr_array, pred: sp.csr_array, beta: float, empty_score: float
) -> NDArray[np.float64]:
    """F-beta of each image."""
    scores = np.empty(truth.shape[0])
    _by_image(truth, pred, beta * beta, empty_score, np.empty(0, np.int32), scores)
    return scores


def total_over_images(
    truth: sp.csr_array, pred: sp.csr_array, beta: float, empty_score: float
) -> Totals:
    """Sum over images without an array of their length, which would cost as much as the sum."""
    nothing = (np.empty(0, np.int32), np.empty(0))
    score, n_scored, tp = _by_image(truth, pred, beta * beta, empty_score, *nothing)
    return Totals(float(score), int(n_scored), int(truth.nnz), int(pred.nnz), int(tp))


def count_by_class(truth: sp.csr_array, pred: sp.csr_array) -> Counts:
    """Count the labels of each class."""
    n_images, n_columns = truth.shape
    n_parts = _n_parts(truth, pred)
    true = np.zeros((n_parts, n_columns), np.int64)
    both = np.zeros((n_parts, n_columns), np.int64)
    count = _classes_threads if n_parts > 1 else _classes_serial
    count(*_flat(truth), *_flat(pred), n_images, true, both)
    # One number holds two counts: a label predicted adds 1, a right one 2^32 as well.
    tp, n_pred = (both >> 32).sum(axis=0), (both & 0xFFFFFFFF).sum(axis=0)
    return Counts(true.sum(axis=0), n_pred, tp)


def _by_image(
    truth: sp.csr_array,
    pred: sp.csr_array,
    beta2: float,
    empty: float,
    hits: NDArray[np.int32],
    scores: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Fill `hits` and `scores` unless they are empty; sums of score, images scored and hits."""
    n_parts = _n_parts(truth, pred)
    totals = np.zeros((n_parts, 3))
    count = _images_threads if n_parts > 1 else _images_serial
    flat = (*_flat(truth), *_flat(pred))
    count(*flat, *truth.shape, beta2, empty, hits, scores, totals)
    total: NDArray[np.float64] = totals.sum(axis=0)
    return total


def _n_parts(truth: sp.csr_array, pred: sp.csr_array) -> int:
    """One part on a small matrix, where waking threads costs more than it saves."""
    return N_PARTS if truth.nnz + pred.nnz > SERIAL_LABELS else 1


def _flat(matrix: sp.csr_array) -> tuple[NDArray[Any], NDArray[Any]]:
    """Columns and row pointers; unsigned, since numba asks of every signed index if it wraps."""
    size = np.int32 if matrix.nnz < 2**31 else np.int64
    indices, indptr = (part.astype(size, copy=False) for part in (matrix.indices, matrix.indptr))
    if not (indices.flags.writeable and indptr.flags.writeable):
        indices, indptr = indices.copy(), indptr.copy()  # else every kernel is compiled once more
    unsigned = np.uint32 if size is np.int32 else np.uint64
    return indices.view(unsigned), indptr.view(unsigned)


# ------------------------------------------------------------------------------------- kernels


@njit(parallel=True, cache=True)
def _images_threads(  # type: ignore[no-untyped-def]
    ind_a, ptr_a, ind_b, ptr_b, n, n_columns, beta2, empty, hits, scores, totals
):
    parts = len(totals)
    for c in prange(parts):
        a, b = np.int64(c) * n // parts, (np.int64(c) + 1) * n // parts
        out = (hits, scores, totals[c])
        _images(ind_a, ptr_a, ind_b, ptr_b, n_columns, beta2, empty, out, a, b)


@njit(cache=True)
def _images_serial(  # type: ignore[no-untyped-def]
    ind_a, ptr_a, ind_b, ptr_b, n, n_columns, beta2, empty, hits, scores, totals
):
    out = (hits, scores, totals[0])
    _images(ind_a, ptr_a, ind_b, ptr_b, n_columns, beta2, empty, out, 0, n)


@njit(parallel=True, cache=True)
def _classes_threads(ind_a, ptr_a, ind_b, ptr_b, n, true, both):  # type: ignore[no-untyped-def]
    parts = len(true)
    for c in prange(parts):
        a, b = np.int64(c) * n // parts, (np.int64(c) + 1) * n // parts
        _classes(ind_a, ptr_a, ind_b, ptr_b, true[c], both[c], a, b)


@njit(cache=True)
def _classes_serial(ind_a, ptr_a, ind_b, ptr_b, n, true, both):  # type: ignore[no-untyped-def]
    _classes(ind_a, ptr_a, ind_b, ptr_b, true[0], both[0], 0, n)


@njit(cache=True)
def _images(  # type: ignore[no-untyped-def]
    ind_a, ptr_a, ind_b, ptr_b, n_columns, beta2, empty, out, start, stop
):
    batch, table, steps = _workspace(ptr_a, ptr_b, n_columns, start, stop)
    found = np.zeros(len(steps), np.uint32)
    mark = np.uint8(0)
    for first in range(start, stop, batch):
        last = min(first + batch, stop)
        mark = _next_mark(mark, table)
        rows_a, rows_b = ptr_a[first : last + 1], ptr_b[first : last + 1]
        labels = ind_a[rows_a[0] : rows_a[-1]]
        _set_marks(labels, rows_a, n_columns, steps, table, mark)
        labels = ind_b[rows_b[0] : rows_b[-1]]
        _find_marks(labels, rows_b, n_columns, steps, table, mark, found)
        _score(rows_a, rows_b, found, beta2, empty, first, out)


@njit(cache=True)
def _classes(ind_a, ptr_a, ind_b, ptr_b, true, both, start, stop):  # type: ignore[no-untyped-def]
    n_columns = len(true)
    batch, table, steps = _workspace(ptr_a, ptr_b, n_columns, start, stop)
    mark = np.uint8(0)
    for first in range(start, stop, batch):
        last = min(first + batch, stop)
        mark = _next_mark(mark, table)
        rows_a, rows_b = ptr_a[first : last + 1], ptr_b[first : last + 1]
        labels = ind_a[rows_a[0] : rows_a[-1]]
        for c in labels:
            true[c] += 1
        _set_marks(labels, rows_a, n_columns, steps, table, mark)
        labels = ind_b[rows_b[0] : rows_b[-1]]
        _add_marks(labels, rows_b, n_columns, steps, table, mark, both)


@njit(cache=True)
def _workspace(ptr_a, ptr_b, n_columns, start, stop):  # type: ignore[no-untyped-def]
    """Images of a batch, their table of marks, and room for the steps of the longest batch."""
    batch = max(1, min(BATCH, TABLE // max(n_columns, 1)))
    longest = np.int64(0)
    for first in range(start, stop, batch):
        last = min(first + batch, stop)
        for ptr in (ptr_a, ptr_b):
            if np.int64(ptr[last] - ptr[first]) > longest:
                longest = np.int64(ptr[last] - ptr[first])
    return batch, np.zeros(batch * n_columns, np.uint8), np.zeros(longest + 1, np.uint32)


@njit(cache=True)
def _next_mark(mark, table):  # type: ignore[no-untyped-def]
    """Each batch has a mark of its own, 1 to 255: the table is seldom cleared."""
    if mark == 255:
        table[:] = 0
        return np.uint8(1)
    return np.uint8(mark + 1)


@njit(cache=True)
def _put_steps(rows, step, steps):  # type: ignore[no-untyped-def]
    """Write `step` where an image begins; images without labels begin where the next one does."""
    for r in range(1, len(rows) - 1):
        steps[rows[r] - rows[0]] += step


@njit(cache=True)
def _clear_steps(rows, steps):  # type: ignore[no-untyped-def]
    for r in range(1, len(rows) - 1):
        steps[rows[r] - rows[0]] = 0


@njit(cache=True)
def _set_marks(labels, rows, n_columns, steps, table, mark):  # type: ignore[no-untyped-def]
    _put_steps(rows, np.uint32(n_columns), steps)
    image = np.uint32(0)
    for e in range(np.uint32(len(labels))):
        image += steps[e]
        table[image + labels[e]] = mark
    _clear_steps(rows, steps)


@njit(cache=True)
def _find_marks(labels, rows, n_columns, steps, table, mark, found):  # type: ignore[no-untyped-def]
    """Write the running number of labels whose place is marked; `found` begins with 0."""
    _put_steps(rows, np.uint32(n_columns), steps)
    image, total = np.uint32(0), np.uint32(0)
    for e in range(np.uint32(len(labels))):
        image += steps[e]
        total += np.uint32(table[image + labels[e]] == mark)
        found[e + np.uint32(1)] = total
    _clear_steps(rows, steps)


@njit(cache=True)
def _add_marks(labels, rows, n_columns, steps, table, mark, both):  # type: ignore[no-untyped-def]
    _put_steps(rows, np.uint32(n_columns), steps)
    image = np.uint32(0)
    for e in range(np.uint32(len(labels))):
        image += steps[e]
        both[labels[e]] += 1 + (np.int64(table[image + labels[e]] == mark) << 32)
    _clear_steps(rows, steps)


@njit(cache=True)
def _score(rows_a, rows_b, found, beta2, empty, first, out):  # type: ignore[no-untyped-def]
    hits, scores, totals = out
    total, n_scored = 0.0, 0
    for r in range(len(rows_a) - 1):
        begin, end = rows_b[r] - rows_b[0], rows_b[r + 1] - rows_b[0]
        tp = np.int32(found[end] - found[begin])
        below = beta2 * np.int32(rows_a[r + 1] - rows_a[r]) + np.int32(end - begin)
        score = (1.0 + beta2) * tp / below if below > 0.0 else empty
        if len(hits):
            hits[first + r] = tp
        if len(scores):
            scores[first + r] = score
        if score == score:  # not NaN
            total += score
            n_scored += 1
    totals[0] += total
    totals[1] += n_scored
    totals[2] += found[rows_b[-1] - rows_b[0]]
