"""What `fit` learns from: labelled images, their folds and weights."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from features.candidates import Candidates
from features.schema import Stack
from features.store import FeatureStore
from stacker._align import is_unnamed, read_labels, read_stack
from stacker._frame_order import as_pandas, in_image_order, index_of, is_counted
from stacker._training_folds import boosting_folds
from stacker.leakage import warn_in_sample

logger = logging.getLogger("stacker.estimator")


@dataclass
class TrainingSet:
    """The labelled images among those given.

    Attributes
    ----------
    stack : Stack of n_known images
    labels : csr_array of shape (n_known, n_classes)
    fold : int array of shape (n_known,)
    groups : array of shape (n_known,) or None
    weight : float32 array of shape (n_known,) or None
    picked : int array of shape (n_known,)
        Their positions among all images.
    n_images : int
        All images.
    store : FeatureStore or None
        Where the images were read from.
    """

    stack: Stack
    labels: csr_array
    fold: NDArray[np.int64]
    groups: NDArray[Any] | None
    weight: NDArray[np.float32] | None
    picked: NDArray[np.intp]
    n_images: int
    store: FeatureStore | None = None


def read_training_set(
    X: Any,
    Y: Any,
    groups: ArrayLike | None,
    classes: ArrayLike | None,
    sample_weight: ArrayLike | None,
    *,
    cv: Any,
    random_state: int,
) -> TrainingSet:
    """Read what `PairStacker.fit` was given; images without labels are left out.

    Logs a warning for each model that looks as if it was trained on these images.

    Raises
    ------
    ValueError
        For missing labels, weights that are negative or of another length, and what the stack,
        the labels and the folds refuse.
    """
    if isinstance(X, FeatureStore) and X.skipped.any():
        logger.warning("%d images that extraction skipped are left out", X.skipped.sum())
        X = X.without_skipped()
    if classes is None and is_unnamed(X):
        _refuse_named_columns(Y)
    stack = read_stack(X, classes)
    if not len(stack.classes):
        raise ValueError("there is no class to predict: X has no columns. Give at least one class.")
    labels, known = read_labels(X, Y, stack)
    ids = index_of(Y) if is_unnamed(X) else stack.image_ids
    groups = in_image_order(groups, ids, "groups")
    sample_weight = in_image_order(sample_weight, ids, "sample_weight")
    if groups is None and isinstance(X, FeatureStore):
        groups = X.split_group
    stored = X.fold if isinstance(X, FeatureStore) else None
    picked = np.flatnonzero(known)
    own = _take(groups, picked)
    train = TrainingSet(
        stack=stack if known.all() else stack[picked],
        labels=labels[picked],
        fold=boosting_folds(cv, labels[picked], own, _take(stored, picked), random_state),
        groups=own,
        weight=_take(_check_weight(sample_weight, len(stack)), picked),
        picked=picked,
        n_images=len(stack),
        store=X if isinstance(X, FeatureStore) else None,
    )
    warn_in_sample(train.stack, train.labels, train.fold)
    return train


def _refuse_named_columns(Y: Any) -> None:
    """Refuse labels with class names beside arrays without: `get_dummies` sorts its columns."""
    frame = as_pandas(Y)
    if isinstance(frame, pd.DataFrame) and not is_counted(frame.columns):
        raise ValueError(
            f"Y names its classes ({[str(name) for name in frame.columns[:3]]} first), the arrays "
            "of X do not: give classes=, the names of X's columns in their order; Y is then "
            "matched by name."
        )


def _check_weight(sample_weight: ArrayLike | None, n_images: int) -> NDArray[np.float32] | None:
    if sample_weight is None:
        return None
    weight = np.asarray(sample_weight, dtype=np.float32)
    fits = weight.shape == (n_images,) and np.isfinite(weight).all() and weight.min(initial=0) >= 0
    if not fits or not weight.any():
        raise ValueError(
            f"sample_weight must hold {n_images} finite numbers of at least 0, one an image, and "
            f"one above 0; however: shape {weight.shape}, minimum {weight.min(initial=0):.4g}."
        )
    return weight


def _take(values: Any, picked: NDArray[np.intp]) -> NDArray[Any] | None:
    return None if values is None else np.asarray(values)[picked]


def labels_of(candidates: Candidates, labels: csr_array) -> NDArray[np.float32]:
    """Label of each row, 0 or 1, float32 (n_rows,)."""
    n_classes = labels.shape[1]
    true = labels.tocoo()
    keys = np.sort(true.row.astype(np.int64) * n_classes + true.col)
    rows = candidates.row_image.astype(np.int64) * n_classes + candidates.classes
    return np.isin(rows, keys, kind="sort").astype(np.float32)
