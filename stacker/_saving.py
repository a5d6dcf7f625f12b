"""A fitted `PairStacker` as a tree of JSON values and arrays, and back."""

import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from features._state import features_from_tree, features_tree
from features.schema import LabelSpace
from stacker._base import StackBase
from stacker.blend import BLENDS
from stacker.boosters import BOOSTERS
from stacker.decision import FBetaDecision

LIBRARIES = ("pairstack", "numpy", "lightgbm", "xgboost", "scikit-learn", "numba")
SCORES = ("oof_score_", "base_score_", "base_name_", "shrinkage_")
ARRAYS = ("oof_proba_", "oof_base_proba_", "folds_")


def model_tree(model: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Everything that `predict` and the report need, and the boosters' texts."""
    space = model.seen_["space"]
    tree = {
        "params": _plain_params(model),
        "seen": {key: value for key, value in model.seen_.items() if key != "space"},
        "classes": space.names,
        "class_group": space.groups,
        "class_parent": space.parents,
        "base": _base_tree(model.base_),
        "features": features_tree(model.features_),
        "decision": model.decision_.to_state(),
        "base_decision": model.base_decision_.to_state(),
        "rules": {k: np.asarray(v).tolist() for k, v in model.decision_.cv_results_.items()},
        "boosters": [booster.name for booster in model.boosters_],
        "rounds": model.rounds_,
        "sparse_output": model.sparse_output_,
        **{name: getattr(model, name) for name in (*SCORES, *ARRAYS)},
        "tuning": _tuning_tree(model),
        "libraries": {name: v for name, v in model.libraries_.items() if name != "python"},
        "python": model.libraries_["python"],
    }
    texts = {f"booster-{booster.name}.txt": booster.to_text() for booster in model.boosters_}
    return tree, texts


def libraries() -> dict[str, str]:
    """Versions of Python and of the libraries that a fitted model depends on."""
    return {name: version(name) for name in LIBRARIES} | {"python": sys.version.split()[0]}


def restore_model(cls: Any, tree: dict[str, Any], texts: dict[str, str]) -> Any:
    """Rebuild the fitted estimator.

    Raises
    ------
    ValueError
        When the tree is not that of a fitted `PairStacker`, as a crafted one may be.
    """
    try:
        return _rebuild(cls, tree, texts)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"the folder holds no fitted {cls.__name__}: {type(error).__name__} {error}. Give one "
            f"that {cls.__name__}.save wrote."
        ) from error


def _rebuild(cls: Any, tree: dict[str, Any], texts: dict[str, str]) -> Any:
    """Make an estimator of class `cls` with everything that `model_tree` kept."""
    params = dict(tree["params"])
    if params.get("decision") == "fitted":
        params["decision"] = "auto"
    if isinstance(params["booster"], list):
        params["booster"] = tuple(params["booster"])
    # The cluster that fitted it may be gone: whoever loads it says where it shall predict.
    model = cls(**{**params, "dask": None})
    space = LabelSpace(tree["classes"], tree["class_group"], tree["class_parent"])
    model.seen_ = {**tree["seen"], "space": space}
    model.classes_, model.class_group_ = space.names, space.groups
    model.libraries_ = {**tree.get("libraries", {}), "python": tree.get("python", "unknown")}
    model.base_ = _base(tree["base"])
    model._take_features(features_from_tree(tree["features"], space))
    model.decision_ = FBetaDecision.from_state(tree["decision"])
    model.base_decision_ = FBetaDecision.from_state(tree["base_decision"])
    model.decision_.cv_results_ = {k: np.asarray(v) for k, v in tree.get("rules", {}).items()}
    model.rounds_ = tree["rounds"]
    model.sparse_output_ = tree.get("sparse_output", False)  # models of before have none
    for name in (*SCORES, *ARRAYS):
        setattr(model, name, tree[name])
    if tree.get("tuning"):
        model.trials_ = pd.DataFrame(tree["tuning"]["trials"])
        model.tuned_params_ = tree["tuning"]["best"]
    model.boosters_ = []
    for name in tree["boosters"]:
        adapter = BOOSTERS[name]({}, model.n_jobs, model.random_state or 0)
        model.boosters_.append(adapter.from_text(texts[f"booster-{name}.txt"]))
    return model


def _tuning_tree(model: Any) -> dict[str, Any] | None:
    """Trials as columns, without Optuna's study: that lives in its own storage."""
    if not hasattr(model, "trials_"):
        return None
    table = {name: values.tolist() for name, values in model.trials_.items()}
    return {"trials": table, "best": model.tuned_params_}


def _plain_params(model: Any) -> dict[str, Any]:
    """Parameters as JSON; an estimator or a splitter is named, its fitted result is kept."""
    params = dict(model.get_params(deep=False))
    if not isinstance(params["decision"], str):
        params["decision"] = "fitted"
    if not isinstance(params["cv"], int | str):
        params["cv"] = int(model.folds_.max()) + 1
    return params


def _base_tree(base: StackBase) -> dict[str, Any]:
    anchor, start = ({} if b is None else _fitted(b) for b in (base.anchor, base.start))
    return {"name": base.name, "anchor": anchor, "start_name": base.start_name, "start": start}


def _base(tree: dict[str, Any]) -> StackBase:
    anchor = _blend(tree["name"], tree["anchor"])
    same = tree["start_name"] == tree["name"]
    start = anchor if same else _blend(tree["start_name"], tree["start"])
    return StackBase(tree["name"], anchor, tree["start_name"], start)


def _fitted(estimator: Any) -> dict[str, Any]:
    """Fitted attributes of a blend."""
    return {key: value for key, value in vars(estimator).items() if key.endswith("_")}


def _blend(name: str, attributes: dict[str, Any]) -> Any:
    if name == "none":
        return None
    blend = BLENDS[name]()
    for key, value in attributes.items():
        setattr(blend, key, value)
    return blend
