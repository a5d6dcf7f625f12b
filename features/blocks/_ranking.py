"""The rank of a class among all classes of its image."""

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray


def count_above(
    probs: NDArray[np.float32], indptr: NDArray[np.int64], classes: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Count, for every row and model, the classes that the model puts above the row's class.

    Parameters
    ----------
    probs : float32 array of shape (n_models, n_images, n_classes)
    indptr : int64 array of shape (n_images + 1,)
        Rows ``indptr[i]:indptr[i + 1]`` belong to image i.
    classes : int32 array of shape (n_rows,)

    Returns
    -------
    float32 array of shape (n_rows, n_models)
        0 for the most probable class; equal probabilities share a rank.
    """
    out = np.empty((len(classes), len(probs)), dtype=np.float32)
    _count_above(probs, indptr, classes, out)
    return out


@njit(parallel=True, cache=True)
def _count_above(probs: Any, indptr: Any, classes: Any, out: Any) -> None:
    """Compare each row's class with every class: branch-free, so it runs on whole vectors."""
    for image in prange(len(indptr) - 1):
        others = np.empty(probs.shape[2], dtype=np.float32)
        for m in range(len(probs)):
            values = probs[m, image]
            # What is 0 stands above nothing: of a top-k stack that is nearly every class.
            n_others = 0
            for value in values:
                others[n_others] = value
                n_others += value > 0
            for row in range(indptr[image], indptr[image + 1]):
                own = values[classes[row]]
                above = np.int32(0)
                for other in others[:n_others]:
                    above += np.int32(other > own)
                out[row, m] = above
