"""Rules about single columns: which may only push one way, and whether the class id pays."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from features.blocks.types import Column
from stacker.boosters import Rows

__all__ = ["CLASS_ID", "class_id_pays", "monotone_params", "without_class_id"]

logger = logging.getLogger("stacker.estimator")

CLASS_ID = "class_id"
# Columns that are the blended probability in one form or another.
BLENDED = ("logit:blend", "mean_p:models")
TRIED_FOLDS, TRIED_ROUNDS, TRIED_PATIENCE = 3, 300, 30


def monotone_params(
    params: dict[str, Any], columns: Sequence[Column], booster: str
) -> dict[str, Any]:
    """Turn ``monotone=True`` into the booster's own constraints.

    A larger blended probability then never lowers the stack's, all else equal.

    Raises
    ------
    ValueError
        For another value, or when no column is the blended probability.
    """
    if "monotone" not in params:
        return params
    rest = {name: value for name, value in params.items() if name != "monotone"}
    if not isinstance(params["monotone"], bool):
        raise ValueError(
            f"booster_params: monotone must be True or False. Got {params['monotone']!r}; for "
            f"single columns use the booster's own monotone_constraints."
        )
    if not params["monotone"]:
        return rest
    signs = [int(column.name in BLENDED) for column in columns]
    if not any(signs):
        raise ValueError(
            f"booster_params: monotone=True needs a column of the blended probability, one of "
            f"{list(BLENDED)}. Add the block 'logits' or 'agreement'."
        )
    if booster == "xgboost":
        return rest | {"monotone_constraints": "(" + ",".join(map(str, signs)) + ")"}
    return rest | {"monotone_constraints": signs}


def without_class_id(params: dict[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    """Switch the class id's column off: it stays binned and is never split on."""
    used = [float(column.name != CLASS_ID) for column in columns]
    return params | {"feature_contri": used}


def class_id_pays(adapter: Any, binned: Any, rows: Rows, columns: Sequence[Column]) -> bool:
    """Whether held-out folds, which no split group crosses, are better with the class id.

    A categorical class memorises where the positives of a class come from few groups; grouped
    folds show it (docs/features.md).
    """
    n_folds = int(rows.row_fold.max()) + 1
    how = {"rounds": TRIED_ROUNDS, "patience": TRIED_PATIENCE}
    plain = dict(adapter.params)
    gains = []
    for fold in range(min(n_folds, TRIED_FOLDS)):
        with_id = adapter.fit_fold(binned, rows, fold, **how).loss.min()
        adapter.params = without_class_id(plain, columns)
        without = adapter.fit_fold(binned, rows, fold, **how).loss.min()
        adapter.params = dict(plain)
        gains.append(without - with_id)
    # More than a standard error, as everywhere: a tie is no reason to memorise.
    pays = bool(np.mean(gains) > np.std(gains) / np.sqrt(len(gains)))
    logger.info("class id %s on held-out folds", "pays" if pays else "does not pay")
    return pays
