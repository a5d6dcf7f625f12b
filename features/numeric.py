"""Small numeric helpers shared by both levels: logits, the logistic, the logit-mean blend."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

PROB_EPSILON = 1e-5  # float16 probabilities round to 0 and 1; their logits must stay finite
BLOCK = 1024  # pairs at a time: their products stay in the fastest cache
MOST_FACTORS = 50  # odds lie in 1e-5 .. 1e5: the product of so many is a finite double


def logit(probs: NDArray[Any], epsilon: float = PROB_EPSILON) -> NDArray[np.float32]:
    """Log-odds, finite everywhere: probabilities are clipped to [epsilon, 1 - epsilon].

    Examples
    --------
    >>> logit(np.array([0.5, 0.0])).round(2).tolist()
    [0.0, -11.510000228881836]
    """
    clipped = np.clip(
        np.asarray(probs, dtype=np.float32), np.float32(epsilon), np.float32(1 - epsilon)
    )
    return np.log(clipped) - np.log1p(-clipped)


def sigmoid(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Logistic function in float32.

    Examples
    --------
    >>> sigmoid(np.array([0.0])).tolist()
    [0.5]
    """
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-np.asarray(logits, dtype=np.float32)))).astype(np.float32)


def logit_mean(
    probs: Sequence[NDArray[Any]] | NDArray[Any], weights: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """Logistic of the (weighted) mean logit over models (docs/recipes.md: B6).

    Parameters
    ----------
    probs : n_models arrays of shape (n_images, n_classes)
    weights : n_models numbers, optional
        Sum to 1; equal by default.

    Returns
    -------
    float32 array of shape (n_images, n_classes)
    """
    given = np.asarray(probs, dtype=np.float32)
    out = np.empty(given.shape[1:], dtype=np.float32)
    flat = given.reshape(len(given), -1)
    if weights is None:
        _equal_logit_mean(flat, out.reshape(-1))
    else:
        _weighted_logit_mean(flat, np.asarray(weights, dtype=np.float32), out.reshape(-1))
    return out


@njit(cache=True, inline="always")
def _odds(p):  # type: ignore[no-untyped-def]
    low, high = np.float32(PROB_EPSILON), np.float32(1 - PROB_EPSILON)
    clipped = min(max(p, low), high)
    return np.float64(clipped) / np.float64(np.float32(1) - clipped)


@njit(cache=True, inline="always")
def _logistic(x):  # type: ignore[no-untyped-def]
    return np.float32(1) / (np.float32(1) + np.exp(np.float32(-x)))


@njit(parallel=True, cache=True, error_model="numpy")
def _equal_logit_mean(probs, out):  # type: ignore[no-untyped-def]
    """Fill (n_pairs,) by the odds' geometric mean: one logarithm a pair, not two a model."""
    n_models, n_pairs = probs.shape
    for block in prange((n_pairs + BLOCK - 1) // BLOCK):
        start, stop = block * BLOCK, min((block + 1) * BLOCK, n_pairs)
        total = np.zeros(stop - start)
        for first in range(0, n_models, MOST_FACTORS):
            product = np.ones(stop - start)
            for m in range(first, min(first + MOST_FACTORS, n_models)):
                for i in range(stop - start):
                    product[i] *= _odds(probs[m, start + i])
            total += np.log(product)
        for i in range(stop - start):
            out[start + i] = np.float32(1) / (
                np.float32(1) + np.exp(np.float32(-total[i] / n_models))
            )


@njit(parallel=True, cache=True, error_model="numpy")
def _weighted_logit_mean(probs, weights, out):  # type: ignore[no-untyped-def]
    """Fill (n_pairs,), one logarithm a model."""
    for i in prange(len(out)):
        total = 0.0
        for m in range(len(probs)):
            total += weights[m] * np.log(_odds(probs[m, i]))
        out[i] = _logistic(total)
