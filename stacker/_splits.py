"""Folds of images that keep groups of images (one artist, one series) together."""

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stacker._inputs import Matrix

__all__ = ["fold_of_images", "group_codes", "make_splits"]

Split = tuple[NDArray[np.intp], NDArray[np.intp]]


def group_codes(groups: ArrayLike | None, n_images: int) -> NDArray[np.intp]:
    """Integer group of each image; each its own group when None."""
    if groups is None:
        return np.arange(n_images)
    values = np.asarray(groups)
    if values.shape != (n_images,):
        raise ValueError(
            f"groups must have one entry per image: shape ({n_images},), however: "
            f"groups.shape={values.shape}."
        )
    codes: NDArray[np.intp] = np.unique(values, return_inverse=True)[1]
    return codes


def make_splits(
    cv: Any, probs: Matrix, labels: Any, codes: NDArray[np.intp], random_state: int | None
) -> list[Split]:
    """Train and test positions of each fold; a group of images never parts.

    Parameters
    ----------
    cv : int, splitter or array-like of shape (n_images,)
        Number of folds, a scikit-learn splitter, or the fold of each image (-1: never held out).
    probs : array or csr_array of shape (n_images, n_classes)
        Only its length is used.
    labels : csr_array of shape (n_images, n_classes)
        Handed to a splitter.
    codes : int array of shape (n_images,)
        Group of each image.
    random_state : int or None
        Seed of the folds when `cv` is a number.
    """
    if hasattr(cv, "split") and not isinstance(cv, str):
        # Splitters stratify by a vector at most: they get the number of labels.
        n_labels = np.diff(labels.indptr)
        splits = list(cv.split(np.zeros((probs.shape[0], 1)), n_labels, codes))
        return _grouped(_apart(splits), codes)
    if isinstance(cv, Real):
        return _held_out(_random_folds(codes, cv, random_state))
    return _grouped(_apart(_held_out(_named_folds(cv, probs.shape[0]))), codes)


def _named_folds(cv: Any, n_images: int) -> NDArray[Any]:
    """Read the fold of each image, a whole number."""
    try:
        fold = np.asarray(cv)
    except ValueError:  # lists of different lengths
        fold = np.empty(0, dtype=object)
    numbers = fold.ndim == 1 and fold.dtype.kind in "iuf"
    if not numbers or fold.shape != (n_images,) or (fold != np.floor(fold)).any():
        raise ValueError(
            f"The 'cv' parameter must be a number of folds, a splitter, or name the fold of each "
            f"image by a whole number: shape ({n_images},), however: {type(cv).__name__}, "
            f"cv.shape={fold.shape}, {fold.dtype}."
        )
    return fold


def _held_out(fold: NDArray[Any]) -> list[Split]:
    """Each fold held out from the rest."""
    folds = np.unique(fold[fold >= 0])
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in folds]


def _apart(splits: list[Split]) -> list[Split]:
    """Refuse splits that have nothing to learn from, or nothing to try it on."""
    if not splits or not all(len(train) and len(test) for train, test in splits):
        raise ValueError(
            f"The 'cv' parameter must make at least two folds, each with images; there is "
            f"nothing to learn from or nothing held out in one of {len(splits)}."
        )
    return splits


def _grouped(splits: list[Split], codes: NDArray[np.intp]) -> list[Split]:
    """Refuse splits that train on images of a group that they hold out."""
    for train, test in splits:
        parted = np.flatnonzero(np.isin(codes[test], codes[train]))
        if len(parted):
            raise ValueError(
                f"a split group must not part; image {int(np.arange(len(codes))[test][parted[0]])} "
                "is held out while images of its group are trained on. Give cv= a number, folds of "
                "make_folds(labels, split_group=...), or MultilabelGroupKFold."
            )
    return splits


def fold_of_images(
    cv: Any, probs: Matrix, labels: Any, codes: NDArray[np.intp], random_state: int | None
) -> NDArray[np.intp]:
    """Fold in which each image is held out, counted from 0."""
    fold = np.zeros(probs.shape[0], np.intp)
    for f, (_, test) in enumerate(make_splits(cv, probs, labels, codes, random_state)):
        fold[test] = f
    return fold


def _random_folds(
    codes: NDArray[np.intp], n_folds: Any, random_state: int | None
) -> NDArray[np.intp]:
    """Whole groups to folds of like size, the largest groups first."""
    if int(n_folds) != n_folds or n_folds < 2:
        raise ValueError(f"The 'cv' parameter must be an int of at least 2. Got {n_folds!r}.")
    sizes = np.bincount(codes)
    order = np.random.default_rng(random_state).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of_group = np.empty(len(sizes), np.intp)
    load = np.zeros(min(int(n_folds), len(sizes)))
    for g in order:
        fold_of_group[g] = load.argmin()
        load[fold_of_group[g]] += sizes[g]
    return fold_of_group[codes]
