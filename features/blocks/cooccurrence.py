"""What the image's other likely labels say about a class.

With q the blended probabilities of the image's active classes (q >= 0.02, the row's own class
left out) and counts n of training images that carry one or both labels, smoothed by
P(c | d) = (n_cd + P(c)) / (n_d + 1), lift = P(c | d) / P(c):

``support:blend``       sum of q_d P(c | d) over the sum of q_d
``log_lift:blend``      sum of q_d log lift
``supporter:blend``     the largest q_d P(c | d)
``contradictor:blend``  the smallest q_d log lift (never above 0)

Counts are sparse (only pairs that occur), per leave-fold-out entry; where a pair is stored must
not matter, for that alone would tell which labels the row's own fold has. To fill costs
O(active classes + classes it occurs with) a row.
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
    """Fill the four columns, row by row: one walk over the image's active classes."""
    n_classes = blend.shape[1]
    for image in prange(len(blend)):
        e = entry[image]
        active = np.empty(n_classes, dtype=np.int32)
        slot = np.full(n_classes, -1, dtype=np.int32)
        n_active = 0
        for d in range(n_classes):
            if blend[image, d] >= ACTIVE:
                active[n_active] = d
                slot[d] = n_active
                n_active += 1
        active = active[:n_active]
        q = blend[image][active]
        times = count[e][active] + np.float32(1)
        never = -np.log(times)  # log lift of a pair that never occurs: most of them
        together = np.zeros(n_active, dtype=np.float32)
        for row in range(row_indptr[image], row_indptr[image + 1]):
            c = classes[row]
            for place in range(indptr[c], indptr[c + 1]):
                if slot[indices[place]] >= 0:
                    together[slot[indices[place]]] = pairs[e, place]
            _summarise(q, times, never, together, prior[e, c], slot[c], out[row])
            together[:] = 0


@njit(cache=True, error_model="numpy")
def _summarise(q, times, never, together, prior, own, out):  # type: ignore[no-untyped-def]
    """Fill one row: what every active class but the own one says about the row's class."""
    mass, support, lifts = 0.0, 0.0, 0.0
    supporter, contradictor = np.float32(0), np.float32(0)
    for j in range(len(q)):
        if j == own:
            continue
        given = (together[j] + prior) / times[j]
        pull = q[j] * (np.log(given / prior) if together[j] > 0 else never[j])
        mass += q[j]
        support += q[j] * given
        lifts += pull
        supporter = max(supporter, q[j] * given)
        contradictor = min(contradictor, pull)
    out[0] = support / mass if mass > 0 else prior
    out[1] = lifts
    out[2] = supporter
    out[3] = contradictor


COOCCURRENCE = Block("cooccurrence", _fit, _columns, _fill)
