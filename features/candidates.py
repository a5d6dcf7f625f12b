"""Which (image, class) pairs become rows.

Thousands of classes an image are almost all hopeless; the best few by the blended probability
hold nearly every true label. Candidate recall, the share of true labels that have a row, says
what the choice costs (RECIPES A9, A18).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from features.schema import LabelSpace

logger = logging.getLogger(__name__)

RECALL_TARGET = 0.98
MOST_CANDIDATES = 64
RECALL_WARNING = 0.9

CandidateSpec = str | int | Mapping[str, int] | None


@dataclass(frozen=True)
class Candidates:
    """The rows of some images, sorted by image, then by class group and falling probability.

    Attributes
    ----------
    indptr : int64 array of shape (n_images + 1,)
        Rows ``indptr[i]:indptr[i + 1]`` belong to image i.
    classes : int32 array of shape (n_rows,)
    """

    indptr: NDArray[np.int64]
    classes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def row_image(self) -> NDArray[np.int32]:
        """Image position of each row, int32 of shape (n_rows,)."""
        n_images = len(self.indptr) - 1
        return np.repeat(np.arange(n_images, dtype=np.int32), np.diff(self.indptr))


def resolve_candidates(
    spec: CandidateSpec,
    blend: NDArray[np.float32],
    labels: csr_array,
    space: LabelSpace,
) -> NDArray[np.int64]:
    """Turn the `candidates` parameter into a number of candidates per class group.

    Parameters
    ----------
    spec : "auto", None, int or mapping of class group to int
        "auto" takes per class group the smallest k with recall 0.98 on these labels, at most
        64; None takes every class; an int is shared out as the top k over all classes of each
        group; a mapping names each group's own.
    blend : float32 array of shape (n_images, n_classes)
        The probability that ranks the classes, logit mean unless said otherwise.
    labels : CSR array of shape (n_images, n_classes)
    space : LabelSpace

    Returns
    -------
    int64 array of shape (n_groups,)
        Candidates per class group, in the order of ``space.group_names``.
    """
    sizes = np.bincount(space.group_codes, minlength=len(space.group_names))
    if spec is None:
        return sizes
    if isinstance(spec, str):
        if spec != "auto":
            raise ValueError(f"candidates must be 'auto', None, int or dict. Got {spec!r} instead.")
        return smallest_k(blend, labels, space)
    if isinstance(spec, Mapping):
        return np.minimum(_per_group(spec, space), sizes)
    if isinstance(spec, bool) or spec < 1:
        raise ValueError(f"candidates must be at least 1. Got {spec!r} instead.")
    return np.minimum(int(spec), sizes)


def _per_group(spec: Mapping[str, int], space: LabelSpace) -> NDArray[np.int64]:
    """Look up each class group's number, naming what is missing or unknown."""
    names = [str(name) for name in space.group_names]
    if set(spec) != set(names):
        raise ValueError(
            f"candidates must name every class group once: expected {sorted(names)}, "
            f"got {sorted(spec)}."
        )
    if min(spec.values()) < 1:
        raise ValueError(f"candidates must be at least 1 in each group. Got {dict(spec)!r}.")
    return np.array([spec[name] for name in names], dtype=np.int64)


def smallest_k(
    blend: NDArray[np.float32],
    labels: csr_array,
    space: LabelSpace,
    *,
    recall: float = RECALL_TARGET,
    most: int = MOST_CANDIDATES,
) -> NDArray[np.int64]:
    """Find per class group the smallest k whose top k hold `recall` of the true labels."""
    ranks, groups = label_ranks(blend, labels, space)
    chosen = np.empty(len(space.group_names), dtype=np.int64)
    sizes = np.bincount(space.group_codes, minlength=len(chosen))
    for code in range(len(chosen)):
        own = np.sort(ranks[groups == code])
        # With no label at all in a group, one candidate keeps the group predictable.
        needed = own[int(np.ceil(recall * len(own))) - 1] + 1 if len(own) else 1
        chosen[code] = min(needed, most, sizes[code])
    return chosen


def label_ranks(
    blend: NDArray[np.float32], labels: csr_array, space: LabelSpace
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Rank of every true label inside its class group, 0 = most probable, and its group."""
    ranks, groups = [], []
    for start in range(0, len(blend), 1024):
        part = labels[start : start + 1024].tocoo()
        for code in range(len(space.group_names)):
            own = np.flatnonzero(space.group_codes == code)
            order = np.argsort(-blend[start : start + 1024, own], axis=1, kind="stable")
            rank = np.empty_like(order)
            np.put_along_axis(rank, order, np.arange(len(own))[None], axis=1)
            inside = space.group_codes[part.col] == code
            ranks.append(rank[part.row[inside], np.searchsorted(own, part.col[inside])])
            groups.append(np.full(int(inside.sum()), code, dtype=np.int32))
    return np.concatenate(ranks), np.concatenate(groups)


def select_candidates(
    blend: NDArray[np.float32], per_group: NDArray[np.int64], space: LabelSpace
) -> Candidates:
    """Take each image's most probable classes of each class group.

    Parameters
    ----------
    blend : float32 array of shape (n_images, n_classes)
    per_group : int64 array of shape (n_groups,)
        From :func:`resolve_candidates`.
    space : LabelSpace

    Returns
    -------
    Candidates
        ``per_group.sum()`` rows an image; ties go to the class that comes first.
    """
    parts = []
    for code, k in enumerate(per_group):
        own = np.flatnonzero(space.group_codes == code).astype(np.int32)
        parts.append(own[top_k(blend[:, own], int(k))])
    classes = np.concatenate(parts, axis=1)
    indptr = np.arange(len(blend) + 1, dtype=np.int64) * classes.shape[1]
    return Candidates(indptr, np.ascontiguousarray(classes.ravel(), dtype=np.int32))


def top_k(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Positions of each row's k largest values, falling; ties in order of position.

    Examples
    --------
    >>> top_k(np.array([[0.1, 0.9, 0.9, 0.3]], dtype=np.float32), 2).tolist()
    [[1, 2]]
    """
    if k < values.shape[1] // 4:
        # Narrow down first: everything at or above the k-th largest value, then one short sort.
        cut = -np.partition(-values, k - 1, axis=1)[:, k - 1 : k]
        most = int((values >= cut).sum(axis=1).max(initial=0))
        if most <= 4 * k:
            near = np.argsort(values < cut, axis=1, kind="stable")[:, :most]
            order = np.argsort(-np.take_along_axis(values, near, axis=1), axis=1, kind="stable")
            return np.take_along_axis(near, order[:, :k], axis=1)
    return np.argsort(-values, axis=1, kind="stable")[:, :k]


def candidate_recall(
    candidates: Candidates, labels: csr_array, space: LabelSpace
) -> dict[str, float]:
    """Share of the true labels that have a row, per class group and overall ("all").

    A warning is logged below 0.9: no booster can bring back a label that has no row.
    """
    n_images = len(candidates.indptr) - 1
    chosen = csr_array(
        (np.ones(len(candidates), dtype=np.int8), candidates.classes, candidates.indptr),
        shape=(n_images, len(space)),
    )
    hit = np.asarray(labels.multiply(chosen).sum(axis=0)).ravel()
    true = np.asarray(labels.sum(axis=0)).ravel()
    recall = {}
    for code, name in enumerate([*space.group_names, "all"]):
        own = space.group_codes == code if code < len(space.group_names) else slice(None)
        recall[str(name)] = float(hit[own].sum() / max(true[own].sum(), 1))
    low = {name: round(value, 3) for name, value in recall.items() if value < RECALL_WARNING}
    if low:
        logger.warning("candidate recall below %.1f: %s; raise candidates=", RECALL_WARNING, low)
    return recall
