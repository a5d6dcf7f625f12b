"""Folds for many labels at once: stratified by every label, and never through a split group.

Iterative stratification after Sechidis, Tsoumakas and Vlahavas (2011), "On the stratification of
multi-label data", with whole groups of images in place of single ones: the rarest label first,
each group to the fold that still needs that label most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.model_selection import BaseCrossValidator

from features import _checks as checks

__all__ = ["MultilabelGroupKFold", "check_folds", "make_folds"]


def make_folds(
    labels: Any,
    n_folds: int = 5,
    split_group: ArrayLike | None = None,
    random_state: int | None = 0,
) -> NDArray[np.int16]:
    """Assign every image to a fold, so that each label is spread evenly over the folds.

    Parameters
    ----------
    labels : array, DataFrame or sparse matrix of shape (n_images, n_classes)
        0 and 1; images without labels are allowed. Of a polars frame a column ``image_id`` is
        none of the labels.
    n_folds : int, default=5
    split_group : array-like of shape (n_images,), optional
        Images of one group land in one fold. Default: every image on its own.
    random_state : int or None, default=0
        Decides ties; None draws it afresh.

    Returns
    -------
    int16 array of shape (n_images,)
        Folds 0 to ``n_folds - 1``.

    Raises
    ------
    ValueError
        When there are fewer groups than folds, or shapes do not fit.

    Notes
    -----
    The cost is about (number of labels given) * n_folds + n_classes**2 steps.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    >>> fold = make_folds(labels, n_folds=2)
    >>> [labels[fold == k].sum(axis=0).tolist() for k in (0, 1)]
    [[1, 1], [1, 1]]
    """
    rng = np.random.default_rng(random_state)
    return _assign_images(labels, n_folds, split_group, rng)


def _assign_images(
    labels: Any, n_folds: int, split_group: ArrayLike | None, rng: np.random.Generator | None
) -> NDArray[np.int16]:
    """Folds of images; without a random generator ties go to the first group and fold."""
    matrix = _read_labels(labels)
    n_images = matrix.shape[0]
    codes, n_groups = _group_codes(split_group, n_images)
    _check_n_folds(n_folds, n_groups)
    sizes = np.bincount(codes, minlength=n_groups)
    shuffled = np.arange(n_groups) if rng is None else rng.permutation(n_groups)
    # Large groups first: late in the assignment there is no room left for them.
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    rank = np.empty(n_groups, dtype=np.int64)
    rank[order] = np.arange(n_groups)
    ones = np.ones(n_images, dtype=np.int32)
    members = sparse.csr_array((ones, (rank[codes], np.arange(n_images))), (n_groups, n_images))
    counts = sparse.csr_array(members @ matrix)
    counts.sort_indices()
    by_label = counts.tocsc()
    ties = np.zeros(n_groups) if rng is None else rng.random(n_groups)
    folds = _assign_groups(
        counts.indptr.astype(np.int64),
        counts.indices.astype(np.int64),
        counts.data,
        by_label.indptr.astype(np.int64),
        by_label.indices.astype(np.int64),
        sizes[order].astype(np.float64),
        ties,
        n_folds,
    )
    return folds[rank[codes]]


@numba.njit(cache=True)
def _assign_groups(
    indptr: NDArray[np.int64],
    labels: NDArray[np.int64],
    counts: NDArray[np.int32],
    label_indptr: NDArray[np.int64],
    label_groups: NDArray[np.int64],
    sizes: NDArray[np.float64],
    ties: NDArray[np.float64],
    n_folds: int,
) -> NDArray[np.int16]:
    """Stratify groups, given by CSR counts (group, label) and the groups of each label.

    ``left`` counts each label's images that have no fold yet, ``wanted`` what each fold still
    lacks of each label, ``room`` how many images it still takes.
    """
    n_groups, n_labels = len(sizes), len(label_indptr) - 1
    left = np.zeros(n_labels, dtype=np.int64)
    for k in range(len(labels)):
        left[labels[k]] += counts[k]
    wanted = np.empty((n_folds, n_labels))
    for label in range(n_labels):
        wanted[:, label] = left[label] / n_folds
    room = np.full(n_folds, sizes.sum() / n_folds)
    folds = np.full(n_groups, -1, dtype=np.int16)
    nothing = np.zeros(n_folds)
    while True:
        rarest = _rarest(left)
        if rarest < 0:
            break
        for k in range(label_indptr[rarest], label_indptr[rarest + 1]):
            group = label_groups[k]
            if folds[group] >= 0:
                continue
            fold = _neediest(wanted[:, rarest], room, ties[group])
            folds[group] = fold
            room[fold] -= sizes[group]
            for j in range(indptr[group], indptr[group + 1]):
                wanted[fold, labels[j]] -= counts[j]
                left[labels[j]] -= counts[j]
    for group in range(n_groups):
        if folds[group] < 0:  # no label: to the fold with most room
            fold = _neediest(nothing, room, ties[group])
            folds[group] = fold
            room[fold] -= sizes[group]
    return folds


@numba.njit(cache=True)
def _rarest(left: NDArray[np.int64]) -> int:
    """Return the label with the fewest images left, or -1 when none has any."""
    best = -1
    for label in range(len(left)):
        if left[label] > 0 and (best < 0 or left[label] < left[best]):
            best = label
    return best


@numba.njit(cache=True)
def _neediest(wanted: NDArray[np.float64], room: NDArray[np.float64], tie: float) -> int:
    """Return the fold that wants the label most, then has most room, then by the draw `tie`."""
    close = 1e-9  # Sums of n / n_folds differ in their last bits.
    best, n_equal = 0, 1
    for fold in range(1, len(room)):
        gain = wanted[fold] - wanted[best]
        more = room[fold] - room[best]
        if gain > close or (gain > -close and more > close):
            best, n_equal = fold, 1
        elif gain > -close and more > -close:
            n_equal += 1
    pick = int(tie * n_equal)
    for fold in range(best, len(room)):
        if abs(wanted[fold] - wanted[best]) <= close and abs(room[fold] - room[best]) <= close:
            if pick == 0:
                return fold
            pick -= 1
    return best


def _read_labels(labels: Any) -> sparse.csr_array:
    if not sparse.issparse(labels):
        labels = np.asarray(checks.from_polars(labels, None))
    if labels.ndim != 2:
        raise ValueError(f"labels must have shape (n_images, n_classes); got {labels.shape}")
    matrix = sparse.csr_array(labels)
    if matrix.data.dtype.kind not in "biuf" or not np.isin(matrix.data, (0, 1)).all():
        raise ValueError("labels must hold 0 and 1 only; threshold them first")
    matrix = matrix.astype(np.int32)
    matrix.eliminate_zeros()
    return matrix


def _group_codes(split_group: ArrayLike | None, n_images: int) -> tuple[NDArray[np.intp], int]:
    """Give groups numbers in order of first appearance, and count them."""
    if split_group is None:
        return np.arange(n_images), n_images
    given = np.asarray(split_group)
    if given.shape != (n_images,):
        raise ValueError(
            f"split_group must have shape (n_images,) = ({n_images},); got {given.shape}"
        )
    codes, groups = pd.factorize(given, use_na_sentinel=True)
    if (codes < 0).any():
        raise ValueError(
            f"split_group is missing at positions {np.flatnonzero(codes < 0)[:5].tolist()}; "
            "give such an image a group of its own"
        )
    return codes, len(groups)


def _check_n_folds(n_folds: int, n_groups: int) -> None:
    if not isinstance(n_folds, (int, np.integer)) or not 2 <= n_folds <= np.iinfo(np.int16).max:
        raise ValueError(f"n_folds must be an integer of at least 2; got {n_folds!r}")
    if n_groups < n_folds:
        raise ValueError(
            f"{n_folds} folds need at least as many split groups; there are {n_groups}. "
            "Use fewer folds."
        )


def check_folds(fold: ArrayLike, split_group: ArrayLike) -> None:
    """Refuse folds that part a split group. Images that are not assigned (-1) do not count.

    Parameters
    ----------
    fold : int array-like of shape (n_images,)
    split_group : array-like of shape (n_images,)

    Raises
    ------
    ValueError
        Naming the first few groups that stand in two folds.

    Examples
    --------
    >>> check_folds([0, 0, 1, -1], ["a", "a", "b", "b"])
    """
    folds, groups = np.asarray(fold), np.asarray(split_group)
    if folds.shape != groups.shape or folds.ndim != 1:
        raise ValueError(
            f"fold and split_group must both have shape (n_images,); got {folds.shape} and "
            f"{groups.shape}"
        )
    assigned = folds >= 0
    pairs = pd.DataFrame({"group": groups[assigned], "fold": folds[assigned]})
    n_found = pairs.drop_duplicates().groupby("group", sort=False)["fold"].size()
    parted = n_found.index[n_found > 1]
    if len(parted):
        first = sorted(pairs.loc[pairs["group"] == parted[0], "fold"].unique().tolist())
        raise ValueError(
            f"a split group must lie in one fold; {len(parted):,} groups do not: "
            f"{checks.first_few(parted)}. Group {str(parted[0])!r} is in folds {first}. "
            "Make the folds with make_folds(labels, split_group=...)."
        )


class MultilabelGroupKFold(BaseCrossValidator):
    """Splitter for scikit-learn: K folds stratified by every label that never part a group.

    Parameters
    ----------
    n_splits : int, default=5
    shuffle : bool, default=False
        Draw ties at random instead of taking the first.
    random_state : int or None, default=None
        The draw's seed; only with ``shuffle=True``.

    Examples
    --------
    >>> import numpy as np
    >>> X, Y = np.zeros((4, 1)), np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    >>> [test.tolist() for _, test in MultilabelGroupKFold(2).split(X, Y)]
    [[0, 2], [1, 3]]
    """

    def __init__(
        self, n_splits: int = 5, *, shuffle: bool = False, random_state: int | None = None
    ) -> None:
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds."""
        return self.n_splits

    def __repr__(self) -> str:
        return (
            f"MultilabelGroupKFold(n_splits={self.n_splits}, shuffle={self.shuffle}, "
            f"random_state={self.random_state})"
        )

    def _iter_test_masks(
        self, X: Any = None, y: Any = None, groups: Any = None
    ) -> Iterator[NDArray[np.bool_]]:
        if y is None:
            raise ValueError("y must be given: the labels are what is stratified")
        if self.random_state is not None and not self.shuffle:
            raise ValueError("random_state has no effect with shuffle=False; set shuffle=True")
        rng = np.random.default_rng(self.random_state) if self.shuffle else None
        fold = _assign_images(_as_columns(y), self.n_splits, groups, rng)
        for k in range(self.n_splits):
            yield fold == k


def _as_columns(y: Any) -> Any:
    """One 0/1 column a class for a vector of classes; a label matrix as it is."""
    if sparse.issparse(y) or np.ndim(y) != 1:
        return y
    codes, found = pd.factorize(np.asarray(y))
    ones = np.ones(len(codes), dtype=np.int32)
    return sparse.csr_array((ones, (np.arange(len(codes)), codes)), (len(codes), len(found)))
