"""Bring new predictions into the order of the training ones: by name, never by position."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from features._checks import first_few
from features.schema import LabelSpace, Stack, as_label_matrix, as_stack
from features.store import FeatureStore
from stacker._frame_order import as_pandas, in_image_order, is_counted

logger = logging.getLogger(__name__)


def read_stack(X: Any, classes: ArrayLike | None = None) -> Stack:
    """Turn what a user gives as X into a stack, with class names where `classes` has them.

    Parameters
    ----------
    X : Stack, FeatureStore, mapping of model to (n_images, n_classes), or 3-D array
    classes : array-like of shape (n_classes,), optional
    """
    if classes is None or isinstance(X, FeatureStore):
        return as_stack(X)
    if not isinstance(X, Stack):
        return Stack(X, classes=classes)
    names = np.asarray(classes, dtype=str)
    if names.tolist() != X.classes.tolist():
        raise ValueError(
            f"classes= must be the stack's own classes, in order; first of the stack: "
            f"{X.classes[:3].tolist()}, first given: {names[:3].tolist()}. Leave classes= out."
        )
    return X


def is_unnamed(X: Any) -> bool:
    """Whether X is arrays or sparse matrices, without ids and class names of their own."""
    if isinstance(X, Stack | FeatureStore):
        return False
    parts = X.values() if isinstance(X, Mapping) else [X]
    return not any(isinstance(as_pandas(part), pd.DataFrame) for part in parts)


def read_new(X: Any, seen: dict[str, Any]) -> Stack:
    """Turn new images' predictions into a stack in the order of training.

    Plain arrays have no class names: their columns are the classes of `fit`, in order.
    """
    named = isinstance(X, Stack | FeatureStore)
    return align_stack(as_stack(X) if named else Stack(X, classes=seen["space"].names), seen)


def read_labels(X: Any, Y: Any, stack: Stack) -> tuple[csr_array, NDArray[np.bool_]]:
    """Labels (n_images, n_classes) and which images have them; a store brings its own."""
    if Y is not None:
        # Arrays have no ids: row k of a frame of labels is their image k.
        ids = None if is_unnamed(X) else stack.image_ids
        Y = in_image_order(Y, ids, "Y")
        try:
            matrix = as_label_matrix(Y, classes=stack.classes, n_images=len(stack), image_ids=ids)
        except ValueError as error:
            if ids is None or not is_counted(ids) or "image ids" not in str(error):
                raise
            raise ValueError(
                f"{error} The stack was made without ids: give Stack(..., image_ids=), or labels "
                "by position (Y.to_numpy())."
            ) from error
        return matrix, np.ones(len(stack), dtype=bool)
    if not isinstance(X, FeatureStore):
        raise ValueError("Y is missing: only a FeatureStore brings its own labels.")
    known = np.asarray(X.labels_known)
    if not known.any():
        raise ValueError(f"store {X.path} has no labelled image to fit on.")
    return X.labels.astype(np.int8), known


def read_known(X: Any, Y: Any, seen: dict[str, Any]) -> tuple[Stack, csr_array, NDArray[np.intp]]:
    """Read new images and their labels, models and classes in the order of training.

    Y without names stands in the order of classes that X has, as in `fit`.

    Returns
    -------
    Stack of the n_known images that have labels; CSR array of shape (n_known, n_classes); their
    positions in X
    """
    stack = read_new(X, seen)
    named = stack if is_unnamed(X) else as_stack(X)
    labels, known = read_labels(X, Y, named)
    picked = np.flatnonzero(known)
    columns = named.label_space.index(seen["space"].names)
    return stack[picked], csr_array(labels[picked][:, columns]), picked


def align_stack(stack: Stack, like: dict[str, Any]) -> Stack:
    """Reorder models, classes and context of a stack to those of training.

    Parameters
    ----------
    stack : Stack
    like : dict
        ``models``, ``space`` (LabelSpace), ``embeddings``, ``imagenet``, ``stats``,
        ``metadata``: names seen in `fit`, from :func:`seen_names`.

    Raises
    ------
    ValueError
        Naming what is missing. A model that training did not see is left out with a warning.
    """
    extra = sorted(set(stack.models) - set(like["models"]))
    if extra:
        logger.warning("models that were not there in fit are left out: %s", ", ".join(extra))
    space: LabelSpace = like["space"]
    order = _class_order(stack, space)
    probs = _pick(stack.probabilities, like["models"], "model")
    if order is not None:
        probs = {model: values[:, order] for model, values in probs.items()}
    return Stack(
        probs,
        image_ids=stack.image_ids,
        classes=space.names,
        class_group=space.groups,
        class_parent=None if space.parents is None else space.parents.tolist(),
        embeddings=_pick(stack.embeddings, like["embeddings"], "embedding"),
        imagenet_logits=_pick(stack.imagenet_logits, like["imagenet"], "set of ImageNet logits"),
        image_stats=_pick_columns(stack.image_stats, like["stats"], "image statistic"),
        metadata=_pick_columns(stack.metadata, like["metadata"], "metadata column"),
    )


def seen_names(stack: Stack) -> dict[str, Any]:
    """Names that later stacks are aligned to."""
    return {
        "models": list(stack.models),
        "space": stack.label_space,
        "embeddings": list(stack.embeddings),
        "imagenet": list(stack.imagenet_logits),
        "stats": [] if stack.image_stats is None else [str(c) for c in stack.image_stats],
        "metadata": [] if stack.metadata is None else [str(c) for c in stack.metadata],
    }


def _class_order(stack: Stack, space: LabelSpace) -> NDArray[np.intp] | None:
    if stack.classes.tolist() == space.names.tolist():
        return None
    if set(stack.classes) != set(space.names):
        odd = sorted(set(stack.classes) ^ set(space.names))
        raise ValueError(
            f"X must have the {len(space)} classes of fit; {len(odd)} are missing or unknown, "
            f"first: {first_few(odd, 3)}. Rename them, or fit again with these classes."
        )
    return stack.label_space.index(space.names)


def _pick(given: dict[str, Any], names: Sequence[str], what: str) -> dict[str, Any]:
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(
            f"X lacks the {what} {missing[0]!r} that fit used ({len(missing)} missing); "
            f"it has {sorted(given)}. Add it to X, or fit again without it."
        )
    return {name: given[name] for name in names}


def _pick_columns(frame: Any, names: Sequence[str], what: str) -> Any:
    if not names:
        return None
    have = [] if frame is None else [str(column) for column in frame]
    missing = [name for name in names if name not in have]
    if missing:
        raise ValueError(
            f"X lacks the {what} {missing[0]!r} that fit used ({len(missing)} missing). "
            "Add it to X, or fit again without it."
        )
    return frame[list(names)]
