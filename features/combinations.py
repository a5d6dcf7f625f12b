"""The combination kernel: model probabilities to sums, differences, products and ratios.

The second level of the iMet 2019 winner (recipe A10): for every pair (or triple) of models
and every row, simple arithmetic that a tree would need many splits to imitate.
"""

from itertools import combinations as choose

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

OPERATORS = ("sum", "diff", "prod", "ratio")
RATIO_EPSILON = np.float32(1e-6)  # ratio = a / (b + 1e-6): the store's contract


def model_subsets(n_models: int, order: int = 2) -> NDArray[np.int64]:
    """List every subset of 2 to `order` models, pairs first.

    Parameters
    ----------
    n_models : int
    order : {2, 3}

    Returns
    -------
    int64 array of shape (n_subsets, order)
        Model positions; -1 pads the pairs when ``order`` is 3.

    Examples
    --------
    >>> model_subsets(3).tolist()
    [[0, 1], [0, 2], [1, 2]]
    """
    found = [
        chosen + (-1,) * (order - size)
        for size in range(2, order + 1)
        for chosen in choose(range(n_models), size)
    ]
    return np.array(found, dtype=np.int64).reshape(len(found), order)


def least_correlated(
    probs: NDArray[np.float32], subsets: NDArray[np.int64], most: int
) -> NDArray[np.int64]:
    """Keep the subsets of models whose predictions agree the least.

    Models that always agree have nothing to tell by their difference or ratio, so past `most`
    the subsets with the lowest mean Pearson correlation over their pairs stay, in order.

    Parameters
    ----------
    probs : float32 array of shape (n_rows, n_models)
    subsets : int64 array of shape (n_subsets, order)
        From :func:`model_subsets`.
    most : int

    Returns
    -------
    int64 array of shape (min(n_subsets, most), order)
    """
    if len(subsets) <= most:
        return subsets
    # A constant model correlates with nothing; treat it as fully redundant.
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.nan_to_num(np.atleast_2d(np.corrcoef(probs, rowvar=False)), nan=1.0)
    strength = [np.mean([correlation[pair] for pair in choose(s[s >= 0], 2)]) for s in subsets]
    return subsets[np.sort(np.argsort(strength, kind="stable")[:most])]


def operator_mask(operators: tuple[str, ...]) -> NDArray[np.bool_]:
    """Turn operator names into the switch the kernel reads.

    Examples
    --------
    >>> operator_mask(("sum", "ratio")).tolist()
    [True, False, False, True]
    """
    unknown = [name for name in operators if name not in OPERATORS]
    if unknown or not operators:
        raise ValueError(f"operators must be some of {OPERATORS}. Got {operators!r} instead.")
    return np.array([name in operators for name in OPERATORS])


def combine(
    probs: NDArray[np.float32],
    chosen: NDArray[np.int64],
    operators: NDArray[np.bool_],
    out: NDArray[np.float32],
) -> None:
    """Write the combinations of `chosen` models of every row into `out`.

    Parameters
    ----------
    probs : float32 array of shape (n_rows, n_models)
    chosen : int64 array of shape (n_subsets, order)
        From :func:`model_subsets`.
    operators : bool array of shape (4,)
        Which of sum, diff, prod, ratio to write, from :func:`operator_mask`.
    out : float32 array of shape (n_rows, n_subsets * operators.sum())
        Filled in place; operators vary fastest. Triples fold from the left:
        (a - b) - c, a / (b + eps) / (c + eps).
    """
    expected = (len(probs), len(chosen) * int(operators.sum()))
    if out.shape != expected:
        raise ValueError(f"out must have shape {expected}; however: out.shape={out.shape}.")
    if chosen.shape[1] == 2 and operators.all():
        _combine_pairs(probs, chosen, out)
    else:
        _combine_any(probs, chosen, operators, out)


@njit(parallel=True, cache=True, error_model="numpy")
def _combine_pairs(probs, chosen, out):  # type: ignore[no-untyped-def]
    """Fill (n_rows, 4 * n_pairs): the common case, with no branch in the inner loop."""
    n_pairs = len(chosen)
    limit = np.finfo(np.float32).max
    for row in prange(len(probs)):
        for pair in range(n_pairs):
            a = probs[row, chosen[pair, 0]]
            b = probs[row, chosen[pair, 1]]
            out[row, 4 * pair] = a + b
            out[row, 4 * pair + 1] = a - b
            out[row, 4 * pair + 2] = a * b
            out[row, 4 * pair + 3] = min(max(a / (b + RATIO_EPSILON), -limit), limit)


@njit(parallel=True, cache=True, error_model="numpy")
def _combine_any(probs, chosen, operators, out):  # type: ignore[no-untyped-def]
    """Fill any order and any operators, folding each subset from the left."""
    limit = np.finfo(np.float32).max
    for row in prange(len(probs)):
        column = 0
        for s in range(len(chosen)):
            first = probs[row, chosen[s, 0]]
            total, difference, product, ratio = first, first, first, first
            for m in chosen[s, 1:]:
                if m >= 0:
                    value = probs[row, m]
                    total += value
                    difference -= value
                    product *= value
                    ratio = min(max(ratio / (value + RATIO_EPSILON), -limit), limit)
            if operators[0]:
                out[row, column] = total
                column += 1
            if operators[1]:
                out[row, column] = difference
                column += 1
            if operators[2]:
                out[row, column] = product
                column += 1
            if operators[3]:
                out[row, column] = ratio
                column += 1
