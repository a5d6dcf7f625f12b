"""Small numeric helpers shared by both levels: logits, the logistic, the logit-mean blend."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROB_EPSILON = 1e-5  # float16 probabilities round to 0 and 1; their logits must stay finite


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
    """Logistic of the (weighted) mean logit over models (RECIPES B6).

    Parameters
    ----------
    probs : n_models arrays of shape (n_images, n_classes)
    weights : n_models numbers, optional
        Sum to 1; equal by default.

    Returns
    -------
    float32 array of shape (n_images, n_classes)
    """
    if weights is None:
        weights = [1 / len(probs)] * len(probs)
    total = np.zeros(np.shape(probs[0]), dtype=np.float32)
    for values, weight in zip(probs, weights, strict=True):
        total += np.float32(weight) * logit(values)
    return sigmoid(total)
