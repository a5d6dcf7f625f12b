"""Exact threshold search: sort the scores that can matter once, then sweep every cut-off.

A *unit* is what the average runs over: an image (``"samples"``), a class (``"macro"``) or
everything (``"micro"``). Walking down the sorted keys, each step adds one pair to one unit, so the
mean F-beta of every possible cut-off costs O(N log N) for all of them together.

Most pairs need no sorting. At a key below which a unit has n_pred predictions already, its F-beta
is at most (1 + beta^2) n / (beta^2 n + max(n, n_pred)), n its true labels. A search that kept only
the keys above a floor is exact if the mean of this bound at the floor is under the F-beta it
found; else the floor is lowered and the search repeated. Floors are first guessed on a few
images.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numba import njit, prange
from numpy.typing import NDArray

from stacker._hits import Counts
from stacker._inputs import CHUNK, Rows, as_rows, over_rows

__all__ = ["NOTHING", "Pairs", "add_selected", "best_cut", "class_cuts", "cuts_by_code"]

# A threshold above every key: nothing is selected but what a lower bound forces (key inf).
NOTHING = 4.0
ALL = np.float32(1e-38)  # the floor that leaves out zeros only
N_SAMPLE = 1000
# Share of a sample's F-beta that is aimed at: a rare class scores too high on few images.
AIM = {"samples": 0.97, "macro": 0.85, "micro": 0.97}
UNIT_KINDS = {"samples": 0, "macro": 1, "micro": 2}


class Pairs(NamedTuple):
    """(image, class) pairs that a threshold may select, by falling key."""

    keys: NDArray[np.float32]  # scores above 0; the threshold is one of their midpoints
    units: NDArray[np.int32]
    hits: NDArray[np.bool_]  # whether the label is true
    columns: NDArray[np.int32]

    def take(self, which: slice | NDArray[np.bool_] | NDArray[np.intp]) -> "Pairs":
        """Select pairs."""
        return Pairs(self.keys[which], self.units[which], self.hits[which], self.columns[which])


class Search(NamedTuple):
    """Where thresholds are searched."""

    rows: Rows  # keys (float32): at most 0 is never selected, inf always
    labels: sp.csr_array  # (n_images, n_classes)
    average: str
    metric: dict[str, float]  # beta and empty_score
    classes: NDArray[np.bool_] | None = None  # macro only: the classes that count


def cuts_by_code(search: Search, codes: NDArray[np.int32]) -> tuple[NDArray[np.float64], float]:
    """Best thresholds, one for the classes of each code, and the mean F-beta they reach.

    One code: exact. Several: coordinate sweeps, each exact given the others, from the best common
    threshold and from each code's best threshold alone. For ``"macro"`` the codes do not meet in
    any unit: each is searched on its own, exactly.
    """
    n_codes = int(codes.max(initial=0)) + 1
    if search.average != "macro" or n_codes == 1:
        return _cuts_together(search, codes)
    same = np.zeros_like(codes)
    found = [_cuts_together(search._replace(classes=codes == g), same) for g in range(n_codes)]
    sizes = np.bincount(codes, minlength=n_codes)
    cuts = np.array([cut[0] for cut, _ in found])
    return cuts, float(np.average([score for _, score in found], weights=sizes))


def _cuts_together(search: Search, codes: NDArray[np.int32]) -> tuple[NDArray[np.float64], float]:
    floors = _guess_floors(search, codes)
    while True:
        pairs, start = _find_pairs(search, floors[codes])
        cuts, reached = _search(pairs, start, codes, search.metric)
        code = codes[pairs.columns]
        again = [
            g
            for g in np.flatnonzero(floors > ALL)
            if _possible(pairs.units[code == g], start, search.metric) >= reached - 1e-9
        ]
        if not again:
            return cuts, reached
        floors[again] = _lowered(floors[again])


def class_cuts(search: Search) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Threshold of each class by its own F-beta (NaN without true labels), and its true labels."""
    n_classes = search.rows.n_columns
    floors, cuts = _guess_class_floors(search), np.full(n_classes, np.nan)
    unproven = np.ones(n_classes, np.bool_)
    while True:
        open_floors = np.where(unproven, floors, np.float32(np.nan))
        pairs, start = _find_pairs(search._replace(average="macro"), open_floors)
        found, reached = _own_cuts(pairs, start, search.metric)
        cuts[unproven] = found[unproven]
        n_pred = start.n_pred + np.bincount(pairs.columns, minlength=n_classes)
        bound = _bound(n_pred, start.n_true, search.metric)
        unproven &= (start.n_true > 0) & (bound >= reached - 1e-9) & (floors > ALL)
        if not unproven.any():
            return cuts, start.n_true
        floors[unproven] = _lowered(floors[unproven])


def best_cut(
    pairs: Pairs, start: Counts, *, beta: float, empty_score: float
) -> tuple[float, float]:
    """Threshold with the highest mean F-beta over units, and that F-beta.

    Parameters
    ----------
    pairs : Pairs
        Pairs open to selection, by falling key: those with ``key >= threshold`` are added to
        `start`.
    start : Counts
        Counts before any of them is selected.
    beta, empty_score : float
        As in `stacker.fbeta.fbeta_score`.

    Returns
    -------
    threshold : float
        Half-way between two neighbouring keys; `NOTHING` when selecting none is best.
    score : float
        Mean F-beta over units at that threshold.
    """
    counts = (start.n_true, start.n_pred.copy(), start.tp.copy())
    last, total = _sweep(pairs.keys, pairs.units, pairs.hits, *counts, beta * beta, empty_score)
    return _between(pairs.keys, last), total / len(start.n_true)


def add_selected(start: Counts, pairs: Pairs, threshold: float) -> Counts:
    """Add the pairs with ``key >= threshold`` to the counts."""
    n_chosen = len(pairs.keys) - int(np.searchsorted(pairs.keys[::-1], np.float32(threshold)))
    units, n_units = pairs.units[:n_chosen], len(start.n_true)
    n_pred = np.bincount(units, minlength=n_units)
    tp = np.bincount(units[pairs.hits[:n_chosen]], minlength=n_units)
    return Counts(start.n_true, start.n_pred + n_pred, start.tp + tp)


# ---------------------------------------------------------------------------------- searching


def _search(
    pairs: Pairs, start: Counts, codes: NDArray[np.int32], metric: dict[str, float]
) -> tuple[NDArray[np.float64], float]:
    n_codes = int(codes.max(initial=0)) + 1
    one, score = best_cut(pairs, start, **metric)
    if n_codes == 1:
        return np.array([one]), score
    code_of_pair = codes[pairs.columns]
    parts = [pairs.take(code_of_pair == g) for g in range(n_codes)]
    parts = [_trimmed(part, start, metric, score - 1e-9) for part in parts]
    alone = np.array([best_cut(part, start, **metric)[0] for part in parts])
    found = [_descend(parts, start, cuts, metric) for cuts in (np.full(n_codes, one), alone)]
    return max(found, key=lambda pair: pair[1])


def _descend(
    parts: list[Pairs], start: Counts, cuts: NDArray[np.float64], metric: dict[str, float]
) -> tuple[NDArray[np.float64], float]:
    """Sweep one code's threshold at a time, the others fixed, until nothing improves."""
    now = start
    for pairs, cut in zip(parts, cuts, strict=True):
        now = add_selected(now, pairs, cut)
    score = float(now.fbeta(**metric).mean())
    for _ in range(10):
        before = score
        for g, pairs in enumerate(parts):
            rest = _without(now, pairs, cuts[g])
            cut, found = best_cut(pairs, rest, **metric)
            if found > score + 1e-12:
                cuts[g], score = cut, found
                now = add_selected(rest, pairs, cut)
        if score <= before + 1e-7:
            break
    return cuts, score


def _without(counts: Counts, pairs: Pairs, cut: float) -> Counts:
    """Take a code's selected pairs out of the counts again."""
    none = Counts(counts.n_true, np.zeros_like(counts.n_pred), np.zeros_like(counts.tp))
    mine = add_selected(none, pairs, cut)
    return Counts(counts.n_true, counts.n_pred - mine.n_pred, counts.tp - mine.tp)


def _own_cuts(
    pairs: Pairs, start: Counts, metric: dict[str, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Best threshold of each class and the F-beta that it reaches."""
    n_classes, beta2 = len(start.n_true), metric["beta"] ** 2
    keys, _, hits, columns = pairs.take(np.argsort(pairs.columns, kind="stable"))
    edges = np.searchsorted(columns, np.arange(n_classes + 1))
    cuts, reached = np.full(n_classes, np.nan), start.fbeta(**metric)
    for c in np.flatnonzero(start.n_true):
        mine = slice(edges[c], edges[c + 1])
        tp = start.tp[c] + np.cumsum(hits[mine])
        n_pred = start.n_pred[c] + np.arange(1, len(tp) + 1)
        score = (1 + beta2) * tp / (beta2 * start.n_true[c] + n_pred)
        score[:-1][keys[mine][1:] == keys[mine][:-1]] = -1.0  # equal keys go together
        best = int(score.argmax()) if len(score) and score.max() > reached[c] else -1
        cuts[c] = _between(keys[mine], best)
        reached[c] = max(reached[c], score[best]) if best >= 0 else reached[c]
    return cuts, reached


def _between(keys: NDArray[np.float32], last: int) -> float:
    """Return a threshold that selects keys[:last + 1] and no more."""
    if last < 0:
        return NOTHING
    if last + 1 == len(keys):
        return float(keys[last])
    middle = np.float32((float(keys[last]) + float(keys[last + 1])) / 2)
    return float(middle if middle > keys[last + 1] else keys[last])


@njit(cache=True)
def _sweep(keys, units, hits, n_true, n_pred, tp, beta2, empty):  # type: ignore[no-untyped-def]
    """Last position of the best prefix (-1: none) and the sum of F-beta over units there."""
    total = 0.0
    for u in range(len(n_true)):
        total += _ratio(tp[u], n_true[u], n_pred[u], beta2, empty)
    best, last = total, -1
    for e in range(len(keys)):
        u = units[e]
        before = _ratio(tp[u], n_true[u], n_pred[u], beta2, empty)
        n_pred[u] += 1
        tp[u] += hits[e]
        total += _ratio(tp[u], n_true[u], n_pred[u], beta2, empty) - before
        # Equal keys go together; rounding in the running sum must not look like a gain.
        at_end = e + 1 == len(keys) or keys[e + 1] < keys[e]
        if at_end and total > best + 1e-9:
            best, last = total, e
    return last, best


@njit(cache=True)
def _ratio(tp, n_true, n_pred, beta2, empty):  # type: ignore[no-untyped-def]
    below = beta2 * n_true + n_pred
    return (1.0 + beta2) * tp / below if below > 0 else empty


# ------------------------------------------------------------------------------- finding pairs


def _possible(units: NDArray[np.int32], start: Counts, metric: dict[str, float]) -> float:
    """Mean F-beta that is still possible once these pairs are selected, and maybe others."""
    n_pred = start.n_pred + np.bincount(units, minlength=len(start.n_true))
    return float(_bound(n_pred, start.n_true, metric).mean())


def _bound(
    n_pred: NDArray[np.int64], n_true: NDArray[np.int64], metric: dict[str, float]
) -> NDArray[np.float64]:
    """Highest F-beta of each unit with at least n_pred predictions: all true labels among them."""
    return Counts(n_true, np.maximum(n_pred, n_true), n_true).fbeta(**metric)


def _guess_floors(search: Search, codes: NDArray[np.int32]) -> NDArray[np.float32]:
    """Floor of each code that a sample of the images calls safe, with a margin."""
    floors = np.full(int(codes.max(initial=0)) + 1, ALL)
    if search.rows.n_rows < 2 * N_SAMPLE or not search.rows.is_dense:
        return floors  # few pairs, or a sparse matrix that holds the candidates only
    pairs, start = _find_pairs(_sample(search), floors[codes])
    reached = best_cut(pairs, start, **search.metric)[1]
    for g in range(len(floors)):
        mine = pairs.take(codes[pairs.columns] == g) if len(floors) > 1 else pairs
        kept = _trimmed(mine, start, search.metric, AIM[search.average] * reached)
        floors[g] = kept.keys[-1] if len(kept.keys) < len(mine.keys) else ALL
    return floors


def _trimmed(pairs: Pairs, start: Counts, metric: dict[str, float], target: float) -> Pairs:
    """Pairs down to the key where the mean of the bound falls below the target."""
    counts = (start.n_true, start.n_pred.copy(), metric["beta"] ** 2, metric["empty_score"])
    return pairs.take(slice(None, _bound_falls(pairs.units, *counts, target)))


def _guess_class_floors(search: Search) -> NDArray[np.float32]:
    """Floor of each class that keeps about 16 times its true labels: enough for F above 1/4."""
    rows, n_classes = search.rows, search.rows.n_columns
    if rows.n_rows < 2 * N_SAMPLE or not rows.is_dense:
        return np.full(n_classes, ALL)
    some = _sample(search).rows
    ranked = np.sort(some.values.reshape(-1, n_classes), axis=0)[::-1]
    n_true = np.bincount(search.labels.indices, minlength=n_classes)
    kept = np.ceil(16 * n_true * some.n_rows / rows.n_rows).astype(np.int64)
    return np.maximum(ranked[np.minimum(kept, len(ranked) - 1), np.arange(n_classes)], ALL)


def _sample(search: Search) -> Search:
    """Evenly spaced images of a dense search."""
    n_rows, n_columns = search.rows.n_rows, search.rows.n_columns
    images = np.linspace(0, n_rows - 1, N_SAMPLE).astype(np.int64)
    values = search.rows.values.reshape(n_rows, n_columns)[images]
    return search._replace(rows=as_rows(values), labels=search.labels[images])


def _lowered(floors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(floors > 1e-6, floors / 4, ALL).astype(np.float32)


@njit(cache=True)
def _bound_falls(units, n_true, n_pred, beta2, empty, target):  # type: ignore[no-untyped-def]
    """How many pairs it takes until the mean of the bound is below the target."""
    total = 0.0
    for u in range(len(n_true)):
        total += _ratio(n_true[u], n_true[u], max(n_pred[u], n_true[u]), beta2, empty)
    for e in range(len(units)):
        u = units[e]
        n_pred[u] += 1
        if n_pred[u] > n_true[u]:
            before = _ratio(n_true[u], n_true[u], n_pred[u] - 1, beta2, empty)
            total += _ratio(n_true[u], n_true[u], n_pred[u], beta2, empty) - before
            if total < target * len(n_true):
                return e + 1
    return len(units)


def _find_pairs(search: Search, floor: NDArray[np.float32]) -> tuple[Pairs, Counts]:
    """Pairs with keys from their class's floor up, and the counts that forced pairs give."""
    rows, labels = search.rows, search.labels
    if search.classes is not None:
        floor = np.where(search.classes, floor, np.float32(np.nan))
    counted = np.zeros(rows.n_rows, np.int64)
    flat: tuple[Any, ...] = (rows.values, rows.indices, rows.indptr, floor, np.nanmin(floor))
    over_rows(rows, _count_above, _count_above_threads, *flat, counted)
    starts = np.concatenate([[0], np.cumsum(counted)])
    n = int(starts[-1])
    out = (np.empty(n, np.float32), np.empty(n, np.int32), np.empty(n, np.bool_))
    columns = np.empty(n, np.int32)
    truth = (labels.indices, labels.indptr.astype(np.int64))
    kind = UNIT_KINDS[search.average]
    over_rows(rows, _fill, _fill_threads, *flat, *truth, kind, starts, *out, columns)
    pairs = Pairs(*out, columns)
    pairs = pairs.take(np.argsort(-pairs.keys))
    start = _nothing_selected(labels, search.average)
    if search.classes is not None:
        start = Counts(*(part[search.classes] for part in start))
        pairs = pairs._replace(units=(np.cumsum(search.classes) - 1)[pairs.units])
    n_forced = int(np.searchsorted(-pairs.keys, -np.float32(NOTHING)))
    start = add_selected(start, pairs.take(slice(None, n_forced)), NOTHING)
    return pairs.take(slice(n_forced, None)), start


def _nothing_selected(labels: sp.csr_array, average: str) -> Counts:
    """Count each unit before anything is predicted."""
    if average == "samples":
        n_true = np.diff(labels.indptr).astype(np.int64)
    elif average == "macro":
        n_true = np.bincount(labels.indices, minlength=labels.shape[1]).astype(np.int64)
    else:
        n_true = np.array([labels.nnz], dtype=np.int64)
    return Counts(n_true, np.zeros_like(n_true), np.zeros_like(n_true))


@njit(parallel=True, cache=True)
def _count_above_threads(  # type: ignore[no-untyped-def]
    keys, indices, indptr, floor, lowest, counted, n_chunks
):
    for c in prange(n_chunks):
        a, b = c * CHUNK, min((c + 1) * CHUNK, len(counted))
        _count_above(keys, indices, indptr, floor, lowest, counted, a, b)


@njit(cache=True)
def _count_above(  # type: ignore[no-untyped-def]
    keys, indices, indptr, floor, lowest, counted, start, stop
):
    for i in range(start, stop):
        n = 0
        for e in range(indptr[i], indptr[i + 1]):
            if keys[e] >= lowest:
                n += keys[e] >= floor[indices[e] if len(indices) else e - indptr[i]]
        counted[i] = n


@njit(parallel=True, cache=True)
def _fill_threads(  # type: ignore[no-untyped-def]
    keys, indices, indptr, floor, lowest, label, label_ptr, kind, starts, k, u, h, cols, n_chunks
):
    for c in prange(n_chunks):
        a, b = c * CHUNK, min((c + 1) * CHUNK, len(starts) - 1)
        _fill(
            keys,
            indices,
            indptr,
            floor,
            lowest,
            label,
            label_ptr,
            kind,
            starts,
            k,
            u,
            h,
            cols,
            a,
            b,
        )


@njit(cache=True)
def _fill(  # type: ignore[no-untyped-def]
    keys, indices, indptr, floor, lowest, label, label_ptr, kind, starts, k, u, h, cols, start, stop
):
    """Write key, unit, hit and column of each pair from its row's place on."""
    for i in range(start, stop):
        at, next_label = starts[i], label_ptr[i]
        for e in range(indptr[i], indptr[i + 1]):
            if not keys[e] >= lowest:
                continue
            c = indices[e] if len(indices) else e - indptr[i]
            if not keys[e] >= floor[c]:
                continue
            while next_label < label_ptr[i + 1] and label[next_label] < c:
                next_label += 1
            k[at], cols[at] = keys[e], c
            u[at] = i if kind == 0 else (c if kind == 1 else 0)
            h[at] = next_label < label_ptr[i + 1] and label[next_label] == c
            at += 1
