"""What training says about a class: how frequent it is, what its positives look like.

``class_prior``: smoothed log-odds of the class, its number of positives, the blended p on its
positives and on its negatives (each shrunk to the mean over classes), and its class group.
``class_id``: the class as a number, off by default: where a class's positives come from few
groups of images it memorises (docs/features.md). ``class_similarity``: cosine of the image to
the class's centroid in every space.

All fitted without the row's own fold; O(n_images * n_classes) to fit, one look-up a row to fill
(class_similarity: O(n_rows * n_dimensions) a space).
"""

from functools import partial

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from features.blending import column_sums, pair_values
from features.blocks.spaces import quantise, space_names, unit_vectors
from features.blocks.types import (
    Batch,
    Block,
    Column,
    Float,
    State,
    Training,
    fold_sums,
    nothing_to_fit,
)
from features.schema import Stack

SHRINKAGE = 5.0  # a class's own mean counts in full from about this many positives

PRIOR_COLUMNS = (
    ("prior_logit:class", "log((n + 1) / (N - n + 1))"),
    ("positives:class", "training images with the class"),
    ("p_positive:class", "mean blended p on positives, shrunk"),
    ("p_negative:class", "mean blended p on negatives, shrunk"),
    ("group:class", "class group, a number"),
)


def _fit_prior(train: Training) -> State:
    n_images = fold_sums(train, lambda images: np.array(float(len(images))))
    count = fold_sums(train, lambda images: _columns_sum(train.labels[images]))
    on_positives = fold_sums(train, partial(_positive_blend, train))
    everywhere = fold_sums(train, lambda images: column_sums(train.blend, images))
    negatives = n_images[:, None] - count
    table = np.stack(
        [
            np.log((count + 1) / (negatives + 1)),
            count,
            shrunk_mean(on_positives, count),
            shrunk_mean(everywhere - on_positives, negatives),
            np.broadcast_to(train.space.group_codes, count.shape),
        ],
        axis=-1,
    )
    return {"table": table.astype(np.float32)}


def _positive_blend(train: Training, images: NDArray[np.int64]) -> np.ndarray:
    """Sum of the blended p over each class's positives, float64 (n_classes,)."""
    pairs = train.labels[images].tocoo()
    probs = pair_values(train.blend, images[pairs.row], pairs.col)
    sums = np.bincount(pairs.col, weights=probs, minlength=len(train.space))
    return sums.astype(np.float64)  # of nothing numpy makes integers


def _columns_sum(matrix: object) -> np.ndarray:
    return np.asarray(matrix.sum(axis=0), dtype=np.float64).ravel()  # type: ignore[attr-defined]


def shrunk_mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean of each class pulled to the mean over all classes of its entry.

    Parameters
    ----------
    total, count : float64 arrays of shape (n_entries, n_classes)
    """
    overall = total.sum(axis=1, keepdims=True) / np.maximum(count.sum(axis=1, keepdims=True), 1)
    return (total + SHRINKAGE * overall) / (count + SHRINKAGE)


def _prior_columns(stack: Stack, state: State) -> list[Column]:
    return [Column(name, "class_prior", formula, (), True) for name, formula in PRIOR_COLUMNS]


def _fill_prior(batch: Batch, state: State, out: Float) -> None:
    out[:] = state["table"][batch.entry[batch.row_image], batch.row_class]


def _fit_similarity(train: Training) -> State:
    state: State = {"spaces": space_names(train.stack)}
    for name in state["spaces"]:
        units = unit_vectors(train.codes(name))
        centroids = quantise(fold_sums(train, partial(_positive_sums, train, units)))
        state |= {f"{name}/values": centroids.values, f"{name}/norms": centroids.norms}
    return state


def _positive_sums(train: Training, units: Float, images: NDArray[np.int64]) -> Float:
    """Sum of the vectors of each class's positives, (n_classes, n_dimensions)."""
    return train.labels[images].astype(np.float32).T @ units[images]


def _similarity_columns(stack: Stack, state: State) -> list[Column]:
    return [
        Column(f"centroid:{name}", "class_similarity", "cosine to the class mean", (name,), True)
        for name in state["spaces"]
    ]


def _fill_similarity(batch: Batch, state: State, out: Float) -> None:
    for column, name in enumerate(state["spaces"]):
        codes = batch.codes(name)
        _cosine_rows(
            codes.values,
            codes.norms,
            state[f"{name}/values"],
            state[f"{name}/norms"],
            batch.entry,
            batch.row_image,
            batch.row_class,
            out[:, column],
        )


@njit(parallel=True, cache=True)
def _cosine_rows(  # type: ignore[no-untyped-def]
    images, image_norms, centroids, centroid_norms, entry, row_image, row_class, out
):
    """Fill (n_rows,) with the cosine of each row's image and its class's centroid."""
    for row in prange(len(row_image)):
        i, c = row_image[row], row_class[row]
        e = entry[i]
        dot = np.int32(0)
        for d in range(images.shape[1]):
            dot += np.int32(images[i, d]) * np.int32(centroids[e, c, d])
        out[row] = np.float32(dot) / (image_norms[i] * centroid_norms[e, c])


def _id_columns(stack: Stack, state: State) -> list[Column]:
    return [Column("class_id", "class_id", "position of the class, a categorical")]


def _fill_id(batch: Batch, state: State, out: Float) -> None:
    out[:, 0] = batch.row_class


CLASS_PRIOR = Block("class_prior", _fit_prior, _prior_columns, _fill_prior)
CLASS_ID = Block("class_id", nothing_to_fit, _id_columns, _fill_id, default=False)
CLASS_SIMILARITY = Block(
    "class_similarity",
    _fit_similarity,
    _similarity_columns,
    _fill_similarity,
    compares_images=True,
)
