"""How far the models agree about a row: mean, std, min, max, range of p and of the rank.

The rank of a class under a model is the number of classes the model puts above it in the image,
taken as log(1 + rank): one place matters at the top, not at the bottom.
O(n_rows * n_models * n_classes) comparisons, vectorised.
"""

import numpy as np

from features.blocks.ranks import class_ranks
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
    ranks = np.stack([class_ranks(batch, probs) for probs in batch.probs], axis=1)
    _spread(batch.row_probs, out[:, :5])
    _spread(np.log1p(ranks), out[:, 5:])


def _spread(values: Float, out: Float) -> None:
    """Write the five statistics of (n_rows, n_models) values."""
    out[:, 0] = values.mean(axis=1)
    out[:, 1] = values.std(axis=1)
    out[:, 2] = values.min(axis=1)
    out[:, 3] = values.max(axis=1)
    out[:, 4] = out[:, 3] - out[:, 2]


AGREEMENT = Block("agreement", nothing_to_fit, _columns, _fill)
