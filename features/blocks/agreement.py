"""How far the models agree about a row: mean, std, min, max, range of p and of the rank.

The rank of a class under a model is the number of classes the model puts above it in the image,
taken as log(1 + rank): one place matters at the top, not at the bottom.
O(n_rows * n_models) on top of the ranks, which the block `ranks` shares.
"""

import numpy as np
from numba import njit, prange

from features.blocks.types import Batch, Block, Column, Float, State, nothing_to_fit
from features.schema import Stack

STATISTICS = ("mean", "std", "min", "max", "range")


def _columns(stack: Stack, state: State) -> list[Column]:
    models = tuple(stack.models)
    return [
        Column(f"{name}_{of}:models", "agreement", f"{name} over models of {of}", models)
        for of in ("p", "rank")
        for name in STATISTICS
    ]


def _fill(batch: Batch, state: State, out: Float) -> None:
    _spread(batch.row_probs, out[:, :5])
    _spread(np.log1p(batch.row_ranks), out[:, 5:])


@njit(parallel=True, cache=True)
def _spread(values, out):  # type: ignore[no-untyped-def]
    """Fill the five statistics of (n_rows, n_models) values."""
    n_models = values.shape[1]
    for row in prange(len(values)):
        low = high = values[row, 0]
        total = 0.0
        for value in values[row]:
            low, high = min(low, value), max(high, value)
            total += value
        mean = total / n_models
        squared = 0.0
        for value in values[row]:
            squared += (value - mean) ** 2
        out[row, 0] = mean
        out[row, 1] = np.sqrt(squared / n_models)
        out[row, 2] = low
        out[row, 3] = high
        out[row, 4] = high - low


AGREEMENT = Block("agreement", nothing_to_fit, _columns, _fill, default=False)
