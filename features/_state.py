"""Fitted `PairFeatures` as plain data and back: for models on disk and for workers elsewhere.

The tree holds numbers, strings, arrays and CSR arrays only, so that it is saved without pickle
and means the same in every process.
"""

from dataclasses import asdict
from typing import Any

import numpy as np

from features.assemble import PairFeatures
from features.blocks.spaces import Projection
from features.blocks.types import Column
from features.schema import LabelSpace

__all__ = ["features_from_tree", "features_tree"]


def features_tree(features: PairFeatures) -> dict[str, Any]:
    """Everything that building rows needs, but for the classes."""
    return {
        "max_memory": features.max_memory,
        "models": features.models_,
        "per_group": features.per_group_,
        "n_folds": features.n_folds_,
        "above": features.above_,
        "mean_rows": features.mean_rows_,
        "candidate_recall": features.candidate_recall_,
        "overall_recall": features.overall_recall_,
        "columns": [asdict(column) for column in features.columns_],
        "n_columns": features.n_columns_,
        "states": features.states_,
        "projections": {
            name: {"mean": p.mean, "axes": p.axes, "columns": p.columns, "knots": p.knots}
            for name, p in features.projections_.items()
        },
    }


def features_from_tree(tree: dict[str, Any], space: LabelSpace) -> PairFeatures:
    """Rebuild fitted features over the classes they were fitted on."""
    features = PairFeatures(max_memory=tree["max_memory"])
    features.space_, features.models_ = space, tree["models"]
    features.per_group_ = np.asarray(tree["per_group"])
    features.n_folds_, features.n_columns_ = tree["n_folds"], tree["n_columns"]
    features.above_, features.mean_rows_ = float(tree["above"]), tree["mean_rows"]
    features.candidate_recall_ = tree["candidate_recall"]
    features.overall_recall_ = tree["overall_recall"]
    features.columns_ = [
        Column(**{**column, "models": tuple(column["models"])}) for column in tree["columns"]
    ]
    features.states_ = tree["states"]
    features.projections_ = {
        name: Projection(p["mean"], p["axes"], p["columns"], p["knots"])
        for name, p in tree["projections"].items()
    }
    return features
