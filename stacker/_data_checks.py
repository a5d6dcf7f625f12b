"""Checks of the data behind a stack: labels that look wrong, images seen twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.blocks._cells import chosen_cells, fit_cells, search_cells
from features.blocks.neighbours import EXACT_UP_TO
from features.blocks.spaces import MOST_ROWS, Codes, encode, fit_space, unit_vectors
from features.schema import Stack
from stacker.curate import label_issues

__all__ = ["DataChecks", "check_data", "near_duplicates"]

Float = NDArray[np.float32]

ALIKE = 0.95
AT_ONCE = 2048
UNLABELLED, HELD_OUT = -1, -2  # places that are no folds


@dataclass(frozen=True)
class DataChecks:
    """What may be wrong with the data.

    Attributes
    ----------
    issues : DataFrame
        From `stacker.curate.label_issues`: labels of training images that look wrong or missing.
    pairs : DataFrame or None
        From `near_duplicates`, images by their ids; None without embeddings.
    space : str
        Embedding that images were compared in; "" without one.
    copied : bool array of shape (n_held_out,) or None
        Held-out images that have a near-duplicate among the training images.
    """

    issues: pd.DataFrame
    pairs: pd.DataFrame | None = None
    space: str = ""
    copied: NDArray[np.bool_] | None = None


def check_data(
    model: Any, train: Stack, labels: Any, held_out: Stack | None = None, *, alike: float = ALIKE
) -> DataChecks:
    """Check the images that a model was fitted on, and the held-out ones beside them.

    Parameters
    ----------
    model : fitted PairStacker
    train : Stack
        The rows of ``model.oof_proba_``.
    labels : 0/1 matrix of shape (n_images, n_classes)
    held_out : Stack, optional
        Images that the model was not fitted on.
    alike : float, default 0.95
        Least similarity of a near-duplicate.

    Returns
    -------
    DataChecks
    """
    issues = label_issues(
        model.oof_proba_, labels, image_ids=train.image_ids, classes=model.classes_
    )
    found = _shared_vectors(train, held_out)
    if found is None:
        return DataChecks(issues)
    space, values = found
    n_held_out = 0 if held_out is None else len(held_out)
    place = np.concatenate([np.asarray(model.folds_), np.full(n_held_out, HELD_OUT)])
    ids = np.concatenate([train.image_ids, [] if held_out is None else held_out.image_ids])
    pairs = near_duplicates(values, place, alike=alike)
    # An image without labels teaches nothing, and nothing is scored on it.
    pairs = pairs[(pairs[["first_place", "second_place"]] != UNLABELLED).all(axis=1)]
    copied = np.zeros(n_held_out, dtype=bool)
    copied[pairs["second"][pairs["second_place"] == HELD_OUT] - len(train)] = True
    named = pairs.assign(first=ids[pairs["first"]], second=ids[pairs["second"]])
    return DataChecks(issues, named, space, copied)


def _shared_vectors(train: Stack, held_out: Stack | None) -> tuple[str, Any] | None:
    """Give the first embedding (or set of ImageNet logits) that all images have, and its name."""
    for kind in ("embeddings", "imagenet_logits"):
        own = getattr(train, kind)
        for name in own:
            if held_out is None:
                return name, own[name]
            if name in getattr(held_out, kind):
                return name, np.concatenate([own[name], getattr(held_out, kind)[name]])
    return None


def near_duplicates(values: Any, place: Any, *, alike: float = ALIKE) -> pd.DataFrame:
    """Pairs of like images in different places: in two folds, or in training and held out.

    Vectors are centred, half-whitened and compared by cosine, as in the block ``neighbours``.
    Up to 20,000 images every pair is compared; beyond, each image with those of its nearest
    cells, 8,192 images at least.

    Parameters
    ----------
    values : float array of shape (n_images, n_features)
        Embeddings.
    place : int array of shape (n_images,)
        Fold of each image; pairs inside one place do no harm and are left out.
    alike : float, default 0.95
        Least cosine.

    Returns
    -------
    DataFrame
        ``first``, ``second`` (positions, first < second), ``first_place``, ``second_place``,
        ``similarity``; the most alike first.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=(20, 8))
    >>> values[13] = values[2]
    >>> near_duplicates(values, np.arange(20) % 5)[["first", "second"]].values.tolist()
    [[2, 13]]
    """
    place = np.asarray(place)
    codes = _encode(np.asarray(values))
    parts = [np.empty((3, 0))]
    for a, b, cosine in _like_pairs(codes, alike):
        apart = place[a] != place[b]
        parts.append(np.stack([np.minimum(a, b), np.maximum(a, b), cosine])[:, apart])
    # Cells may find a pair from either side or from one only.
    found = pd.DataFrame(np.concatenate(parts, axis=1).T, columns=["first", "second", "similarity"])
    found = found.astype({"first": np.int64, "second": np.int64})
    found = found.drop_duplicates(["first", "second"])
    found["first_place"], found["second_place"] = place[found["first"]], place[found["second"]]
    order = ["similarity", "first", "second"]
    return found.sort_values(order, ascending=[False, True, True], ignore_index=True)


def _encode(values: NDArray[Any]) -> Codes:
    step = max(1, len(values) // MOST_ROWS)
    projection = fit_space(values[::step].astype(np.float32))
    parts = [
        encode(values[start : start + AT_ONCE].astype(np.float32), projection)
        for start in range(0, len(values), AT_ONCE)
    ]
    return Codes(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.norms for part in parts]),
    )


def _like_pairs(codes: Codes, alike: float) -> Iterator[tuple[Any, Any, Float]]:
    """Positions and cosine of pairs that are alike, each image with itself among them."""
    n_images, units = len(codes.values), unit_vectors(codes)
    if n_images > EXACT_UP_TO:
        cells: dict[str, Any] = fit_cells(codes)
        members, starts = cells["members"], cells["starts"]
        centres = Codes(cells["centres"], cells["centre_norms"])
    else:
        members, starts = np.arange(n_images), np.array([0, n_images])
        centres = Codes(codes.values[:1], codes.norms[:1])
    for start in range(0, n_images, AT_ONCE):
        query = slice(start, start + AT_ONCE)
        chosen = chosen_cells(Codes(codes.values[query], codes.norms[query]), centres, starts)
        found: list[tuple[Any, Any, Float]] = []

        def compare(rows: Any, references: Any, start: int = start, found: Any = found) -> None:
            cosine = units[start + rows] @ units[references].T
            i, j = np.nonzero(cosine >= alike)
            found.append((start + rows[i], references[j], cosine[i, j]))

        search_cells(chosen, members, starts, compare)
        yield from found
