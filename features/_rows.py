"""What may be written into each kind of store array, and how sparse rows are laid out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from features import _checks as checks

__all__ = ["along", "check_rows", "csr_to_topk", "image_axis", "model_of", "topk_to_csr"]

FINITE_KINDS = ("embeddings", "imagenet_logits")


def model_of(name: str) -> tuple[str, str]:
    """Kind and model of an array name: "topk/a/b/index" gives ("topk", "a/b")."""
    kind, _, rest = name.partition("/")
    return kind, rest.rpartition("/")[0] if kind == "topk" else rest


def image_axis(dims: tuple[str, ...]) -> int:
    """Which axis of an array runs over images."""
    return dims.index("image")


def along(values: NDArray[Any], ndim: int, axis: int) -> NDArray[Any]:
    """Reshape one value an image so that it broadcasts along the image axis."""
    return values.reshape([-1 if a == axis else 1 for a in range(ndim)])


def check_rows(
    name: str, values: NDArray[Any], *, image_ids: NDArray[np.str_], classes: NDArray[np.str_]
) -> None:
    """Refuse rows that the array `name` may not hold; `values` has images first or second.

    Parameters
    ----------
    name : str
        For example "probabilities/lite0.linear".
    values : array of shape (n_rows, ...), or (n_folds, n_rows, n_classes) for fold_probabilities
    image_ids : str array of shape (n_rows,)
        For the message.
    classes : str array of shape (n_classes,)
    """
    kind, model = model_of(name)
    if kind == "probabilities":
        checks.check_probabilities(values, model=model, image_ids=image_ids, classes=classes)
    elif kind == "fold_probabilities":
        for fold in values:
            # A fold model that did not predict an image leaves its whole row NaN.
            given = ~np.isnan(fold).all(axis=1)
            checks.check_probabilities(
                fold[given], model=model, image_ids=image_ids[given], classes=classes
            )
    elif kind == "topk" and name.endswith("/value"):
        ranks = np.array([f"rank {r}" for r in range(values.shape[1])])
        checks.check_probabilities(values, model=model, image_ids=image_ids, classes=ranks)
    elif kind == "topk":
        _check_topk_index(values, model, image_ids, len(classes))
    elif kind in FINITE_KINDS:
        checks.check_finite(values, what=f"{kind} of {model!r}", image_ids=image_ids)


def _check_topk_index(
    index: NDArray[Any], model: str, image_ids: NDArray[np.str_], n_classes: int
) -> None:
    """Class positions, each once a row; -1 fills rows with fewer than k."""
    wrong = ((index < -1) | (index >= n_classes)).any(axis=1)
    ordered = np.sort(index, axis=1)
    wrong |= ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if wrong.any():
        image = str(image_ids[int(np.flatnonzero(wrong)[0])])
        raise ValueError(
            f"topk of model {model!r} must hold class positions in 0..{n_classes - 1}, each once "
            f"an image, or -1; {int(wrong.sum()):,} images do not, first: {image!r}"
        )


def csr_to_topk(matrix: sparse.csr_array, k: int) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Lay CSR rows out as (n_images, k) class positions and values, best first.

    The matrix must be canonical. Rows with fewer than `k` entries end in position -1 with value 0.
    Equal values stand in class order, so the result depends on the content alone.
    """
    n_images, counts = matrix.shape[0], np.diff(matrix.indptr)
    filled = np.arange(k) < counts[:, None]
    index = np.full((n_images, k), -1, dtype=np.int32)
    value = np.zeros((n_images, k), dtype=matrix.data.dtype)
    index[filled], value[filled] = matrix.indices, matrix.data
    # Stable over class order; what fills the short rows sorts last.
    order = np.argsort(np.where(filled, -value, np.inf), axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(value, order, axis=1)


def topk_to_csr(index: NDArray[np.int32], value: NDArray[Any], n_classes: int) -> sparse.csr_array:
    """Turn top-k arrays of shape (n_images, k) back into CSR, shape (n_images, n_classes)."""
    kept = index >= 0
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1), dtype=np.int64)])
    matrix = sparse.csr_array((value[kept], index[kept], indptr), shape=(len(index), n_classes))
    matrix.sort_indices()
    return matrix
