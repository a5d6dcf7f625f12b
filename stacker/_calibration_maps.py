"""Calibration maps fitted on binned log-odds.

Pairs are counted once into bins of their log-odds, by fold and class; every fit and every
cross-validated log loss is then computed on these counts, so its cost does not depend on the
number of images. Bins are 1/8 wide and stand for their mean log-odds.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numba import njit, prange
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit, log_expit

from stacker._inputs import CHUNK, Matrix, Rows, as_rows, over_rows

__all__ = [
    "N_BINS",
    "BinCounts",
    "add_classes",
    "apply_curves",
    "bin_pairs",
    "fit_curve",
    "fit_isotonic",
    "fit_offsets",
    "fit_venn_abers",
    "log_loss_sum",
    "log_odds",
    "parametric_features",
    "shifted_log_loss",
]

N_BINS = 256
PARTED_ENTRIES = 20_000_000
EXACT_IN_FLOAT32 = 2**24
# Log-odds beyond this are cut: p = 1 (float16 rounds 0.9998 to it) must stay finite.
LIMIT = 16.0
Floats = NDArray[np.float64]


class BinCounts(NamedTuple):
    """Pairs and positives by fold, class and bin of log-odds; zeros are not counted.

    float32 up to 16 million images, which it counts exactly: with tens of thousands of classes
    these are the largest arrays of a decision. Sums over classes are float64.
    """

    total: NDArray[Any]  # (n_folds, n_classes, N_BINS)
    positive: NDArray[Any]  # the same shape
    centre: Floats  # (N_BINS,) mean log-odds


def log_odds(p: NDArray[Any]) -> Floats:
    """Log-odds in float64, cut to [-16, 16]."""
    p = np.asarray(p, dtype=np.float64)
    with np.errstate(divide="ignore"):
        odds: Floats = np.clip(np.log(p) - np.log1p(-p), -LIMIT, LIMIT)
    return odds


def bin_pairs(
    probs: Matrix, labels: sp.csr_array, fold: NDArray[np.integer[Any]], n_folds: int
) -> BinCounts:
    """Count the pairs of a probability matrix."""
    rows = as_rows(probs)
    # One set of counts for each of a few ranges of images, so that threads never share one.
    n_parts = 4 if len(rows.values) > PARTED_ENTRIES else 1
    shape = (n_parts, n_folds, probs.shape[1], N_BINS)
    exact = np.float32 if len(fold) < EXACT_IN_FLOAT32 else np.float64
    total, positive = np.zeros(shape, exact), np.zeros(shape, exact)
    sums = np.zeros((n_parts, N_BINS))
    flat = (rows.values, rows.indices, rows.indptr, labels.indices, labels.indptr)
    count = _count_parts if n_parts > 1 else _count_whole
    count(*flat, fold.astype(np.int64), total, positive, sums)
    total, positive = (p[0] if n_parts == 1 else p.sum(axis=0) for p in (total, positive))
    pooled = np.sum([add_classes(part, np.zeros(part.shape[0], np.int32))[0] for part in total], 0)
    middle = (np.arange(N_BINS) + 0.5) * (2 * LIMIT / N_BINS) - LIMIT
    centre = np.divide(sums.sum(axis=0), pooled, out=middle, where=pooled > 0)
    return BinCounts(total, positive, centre)


def add_classes(counts: NDArray[Any], codes: NDArray[np.int32]) -> Floats:
    """Add up the (n_classes, n_bins) counts of classes of one code, float64 (n_codes, n_bins)."""
    sums = np.zeros((int(codes.max(initial=0)) + 1, counts.shape[1]))
    _add_classes(counts, codes, sums)
    return sums


@njit(cache=True)
def _add_classes(counts, codes, sums):  # type: ignore[no-untyped-def]
    for c in range(len(codes)):
        for b in range(counts.shape[1]):
            sums[codes[c], b] += counts[c, b]


@njit(parallel=True, cache=True)
def _count_parts(  # type: ignore[no-untyped-def]
    values, indices, indptr, label, label_ptr, fold, total, positive, sums
):
    n, n_parts = len(fold), len(total)
    for k in prange(n_parts):
        a, b = np.int64(k) * n // n_parts, (np.int64(k) + 1) * n // n_parts
        part = (total[k], positive[k], sums[k])
        _count(values, indices, indptr, label, label_ptr, fold, *part, a, b)


@njit(cache=True)
def _count_whole(  # type: ignore[no-untyped-def]
    values, indices, indptr, label, label_ptr, fold, total, positive, sums
):
    part = (total[0], positive[0], sums[0])
    _count(values, indices, indptr, label, label_ptr, fold, *part, 0, len(fold))


@njit(cache=True)
def _count(  # type: ignore[no-untyped-def]
    values, indices, indptr, label, label_ptr, fold, total, positive, sums, start, stop
):
    marked = np.zeros(total.shape[1], np.bool_)
    scale = N_BINS / (2 * LIMIT)
    for i in range(start, stop):
        for e in range(label_ptr[i], label_ptr[i + 1]):
            marked[label[e]] = True
        for e in range(indptr[i], indptr[i + 1]):
            if values[e] <= 0.0:
                continue
            odds = _odds(float(values[e]))
            b = min(int((odds + LIMIT) * scale), N_BINS - 1)
            c = indices[e] if len(indices) else e - indptr[i]
            total[fold[i], c, b] += 1
            positive[fold[i], c, b] += marked[c]
            sums[b] += odds
        for e in range(label_ptr[i], label_ptr[i + 1]):
            marked[label[e]] = False


@njit(cache=True)
def _odds(p):  # type: ignore[no-untyped-def]
    """Log-odds of a p above 0, cut to [-16, 16]."""
    return min(max(np.log(p / (1.0 - p)), -LIMIT), LIMIT) if p < 1.0 else LIMIT


def apply_curves(
    rows: Rows, curve: Floats, of_class: NDArray[np.int32], offset: Floats
) -> NDArray[np.float32]:
    """Map probabilities through parametric curves; zeros stay.

    Parameters
    ----------
    rows : Rows
        Probabilities, float32.
    curve : float64 array of shape (n_maps, 1), (n_maps, 2) or (n_maps, 3)
        Coefficients of temperature, Platt or beta calibration.
    of_class : int32 array of shape (n_classes,)
        Map of each class.
    offset : float64 array of shape (n_classes,)
        Shift of each class's log-odds.
    """
    out = np.empty(len(rows.values), np.float32)
    # All three families as a ln p - b ln(1 - p) + c.
    width = curve.shape[1]
    slopes = curve if width == 3 else curve[:, [0, 0]]
    shift = curve[:, -1:] if width > 1 else np.zeros((len(curve), 1))
    full = np.ascontiguousarray(np.hstack([slopes[:, :2], shift]))
    args = (rows.values, rows.indices, rows.indptr, full, of_class, offset, out)
    over_rows(rows, _curves, _curves_threads, *args)
    return out


@njit(parallel=True, cache=True)
def _curves_threads(  # type: ignore[no-untyped-def]
    values, indices, indptr, curve, of_class, offset, out, n_chunks
):
    for k in prange(n_chunks):
        a, b = k * CHUNK, min((k + 1) * CHUNK, len(indptr) - 1)
        _curves(values, indices, indptr, curve, of_class, offset, out, a, b)


@njit(cache=True)
def _curves(  # type: ignore[no-untyped-def]
    values, indices, indptr, curve, of_class, offset, out, start, stop
):
    for i in range(start, stop):
        for e in range(indptr[i], indptr[i + 1]):
            if values[e] <= 0.0:
                out[e] = 0.0
                continue
            c = indices[e] if len(indices) else e - indptr[i]
            odds = _odds(float(values[e]))
            log_no = -np.log1p(np.exp(odds))
            m = of_class[c]
            eta = curve[m, 0] * (odds + log_no) - curve[m, 1] * log_no + curve[m, 2] + offset[c]
            out[e] = 1.0 / (1.0 + np.exp(-eta))


def parametric_features(odds: Floats, method: str) -> Floats:
    """Columns whose weighted sum is the calibrated log-odds.

    temperature: l;  platt: l, 1;  beta: ln p, -ln(1 - p), 1, where l = ln p - ln(1 - p).
    """
    if method == "temperature":
        return odds[..., None]
    one = np.ones_like(odds)
    if method == "platt":
        return np.stack([odds, one], axis=-1)
    return np.stack([log_expit(odds), -log_expit(-odds), one], axis=-1)


def fit_curve(
    method: str,
    centre: Floats,
    total: Floats,
    positive: Floats,
    *,
    prior: Floats | None = None,
    strength: float = 1e-3,
) -> Floats:
    """Coefficients of a parametric map by penalised maximum likelihood (Newton).

    Parameters
    ----------
    method : {"temperature", "platt", "beta"}
        Family; Platt (1999), Kull, Silva Filho and Flach (2017).
    centre, total, positive : float64 arrays of shape (n_bins,)
        Log-odds, pairs and positives of each bin.
    prior : float64 array or None
        Coefficients to shrink to; the identity when None.
    strength : float
        Precision of that prior, in positives.

    Returns
    -------
    float64 array of shape (1,), (2,) or (3,)
        Slopes are never negative: a negative one is set to 0 and the rest fitted again.
    """
    features = parametric_features(centre, method)
    identity = np.array({"temperature": [1], "platt": [1, 0], "beta": [1, 1, 0]}[method], float)
    prior = identity if prior is None else prior
    n_slopes = max(1, len(prior) - 1)
    free = np.ones(len(prior), bool)
    while True:
        theta = _newton(features, total, positive, prior, strength, free)
        negative = (theta[:n_slopes] < 0) & free[:n_slopes]
        if not negative.any():
            return theta
        free[:n_slopes] &= ~negative


def _newton(
    features: Floats,
    total: Floats,
    positive: Floats,
    prior: Floats,
    strength: float,
    free: NDArray[np.bool_],
) -> Floats:
    theta = np.where(free, prior, 0.0)
    x = features[:, free]
    loss = np.inf
    step = np.zeros(x.shape[1])
    for _ in range(100):
        eta = features @ theta
        now = log_loss_sum(eta, total, positive) + strength / 2 * ((theta - prior) ** 2).sum()
        if now > loss + 1e-12 * abs(loss):  # a step too long: halve it
            step = step / 2
            theta[free] += step
            continue
        if loss - now < 1e-10 * abs(now):
            break
        loss, p = now, expit(eta)
        slope = x.T @ (total * p - positive) + strength * (theta - prior)[free]
        curve = (x * (total * p * (1 - p))[:, None]).T @ x
        step = np.linalg.solve(curve + (strength + 1e-9) * np.eye(x.shape[1]), slope)
        theta[free] -= step
    return theta


def fit_offsets(
    eta: Floats, total: NDArray[Any], positive: NDArray[Any], strength: float
) -> Floats:
    """Shift of the log-odds of each class, shrunk to 0 as if by `strength` positives.

    Parameters
    ----------
    eta : float64 array of shape (n_bins,)
        Calibrated log-odds before the shift.
    total, positive : arrays of shape (n_classes, n_bins)
        Pairs and positives.
    strength : float
        Precision of the normal prior around 0.
    """
    offset = np.zeros(len(total))
    _offsets(eta, total, positive, strength, offset)
    return offset


@njit(parallel=True, cache=True)
def _offsets(eta, total, positive, strength, offset):  # type: ignore[no-untyped-def]
    """Newton's method for every class; of most classes most bins are empty."""
    for c in prange(len(offset)):
        for _ in range(50):
            slope, curve = strength * offset[c], strength
            for b in range(len(eta)):
                if total[c, b] > 0.0:
                    p = 1.0 / (1.0 + np.exp(-eta[b] - offset[c]))
                    slope += total[c, b] * p - positive[c, b]
                    curve += total[c, b] * p * (1.0 - p)
            step = min(max(slope / curve, -1.0), 1.0)
            offset[c] -= step
            if abs(step) < 1e-6:
                break


def fit_isotonic(centre: Floats, total: Floats, positive: Floats) -> tuple[Floats, Floats]:
    """Knots (log-odds, probability) of a rising step map; half a pair keeps it off 0 and 1."""
    filled = total > 0
    if not filled.any():
        return centre[:1], expit(centre[:1])
    rate = positive[filled] / total[filled]
    level = np.asarray(isotonic_regression(rate, weights=total[filled]).x)
    return centre[filled], _off_the_ends(level, total[filled], positive[filled])


def _off_the_ends(level: Floats, total: Floats, positive: Floats) -> Floats:
    """Blocks of only negatives or only positives get half a pair of the other kind."""
    for value, kind in ((0.0, positive), (1.0, total - positive)):
        block = level == value
        if block.any() and kind[block].sum() == 0:
            half = 0.5 / (total[block].sum() + 1.0)
            level = np.where(block, abs(value - half), level)
    return np.maximum.accumulate(level)


def fit_venn_abers(centre: Floats, total: Floats, positive: Floats) -> tuple[Floats, Floats]:
    """Knots of the inductive Venn-Abers predictor, Vovk, Petej and Fedorova (2015).

    For each bin the isotonic map is fitted twice, with one more pair there that is negative and
    positive; with the fits p0 and p1 the probability is p1 / (1 - p0 + p1).
    """
    filled = np.flatnonzero(total > 0)
    if not len(filled):
        return centre[:1], expit(centre[:1])
    n, y = total[filled], positive[filled]
    level = np.empty(len(filled))
    for k in range(len(filled)):
        more = n.copy()
        more[k] += 1
        up = y.copy()
        up[k] += 1
        p0 = isotonic_regression(y / more, weights=more).x[k]
        p1 = isotonic_regression(up / more, weights=more).x[k]
        level[k] = p1 / (1 - p0 + p1)
    return centre[filled], np.maximum.accumulate(level)


def log_loss_sum(eta: Floats, total: Floats, positive: Floats) -> float:
    """Sum the log loss of pairs whose log-odds are eta."""
    return float(-(positive * log_expit(eta) + (total - positive) * log_expit(-eta)).sum())


def shifted_log_loss(
    eta: Floats, offset: Floats, total: NDArray[Any], positive: NDArray[Any]
) -> float:
    """Sum the log loss of pairs whose log-odds are eta (n_bins,) + offset (n_classes,)."""
    losses = np.zeros(len(offset))
    _shifted(eta, offset, total, positive, losses)
    return float(losses.sum())


@njit(parallel=True, cache=True)
def _shifted(eta, offset, total, positive, losses):  # type: ignore[no-untyped-def]
    for c in prange(len(offset)):
        for b in range(len(eta)):
            if total[c, b] > 0.0:
                x = eta[b] + offset[c]
                above = max(x, 0.0) + np.log1p(np.exp(-abs(x)))
                losses[c] += total[c, b] * above - positive[c, b] * x
