"""Decision rules: each is a function that fits plain parameters and one that applies them.

A fitted rule is a dict of numbers, strings and arrays (so it is saved without pickle). The rules
that compare a score with a threshold share one form: a *key* per (image, class) pair, made from
the probabilities, and a threshold per class. Label-count bounds are put into the keys.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numba import njit, prange
from numpy.typing import NDArray

from stacker._fbeta_kernels import overlap
from stacker._inputs import Matrix, Rows, as_rows
from stacker._sweep import Counts, Pairs, add_selected, best_cut

__all__ = ["RULES", "Bounds", "Problem", "apply_rule"]

Params = dict[str, Any]


class Bounds(NamedTuple):
    """The fewest and most labels an image may have of each group of classes."""

    codes: NDArray[np.int32]  # (n_classes,) group of each class; all 0 for bounds on the image
    low: NDArray[np.int64]  # (n_groups,)
    high: NDArray[np.int64]  # (n_groups,)

    @property
    def n_groups(self) -> int:
        """Number of class groups."""
        return len(self.low)

    @property
    def binding(self) -> bool:
        """Whether any image could be touched by them."""
        sizes = np.bincount(self.codes, minlength=self.n_groups)
        return bool((self.low > 0).any() or (self.high < sizes).any())


class Problem(NamedTuple):
    """What a rule is fitted to."""

    probs: Matrix  # (n_images, n_classes) float32, dense or CSR
    labels: sp.csr_array  # (n_images, n_classes) int8
    class_group: NDArray[np.int32]  # (n_classes,) codes
    bounds: Bounds
    beta: float
    average: str
    empty_score: float
    random_state: int | None = None

    @property
    def metric(self) -> dict[str, float]:
        """Keyword arguments of the metric."""
        return {"beta": self.beta, "empty_score": self.empty_score}

    def take(self, images: NDArray[np.intp]) -> "Problem":
        """Same problem on some images."""
        return self._replace(probs=self.probs[images], labels=self.labels[images])


# ------------------------------------------------------------------------------------ keys


def bounded_keys(rows: Rows, keys: NDArray[np.float32], bounds: Bounds) -> NDArray[np.float32]:
    """Keys with the label-count bounds in them: inf is forced in, -1 is left out."""
    if not bounds.binding:
        return keys
    keys = keys.copy()
    _bound_keys(keys, rows.indices, rows.indptr, bounds.codes, bounds.low, bounds.high)
    return keys


@njit(parallel=True, cache=True)
def _bound_keys(keys, indices, indptr, group, low, high):  # type: ignore[no-untyped-def]
    for i in prange(len(indptr) - 1):
        a, b = indptr[i], indptr[i + 1]
        order = np.argsort(-keys[a:b], kind="mergesort")
        taken = np.zeros(len(low), np.int64)
        for j in order:
            g = group[indices[a + j] if len(indices) else j]
            taken[g] += 1
            if taken[g] <= low[g]:
                keys[a + j] = np.inf
            elif taken[g] > high[g]:
                keys[a + j] = -1.0


def plain_keys(rows: Rows) -> NDArray[np.float32]:
    """Probabilities themselves."""
    return rows.values


def ratio_keys(rows: Rows) -> NDArray[np.float32]:
    """Probabilities over their image's largest; 0 for an image of zeros."""
    top = row_max(rows)
    top[top == 0] = 1
    return (rows.values / np.repeat(top, np.diff(rows.indptr))).astype(np.float32, copy=False)


def row_max(rows: Rows) -> NDArray[np.float32]:
    """Largest value of each image, 0 for an image without entries."""
    top = np.zeros(rows.n_rows, np.float32)
    filled = np.flatnonzero(np.diff(rows.indptr))
    if len(filled):
        top[filled] = np.maximum.reduceat(rows.values, rows.indptr[filled])
    return top


def entry_columns(rows: Rows) -> NDArray[np.int32]:
    """Class of every entry."""
    if len(rows.indices) or not rows.n_columns:
        return rows.indices
    return np.tile(np.arange(rows.n_columns, dtype=np.int32), rows.n_rows)


def entry_hits(problem: Problem) -> NDArray[np.bool_]:
    """Whether the label of every entry is true."""
    if sp.issparse(problem.probs):
        return overlap(as_rows(problem.probs), as_rows(problem.labels))
    return problem.labels.toarray().ravel().astype(np.bool_)


# ------------------------------------------------------------------------- thresholds per group


class Search(NamedTuple):
    """A threshold search: free pairs by class group, and the counts before any is selected."""

    pairs: Pairs
    pair_groups: NDArray[np.int32]
    start: Counts


def make_search(problem: Problem, keys: NDArray[np.float32]) -> Search:
    """Pairs with a key above 0, the forced ones already counted."""
    rows = as_rows(problem.probs)
    columns = entry_columns(rows)
    images = np.repeat(np.arange(rows.n_rows, dtype=np.int32), np.diff(rows.indptr))
    units, n_true = _units(problem, images, columns)
    everything = Pairs(keys, units, entry_hits(problem))
    nothing = Counts(n_true, np.zeros_like(n_true), np.zeros_like(n_true))
    start = add_selected(nothing, everything, np.inf)
    free = (keys > 0) & np.isfinite(keys)
    return Search(everything.take(free), problem.class_group[columns[free]], start)


def _units(
    problem: Problem, images: NDArray[np.int32], columns: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the unit of every entry, and the true labels of every unit."""
    labels = problem.labels
    if problem.average == "samples":
        return images, np.diff(labels.indptr).astype(np.int64)
    if problem.average == "macro":
        return columns, np.bincount(labels.indices, minlength=labels.shape[1])
    return np.zeros_like(images), np.array([labels.nnz])


def fit_cut(problem: Problem, keys: NDArray[np.float32]) -> float:
    """One threshold on the keys for all classes."""
    search = make_search(problem, keys)
    return best_cut(search.pairs, search.start, **problem.metric)[0]


def fit_group_cuts(problem: Problem, keys: NDArray[np.float32]) -> NDArray[np.float64]:
    """Find a threshold per class group by coordinate sweeps, the best of several starts."""
    search = make_search(problem, keys)
    n_groups = int(problem.class_group.max(initial=0)) + 1
    one = best_cut(search.pairs, search.start, **problem.metric)[0]
    per_group = [search.pairs.take(search.pair_groups == g) for g in range(n_groups)]
    alone = [best_cut(pairs, search.start, **problem.metric)[0] for pairs in per_group]
    found = [
        _descend(per_group, search.start, np.array(first), problem.metric)
        for first in ([one] * n_groups, alone)
    ]
    return max(found, key=lambda pair: pair[0])[1]


def _descend(
    per_group: list[Pairs], start: Counts, cuts: NDArray[np.float64], metric: dict[str, float]
) -> tuple[float, NDArray[np.float64]]:
    """Sweep one group's threshold at a time, the others fixed, until nothing improves."""
    none = Counts(start.n_true, np.zeros_like(start.n_true), np.zeros_like(start.n_true))
    parts = [add_selected(none, p, t) for p, t in zip(per_group, cuts, strict=True)]
    score = -1.0
    for _ in range(20):
        before = score
        for g, pairs in enumerate(per_group):
            rest = [part for h, part in enumerate(parts) if h != g]
            base = Counts(
                start.n_true,
                start.n_pred + sum(part.n_pred for part in rest),
                start.tp + sum(part.tp for part in rest),
            )
            cut, found = best_cut(pairs, base, **metric)
            if found > score + 1e-12:
                cuts[g], score = cut, found
                parts[g] = add_selected(none, pairs, cut)
        if score <= before + 1e-9:
            break
    return score, cuts


# ----------------------------------------------------------------------------------- the rules


def fit_global(problem: Problem) -> Params:
    """Fit one threshold for all classes."""
    keys = bounded_keys(as_rows(problem.probs), problem_keys("global", problem), problem.bounds)
    return {"threshold": fit_cut(problem, keys)}


def fit_group(problem: Problem) -> Params:
    """Fit a threshold for each class group."""
    keys = bounded_keys(as_rows(problem.probs), problem_keys("group", problem), problem.bounds)
    return {"threshold": fit_group_cuts(problem, keys)}


def fit_max_ratio(problem: Problem) -> Params:
    """Fit one threshold on the probability over the image's largest."""
    keys = bounded_keys(as_rows(problem.probs), problem_keys("max_ratio", problem), problem.bounds)
    return {"threshold": fit_cut(problem, keys)}


def problem_keys(strategy: str, problem: Problem) -> NDArray[np.float32]:
    """Keys of the problem's pairs under a strategy."""
    rows = as_rows(problem.probs)
    return ratio_keys(rows) if strategy == "max_ratio" else plain_keys(rows)


RULES = {"global": fit_global, "max_ratio": fit_max_ratio, "group": fit_group}


def apply_rule(
    strategy: str, params: Params, probs: Matrix, class_group: NDArray[np.int32], bounds: Bounds
) -> NDArray[np.int8]:
    """0/1 for every entry of the probabilities."""
    rows = as_rows(probs)
    keys = ratio_keys(rows) if strategy == "max_ratio" else plain_keys(rows)
    keys = bounded_keys(rows, keys, bounds)
    threshold = np.asarray(params["threshold"], dtype=np.float32)
    if strategy == "group":
        threshold = threshold[class_group][entry_columns(rows)]
    return (keys >= threshold).astype(np.int8)


def rule_counts(strategy: str, params: Params, problem: Problem) -> Counts:
    """Count each unit's labels when the rule is applied to the problem's own images."""
    chosen = apply_rule(strategy, params, problem.probs, problem.class_group, problem.bounds)
    rows = as_rows(problem.probs)
    images = np.repeat(np.arange(rows.n_rows, dtype=np.int32), np.diff(rows.indptr))
    units, n_true = _units(problem, images, entry_columns(rows))
    none = Counts(n_true, np.zeros_like(n_true), np.zeros_like(n_true))
    pairs = Pairs(chosen.astype(np.float32), units, entry_hits(problem))
    return add_selected(none, pairs, 1.0)
