"""Blocks that repeat a fact of the image on each of its rows.

``image_stats`` (RECIPES A11-A13), ``imagenet`` (A14: logits, softmax or principal components)
and ``metadata`` (any user column). Stored once an image, joined when a batch is built.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.blocks.types import (
    Batch,
    Block,
    Column,
    Float,
    State,
    Training,
    nothing_to_fit,
)
from features.schema import Stack

FORMS = ("pca", "softmax", "logits")


def _stats_columns(stack: Stack, state: State) -> list[Column]:
    assert stack.image_stats is not None
    return [Column(f"stat:{name}", "image_stats", "statistic") for name in stack.image_stats]


def _fill_stats(batch: Batch, state: State, out: Float) -> None:
    assert batch.stack.image_stats is not None
    out[:] = batch.stack.image_stats.to_numpy(dtype=np.float32)[batch.row_image]


def _fit_imagenet(train: Training, *, form: str = "pca", n_components: int = 16) -> State:
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}. Got {form!r} instead.")
    state: State = {"form": form, "names": sorted(train.stack.imagenet_logits)}
    if form == "pca":
        for name in state["names"]:
            mean, axes = principal_axes(train.stack.imagenet_logits[name], n_components)
            state[f"mean_{name}"], state[f"axes_{name}"] = mean, axes
    return state


def principal_axes(values: NDArray[np.floating], n_components: int) -> tuple[Float, Float]:
    """Mean (n_features,) and leading principal axes (n_features, n_components) of the rows."""
    x = np.asarray(values, dtype=np.float32)
    mean = x.mean(axis=0)
    covariance = (x - mean).T @ (x - mean) / np.float32(max(len(x) - 1, 1))
    axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :n_components]
    # An eigenvector's sign is arbitrary: make its largest entry positive.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return mean, np.ascontiguousarray(axes * np.where(largest < 0, -1, 1), dtype=np.float32)


def _imagenet_columns(stack: Stack, state: State) -> list[Column]:
    return [
        Column(f"imagenet_{state['form']}{i}:{name}", "imagenet", state["form"], (name,))
        for name in state["names"]
        for i in range(_width(stack, state, name))
    ]


def _width(stack: Stack, state: State, name: str) -> int:
    if state["form"] == "pca":
        return int(state[f"axes_{name}"].shape[1])
    return int(stack.imagenet_logits[name].shape[1])


def _fill_imagenet(batch: Batch, state: State, out: Float) -> None:
    start = 0
    for name in state["names"]:
        values = np.asarray(batch.stack.imagenet_logits[name], dtype=np.float32)
        if state["form"] == "pca":
            values = (values - state[f"mean_{name}"]) @ state[f"axes_{name}"]
        elif state["form"] == "softmax":
            values = np.exp(values - values.max(axis=1, keepdims=True))
            values /= values.sum(axis=1, keepdims=True)
        out[:, start : start + values.shape[1]] = values[batch.row_image]
        start += values.shape[1]


def _fit_metadata(train: Training) -> State:
    frame = train.stack.metadata
    assert frame is not None
    numeric = [str(c) for c in frame if pd.api.types.is_numeric_dtype(frame[c])]
    categories = {
        str(c): sorted({str(v) for v in frame[c].dropna()}) for c in frame if str(c) not in numeric
    }
    return {"numeric": numeric, "categories": categories}


def _metadata_columns(stack: Stack, state: State) -> list[Column]:
    numbers = [Column(f"meta:{name}", "metadata", "value") for name in state["numeric"]]
    return numbers + [
        Column(f"meta:{name}", "metadata", "category") for name in state["categories"]
    ]


def _fill_metadata(batch: Batch, state: State, out: Float) -> None:
    frame = batch.stack.metadata
    assert frame is not None
    values = [frame[name].to_numpy(dtype=np.float32) for name in state["numeric"]]
    for name, known in state["categories"].items():
        # A category that training never saw, or a missing one, is -1.
        codes = pd.Categorical(frame[name].astype("string"), categories=known).codes
        values.append(codes.astype(np.float32))
    for column, image_values in enumerate(values):
        out[:, column] = np.nan_to_num(image_values, nan=-1.0)[batch.row_image]


IMAGE_STATS = Block(
    "image_stats",
    nothing_to_fit,
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
