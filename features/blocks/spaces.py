"""Spaces in which images are compared: embeddings, ImageNet logits, statistics, predictions.

An image becomes a short vector of small integers: centred, projected on the leading principal
axes with half-whitened scale, then rounded to int8. Two reasons. Half-whitening (dividing by
the fourth root of the variance) makes the cosine listen to the finer directions. And integer
dot products are exact in any order, so a feature does not depend on batch size, thread count or
the order of images.

Image statistics (docs/recipes.md: A11-A13) come as normal scores of their ranks, and with constant
coordinates beside them: on such a lifted vector the cosine falls with the Euclidean distance, so
that images of one series (one canvas, one palette) find each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numba import njit, prange
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.special import ndtri

from features.blending import Blend, dense_rows, images_at_once
from features.blocks._blas import blas_on_one_thread
from features.schema import Stack

Float = NDArray[np.float32]

DIMENSIONS = 256  # 256 * 127 * 127 < 2**24: such dot products are exact in float32 too
WHITENING = 0.5
MOST_ROWS = 20_000  # images that a projection is fitted on
MOST_FEATURES = 2048  # longer vectors keep the features that vary most
STATS = "image_stats"
N_KNOTS = 1001  # quantiles of a statistic that its normal scores are read from
LIFT = 3.0  # height of the constant coordinates, and the bound of the others
N_LIFT = 2


@dataclass(frozen=True)
class Projection:
    """The fitted map of one space.

    Attributes
    ----------
    mean : float32 array of shape (n_features,)
    axes : float32 array of shape (n_kept, n_dimensions)
    columns : int64 array of shape (n_kept,)
        The features that are read: all, or the ones that vary most.
    knots : float32 array of shape (n_knots, n_features)
        Sorted quantiles, for spaces of normal scores; none where values are taken as they are.
    """

    mean: Float
    axes: Float
    columns: NDArray[np.int64]
    knots: Float = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))


@dataclass(frozen=True)
class Codes:
    """Images in one space.

    Attributes
    ----------
    values : int8 array of shape (n_images, n_dimensions)
    norms : float32 array of shape (n_images,)
        Euclidean length of each row; 1 where the row is all zero.
    """

    values: NDArray[np.int8]
    norms: Float


def space_names(stack: Stack) -> list[str]:
    """Spaces that this stack has.

    ``embedding:<name>``, ``imagenet:<name>``, ``image_stats`` and ``blend``, in this order.
    """
    return [
        *(f"embedding:{name}" for name in stack.embeddings),
        *(f"imagenet:{name}" for name in stack.imagenet_logits),
        *([STATS] if stack.image_stats is not None else []),
        "blend",
    ]


def check_spaces(stack: Stack, projections: dict[str, Projection]) -> None:
    """Refuse a stack that lacks a fitted space, or has vectors of another length in it.

    The kernels trust the length: a shorter vector would be read beyond its end.
    """
    missing = sorted(set(projections) - set(space_names(stack)))
    if missing:
        raise ValueError(f"the stack must have the spaces it was fitted on; missing: {missing}.")
    for name, projection in projections.items():
        width = space_width(stack, name)
        if width != len(projection.mean):
            raise ValueError(
                f"vectors of {name!r} must have the length they were fitted on, "
                f"{len(projection.mean)}; however: {width}."
            )


def space_width(stack: Stack, name: str) -> int:
    """Length of the raw vectors of a space."""
    kind, _, source = name.partition(":")
    if kind == "blend":
        return len(stack.classes)
    if kind == STATS:
        return _stats(stack).shape[1]
    arrays = stack.embeddings if kind == "embedding" else stack.imagenet_logits
    return int(arrays[source].shape[1])


def space_values(
    stack: Stack, blend: Blend, name: str, rows: slice | NDArray[np.int64] = slice(None)
) -> Float:
    """Raw vectors of some images in a space, float32 (n_rows, n_features).

    Predictions enter as square roots: their dot product is the Bhattacharyya similarity.
    """
    kind, _, source = name.partition(":")
    if kind == "blend":
        return np.sqrt(dense_rows(blend, rows))
    if kind == STATS:
        return np.asarray(_stats(stack).iloc[rows], dtype=np.float32)
    arrays = stack.embeddings if kind == "embedding" else stack.imagenet_logits
    return np.asarray(arrays[source][rows], dtype=np.float32)


def _stats(stack: Stack) -> pd.DataFrame:
    assert stack.image_stats is not None  # space_names lists the space only where it is
    return stack.image_stats


def fit_stack_space(
    stack: Stack, blend: Blend, name: str, *, most_rows: int = MOST_ROWS
) -> Projection:
    """Fit the projection of one space on at most `most_rows` evenly spaced images of a stack."""
    picked = np.arange(0, len(stack), max(1, len(stack) // most_rows))
    if name == STATS:
        return fit_scores(space_values(stack, blend, name, picked))
    columns = _most_varied(stack, blend, name, picked)
    parts = [values[:, columns] for values in _in_parts(stack, blend, name, picked)]
    projection = fit_space(np.concatenate(parts))
    mean = np.zeros(space_width(stack, name), dtype=np.float32)
    mean[columns] = projection.mean
    return Projection(mean, projection.axes, columns)


def _most_varied(
    stack: Stack, blend: Blend, name: str, picked: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Columns to keep: principal axes of tens of thousands of classes would take hours."""
    width = space_width(stack, name)
    if width <= MOST_FEATURES:
        return np.arange(width)
    total, squared = np.zeros(width), np.zeros(width)
    for values in _in_parts(stack, blend, name, picked):
        total += values.sum(axis=0, dtype=np.float64)
        squared += np.square(values, dtype=np.float64).sum(axis=0)
    variance = squared / len(picked) - (total / len(picked)) ** 2
    return np.sort(np.argsort(-variance, kind="stable")[:MOST_FEATURES])


def _in_parts(stack: Stack, blend: Blend, name: str, rows: NDArray[np.int64]) -> Iterator[Float]:
    """Raw vectors of some images, a few at a time."""
    step = images_at_once(space_width(stack, name))
    for start in range(0, len(rows), step):
        yield space_values(stack, blend, name, rows[start : start + step])


def fit_space(values: Float, *, n_dimensions: int = DIMENSIONS) -> Projection:
    """Fit the projection of one space: no labels are read.

    Parameters
    ----------
    values : float32 array of shape (n_images, n_features)
    n_dimensions : int

    Returns
    -------
    Projection
    """
    mean = values.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = values - mean
    width = values.shape[1]
    kept = min(n_dimensions, width, max(len(values) - 1, 1))
    # More threads would round otherwise: a worker of a cluster must find the same axes.
    with blas_on_one_thread():
        covariance = (centred.T @ centred / np.float32(len(centred))).astype(np.float64)
        variance, axes = eigh(covariance, subset_by_index=[width - kept, width - 1])
    # Directions without variance carry only rounding noise: whitening must not blow them up.
    floor = max(1e-6 * float(np.max(variance)), 1e-12)  # eigenvalues rise
    scale = np.where(variance > floor, np.maximum(variance, floor) ** (-WHITENING / 2), 0)
    scaled = np.ascontiguousarray(axes * scale, dtype=np.float32)
    return Projection(mean, scaled, np.arange(width))


def fit_scores(values: Float) -> Projection:
    """Fit the space of statistics: normal scores, half-whitened, of mean squared length n_features.

    Parameters
    ----------
    values : float32 array of shape (n_images, n_features)
    """
    levels = np.linspace(0, 1, min(N_KNOTS, len(values)))
    knots = np.stack([_quantiles(column, levels) for column in values.T], axis=1)
    scores = normal_scores(values, knots)
    fitted = fit_space(scores, n_dimensions=DIMENSIONS - N_LIFT)
    with blas_on_one_thread():
        projected = (scores - fitted.mean) @ fitted.axes
    squared = np.mean(np.sum(projected.astype(np.float64) ** 2, axis=1))
    scale = np.float32(np.sqrt(values.shape[1] / max(squared, 1e-12)))
    return Projection(fitted.mean, fitted.axes * scale, fitted.columns, knots)


def _quantiles(column: Float, levels: NDArray[np.float64]) -> Float:
    """Quantiles of the values that are there, float32 (n_levels,); zeros where none is."""
    there = column[np.isfinite(column)]
    if not len(there):
        return np.zeros(len(levels), dtype=np.float32)
    return np.quantile(there, levels, method="nearest").astype(np.float32)


def normal_scores(values: Float, knots: Float) -> Float:
    """Rank of every value among the knots of its column, as a quantile of the standard normal.

    Equal knots share their middle rank; a missing value gets the score of the median.

    Parameters
    ----------
    values : float32 array of shape (n_images, n_features)
    knots : float32 array of shape (n_knots, n_features), each column sorted
    """
    scores = np.zeros(values.shape, dtype=np.float32)
    for column in range(values.shape[1]):
        own = knots[:, column]
        below = np.searchsorted(own, values[:, column], "left")
        ranks = (below + np.searchsorted(own, values[:, column], "right")) / (2 * len(own))
        floor = 0.5 / len(own)
        scores[:, column] = ndtri(np.clip(ranks, floor, 1 - floor))
    scores[~np.isfinite(values)] = 0
    return scores


def encode_stack(stack: Stack, blend: Blend, name: str, projection: Projection) -> Codes:
    """Project and round all images of a stack, a few at a time."""
    rows = np.arange(len(stack))
    parts = [encode(values, projection) for values in _in_parts(stack, blend, name, rows)]
    return Codes(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.norms for part in parts]),
    )


def encode(values: Float, projection: Projection) -> Codes:
    """Project and round images, each row by itself.

    Parameters
    ----------
    values : float32 array of shape (n_images, n_features)
    projection : Projection
        From :func:`fit_space`.
    """
    axes, columns = projection.axes, projection.columns
    n_lift = N_LIFT if len(projection.knots) else 0
    if n_lift:
        values = normal_scores(values, projection.knots)
    codes = np.empty((len(values), axes.shape[1] + n_lift), dtype=np.int8)
    norms = np.empty(len(values), dtype=np.float32)
    kept = values if len(columns) == values.shape[1] else values[:, columns]
    mean = projection.mean[columns]
    _encode_rows(np.ascontiguousarray(kept), mean, axes, n_lift, np.float32(LIFT), codes, norms)
    return Codes(codes, norms)


def quantise(values: Float) -> Codes:
    """Round rows to int8, each scaled so that its largest entry becomes 127."""
    largest = np.abs(values).max(axis=-1, keepdims=True, initial=0)
    rounded = np.rint(values * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)
    squared = (rounded.astype(np.int64) ** 2).sum(axis=-1)
    return Codes(rounded, np.sqrt(np.maximum(squared, 1)).astype(np.float32))


def unit_vectors(codes: Codes) -> Float:
    """Codes as float32 vectors of length 1 (or 0)."""
    return codes.values.astype(np.float32) / codes.norms[:, None]


@njit(parallel=True, cache=True)
def _encode_rows(values, mean, axes, n_lift, lift, codes, norms):  # type: ignore[no-untyped-def]
    """Project row by row in a fixed order: a BLAS product may round by batch size."""
    n_features, n_axes = axes.shape
    n_dimensions = n_axes + n_lift
    for image in prange(len(values)):
        projected = np.zeros(n_dimensions, dtype=np.float32)
        for f in range(n_features):
            centred = values[image, f] - mean[f]
            for j in range(n_axes):
                projected[j] += centred * axes[f, j]
        if n_lift > 0:
            for j in range(n_axes):
                projected[j] = min(max(projected[j], -lift), lift)
            projected[n_axes:] = lift
        largest = np.float32(0)
        for j in range(n_dimensions):
            largest = max(largest, abs(projected[j]))
        scale = np.float32(127) / largest if largest > 0 else np.float32(0)
        squared = 0
        for j in range(n_dimensions):
            rounded = np.int8(np.rint(projected[j] * scale))
            codes[image, j] = rounded
            squared += int(rounded) * int(rounded)
        norms[image] = np.sqrt(np.float32(squared if squared > 0 else 1))
