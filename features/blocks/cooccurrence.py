"""What the image's other likely labels say about a class.

With q the blended probabilities of the image's active classes (q >= 0.02, the row's own class
left out) and counts n of training images that carry one or both labels, smoothed by
P(c | d) = (n_cd + P(c)) / (n_d + 1), lift = P(c | d) / P(c):

``support:blend``       sum of q_d P(c | d) over the sum of q_d
``log_lift:blend``      sum of q_d log lift
``supporter:blend``     the largest q_d P(c | d)
``contradictor:blend``  the smallest q_d log lift (never above 0)

Counts are sparse (only pairs that occur), per leave-fold-out entry. To fill costs
O(active classes * classes they occur with) an image.
"""

import numpy as np
from numba import njit, prange
from scipy.sparse import csr_array

from features.blocks.types import Batch, Block, Column, Float, State, Training, fold_sums
from features.schema import Stack

ACTIVE = 0.02

COLUMNS = (
    ("support:blend", "sum q P(c|d) / sum q"),
    ("log_lift:blend", "sum q log lift"),
    ("supporter:blend", "max q P(c|d)"),
    ("contradictor:blend", "min q log lift"),
)


def _fit(train: Training) -> State:
    labels = train.labels.astype(np.float64)
    pattern = csr_array(labels.T @ labels)
    pattern.sort_indices()
    pairs = fold_sums(train, lambda images: _pair_counts(labels[images], pattern))
    count = fold_sums(
        train, lambda images: np.asarray(labels[images].sum(axis=0), dtype=np.float64).ravel()
    )
    n_images = fold_sums(train, lambda images: np.array(float(len(images))))
    return {
        "indptr": pattern.indptr.astype(np.int64),
        "indices": pattern.indices.astype(np.int32),
        "pairs": pairs.astype(np.float32),
        "count": count.astype(np.float32),
        "prior": ((count + 0.5) / (n_images[:, None] + 1)).astype(np.float32),
    }


def _pair_counts(labels: csr_array, pattern: csr_array) -> np.ndarray:
    """Co-occurrence counts of some images at the places of `pattern`, (n_places,)."""
    counts = csr_array(labels.T @ labels)
    counts.sort_indices()
    n_classes = pattern.shape[1]
    rows = np.repeat(np.arange(n_classes), np.diff(pattern.indptr)).astype(np.int64)
    own_rows = np.repeat(np.arange(n_classes), np.diff(counts.indptr)).astype(np.int64)
    keys = rows * n_classes + pattern.indices
    out = np.zeros(len(keys))
    out[np.searchsorted(keys, own_rows * n_classes + counts.indices)] = counts.data
    return out


def _columns(stack: Stack, state: State) -> list[Column]:
    models = tuple(stack.models)
    return [Column(name, "cooccurrence", formula, models, True) for name, formula in COLUMNS]


def _fill(batch: Batch, state: State, out: Float) -> None:
    _context(
        batch.blend,
        batch.entry,
        state["indptr"],
        state["indices"],
        state["pairs"],
        state["count"],
        state["prior"],
        batch.candidates.indptr,
        batch.row_class,
        out,
    )


@njit(parallel=True, cache=True, error_model="numpy")
def _context(  # type: ignore[no-untyped-def]
    blend, entry, indptr, indices, pairs, count, prior, row_indptr, classes, out
):
    """Fill the four columns, one image at a time.

    A pair that never occurs has P(c | d) = P(c) / (n_d + 1) and log lift -log(n_d + 1): every
    class starts from these, the pairs that do occur are corrected.
    """
    n_classes = blend.shape[1]
    for image in prange(len(blend)):
        e = entry[image]
        q = blend[image]
        correction = np.zeros((4, n_classes), dtype=np.float32)
        mass = np.float32(0)
        base_support = np.float32(0)
        base_lift = np.float32(0)
        for d in range(n_classes):
            if q[d] < ACTIVE:
                continue
            missing = np.float32(1) / (count[e, d] + np.float32(1))
            mass += q[d]
            base_support += q[d] * missing
            base_lift += q[d] * np.log(missing)
            for place in range(indptr[d], indptr[d + 1]):
                c = indices[place]
                if c == d:
                    # The row's own class says nothing about itself: take its share back.
                    correction[0, c] -= q[d] * missing * prior[e, c]
                    correction[1, c] -= q[d] * np.log(missing)
                    continue
                conditional = (pairs[e, place] + prior[e, c]) * missing
                log_lift = np.log(conditional / prior[e, c])
                correction[0, c] += q[d] * (conditional - missing * prior[e, c])
                correction[1, c] += q[d] * (log_lift - np.log(missing))
                correction[2, c] = max(correction[2, c], q[d] * conditional)
        for row in range(row_indptr[image], row_indptr[image + 1]):
            c = classes[row]
            own = q[c] if q[c] >= ACTIVE else np.float32(0)
            others = mass - own
            support = base_support * prior[e, c] + correction[0, c]
            out[row, 0] = support / others if others > 0 else prior[e, c]
            out[row, 1] = base_lift + correction[1, c]
            out[row, 2] = correction[2, c]
            out[row, 3] = _contradiction(q, e, c, indptr, indices, pairs, count, prior)


@njit(cache=True, error_model="numpy")
def _contradiction(q, e, c, indptr, indices, pairs, count, prior):  # type: ignore[no-untyped-def]
    """Smallest q_d * log lift(c, d) over the active classes d other than c, at most 0."""
    lowest = np.float32(0)
    for d in range(len(q)):
        if q[d] < ACTIVE or d == c:
            continue
        low, high = indptr[d], indptr[d + 1]
        place = low + np.searchsorted(indices[low:high], c)
        both = pairs[e, place] if place < high and indices[place] == c else np.float32(0)
        conditional = (both + prior[e, c]) / (count[e, d] + np.float32(1))
        lowest = min(lowest, q[d] * np.log(conditional / prior[e, c]))
    return lowest


COOCCURRENCE = Block("cooccurrence", _fit, _columns, _fill)
