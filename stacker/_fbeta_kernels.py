"""numba kernels for the sets of highest expected F-beta.

Kernels compile at the first call, not at import, and are cached on disk. Threads are numba's own
setting; nothing here changes it.
"""

from math import comb

import numpy as np
import scipy.sparse as sp
from numba import njit, prange
from numpy.typing import NDArray

from stacker._inputs import CHUNK, Rows, over_rows

__all__ = ["best_sets"]

# Classes above this probability are convolved one by one; those below enter the label count
# through N_POWERS power sums, whose error is about mean * (2 * FLOOR) ** N_POWERS = 1e-15.
FLOOR = 1.0 / 64.0
N_POWERS = 10
BLOCK = 16
# SLOPE[j, m - 1] t_m summed over m is the factor of z^j in z times the derivative of log G(z), see
# _tail_counts.
SLOPE = np.array(
    [
        [
            (-1.0) ** (j + 1) * j * comb(m, j) / m if 0 < j <= m else 0.0
            for m in range(1, N_POWERS + 1)
        ]
        for j in range(N_POWERS + 1)
    ]
)
# exp(-36) = 2e-16: counts rarer than that cannot change a score in its fourteenth decimal.
LOG_TAIL = 36.0


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
    """Find the sets of highest expected F-beta within label-count bounds.

    Parameters
    ----------
    rows : Rows
        Probabilities, float32 or float64.
    beta, empty_score : float
        As in `stacker.fbeta.expected_fbeta_sets`.
    max_labels : int
        Largest set.
    class_group : int32 array of shape (n_classes,)
        Group of each class, 0 to n_groups - 1.
    group_min, group_max : int64 arrays of shape (n_groups,)
        Fewest and most labels of each group; no bounds when None.

    Returns
    -------
    chosen : int8 array, one entry per entry of `rows.values`
        1 where the class is in the set.
    scores : float64 array of shape (n_images,)
    """
    none = np.empty(0, np.int64)
    group = np.empty(0, np.int32) if class_group is None else class_group
    low, high = (none if bound is None else bound for bound in (group_min, group_max))
    chosen = np.zeros(len(rows.values), dtype=np.int8)
    scores = np.empty(rows.n_rows)
    rule = (beta * beta, empty_score, max_labels, group, low, high)
    flat = (rows.values, rows.indices, rows.indptr)
    over_rows(rows, _best_sets, _best_sets_threads, *flat, *rule, chosen, scores)
    return chosen, scores


@njit(parallel=True, cache=True)
def _best_sets_threads(  # type: ignore[no-untyped-def]
    values, indices, indptr, beta2, empty, most, group, low, high, chosen, scores, n_chunks
):
    for c in prange(n_chunks):
        a, b = c * CHUNK, min((c + 1) * CHUNK, len(scores))
        _best_sets(
            values, indices, indptr, beta2, empty, most, group, low, high, chosen, scores, a, b
        )


@njit(cache=True)
def _best_sets(  # type: ignore[no-untyped-def]
    values, indices, indptr, beta2, empty, most, group, low, high, chosen, scores, start, stop
):
    for i in range(start, stop):
        a, b = indptr[i], indptr[i + 1]
        row = indices[a:b] if len(indices) else indices
        scores[i] = _best_set(values[a:b], row, beta2, empty, most, group, low, high, chosen[a:b])


@njit(cache=True)
def _best_set(  # type: ignore[no-untyped-def]
    p, columns, beta2, empty, max_labels, group, low, high, chosen
):
    """Set of one image, written to `chosen`; returns its expected F-beta."""
    floor = -1.0 if low.sum() > 0 else FLOOR
    while True:
        powers = _power_sums(p, floor)
        tail = powers[0]
        if tail > 500.0 or tail * (2.0 * floor) ** N_POWERS > 1e-13:
            floor = _next_floor(floor)
            continue
        order, n_forced = _ranked(p, floor), 0
        mean, counts = _label_counts(p, order, powers)
        if len(low):
            order, n_forced = _within_bounds(order, columns, group, low, high)
        q = p[order].astype(np.float64)
        cap = min(max_labels, len(order))
        rest = (mean, max(floor, 0.0))
        size, score, closed = _best_size(q, counts, rest, beta2, empty, n_forced, cap)
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
def _ranked(p, floor):  # type: ignore[no-untyped-def]
    """Positions with p > floor, the most probable first, ties in order."""
    order = np.empty(len(p) + BLOCK, np.int64)
    n, whole = 0, len(p) - len(p) % BLOCK
    for start in range(0, whole, BLOCK):  # most blocks hold none: one look at all of them
        above = 0
        for j in range(BLOCK):
            above += p[start + j] > floor
        if above:
            n = _append(p, floor, order, n, start, start + BLOCK)
    n = _append(p, floor, order, n, whole, len(p))
    order = order[:n]
    if n > 100:
        return order[np.argsort(-p[order], kind="mergesort")]
    for k in range(1, n):
        j, x = order[k], p[order[k]]
        while k > 0 and p[order[k - 1]] < x:
            order[k] = order[k - 1]
            k -= 1
        order[k] = j
    return order


@njit(cache=True)
def _append(p, floor, order, n, start, stop):  # type: ignore[no-untyped-def]
    for j in range(start, stop):  # without a branch
        order[n] = j
        n += p[j] > floor
    return n


# Sums of numbers that are not negative: their order is free, which lets the loop use SIMD.
@njit(cache=True, fastmath={"reassoc", "contract"})
def _power_sums(p, floor):  # type: ignore[no-untyped-def]
    """Sum p, p^2, ..., p^10 over the entries p <= floor."""
    t1 = t2 = t3 = t4 = t5 = t6 = t7 = t8 = t9 = t10 = 0.0
    for j in range(len(p)):
        x = float(p[j])
        x = x if x <= floor else 0.0
        x2 = x * x
        x3 = x2 * x
        x4 = x2 * x2
        x5 = x3 * x2
        t1 += x
        t2 += x2
        t3 += x3
        t4 += x4
        t5 += x5
        t6 += x3 * x3
        t7 += x4 * x3
        t8 += x4 * x4
        t9 += x5 * x4
        t10 += x5 * x5
    return t1, t2, t3, t4, t5, t6, t7, t8, t9, t10


@njit(cache=True)
def _label_counts(p, order, powers):  # type: ignore[no-untyped-def]
    """Mean and distribution of the number of true labels, cut where counts are too rare."""
    mean = powers[0]
    for j in order:
        mean += p[j]
    counts = _tail_counts(powers, _top_count(mean, len(order), powers[0]))
    for j in order:
        _convolve(counts, float(p[j]))
    n = len(counts)
    while n > 1 and counts[n - 1] < 1e-17:
        n -= 1
    return mean, counts[:n]


@njit(cache=True)
def _convolve(counts, x):  # type: ignore[no-untyped-def]
    for s in range(len(counts) - 1, 0, -1):
        counts[s] = counts[s] * (1.0 - x) + counts[s - 1] * x
    counts[0] *= 1.0 - x


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
        for j in range(1, m + 1):
            slope[j] += SLOPE[j, m - 1] * powers[m - 1]
    counts = np.zeros(top + 1)
    counts[0] = np.exp(log_none)
    for s in range(1, top + 1):
        total = 0.0
        for m in range(1, min(s, N_POWERS) + 1):
            total += slope[m] * counts[s - m]
        counts[s] = total / s
    return counts


@njit(cache=True)
def _within_bounds(order, columns, group, low, high):  # type: ignore[no-untyped-def]
    """Candidates that the group bounds allow, the forced ones first; and how many are forced.

    For sets of one size expected F-beta is a sum of terms that rise with p, so the greedy choice
    under lower and upper bounds per group is the best one.
    """
    picked = np.empty_like(order)
    n, n_forced = 0, low.sum()
    for forced in (True, False):
        taken = np.zeros(len(low), np.int64)
        for j in order:
            g = group[columns[j] if len(columns) else j]
            taken[g] += 1
            first = taken[g] <= low[g]
            if first == forced and taken[g] <= high[g]:
                picked[n] = j
                n += 1
    return picked[:n], min(n_forced, n)


@njit(cache=True)
def _best_size(q, counts, rest, beta2, empty, n_forced, cap):  # type: ignore[no-untyped-def]
    """Size, expected F-beta, and whether any larger set is proven worse.

    `q` holds the candidates' probabilities, falling after the forced ones; `rest` the mean count
    and a bound on the probability of any other class.
    """
    mean, floor = rest
    joint = np.zeros(len(counts))  # joint[s] = sum over chosen labels of P(label true, S = s)
    others = np.zeros(len(counts))  # P(S without the last label = s - 1)
    weights, scores = np.empty((4, len(counts))), np.empty(4)
    size, best = 0, empty * counts[0] if n_forced == 0 else -1.0
    if n_forced == 0 and (1.0 + beta2) * mean <= best * (beta2 * mean + 1.0):
        return size, best, True
    done = 0
    while done < cap:
        step = 1
        if done + 4 <= cap and q[done : done + 4].max() <= 0.5:
            step = 4
            _set_weights(weights, beta2, done)
            _add_four(q, done, counts, joint, others, weights, scores)
        else:
            scores[0] = _add_one(q[done], counts, joint, others, beta2, done + 1)
        for k in range(step):
            done += 1
            mean -= q[done - 1]
            if done >= n_forced and (1.0 + beta2) * scores[k] > best:
                best, size = (1.0 + beta2) * scores[k], done
        if done > n_forced:
            after = q[done] if done < len(q) else floor
            bound = _larger_sets(joint, others, max(mean, 0.0), after, beta2, done)
            if (1.0 + beta2) * bound <= best:
                return size, best, True
    return size, best, False


@njit(cache=True, fastmath={"reassoc"})
def _larger_sets(joint, others, mass, p, beta2, k):  # type: ignore[no-untyped-def]
    """Bound on E[F] / (1 + beta^2) of every set that adds d >= 1 labels to the k first.

    The d labels bring at most min(d p, mass) true ones, each at most in the proportions `others`
    of the last label taken, since a less probable label leaves larger counts to the others. Each
    term (a + d p w) / (c + d) is monotone in d: its largest value is at d = 1 or mass / p.
    """
    far = max(1.0, mass / p) if p > 0.0 else 1.0
    near_mass = min(p, mass)
    total = 0.0
    for s in range(1, len(joint)):
        below = beta2 * s + k
        near = (joint[s] + near_mass * others[s]) / (below + 1.0)
        total += max(near, (joint[s] + mass * others[s]) / (below + far))
    return total


@njit(cache=True)
def _set_weights(weights, beta2, done):  # type: ignore[no-untyped-def]
    """1 / (beta^2 s + k) for the four sizes after `done`."""
    for m in range(4):
        for s in range(weights.shape[1]):
            weights[m, s] = 1.0 / (beta2 * s + (done + 1 + m))


@njit(cache=True)
def _add_one(x, counts, joint, others, beta2, k):  # type: ignore[no-untyped-def]
    """Add one label to the set, and return sum_s joint[s] / (beta^2 s + k).

    Dividing a label out of the count's distribution is stable upwards for x <= 1/2, else
    downwards.
    """
    n = len(counts)
    rest = 0.0
    if x <= 0.5:
        for s in range(1, n):
            rest = (counts[s - 1] - x * rest) / (1.0 - x)
            others[s] = rest
    else:
        for s in range(n - 1, 0, -1):
            rest = (counts[s] - (1.0 - x) * rest) / x
            others[s] = rest
    total = 0.0
    for s in range(1, n):
        joint[s] += x * others[s]
        total += joint[s] / (beta2 * s + k)
    return total


@njit(cache=True, fastmath={"contract"})
def _add_four(q, done, counts, joint, others, weights, scores):  # type: ignore[no-untyped-def]
    """Add four labels of p <= 1/2: as `_add_one` four times, the four chains side by side."""
    x0, x1, x2, x3 = q[done], q[done + 1], q[done + 2], q[done + 3]
    r0, r1, r2, r3 = 1.0 / (1.0 - x0), 1.0 / (1.0 - x1), 1.0 / (1.0 - x2), 1.0 / (1.0 - x3)
    y0, y1, y2, y3 = x0 * r0, x1 * r1, x2 * r2, x3 * r3
    o0 = o1 = o2 = o3 = 0.0
    t0 = t1 = t2 = t3 = 0.0
    for s in range(1, len(counts)):
        c = counts[s - 1]
        o0 = c * r0 - y0 * o0
        o1 = c * r1 - y1 * o1
        o2 = c * r2 - y2 * o2
        o3 = c * r3 - y3 * o3
        others[s] = o3
        j0 = joint[s] + x0 * o0
        j1 = j0 + x1 * o1
        j2 = j1 + x2 * o2
        j3 = j2 + x3 * o3
        joint[s] = j3
        t0 += j0 * weights[0, s]
        t1 += j1 * weights[1, s]
        t2 += j2 * weights[2, s]
        t3 += j3 * weights[3, s]
    scores[0], scores[1], scores[2], scores[3] = t0, t1, t2, t3
