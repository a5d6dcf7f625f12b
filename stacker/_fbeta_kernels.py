"""numba kernels for F-beta: overlaps of label sets, and sets of highest expected F-beta.

Kernels compile at the first call, not at import, and are cached on disk. Threads are numba's own
setting; nothing here changes it.
"""

import numpy as np
import scipy.sparse as sp
from numba import njit, prange
from numpy.typing import NDArray

from stacker._inputs import Rows

__all__ = ["best_sets", "overlap"]

CHUNK = 128
# Classes above this probability are convolved one by one; those below enter the label count
# through N_POWERS power sums, whose error is about mean * (2 * FLOOR) ** N_POWERS = 1e-14.
FLOOR = 1.0 / 128.0
N_POWERS = 8
# exp(-42) = 6e-19: counts rarer than that cannot change a score in its twelfth decimal.
LOG_TAIL = 42.0


def overlap(first: Rows, second: Rows) -> NDArray[np.bool_]:
    """Which entries of `first` (sparse, sorted) are also stored in `second`."""
    out = np.zeros(len(first.indices), dtype=np.bool_)
    _overlap(first.indices, first.indptr, second.indices, second.indptr, out)
    return out


@njit(parallel=True, cache=True)
def _overlap(ind_a, ptr_a, ind_b, ptr_b, out):  # type: ignore[no-untyped-def]
    for i in prange(len(ptr_a) - 1):
        b = ptr_b[i]
        for a in range(ptr_a[i], ptr_a[i + 1]):
            while b < ptr_b[i + 1] and ind_b[b] < ind_a[a]:
                b += 1
            out[a] = b < ptr_b[i + 1] and ind_b[b] == ind_a[a]


def best_sets(
    rows: Rows,
    beta: float,
    empty_score: float,
    *,
    max_labels: int,
    class_group: NDArray[np.int32] | None = None,
    group_min: NDArray[np.int64] | None = None,
    group_max: NDArray[np.int64] | None = None,
) -> tuple[sp.csr_array, NDArray[np.float64]]:
    """Find the sets of highest expected F-beta within label-count bounds, and their expected F-beta.

    Parameters
    ----------
    rows : Rows
        Probabilities, float32 or float64.
    beta, empty_score : float
        As in `stacker.fbeta.expected_fbeta_sets`.
    max_labels : int
        Largest set.
    class_group : int32 array of shape (n_classes,)
        Group of each class, 0 to n_groups - 1; one group when None.
    group_min, group_max : int64 arrays of shape (n_groups,)
        Fewest and most labels of each group; 0 and no bound when None.

    Returns
    -------
    chosen : int8 array, one entry per entry of `rows.values`
        1 where the class is in the set.
    scores : float64 array of shape (n_images,)
    """
    n_classes = rows.n_columns
    group = np.zeros(n_classes, np.int32) if class_group is None else class_group
    n_groups = int(group.max(initial=0)) + 1
    low = np.zeros(n_groups, np.int64) if group_min is None else group_min
    high = np.full(n_groups, n_classes, np.int64) if group_max is None else group_max
    chosen = np.zeros(len(rows.values), dtype=np.int8)
    scores = np.empty(rows.n_rows)
    _best_sets(
        rows.values,
        rows.indices,
        rows.indptr,
        beta * beta,
        empty_score,
        max_labels,
        group,
        low,
        high,
        chosen,
        scores,
    )
    return chosen, scores


@njit(parallel=True, cache=True)
def _best_sets(  # type: ignore[no-untyped-def]
    values, indices, indptr, beta2, empty, max_labels, group, low, high, chosen, scores
):
    n_images = len(indptr) - 1
    for chunk in prange((n_images + CHUNK - 1) // CHUNK):
        taken = np.zeros(len(low), np.int64)
        for i in range(chunk * CHUNK, min(n_images, (chunk + 1) * CHUNK)):
            a, b = indptr[i], indptr[i + 1]
            row = indices[a:b] if len(indices) else indices
            scores[i] = _best_set(
                values[a:b], row, beta2, empty, max_labels, group, low, high, taken, chosen[a:b]
            )


@njit(cache=True)
def _best_set(  # type: ignore[no-untyped-def]
    p, columns, beta2, empty, max_labels, group, low, high, taken, chosen
):
    """Set of one image, written to `chosen`; returns its expected F-beta."""
    floor = -1.0 if low.sum() > 0 else FLOOR
    while True:
        order, powers = _split(p, floor)
        tail = powers[0]
        if tail > 500.0 or tail * (2.0 * floor) ** N_POWERS > 1e-13:
            floor = _next_floor(floor)
            continue
        mean = tail + p[order].sum()
        counts = _label_counts(p, order, powers, mean)
        order, n_forced = _within_bounds(order, columns, group, low, high, taken)
        cap = min(max_labels, len(order))
        size, score, closed = _best_size(p, order, counts, mean, beta2, empty, n_forced, cap)
        if closed or floor <= 0.0 or cap == max_labels:
            break
        floor = _next_floor(floor)
    for k in range(size):
        chosen[order[k]] = 1
    return score


@njit(cache=True)
def _next_floor(floor):  # type: ignore[no-untyped-def]
    """Lower the floor; 0 takes every class that is possible at all."""
    return floor / 16.0 if floor > 1e-6 else 0.0


@njit(cache=True)
def _split(p, floor):  # type: ignore[no-untyped-def]
    """Positions with p > floor, most probable first, and the power sums of the rest."""
    powers = np.zeros(N_POWERS)
    n = 0
    for j in range(len(p)):
        n += p[j] > floor
    order = np.empty(n, np.int64)
    n = 0
    for j in range(len(p)):
        if p[j] > floor:
            order[n] = j
            n += 1
            continue
        x = float(p[j])
        power = x
        for m in range(N_POWERS):
            powers[m] += power
            power *= x
    _sort_down(p, order)
    return order, powers


@njit(cache=True)
def _sort_down(p, order):  # type: ignore[no-untyped-def]
    """Sort positions by falling p, equal ones by rising position."""
    if len(order) > 64:
        order[:] = order[np.argsort(-p[order], kind="mergesort")]
        return
    for a in range(1, len(order)):
        j = order[a]
        b = a - 1
        while b >= 0 and p[order[b]] < p[j]:
            order[b + 1] = order[b]
            b -= 1
        order[b + 1] = j


@njit(cache=True)
def _label_counts(p, order, powers, mean):  # type: ignore[no-untyped-def]
    """Distribution of the number of true labels, up to a count too rare to matter."""
    counts = _tail_counts(powers, _top_count(mean, len(order), powers[0]))
    for j in order:
        x = float(p[j])
        for s in range(len(counts) - 1, 0, -1):
            counts[s] = counts[s] * (1.0 - x) + counts[s - 1] * x
        counts[0] *= 1.0 - x
    return counts


@njit(cache=True)
def _top_count(mean, n_body, tail):  # type: ignore[no-untyped-def]
    """Largest count to keep: Chernoff's bound on P(S > s) falls below exp(-LOG_TAIL)."""
    s = mean + 8.0
    while s * np.log(s / max(mean, 1e-300)) - s + mean < LOG_TAIL:
        s += 4.0 + 0.05 * s
    return n_body if tail == 0.0 and n_body < s else int(s)


@njit(cache=True)
def _tail_counts(powers, top):  # type: ignore[no-untyped-def]
    """Poisson-binomial distribution of many small probabilities, from their power sums.

    log G(z) = sum_m (-1)^(m + 1) t_m (z - 1)^m / m with t_m = sum p^m, put in powers of z and
    exponentiated by the recurrence s g_s = sum_m m e_m g_(s - m). The first term alone is the
    Poisson distribution.
    """
    slope = np.zeros(N_POWERS + 1)
    log_none = 0.0
    for m in range(1, N_POWERS + 1):
        log_none -= powers[m - 1] / m
        binomial = 1.0
        for j in range(1, m + 1):
            binomial = binomial * (m - j + 1) / j
            sign = 1.0 if j % 2 == 1 else -1.0
            slope[j] += sign * j * powers[m - 1] * binomial / m
    counts = np.zeros(top + 1)
    counts[0] = np.exp(log_none)
    for s in range(1, top + 1):
        total = 0.0
        for m in range(1, min(s, N_POWERS) + 1):
            total += slope[m] * counts[s - m]
        counts[s] = total / s
    return counts


@njit(cache=True)
def _within_bounds(order, columns, group, low, high, taken):  # type: ignore[no-untyped-def]
    """Candidates that the group bounds allow, the forced ones first; and how many are forced.

    For sets of one size expected F-beta is a sum of terms that rise with p, so the greedy choice
    under lower and upper bounds per group is the best one.
    """
    picked = np.empty_like(order)
    n = 0
    for forced in (True, False):
        taken[:] = 0
        for j in order:
            g = group[columns[j] if len(columns) else j]
            taken[g] += 1
            first = taken[g] <= low[g]
            if first == forced and taken[g] <= high[g]:
                picked[n] = j
                n += 1
    n_forced = min(low.sum(), n)
    return picked[:n], n_forced


@njit(cache=True)
def _best_size(p, order, counts, mean, beta2, empty, n_forced, cap):  # type: ignore[no-untyped-def]
    """Size, expected F-beta, and whether any larger set is proven worse."""
    n = len(counts)
    joint = np.zeros(n)  # joint[s] = sum over chosen labels of P(label true, S = s)
    size, best, closed = 0, -1.0, False
    if n_forced == 0:
        best = empty * counts[0]
    for k in range(1, cap + 1):
        x = float(p[order[k - 1]])
        others = 0.0
        # Dividing a label out of the count is stable upwards for x <= 1/2, else downwards.
        if x <= 0.5:
            scale = 1.0 / (1.0 - x)
            for s in range(1, n):
                others = (counts[s - 1] - x * others) * scale
                joint[s] += x * others
        else:
            for s in range(n - 1, 0, -1):
                others = (counts[s] - (1.0 - x) * others) / x
                joint[s] += x * others
        total = 0.0
        for s in range(1, n):
            total += joint[s] / (beta2 * s + k)
        score = (1.0 + beta2) * total
        if k >= n_forced and score > best:
            best, size = score, k
        if k >= n_forced and (1.0 + beta2) * mean <= best * (beta2 * mean + k + 1.0):
            closed = True
            break
    return size, best, closed
