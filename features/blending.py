"""The logit mean of a stack's models: the probability that ranks classes and gives context.

Dense stacks have a dense blend. Of a top-k stack (CSR) only the classes that some model holds are
kept; all others share one value, the floor: what the logit mean says when every model says 0.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from features.numeric import logit, logit_mean, sigmoid
from features.schema import Stack

Float = NDArray[np.float32]

FLOOR = float(sigmoid(logit(np.zeros(1)))[0])  # the blend of a class that no model holds
CELLS_AT_ONCE = 2**24  # images x classes made dense at a time: 64 MB a model


@dataclass(frozen=True)
class SparseBlend:
    """Blend of a top-k stack.

    Attributes
    ----------
    values : float32 CSR array of shape (n_images, n_classes)
        Above the floor where stored.
    """

    values: csr_array

    def __len__(self) -> int:
        return int(self.values.shape[0])


Blend = Float | SparseBlend


def dense_probs(stack: Stack) -> Float:
    """Probabilities of a few images, float32 (n_models, n_images, n_classes)."""
    out = np.empty((len(stack.models), len(stack), len(stack.classes)), dtype=np.float32)
    for m, values in enumerate(stack.probabilities.values()):
        copy_to_float32(values.toarray() if hasattr(values, "toarray") else values, out[m])
    return out


def copy_to_float32(values: NDArray[Any], out: Float) -> None:
    """Copy an array; float16 by a table of all its values, ten times as fast as a cast."""
    if values.dtype == np.float16 and values.flags.c_contiguous:
        _look_up(values.reshape(-1).view(np.uint16), _half_values(), out.reshape(-1))
    else:
        out[...] = values


@lru_cache(maxsize=1)
def _half_values() -> Float:
    """Value of each of the 65,536 bit patterns of float16."""
    return np.arange(65_536, dtype=np.uint16).view(np.float16).astype(np.float32)


@njit(parallel=True, cache=True)
def _look_up(codes, table, out):  # type: ignore[no-untyped-def]
    for i in prange(len(codes)):
        out[i] = table[codes[i]]


def images_at_once(n_classes: int) -> int:
    """How many images to make dense at a time: about `CELLS_AT_ONCE` numbers."""
    return max(1, min(4096, CELLS_AT_ONCE // max(n_classes, 1)))


def stack_blend(stack: Stack) -> Blend:
    """Logit mean of every image, computed range by range.

    Returns
    -------
    float32 array of shape (n_images, n_classes), or SparseBlend of a top-k stack
    """
    if stack.is_sparse:
        return _sparse_blend(stack)
    n_images, _, n_classes = stack.shape
    out = np.empty((n_images, n_classes), dtype=np.float32)
    step = images_at_once(n_classes * len(stack.models))
    for start in range(0, n_images, step):
        out[start : start + step] = logit_mean(dense_probs(stack[start : start + step]))
    return out


def blend_of(stack: Stack, probs: Float) -> Blend:
    """Blend of a few images whose `dense_probs` are there already."""
    return _sparse_blend(stack) if stack.is_sparse else logit_mean(probs)


def _sparse_blend(stack: Stack) -> SparseBlend:
    """Add up what each model says above "no": a class that it does not hold adds nothing."""
    nothing = logit(np.zeros(1))
    total = csr_array((len(stack), len(stack.classes)), dtype=np.float32)
    for values in stack.probabilities.values():
        above = csr_array(values, dtype=np.float32, copy=True)
        above.data = (logit(above.data) - nothing) / np.float32(len(stack.models))
        total = total + above
    total.eliminate_zeros()
    total.sort_indices()
    total.data = sigmoid(total.data + nothing)
    return SparseBlend(total)


def dense_rows(blend: Blend, rows: slice | NDArray[np.integer]) -> Float:
    """Blend of some images, float32 (n_rows, n_classes)."""
    if not isinstance(blend, SparseBlend):
        return blend[rows]
    some = blend.values[rows]
    out = np.full(some.shape, FLOOR, dtype=np.float32)
    out[np.repeat(np.arange(len(out)), np.diff(some.indptr)), some.indices] = some.data
    return out


def pair_values(blend: Blend, rows: NDArray[np.integer], cols: NDArray[np.integer]) -> Float:
    """Blend of single (image, class) pairs, float32 (n_pairs,)."""
    if not isinstance(blend, SparseBlend):
        return blend[rows, cols]
    found = blend.values[rows, cols]
    # Older scipy returns an array here, newer a sparse one.
    values = np.asarray(found.toarray() if issparse(found) else found, dtype=np.float32).ravel()
    return np.where(values > 0, values, np.float32(FLOOR))


def column_sums(blend: Blend, rows: NDArray[np.integer]) -> NDArray[np.float64]:
    """Sum of each class over some images, float64 (n_classes,)."""
    if not isinstance(blend, SparseBlend):
        return np.asarray(blend[rows].sum(axis=0, dtype=np.float64))
    some = blend.values[rows]
    n_classes = some.shape[1]
    stored = np.bincount(some.indices, minlength=n_classes)
    total = np.bincount(some.indices, weights=some.data, minlength=n_classes)
    return np.asarray(total + FLOOR * (len(rows) - stored))
