"""Kernel ridge regression of the labels: every training image votes, with weights that were fitted.

``ridge:all``: the label of the row's class as predicted from the mean cosine s of all spaces
(:mod:`features.blocks.spaces`), kernel exp(bandwidth * (s - 1)), penalty on the diagonal (Saunders,
Gammerman and Vovk, 1998). Neighbours ask who is nearest; this asks what all images together say,
and discounts those that say the same.

A fold's coefficients are found from the other folds' labels alone; the inverse of the kernel
matrix, which reads no label, serves every fold (block inversion). O(n_training**3) to fit, with
at most MOST_IMAGES evenly spaced training images; O(n_training) a row to fill. Coefficients are
int16: the state takes 2 * (n_folds + 1) * n_training * n_classes bytes.
"""

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from features.blocks._blas import blas_on_one_thread
from features.blocks.neighbours import cosine
from features.blocks.spaces import Codes, space_names
from features.blocks.types import Batch, Block, Column, Float, State, Training
from features.schema import Stack

PENALTY = 0.1
BANDWIDTH = 2.0
MOST_IMAGES = 6_000  # training images in the kernel: 300 MB, a minute of one core
MOST_CLASSES = 3_000
QUANTA = 32_767


def _fit(
    train: Training,
    *,
    penalty: float = PENALTY,
    bandwidth: float = BANDWIDTH,
    most_images: int = MOST_IMAGES,
) -> State:
    if not penalty > 0 or not bandwidth > 0:
        raise ValueError(
            f"penalty and bandwidth of kernel_ridge must be above 0. "
            f"Got {penalty!r} and {bandwidth!r} instead."
        )
    n_images = len(train.fold)
    used = np.unique(np.linspace(0, n_images - 1, min(n_images, most_images)).astype(np.int64))
    state: State = {"spaces": space_names(train.stack), "bandwidth": float(bandwidth)}
    for name in state["spaces"]:
        codes = train.codes(name)
        state |= {f"{name}/values": codes.values[used], f"{name}/norms": codes.norms[used]}
    own = {name: _reference(state, name) for name in state["spaces"]}
    with blas_on_one_thread():
        kernel = _kernel(own, state).astype(np.float64)
        kernel[np.diag_indices_from(kernel)] += penalty
        inverse = np.linalg.inv(kernel)
        labels, fold = train.labels[used].toarray(), train.fold[used]
        return state | _coefficients(inverse, labels, fold, train.n_folds)


def _coefficients(
    inverse: NDArray[np.floating[Any]],
    labels: NDArray[np.int8],
    fold: NDArray[np.int64],
    n_folds: int,
) -> State:
    """Dual coefficients without each fold, and with all.

    Returns
    -------
    "steps" int16 (n_folds + 1, n_classes, n_images), "scale" and "mean" float32 (n_folds + 1,
    n_classes): coefficient = step * scale
    """
    n_images, n_classes = labels.shape
    steps = np.zeros((n_folds + 1, n_classes, n_images), dtype=np.int16)
    scale, mean = np.empty((2, n_folds + 1, n_classes), dtype=np.float32)
    for k in range(n_folds + 1):
        known, out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        # A fold may hold all images that the kernel has.
        mean[k] = labels[known].mean(axis=0) if len(known) else 0
        weights = inverse[:, known] @ (labels[known] - mean[k].astype(np.float64))
        # The inverse without a fold's rows, from the whole one.
        gone = np.linalg.solve(inverse[np.ix_(out, out)], weights[out])
        weights -= inverse[:, out] @ gone
        weights[out] = 0
        largest = np.abs(weights).max(axis=0, initial=0)
        scale[k] = np.where(largest > 0, largest / QUANTA, 1)
        steps[k] = np.rint(weights / scale[k]).T
    return {"steps": steps, "scale": scale, "mean": mean}


def _kernel(queries: dict[str, Codes], state: State) -> Float:
    """Kernel of every query and training image, float32 (n_queries, n_training)."""
    total = sum(cosine(query, _reference(state, name)) for name, query in queries.items())
    return _rise(total / np.float32(len(queries)), np.float32(state["bandwidth"]))


def _reference(state: State, name: str) -> Codes:
    return Codes(state[f"{name}/values"], state[f"{name}/norms"])


def _columns(stack: Stack, state: State) -> list[Column]:
    formula = "kernel ridge regression of the label"
    return [Column("ridge:all", "kernel_ridge", formula, tuple(state["spaces"]), True)]


def _fill(batch: Batch, state: State, out: Float) -> None:
    kernel = _kernel({name: batch.codes(name) for name in state["spaces"]}, state)
    _predict(
        kernel,
        state["steps"],
        state["scale"],
        state["mean"],
        batch.entry,
        batch.row_image,
        batch.row_class,
        out[:, 0],
    )


@njit(parallel=True, cache=True)
def _rise(similarity, bandwidth):  # type: ignore[no-untyped-def]
    """exp(bandwidth * (similarity - 1)) of every pair; the same bits whatever the shape."""
    out = np.empty_like(similarity)
    for i in prange(len(similarity)):
        for j in range(similarity.shape[1]):
            out[i, j] = np.exp(bandwidth * (similarity[i, j] - np.float32(1)))
    return out


# Sums may be reordered, by the same code for every row: a batch changes no bit.
@njit(parallel=True, cache=True, fastmath={"reassoc"})
def _predict(  # type: ignore[no-untyped-def]
    kernel, steps, scale, mean, entry, row_image, row_class, out
):
    """Fill (n_rows,) with the predicted label of each row."""
    for row in prange(len(row_image)):
        i, c = row_image[row], row_class[row]
        e = entry[i]
        own, weights = kernel[i], steps[e, c]
        total = np.float32(0)
        for j in range(len(weights)):
            total += own[j] * np.float32(weights[j])
        out[row] = total * scale[e, c] + mean[e, c]


def _available(stack: Stack) -> str:
    n_classes = len(stack.classes)
    return "" if n_classes <= MOST_CLASSES else f"at most {MOST_CLASSES:,} classes"


KERNEL_RIDGE = Block(
    "kernel_ridge",
    _fit,
    _columns,
    _fill,
    available=_available,
    default=False,
    compares_images=True,
    options={"penalty": PENALTY, "bandwidth": BANDWIDTH, "most_images": MOST_IMAGES},
)
