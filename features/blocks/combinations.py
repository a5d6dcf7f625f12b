"""Sums, differences, products and ratios of every pair (or triple) of models (recipes A10, B6).

``sum:a+b``, ``diff:a-b``, ``prod:a*b``, ``ratio:a/b`` in probability space; with
``space="logit"`` the same of the logits, named ``logit_sum:a+b`` and so on. O(n_rows * n_subsets).
Past `max_subsets` pairs and triples the least correlated ones stay, and the log says so.
"""

import logging

import numpy as np

from features.blocks.types import Batch, Block, Column, Float, State, Training
from features.combinations import (
    OPERATORS,
    combine,
    least_correlated,
    model_subsets,
    operator_mask,
)
from features.numeric import logit
from features.schema import Stack

logger = logging.getLogger(__name__)

SYMBOLS = {"sum": "+", "diff": "-", "prod": "*", "ratio": "/"}
SPACES = ("prob", "logit", "both")


def _fit(
    train: Training,
    *,
    order: int = 2,
    space: str = "prob",
    operators: tuple[str, ...] = OPERATORS,
    max_subsets: int = 45,
) -> State:
    if order not in (2, 3):
        raise ValueError(f"order must be 2 or 3. Got {order!r} instead.")
    if space not in SPACES:
        raise ValueError(f"space must be one of {SPACES}. Got {space!r} instead.")
    if max_subsets < 1:
        raise ValueError(f"max_subsets must be at least 1. Got {max_subsets!r} instead.")
    chosen = model_subsets(len(train.stack.models), order)
    if len(chosen) > max_subsets:
        logger.info(
            "combinations: the %d least correlated of %d sets of models", max_subsets, len(chosen)
        )
        chosen = least_correlated(_sample(train), chosen, max_subsets)
    mask = operator_mask(tuple(operators))
    return {"subsets": chosen, "operators": mask, "space": space}


def _sample(train: Training, n_images: int = 500) -> Float:
    """Logits of evenly spaced images, (n, n_models), to correlate the models on."""
    picked = np.unique(np.linspace(0, len(train.stack) - 1, n_images).astype(np.int64))
    some = train.stack[picked].probabilities.values()
    return np.stack([logit(_dense(values)).ravel() for values in some], axis=1)


def _dense(values: object) -> Float:
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float32)


def _columns(stack: Stack, state: State) -> list[Column]:
    prefixes = {"prob": ("",), "logit": ("logit_",), "both": ("", "logit_")}[state["space"]]
    columns = []
    for prefix in prefixes:
        for subset in state["subsets"]:
            models = tuple(stack.models[m] for m in subset if m >= 0)
            for name, wanted in zip(OPERATORS, state["operators"], strict=True):
                if wanted:
                    source = SYMBOLS[name].join(models)
                    columns.append(
                        Column(f"{prefix}{name}:{source}", "combinations", prefix + name, models)
                    )
    return columns


def _fill(batch: Batch, state: State, out: Float) -> None:
    values = {"prob": (False,), "logit": (True,), "both": (False, True)}[state["space"]]
    width = out.shape[1] // len(values)
    for part, in_logits in enumerate(values):
        source = logit(batch.row_probs) if in_logits else batch.row_probs
        target = out[:, part * width : (part + 1) * width]
        combine(source, state["subsets"], state["operators"], target)


def _available(stack: Stack) -> str:
    return "" if len(stack.models) > 1 else "two models or more"


COMBINATIONS = Block(
    "combinations",
    _fit,
    _columns,
    _fill,
    _available,
    default=False,
    options={"order": 2, "space": "prob", "operators": OPERATORS, "max_subsets": 45},
)
