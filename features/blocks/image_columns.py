"""Blocks that repeat a fact of the image on each of its rows.

``image_stats`` (recipes A11-A13), ``imagenet`` (A14: logits, softmax or principal components)
and ``metadata`` (any user column). Stored once an image, joined when a batch is built.
"""

from typing import Any

import numpy as np
import pandas as pd
from numba import njit, prange
from numpy.typing import NDArray

from features.blocks._blas import blas_on_one_thread
from features.blocks.types import (
    Batch,
    Block,
    Column,
    Float,
    State,
    Training,
)
from features.schema import Stack

FORMS = ("pca", "softmax", "logits")


def _fit_stats(train: Training) -> State:
    assert train.stack.image_stats is not None
    return {"names": [str(name) for name in train.stack.image_stats]}


def _stats_columns(stack: Stack, state: State) -> list[Column]:
    return [Column(f"stat:{name}", "image_stats", "statistic") for name in state["names"]]


def _fill_stats(batch: Batch, state: State, out: Float) -> None:
    assert batch.stack.image_stats is not None
    frame = by_name(batch.stack.image_stats, state["names"], "image_stats")
    out[:] = frame.to_numpy(dtype=np.float32)[batch.row_image]


def by_name(frame: pd.DataFrame, names: list[str], what: str) -> pd.DataFrame:
    """Take the columns that training had, in its order, whatever order new images have them in."""
    known = {str(name): name for name in frame}
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f"{what} of the stack lacks columns that it was fitted on, first: {missing[:3]}."
        )
    return frame[[known[name] for name in names]].set_axis(names, axis=1)


def _fit_imagenet(train: Training, *, form: str = "pca", n_components: int = 16) -> State:
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}. Got {form!r} instead.")
    if n_components < 1:
        raise ValueError(f"n_components must be at least 1. Got {n_components!r} instead.")
    given = train.stack.imagenet_logits
    widths = {name: int(values.shape[1]) for name, values in given.items()}
    state: State = {"form": form, "names": sorted(given), "widths": widths}
    if form == "pca":
        for name in state["names"]:
            mean, axes = principal_axes(given[name], n_components)
            state[f"mean_{name}"], state[f"axes_{name}"] = mean, axes
    return state


def principal_axes(values: NDArray[np.floating], n_components: int) -> tuple[Float, Float]:
    """Mean (n_features,) and leading principal axes (n_features, n_components) of the rows."""
    x = np.asarray(values, dtype=np.float32)
    mean = x.mean(axis=0)
    with blas_on_one_thread():
        covariance = (x - mean).T @ (x - mean) / np.float32(max(len(x) - 1, 1))
        axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :n_components]
    # An eigenvector's sign is arbitrary: make its largest entry positive.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return mean, np.ascontiguousarray(axes * np.where(largest < 0, -1, 1), dtype=np.float32)


def _imagenet_columns(stack: Stack, state: State) -> list[Column]:
    return [
        Column(f"imagenet_{state['form']}{i}:{name}", "imagenet", state["form"], (name,))
        for name in state["names"]
        for i in range(_width(state, name))
    ]


def _width(state: State, name: str) -> int:
    if state["form"] == "pca":
        return int(state[f"axes_{name}"].shape[1])
    return int(state["widths"][name])


def _fill_imagenet(batch: Batch, state: State, out: Float) -> None:
    start = 0
    for name in state["names"]:
        values = _logits(batch.stack, name, state["widths"][name])
        if state["form"] == "pca":
            values = _project(values, state[f"mean_{name}"], state[f"axes_{name}"])
        elif state["form"] == "softmax":
            values = np.exp(values - values.max(axis=1, keepdims=True))
            values /= values.sum(axis=1, keepdims=True)
        out[:, start : start + values.shape[1]] = values[batch.row_image]
        start += values.shape[1]


def _logits(stack: Stack, name: str, width: int) -> Float:
    """ImageNet logits as fitted, float32 (n_images, width)."""
    shape = stack.imagenet_logits[name].shape if name in stack.imagenet_logits else "none"
    if shape != (len(stack), width):
        raise ValueError(
            f"imagenet_logits {name!r} must have {width} columns, as fitted; however: {shape}."
        )
    return np.asarray(stack.imagenet_logits[name], dtype=np.float32)


@njit(parallel=True, cache=True)
def _project(values, mean, axes):  # type: ignore[no-untyped-def]
    """Project image by image in a fixed order: a BLAS product may round by batch size."""
    out = np.zeros((len(values), axes.shape[1]), dtype=np.float32)
    for image in prange(len(values)):
        for f in range(axes.shape[0]):
            centred = values[image, f] - mean[f]
            for j in range(axes.shape[1]):
                out[image, j] += centred * axes[f, j]
    return out


def _fit_metadata(train: Training) -> State:
    frame = train.stack.metadata
    assert frame is not None
    names = [str(name) for name in frame]
    frame = by_name(frame, names, "metadata")
    numeric = [name for name in names if pd.api.types.is_numeric_dtype(frame[name])]
    categories = {
        name: sorted(_texts(frame[name]).dropna().unique().tolist())
        for name in names
        if name not in numeric
    }
    return {"numeric": numeric, "categories": categories}


def _metadata_columns(stack: Stack, state: State) -> list[Column]:
    numbers = [Column(f"meta:{name}", "metadata", "value") for name in state["numeric"]]
    return numbers + [
        Column(f"meta:{name}", "metadata", "category") for name in state["categories"]
    ]


def _fill_metadata(batch: Batch, state: State, out: Float) -> None:
    assert batch.stack.metadata is not None
    names = [*state["numeric"], *state["categories"]]
    frame = by_name(batch.stack.metadata, names, "metadata")
    for column, name in enumerate(names):
        known = state["categories"].get(name)
        values = _numbers(frame[name]) if known is None else _places(frame[name], known)
        out[:, column] = values[batch.row_image]


def _numbers(column: "pd.Series[Any]") -> Float:
    """Numbers of a column, -1 where missing."""
    values = column.to_numpy(dtype=np.float32, na_value=np.nan)
    return np.nan_to_num(values, nan=-1.0)


def _places(column: "pd.Series[Any]", known: list[str]) -> Float:
    """Place of each value among the training categories, -1 where missing or never seen."""
    text = pd.Index(_texts(column), dtype=object)
    return pd.Index(known, dtype=object).get_indexer(text).astype(np.float32)


def _texts(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Values as texts, None where missing: a date by itself reads otherwise than in a column."""
    return column.astype(object).where(column.notna(), None).map(str, na_action="ignore")


IMAGE_STATS = Block(
    "image_stats",
    _fit_stats,
    _stats_columns,
    _fill_stats,
    lambda stack: "" if stack.image_stats is not None else "image_stats",
)
IMAGENET = Block(
    "imagenet",
    _fit_imagenet,
    _imagenet_columns,
    _fill_imagenet,
    lambda stack: "" if stack.imagenet_logits else "imagenet_logits",
    default=False,
    options={"form": "pca", "n_components": 16},
)
METADATA = Block(
    "metadata",
    _fit_metadata,
    _metadata_columns,
    _fill_metadata,
    lambda stack: "" if stack.metadata is not None else "metadata",
    default=False,
)
