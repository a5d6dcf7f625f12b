"""Whether predictions fit the labels: rows or columns in another order, two columns exchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["exchanged_columns", "fit_of_labels", "is_ordered"]

# Share of classes whose positives must look more probable than the others, and how many standard
# errors more over all classes; unrelated rows give about a half, and 0.
LEAST_ORDERED, LEAST_Z = 0.65, 4.0
FEWEST_CLASSES = 5  # with fewer the share says little
# Standard errors by which two columns must fit each other's labels better than their own: at 5 and
# 3 one honest pair of rare openclipart classes (14 images each) was taken for exchanged.
EXCHANGED_Z, BETTER_Z = 6.0, 4.0
FEWEST_IMAGES = 5  # with one label and without the other
CLASSES_AT_ONCE = 512


def fit_of_labels(values: NDArray[Any], Y: NDArray[np.int8]) -> tuple[float, float, int] | None:
    """How well one model's probabilities fit the labels.

    Parameters
    ----------
    values : float array of shape (n_images, n_classes)
    Y : 0/1 array of shape (n_images, n_classes)

    Returns
    -------
    share of classes whose positives look more probable than the other images, standard errors
    from chance over all classes, number of classes; None where there are too few classes to tell
    """
    n_positive = Y.sum(axis=0)
    some = np.flatnonzero((n_positive > 0) & (n_positive < len(Y)))
    if len(some) < FEWEST_CLASSES:
        return None
    n = n_positive[some]
    seen = values[:, some]
    gain = np.einsum("ic,ic->c", seen, Y[:, some]) / n - seen.mean(axis=0, dtype=np.float64)
    # Of the mean of n out of N values, drawn without replacement.
    error = seen.std(axis=0, dtype=np.float64) * np.sqrt((len(Y) - n) / (n * (len(Y) - 1)))
    z = float((gain / np.maximum(error, 1e-12)).sum() / np.sqrt(len(some)))
    return float((gain > 0).mean()), z, len(some)


def is_ordered(share: float, z: float) -> bool:
    """Whether rows and columns seem to be in the order of the labels."""
    return share >= LEAST_ORDERED and z >= LEAST_Z


def exchanged_columns(values: NDArray[Any], Y: NDArray[np.int8]) -> list[tuple[int, int]]:
    """Pairs of columns that fit each other's labels much better than their own.

    Parameters
    ----------
    values : float array of shape (n_images, n_classes)
    Y : 0/1 array of shape (n_images, n_classes)

    Returns
    -------
    list of pairs of class positions
        Classes that (nearly) always come together are not told apart.
    """
    fits = _better_columns(values, sparse.csc_array(Y))
    # Co-occurrence makes one of two columns fit the other's labels, hardly ever both.
    mutual = fits[(fits[:, 0] < fits[:, 1]) & np.isin(_codes(fits), _codes(fits[:, ::-1]))]
    return [(int(a), int(b)) for a, b in mutual if _are_exchanged(values, Y, a, b)]


def _codes(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    return pairs[:, 0] << 32 | pairs[:, 1]


def _better_columns(values: NDArray[Any], Y: sparse.csc_array) -> NDArray[np.int64]:
    """Pairs (class, column) whose labels raise the column more than their own, (n_pairs, 2)."""
    mean = values.mean(axis=0, dtype=np.float64)
    scale = np.maximum(values.std(axis=0, dtype=np.float64), 1e-12)
    n_positive = np.diff(Y.indptr)
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, Y.shape[1], CLASSES_AT_ONCE):
        own = np.arange(start, min(start + CLASSES_AT_ONCE, Y.shape[1]))
        n = n_positive[own, None]
        # In standard errors, were the images drawn at random.
        rise = (Y[:, own].T @ values - n * mean) / (scale * np.sqrt(np.maximum(n, 1)))
        better = np.argwhere(rise > rise[np.arange(len(own)), own][:, None] + BETTER_Z)
        found.append(np.add(better, np.array([start, 0])))
    return np.concatenate(found)


def _are_exchanged(values: NDArray[Any], Y: NDArray[np.int8], a: int, b: int) -> bool:
    """Whether images with one of two labels look as if they had the other."""
    lead = values[:, a].astype(np.float64) - values[:, b]
    of_a, of_b = lead[Y[:, a] > Y[:, b]], lead[Y[:, b] > Y[:, a]]
    if min(len(of_a), len(of_b)) < FEWEST_IMAGES:
        return False
    error = np.sqrt(of_a.var(ddof=1) / len(of_a) + of_b.var(ddof=1) / len(of_b))
    return bool(of_b.mean() - of_a.mean() > EXCHANGED_Z * max(error, 1e-12))
