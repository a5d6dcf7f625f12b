"""What tuning tries: the space of settings, and a trial's draw from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stacker._booster_params import by_main_name

__all__ = ["DEFAULT_DRAW", "Settings", "draw_settings"]

# Blocks that others are made of: without them a trial is wasted.
ALWAYS = ("probabilities", "logits", "ranks")
LIBRARIES = {"lightgbm": "LightGBM", "xgboost": "XGBoost"}
BASES = ("auto", "selection", "mean")
KEPT = (1.0, 0.75, 0.5)
# Depth 0 is no limit: leaves alone bound the trees.
DEPTHS = (0, 4, 6, 8, 10)

# The estimator's own defaults as a draw, tried first: tuning must not end below them.
DEFAULT_DRAW: dict[str, dict[str, Any]] = {
    "lightgbm": {
        "learning_rate": 0.05,
        "num_leaves": 31,
        "max_depth": 0,
        "min_data_in_leaf": 100,
        "feature_fraction": 0.4,
        "bagging_fraction": 0.8,
        "lambda_l2": 10.0,
    },
    "xgboost": {
        "learning_rate": 0.05,
        "max_leaves": 31,
        "max_depth": 0,
        "min_child_weight": 5.0,
        "colsample_bytree": 0.4,
        "subsample": 0.8,
        "reg_lambda": 10.0,
    },
}


@dataclass(frozen=True)
class Settings:
    """One point of the space.

    Attributes
    ----------
    booster_params : dict
    without : tuple of block names left out
    base : str or None
    kept : float
        Share of each class group's candidates.
    """

    booster_params: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    base: str | None = "auto"
    kept: float = 1.0


def draw_settings(
    trial: Any, booster: str, *, blocks: list[str], fixed: dict[str, Any], base: str | None
) -> Settings:
    """Draw a trial's settings.

    Parameters
    ----------
    trial : optuna.Trial
    booster : {"lightgbm", "xgboost"}
    blocks : names of the blocks that are there
    fixed : dict
        Booster parameters that the user set: never tuned.
    base : str or None
        The estimator's; tuned where it is "auto".
    """
    drawn = _booster_params(trial, booster)
    if drawn["max_depth"] == 0 and booster == "lightgbm":
        drawn["max_depth"] = -1
    optional = ["", *[name for name in blocks if name not in ALWAYS]]
    without = {trial.suggest_categorical(f"without_{i}", optional) for i in (1, 2)} - {""}
    start = trial.suggest_categorical("base", BASES) if base == "auto" else base
    return Settings(
        booster_params={**drawn, **by_main_name(fixed, LIBRARIES[booster])},
        without=tuple(name for name in blocks if name in without),
        base=start,
        kept=trial.suggest_categorical("kept", KEPT),
    )


def default_draw(booster: str, base: str | None) -> dict[str, Any]:
    """Give the estimator's defaults as parameters of a trial."""
    drawn = {**DEFAULT_DRAW[booster], "without_1": "", "without_2": "", "kept": 1.0}
    return drawn | ({"base": "auto"} if base == "auto" else {})


def _booster_params(trial: Any, booster: str) -> dict[str, Any]:
    """Leaves, depth, learning rate, regularisation, sampling."""
    common = {"learning_rate": trial.suggest_float("learning_rate", 0.02, 0.15, log=True)}
    depth = trial.suggest_categorical("max_depth", DEPTHS)
    if booster == "xgboost":
        return {
            **common,
            "max_depth": depth,
            "max_leaves": trial.suggest_int("max_leaves", 7, 127, log=True),
            "min_child_weight": trial.suggest_float("min_child_weight", 1.0, 50.0, log=True),
            "colsample_bytree": trial.suggest_float("colsample_bytree", 0.15, 0.9),
            "subsample": trial.suggest_float("subsample", 0.5, 1.0),
            "reg_lambda": trial.suggest_float("reg_lambda", 0.1, 100.0, log=True),
        }
    return {
        **common,
        "max_depth": depth,
        "num_leaves": trial.suggest_int("num_leaves", 7, 127, log=True),
        "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 20, 1000, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.15, 0.9),
        "bagging_fraction": trial.suggest_float("bagging_fraction", 0.5, 1.0),
        "lambda_l2": trial.suggest_float("lambda_l2", 0.1, 100.0, log=True),
    }
