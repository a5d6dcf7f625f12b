"""Each model's probability, and its logit.

``p:<model>`` and ``logit:<model>``; one gather a model, O(n_rows * n_models).
"""

import numpy as np

from features.blocks.types import Batch, Block, Column, Float, State, nothing_to_fit
from features.numeric import logit
from features.schema import Stack


def _columns(stack: Stack, state: State) -> list[Column]:
    return [Column(f"p:{model}", "probabilities", "p", (model,)) for model in stack.models]


def _fill(batch: Batch, state: State, out: Float) -> None:
    np.copyto(out, batch.row_probs)


def _logit_columns(stack: Stack, state: State) -> list[Column]:
    names = [
        Column(f"logit:{model}", "logits", "log(p / (1 - p))", (model,)) for model in stack.models
    ]
    return [
        *names,
        Column("logit:blend", "logits", "mean over models of logit(p)", tuple(stack.models)),
    ]


def _fill_logits(batch: Batch, state: State, out: Float) -> None:
    out[:, :-1] = logit(batch.row_probs)
    out[:, -1] = logit(batch.row_blend)


PROBABILITIES = Block("probabilities", nothing_to_fit, _columns, _fill)
LOGITS = Block("logits", nothing_to_fit, _logit_columns, _fill_logits)
