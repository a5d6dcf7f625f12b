"""Probabilities of images and classes, dense or CSR: the few operations that fitting needs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse, vstack

__all__ = ["cells", "join_rows", "spread_rows", "values_of"]


def values_of(proba: Any) -> NDArray[Any]:
    """Give the stored numbers, to be indexed with `cells`."""
    stored: NDArray[Any] = proba.data if issparse(proba) else proba
    return stored


def cells(proba: Any, image: NDArray[Any], cls: NDArray[Any]) -> Any:
    """Where single (image, class) pairs stand in `values_of(proba)`.

    Raises
    ------
    ValueError
        For a pair that a CSR array does not store.

    Examples
    --------
    >>> proba = csr_array([[0.0, 0.5, 0.25]])
    >>> values_of(proba)[cells(proba, np.array([0, 0]), np.array([2, 1]))].tolist()
    [0.25, 0.5]
    """
    if not issparse(proba):
        return image, cls
    out = np.empty(len(image), dtype=np.int64)
    indptr, indices = proba.indptr.astype(np.int64), proba.indices.astype(np.int32)
    _find(indptr, indices, image.astype(np.int64), cls.astype(np.int32), out)
    if len(out) and out.min() < 0:
        lost = int(np.argmin(out))
        raise ValueError(f"no model holds class {cls[lost]} of image {image[lost]}.")
    return out


@njit(parallel=True, cache=True)
def _find(indptr, indices, image, cls, out):  # type: ignore[no-untyped-def]
    """Binary search in each row; -1 where there is no such entry."""
    for i in prange(len(out)):
        low, high = indptr[image[i]], indptr[image[i] + 1]
        while low < high:
            middle = (low + high) // 2
            if indices[middle] < cls[i]:
                low = middle + 1
            else:
                high = middle
        found = low < indptr[image[i] + 1] and indices[low] == cls[i]
        out[i] = low if found else -1


def join_rows(parts: Sequence[Any], rows: Sequence[NDArray[np.intp]]) -> Any:
    """Put matrices of some images together; `rows` says where each one's images belong."""
    order = np.concatenate(rows)
    if any(map(issparse, parts)):
        return csr_array(vstack(parts, format="csr"))[np.argsort(order)]
    out = np.empty((len(order), parts[0].shape[1]), dtype=parts[0].dtype)
    for part, own in zip(parts, rows, strict=True):
        out[own] = part
    return out


def spread_rows(proba: Any, picked: NDArray[np.intp], n_images: int) -> Any:
    """Give every image a row: those that were not picked are NaN, or empty in a CSR array."""
    if issparse(proba):
        sizes = np.zeros(n_images, dtype=np.int64)
        sizes[picked] = np.diff(proba.indptr)
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        shape = (n_images, proba.shape[1])
        return csr_array((proba.data, proba.indices, indptr), shape=shape)
    out = np.full((n_images, proba.shape[1]), np.nan, dtype=np.float32)
    out[picked] = proba
    return out
