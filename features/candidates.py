"""Which (image, class) pairs become rows.

Thousands of classes an image are almost all hopeless; the best few by the blended probability
hold nearly every true label. Candidate recall, the share of true labels that have a row, says
what the choice costs (docs/recipes.md: A9, A18).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy.sparse import csr_array

from features.blending import FLOOR, Blend, SparseBlend, dense_rows, images_at_once
from features.schema import LabelSpace

logger = logging.getLogger(__name__)

RECALL_TARGET = 0.98
MOST_CANDIDATES = 64
RECALL_WARNING = 0.9

CandidateSpec = str | int | float | Mapping[str, int] | None


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
    blend: Blend,
    labels: csr_array,
    space: LabelSpace,
) -> NDArray[np.int64]:
    """Turn the `candidates` parameter into a number of candidates per class group.

    Parameters
    ----------
    spec : "auto", None, int, float or mapping of class group to int
        "auto" takes per class group the smallest k with recall 0.98 on these labels, at most
        64; None takes every class; an int takes that many of each group; a mapping names each
        group's own. A float (or "threshold=0.01") takes the classes above this probability,
        as many as there are: see :func:`resolve_threshold`.
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
    if spec is None or resolve_threshold(spec) >= 0:
        return sizes
    if isinstance(spec, str):
        if spec != "auto":
            raise ValueError(
                f"candidates must be 'auto', None, int, float, 'threshold=0.01' or dict. "
                f"Got {spec!r} instead."
            )
        return smallest_k(blend, labels, space)
    if isinstance(spec, Mapping):
        return np.minimum(_per_group(spec, space), sizes)
    if not _is_count(spec):
        raise ValueError(f"candidates must be a whole number, at least 1. Got {spec!r} instead.")
    return np.minimum(int(spec), sizes)


def resolve_threshold(spec: CandidateSpec) -> float:
    """Probability that a class must exceed to become a row; -1 where there is no such rule.

    Raises
    ------
    ValueError
        For a threshold outside [0, 1).

    Examples
    --------
    >>> resolve_threshold(0.01), resolve_threshold("threshold=0.2"), resolve_threshold(30)
    (0.01, 0.2, -1.0)
    """
    if isinstance(spec, str) and spec.startswith("threshold="):
        try:
            threshold = float(spec.removeprefix("threshold="))
        except ValueError:
            threshold = np.nan
    elif isinstance(spec, float):
        threshold = float(spec)
    else:
        return -1.0
    if not 0 <= threshold < 1:
        raise ValueError(
            f"a threshold of candidates is a probability, 0 <= threshold < 1; a number of them is "
            f"a whole number. Got {spec!r} instead."
        )
    return threshold


def _is_count(k: object) -> bool:
    return not isinstance(k, bool) and isinstance(k, Integral) and int(k) >= 1


def _per_group(spec: Mapping[str, int], space: LabelSpace) -> NDArray[np.int64]:
    """Look up each class group's number, naming what is missing or unknown."""
    names = [str(name) for name in space.group_names]
    if set(spec) != set(names):
        raise ValueError(
            f"candidates must name every class group once: expected {sorted(names)}, "
            f"got {sorted(spec)}."
        )
    if not all(map(_is_count, spec.values())):
        raise ValueError(f"candidates must be at least 1 in each group. Got {dict(spec)!r}.")
    return np.array([spec[name] for name in names], dtype=np.int64)


def smallest_k(
    blend: Blend,
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
    blend: Blend, labels: csr_array, space: LabelSpace
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Rank of every true label inside its class group, 0 = most probable, and its group."""
    pairs = labels.tocoo()  # sorted by image, as the CSR is
    ranks = np.empty(len(pairs.col), dtype=np.int64)
    members, starts = _members(space)
    groups = space.group_codes[pairs.col].astype(np.int32)
    step = images_at_once(len(space))
    for start in range(0, len(blend), step):
        some = dense_rows(blend, slice(start, start + step))
        own = slice(*np.searchsorted(pairs.row, [start, start + step]))
        rows = pairs.row[own] - start
        _label_ranks(some, rows, pairs.col[own], groups[own], members, starts, ranks[own])
    return ranks, groups


def _members(space: LabelSpace) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Classes sorted by group, and where each group starts: int32 and int64 (n_groups + 1,)."""
    members = np.argsort(space.group_codes, kind="stable").astype(np.int32)
    sizes = np.bincount(space.group_codes, minlength=len(space.group_names))
    return members, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


@njit(parallel=True, cache=True)
def _label_ranks(blend, rows, cols, groups, members, starts, ranks):  # type: ignore[no-untyped-def]
    """Count the classes of the group that stand before each label."""
    for i in prange(len(ranks)):
        values, own = blend[rows[i]], cols[i]
        before = 0
        for place in range(starts[groups[i]], starts[groups[i] + 1]):
            c = members[place]
            before += values[c] > values[own] or (values[c] == values[own] and c < own)
        ranks[i] = before


def select_candidates(
    blend: NDArray[np.float32],
    per_group: NDArray[np.int64],
    space: LabelSpace,
    *,
    above: float = -1.0,
) -> Candidates:
    """Take each image's most probable classes of each class group.

    Parameters
    ----------
    blend : float32 array of shape (n_images, n_classes)
    per_group : int64 array of shape (n_groups,)
        From :func:`resolve_candidates`.
    space : LabelSpace
    above : float, default=-1
        Only classes whose probability is larger become rows; all are by default.

    Returns
    -------
    Candidates
        Up to ``per_group.sum()`` rows an image; ties go to the class that comes first.

    Examples
    --------
    >>> space = LabelSpace(["tag::a", "tag::b", "tag::c", "culture::d"])
    >>> blend = np.array([[0.1, 0.9, 0.9, 0.3], [0.5, 0.0, 0.2, 0.0]], dtype=np.float32)
    >>> select_candidates(blend, np.array([2, 1]), space).classes.tolist()
    [1, 2, 3, 0, 2, 3]
    >>> found = select_candidates(blend, np.array([2, 1]), space, above=0.2)
    >>> found.classes.tolist(), found.indptr.tolist()
    ([1, 2, 3, 0], [0, 3, 4])
    """
    most = np.asarray(per_group, dtype=np.int64)
    chosen = np.empty((len(blend), int(most.sum())), dtype=np.int32)
    counts = np.empty(len(blend), dtype=np.int64)
    _select(blend, *_members(space), most, np.float32(above), chosen, counts)
    return _packed(chosen, counts)


def _packed(chosen: NDArray[np.int32], counts: NDArray[np.int64]) -> Candidates:
    """Rows of the classes that stand at the left of each image's line."""
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if indptr[-1] == chosen.size:
        return Candidates(indptr, chosen.ravel())
    return Candidates(indptr, chosen[np.arange(chosen.shape[1]) < counts[:, None]])


@njit(parallel=True, cache=True)
def _select(blend, members, starts, per_group, above, chosen, counts):  # type: ignore[no-untyped-def]
    """Fill each image's row of `chosen` from the left, group after group."""
    for image in prange(len(blend)):
        n = 0
        for g in range(len(per_group)):
            own = members[starts[g] : starts[g + 1]]
            k = per_group[g]
            # Sorting in as they come beats a sort of all while the list is short.
            if k <= 64 and 4 * k <= len(own):
                n += _insert_best(blend[image], own, above, chosen[image, n : n + k])
            else:
                n += _sort_best(blend[image], own, above, chosen[image, n : n + k])
        counts[image] = n


@njit(cache=True)
def _insert_best(values, own, above, out):  # type: ignore[no-untyped-def]
    """Keep the best classes in a sorted list; return how many there are."""
    n = 0
    for c in own:
        value = values[c]
        if value <= above or (n == len(out) and value <= values[out[n - 1]]):
            continue
        n = min(n + 1, len(out))
        place = n - 1
        while place > 0 and values[out[place - 1]] < value:
            out[place] = out[place - 1]
            place -= 1
        out[place] = c
    return n


@njit(cache=True)
def _sort_best(values, own, above, out):  # type: ignore[no-untyped-def]
    """Sort all classes and take the best; return how many there are."""
    order = np.argsort(-values[own], kind="mergesort")  # stable: ties stay in order
    n = 0
    for j in order[: len(out)]:
        if values[own[j]] > above:
            out[n] = own[j]
            n += 1
    return n


def choose_candidates(
    blend: Blend, per_group: NDArray[np.int64], space: LabelSpace, *, above: float = -1.0
) -> Candidates:
    """Take the candidates of all images, as `select_candidates` does.

    Of a top-k stack's blend only classes that some model holds become rows, and only they are
    looked at.
    """
    if not isinstance(blend, SparseBlend):
        return select_candidates(blend, per_group, space, above=above)
    starts = np.concatenate([[0], np.cumsum(per_group)]).astype(np.int64)
    chosen = np.empty((len(blend), starts[-1]), dtype=np.int32)
    counts = np.empty(len(blend), dtype=np.int64)
    stored, least = blend.values, np.float32(max(above, FLOOR))
    codes = space.group_codes
    _select_stored(stored.indptr, stored.indices, stored.data, codes, starts, least, chosen, counts)
    return _packed(chosen, counts)


@njit(parallel=True, cache=True)
def _select_stored(indptr, indices, data, codes, starts, above, chosen, counts):  # type: ignore[no-untyped-def]
    """Do what `_select` does, among the entries of a CSR matrix."""
    for image in prange(len(counts)):
        found = np.zeros(len(starts) - 1, dtype=np.int64)
        values = np.empty(starts[-1], dtype=np.float32)
        classes = np.empty(starts[-1], dtype=np.int32)
        for p in range(indptr[image], indptr[image + 1]):
            value, g = data[p], codes[indices[p]]
            first, most = starts[g], starts[g + 1] - starts[g]
            if value <= above or most == 0:
                continue
            if found[g] == most and value <= values[first + most - 1]:
                continue
            found[g] = min(found[g] + 1, most)
            place = first + found[g] - 1
            while place > first and values[place - 1] < value:
                values[place], classes[place] = values[place - 1], classes[place - 1]
                place -= 1
            values[place], classes[place] = value, indices[p]
        n = 0
        for g in range(len(found)):
            for place in range(starts[g], starts[g] + found[g]):
                chosen[image, n] = classes[place]
                n += 1
        counts[image] = n


def join_candidates(parts: Sequence[Candidates]) -> Candidates:
    """Put the rows of successive image ranges together."""
    sizes = [np.empty(0, dtype=np.int64), *(np.diff(part.indptr) for part in parts)]
    classes = [np.empty(0, dtype=np.int32), *(part.classes for part in parts)]
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)
    return Candidates(indptr, np.concatenate(classes))


def candidate_recall(
    candidates: Candidates, labels: csr_array, space: LabelSpace
) -> tuple[dict[str, float], float]:
    """Share of the true labels that have a row: {class group: share}, and of all groups.

    A warning is logged below 0.9: no booster can bring back a label that has no row.
    """
    n_images = len(candidates.indptr) - 1
    chosen = csr_array(
        (np.ones(len(candidates), dtype=np.int8), candidates.classes, candidates.indptr),
        shape=(n_images, len(space)),
    )
    hit = np.asarray(labels.multiply(chosen).sum(axis=0)).ravel()
    true = np.asarray(labels.sum(axis=0)).ravel()
    codes, n_groups = space.group_codes, len(space.group_names)
    hits = np.bincount(codes, weights=hit, minlength=n_groups)
    totals = np.bincount(codes, weights=true, minlength=n_groups)
    # A group without a true label misses none.
    shares = np.where(totals > 0, hits / np.maximum(totals, 1), 1.0)
    recall = {str(n): float(share) for n, share in zip(space.group_names, shares, strict=True)}
    overall = float(hits.sum() / totals.sum()) if totals.sum() else 1.0
    low = [f"{n or 'all'} {share:.3f}" for n, share in recall.items() if share < RECALL_WARNING]
    if low:
        said = ", ".join(low)
        logger.warning("candidate recall below %.1f: %s; raise candidates=", RECALL_WARNING, said)
    return recall, overall
