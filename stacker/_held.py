"""The pairs that some model of a top-k stack holds: all that a blend of such a stack computes.

With tens of thousands of classes a matrix of images x classes does not fit anywhere; the pairs
that no model holds have probability 0 in every blend, and are not stored.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy.sparse import csr_array

from features.numeric import logit
from features.schema import Stack
from stacker._logistic import fit_pairs

__all__ = ["HeldPairs", "fit_held", "held_pairs", "mark_labels"]

Float = NDArray[np.float32]


@dataclass(frozen=True)
class HeldPairs:
    """Pairs of a top-k stack, sorted by image then class.

    Attributes
    ----------
    indptr : int64 array of shape (n_images + 1,)
    classes : int32 array of shape (n_pairs,)
    probs : float32 array of shape (n_models, n_pairs)
        0 where a model does not hold the pair.
    n_classes : int
    """

    indptr: NDArray[np.int64]
    classes: NDArray[np.int32]
    probs: Float
    n_classes: int

    def matrix(self, values: Float) -> csr_array:
        """CSR array of a value for each pair."""
        shape = (len(self.indptr) - 1, self.n_classes)
        return csr_array((values, self.classes, self.indptr), shape=shape)


def held_pairs(stack: Stack) -> HeldPairs:
    """Merge the models' pairs.

    Examples
    --------
    >>> a, b = csr_array([[0.0, 0.5]]), csr_array([[0.25, 0.0]])
    >>> found = held_pairs(Stack({"a": a, "b": b}))
    >>> found.classes.tolist(), found.probs.tolist()
    ([0, 1], [[0.0, 0.5], [0.25, 0.0]])
    """
    parts: list[Any] = list(stack.probabilities.values())
    starts = np.stack([part.indptr.astype(np.int64) for part in parts])
    # One flat array each, so that the kernel takes any number of models.
    offsets = np.concatenate([[0], np.cumsum([part.nnz for part in parts])]).astype(np.int64)
    classes = np.concatenate([part.indices.astype(np.int32) for part in parts])
    values = np.concatenate([part.data.astype(np.float32) for part in parts])
    n_images, n_classes = len(stack), len(stack.classes)
    sizes = np.zeros(n_images, dtype=np.int64)
    nothing = np.empty(0, dtype=np.int32), np.empty((len(parts), 0), dtype=np.float32)
    _merge(starts, offsets, classes, values, np.empty(0, np.int64), sizes, *nothing)
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    found = np.empty(indptr[-1], dtype=np.int32)
    probs = np.zeros((len(parts), len(found)), dtype=np.float32)
    _merge(starts, offsets, classes, values, indptr, sizes, found, probs)
    return HeldPairs(indptr, found, probs, n_classes)


@njit(parallel=True, cache=True)
def _merge(starts, offsets, classes, values, indptr, sizes, found, probs):  # type: ignore[no-untyped-def]
    """Merge each image's sorted lists; without `indptr` only count what comes out."""
    n_models, n_images = starts.shape[0], starts.shape[1] - 1
    for image in prange(n_images):
        at, stop = np.empty(n_models, dtype=np.int64), np.empty(n_models, dtype=np.int64)
        for m in range(n_models):
            at[m] = offsets[m] + starts[m, image]
            stop[m] = offsets[m] + starts[m, image + 1]
        n = 0
        while True:
            least = np.int32(2**31 - 1)
            for m in range(n_models):
                if at[m] < stop[m] and classes[at[m]] < least:
                    least = classes[at[m]]
            if least == 2**31 - 1:
                break
            for m in range(n_models):
                if at[m] < stop[m] and classes[at[m]] == least:
                    if len(indptr):
                        probs[m, indptr[image] + n] = values[at[m]]
                    at[m] += 1
            if len(indptr):
                found[indptr[image] + n] = least
            n += 1
        sizes[image] = n


def mark_labels(
    indptr: NDArray[np.int64], classes: NDArray[np.int32], labels: csr_array
) -> NDArray[np.bool_]:
    """Say which pairs, sorted by image then class, are labels, bool (n_pairs,)."""
    out = np.zeros(len(classes), dtype=np.bool_)
    kept = csr_array(labels, copy=True)
    kept.eliminate_zeros()
    kept.sort_indices()
    _mark(indptr, classes, kept.indptr.astype(np.int64), kept.indices.astype(np.int32), out)
    return out


@njit(parallel=True, cache=True)
def _mark(indptr, classes, label_indptr, label_classes, out):  # type: ignore[no-untyped-def]
    for image in prange(len(indptr) - 1):
        pair = indptr[image]
        for p in range(label_indptr[image], label_indptr[image + 1]):
            while pair < indptr[image + 1] and classes[pair] < label_classes[p]:
                pair += 1
            if pair < indptr[image + 1] and classes[pair] == label_classes[p]:
                out[pair] = True


def fit_held(
    held: HeldPairs, labels: csr_array, prior: NDArray[np.float64], precision: float
) -> NDArray[np.float64]:
    """Fit each class's logistic weights on a top-k stack.

    The same optimum as that of `stacker._logistic.fit_per_class` on the dense matrix: all images
    where no model holds the class are alike, and enter as two weighted observations.

    Returns
    -------
    float64 array of shape (n_classes, n_models + 1)
    """
    n_images, n_models = len(held.indptr) - 1, len(held.probs)
    marked = mark_labels(held.indptr, held.classes, labels)
    shape = (n_images, held.n_classes)
    by_class = csr_array((np.arange(len(marked)), held.classes, held.indptr), shape=shape).tocsc()
    order, sizes = by_class.data, np.diff(by_class.indptr)
    positives = np.asarray(labels.sum(axis=0), dtype=np.float64).ravel()
    missed = positives - np.bincount(held.classes[marked], minlength=held.n_classes)
    # Two observations end each class's pairs: all images where no model holds it, without and
    # with the label.
    starts = np.concatenate([[0], np.cumsum(sizes + 2, dtype=np.int64)])
    logits = np.full((starts[-1], n_models), logit(np.zeros(1))[0], dtype=np.float32)
    own, weight = np.zeros(len(logits)), np.ones(len(logits))
    places = np.arange(len(order)) + 2 * held.classes[order]
    logits[places] = logit(held.probs[:, order]).T
    own[places] = marked[order]
    own[starts[1:] - 1] = 1
    weight[starts[1:] - 2] = n_images - sizes - missed
    weight[starts[1:] - 1] = missed
    return fit_pairs(logits, own, weight, starts, prior, precision)
