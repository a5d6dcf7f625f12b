"""Parameters of the boosters: our defaults, and what the libraries know by name."""

import difflib
from functools import lru_cache
from typing import Any

import lightgbm as lgb

__all__ = [
    "LIGHTGBM_DEFAULTS",
    "XGBOOST_DEFAULTS",
    "by_main_name",
    "check_params",
    "lightgbm_names",
    "xgboost_names",
]

# Large leaves and strong shrinkage: pair rows are many, but a class has few positives.
LIGHTGBM_DEFAULTS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.4,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 10.0,
    "max_bin": 127,
    "boost_from_average": False,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
XGBOOST_DEFAULTS: dict[str, Any] = {
    "objective": "binary:logistic",
    "tree_method": "hist",
    "learning_rate": 0.05,
    "max_leaves": 31,
    "max_depth": 0,
    "grow_policy": "lossguide",
    "min_child_weight": 5.0,
    "colsample_bytree": 0.4,
    "subsample": 0.8,
    "reg_lambda": 10.0,
    "max_bin": 127,
    "base_score": 0.5,
    "verbosity": 0,
}

_XGBOOST_NAMES = [
    "alpha",
    "base_score",
    "booster",
    "colsample_bylevel",
    "colsample_bynode",
    "colsample_bytree",
    "device",
    "disable_default_eval_metric",
    "eta",
    "eval_metric",
    "gamma",
    "grow_policy",
    "interaction_constraints",
    "lambda",
    "learning_rate",
    "max_bin",
    "max_cached_hist_node",
    "max_cat_threshold",
    "max_cat_to_onehot",
    "max_delta_step",
    "max_depth",
    "max_leaves",
    "min_child_weight",
    "min_split_loss",
    "monotone_constraints",
    "normalize_type",
    "nthread",
    "num_parallel_tree",
    "objective",
    "one_drop",
    "process_type",
    "rate_drop",
    "refresh_leaf",
    "reg_alpha",
    "reg_lambda",
    "sample_type",
    "sampling_method",
    "scale_pos_weight",
    "seed",
    "seed_per_iteration",
    "skip_drop",
    "subsample",
    "tree_method",
    "updater",
    "validate_parameters",
    "verbosity",
]
_XGBOOST_ALIASES = {
    "alpha": "reg_alpha",
    "eta": "learning_rate",
    "gamma": "min_split_loss",
    "lambda": "reg_lambda",
}
# What the adapters set themselves.
OWN = {
    "LightGBM": ("early_stopping_round", "num_iterations", "num_threads", "seed"),
    "XGBoost": ("device", "nthread", "seed"),
}


def check_params(params: dict[str, Any], known: frozenset[str], library: str) -> None:
    """Refuse what the library does not know, naming the nearest that it does, or would not read."""
    for name in params:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=5)
            # Libraries know aliases of one letter's difference: name the one people write.
            usual = [n for n in near if n in LIGHTGBM_DEFAULTS or n in XGBOOST_DEFAULTS]
            hint = f" Did you mean {(usual or near)[0]!r}?" if near else ""
            raise ValueError(f"booster_params: {library} has no parameter {name!r}.{hint}")
        if _main_names(library).get(name, name) in OWN[library]:
            raise ValueError(
                f"booster_params: {name!r} would not be read. Rounds are chosen by "
                f"cross-validation; for the rest there are n_jobs=, random_state= and device=."
            )


def by_main_name(params: dict[str, Any], library: str) -> dict[str, Any]:
    """Parameters under their main names: beside a default, the libraries ignore an alias of it.

    Examples
    --------
    >>> by_main_name({"min_child_samples": 5, "monotone": True}, "LightGBM")
    {'min_data_in_leaf': 5, 'monotone': True}
    """
    return {_main_names(library).get(name, name): value for name, value in params.items()}


@lru_cache(maxsize=2)
def _main_names(library: str) -> dict[str, str]:
    """Give the main name of each alias."""
    if library == "XGBoost":
        return _XGBOOST_ALIASES
    aliases = lgb.basic._ConfigAliases._get_all_param_aliases()
    return {alias: name for name, names in aliases.items() for alias in names}


@lru_cache(maxsize=1)
def lightgbm_names() -> frozenset[str]:
    """Every parameter and alias that the installed LightGBM knows."""
    aliases = lgb.basic._ConfigAliases._get_all_param_aliases()
    return frozenset(aliases) | {alias for names in aliases.values() for alias in names}


@lru_cache(maxsize=1)
def xgboost_names() -> frozenset[str]:
    """Parameters of XGBoost's tree boosters and of its learner."""
    return frozenset(_XGBOOST_NAMES)
