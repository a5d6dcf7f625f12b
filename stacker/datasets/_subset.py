"""Choose a part of a data set: stratified by label, split groups whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csc_array, csr_array

__all__ = ["stratified_subset"]


def stratified_subset(
    labels: csr_array,
    split_group: ArrayLike,
    n_images: int,
    *,
    random_state: int = 0,
) -> NDArray[np.intp]:
    """Pick images so that every class keeps its share and split groups stay whole.

    Classes are served from the rarest to the commonest; all split groups that hold a class are
    decided when their rarest class is (Sechidis et al., 2011, for two unequal parts). The count
    is then made exact with whole groups; one group is cut only when nothing else fits.

    Parameters
    ----------
    labels : csr_array of shape (n, n_classes)
        Non-zero where the image has the class.
    split_group : array of shape (n,)
        Images of one group must not part.
    n_images : int
        How many images to pick, 1 to n.
    random_state : int, default 0
        Seeds the order in which groups are looked at.

    Returns
    -------
    array of int, shape (n_images,)
        Sorted positions of the picked images.

    Raises
    ------
    ValueError
        If `n_images` is not in 1..n.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_array
    >>> labels = csr_array(np.eye(4, dtype=np.int8)[[0, 0, 1, 1, 2, 2, 3, 3]])
    >>> picked = stratified_subset(labels, list("aabbccdd"), 4)
    >>> len(picked), len(set("aabbccdd"[i] for i in picked))
    (4, 2)
    """
    n_all = labels.shape[0]
    if not 1 <= n_images <= n_all:
        raise ValueError(
            f"n_images must be between 1 and the number of images there are, {n_all:,}. "
            f"Got {n_images:,} instead."
        )
    if n_images == n_all:
        return np.arange(n_all)
    codes = np.unique(np.asarray(split_group), return_inverse=True)[1]
    sizes = np.bincount(codes)
    counts = _labels_per_group(labels, codes, len(sizes))
    rng = np.random.default_rng(random_state)
    order = rng.permutation(len(sizes))
    keep = _deal_groups(counts[order], sizes[order], n_images / n_all)
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[keep]] = True
    chosen = _fit_size(chosen, sizes, order, n_images)
    return _cut_to(chosen, codes, order, n_images)


def _labels_per_group(labels: csr_array, codes: NDArray[np.intp], n_groups: int) -> csr_array:
    """How often each class occurs in each group: shape (n_groups, n_classes)."""
    ones = np.ones(len(codes), dtype=np.int32)
    member = csr_array((ones, (codes, np.arange(len(codes)))), shape=(n_groups, len(codes)))
    positive = csr_array(labels, copy=True).astype(np.int32)
    positive.data = (positive.data != 0).astype(np.int32)
    return csr_array(member @ positive)


def _deal_groups(counts: csr_array, sizes: NDArray[np.intp], share: float) -> NDArray[np.bool_]:
    """Decide group by group, rarest class first, whether it is kept."""
    by_class = csc_array(counts)
    quota = share * np.asarray(counts.sum(axis=0)).ravel()
    keep = np.zeros(len(sizes), dtype=bool)
    decided = np.zeros(len(sizes), dtype=bool)
    for name in np.argsort(quota, kind="stable"):
        rows = slice(by_class.indptr[name], by_class.indptr[name + 1])
        groups, n_labels = by_class.indices[rows], by_class.data[rows]
        missing = quota[name] - n_labels[keep[groups]].sum()
        free = ~decided[groups]
        # A group is kept while at least half of what it brings is still missing.
        take = np.cumsum(n_labels[free]) - n_labels[free] / 2 <= missing
        keep[groups[free][take]] = True
        decided[groups] = True
    unlabelled = np.flatnonzero(~decided)
    keep[unlabelled[np.cumsum(sizes[unlabelled]) <= share * sizes[unlabelled].sum()]] = True
    return keep


def _fit_size(
    chosen: NDArray[np.bool_], sizes: NDArray[np.intp], order: NDArray[np.intp], n_images: int
) -> NDArray[np.bool_]:
    """Drop, then add, whole groups until no further whole group fits the wanted size."""
    chosen = chosen.copy()
    surplus = int(sizes[chosen].sum()) - n_images
    for group in order[chosen[order]]:
        if 0 < sizes[group] <= surplus:
            chosen[group] = False
            surplus -= int(sizes[group])
    for group in order[~chosen[order]]:
        if sizes[group] <= -surplus:
            chosen[group] = True
            surplus += int(sizes[group])
    return chosen


def _cut_to(
    chosen: NDArray[np.bool_], codes: NDArray[np.intp], order: NDArray[np.intp], n_images: int
) -> NDArray[np.intp]:
    """Positions of the chosen groups' images, one group cut where the size asks for it."""
    picked = np.flatnonzero(chosen[codes])
    if len(picked) >= n_images:
        return picked[:n_images]
    # Every group left is larger than the gap: the first of them gives what is missing.
    last = order[~chosen[order]][0]
    extra = np.flatnonzero(codes == last)[: n_images - len(picked)]
    return np.sort(np.concatenate([picked, extra]))
