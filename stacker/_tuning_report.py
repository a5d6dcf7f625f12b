"""What the report shows of a tuning run: history, importance, parallel coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

from stacker._charts import Line, line_chart

__all__ = ["parameter_importance", "tuning_section"]

ABOUT_TRIALS = ("trial", "value", "screen", "state", "steps", "seconds")
WIDTH, HEIGHT, TOP, BOTTOM, SIDE = 980, 320, 28, 40, 50
MOST_LINES = 200


def tuning_section(trials: pd.DataFrame | None) -> dict[str, Any] | None:
    """Numbers and charts of the trials, for the template.

    Parameters
    ----------
    trials : DataFrame or None
        From `stacker.tuning.study_frame`.
    """
    if trials is None or trials["value"].notna().sum() == 0:
        return None
    importance = parameter_importance(trials)
    top = max(float(importance.max()), 1e-12) if len(importance) else 1.0
    best = trials.iloc[int(np.nanargmax(trials["value"]))]
    return {
        "n": len(trials),
        "n_pruned": int((trials["state"] == "pruned").sum()),
        "default": float(trials["value"].iloc[0]),
        "best": float(best["value"]),
        "settings": [(name, _shown(best[name])) for name in _parameters(trials)],
        "history": _history(trials),
        "parallel": _parallel(trials),
        "importance": [
            {"name": str(name), "share": float(share), "width": float(share) / top}
            for name, share in importance.items()
        ],
    }


def parameter_importance(trials: pd.DataFrame) -> pd.Series[float]:
    """Share of each parameter in what the first screening says, by a forest of random trees.

    The screening is the one score that every trial has.
    """
    names = _parameters(trials)
    scored = trials[trials["screen"].notna()]
    if len(scored) < 8 or not names:
        return pd.Series(dtype=float)
    codes = np.column_stack([_places(scored[name]) for name in names])
    forest = ExtraTreesRegressor(200, min_samples_leaf=2, random_state=0)
    forest.fit(codes, scored["screen"].to_numpy())
    shares = pd.Series(forest.feature_importances_, index=names)
    return shares.sort_values(ascending=False, kind="stable")


def _parameters(trials: pd.DataFrame) -> list[str]:
    """Parameters that took more than one value."""
    names = [str(name) for name in trials if name not in ABOUT_TRIALS]
    return [name for name in names if trials[name].nunique() > 1]


def _places(values: pd.Series[Any]) -> NDArray[np.float64]:
    """Values as places in [0, 1]: ranks of numbers, codes of names."""
    ranks = values.rank(method="dense").to_numpy(dtype=np.float64)
    return (ranks - 1) / max(ranks.max() - 1, 1)


def _history(trials: pd.DataFrame) -> Markup:
    whole = trials[trials["value"].notna()]
    number, value = whole["trial"].tolist(), whole["value"].tolist()
    return line_chart(
        [
            Line("best so far", number, np.maximum.accumulate(value).tolist(), colour=1),
            Line("the defaults", [0, int(trials["trial"].max())], [value[0]] * 2, 3, dashed=True),
            # A point a trial: lines between trials would mean nothing.
            *[Line("", [n], [v], colour=2, dots=True) for n, v in zip(number, value, strict=True)],
        ],
        title="Score of the trials that ran to the end",
        x_label="trial",
        y_label="score",
    )


def _parallel(trials: pd.DataFrame) -> Markup:
    """One line a trial over the parameters' axes, the better the stronger."""
    names = _parameters(trials)
    shown = trials[trials["screen"].notna()].tail(MOST_LINES)
    if not names or len(shown) < 2:
        return Markup("")
    x = np.linspace(SIDE, WIDTH - SIDE, len(names) + 1)
    axes = [*names, "screen"]
    y = np.column_stack([_places(shown[name]) for name in axes])
    y = TOP + (1 - y) * (HEIGHT - TOP - BOTTOM)
    rank = _places(shown["screen"])
    parts = [_axis(at, name, shown[name]) for at, name in zip(x, axes, strict=True)]
    for line in np.argsort(rank, kind="stable"):
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y[line], strict=True))
        colour, opacity = (1, 0.9) if rank[line] >= 0.9 else (2, 0.15 + 0.35 * rank[line])
        parts.append(
            Markup('<polyline class="line s{}" points="{}" style="opacity:{:.2f}"/>').format(
                colour, points, opacity
            )
        )
    title = "Parameters of every trial, the best tenth in front"
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join(parts)
    )


def _axis(x: float, name: str, values: pd.Series[Any]) -> Markup:
    ends = sorted(values.dropna().unique().tolist())
    text = Markup('<text class="axis" x="{:.0f}" y="{}" text-anchor="middle">{}</text>')
    line = Markup('<line class="grid" x1="{:.0f}" x2="{:.0f}" y1="{}" y2="{}"/>')
    label = {"screen": "score"}.get(name, name.replace("_", " "))
    return Markup("").join(
        [
            line.format(x, x, TOP, HEIGHT - BOTTOM),
            text.format(x, TOP - 8, _shown(ends[-1])),
            text.format(x, HEIGHT - BOTTOM + 16, _shown(ends[0])),
            Markup('<text class="axis" x="{:.0f}" y="{}" text-anchor="middle" {}>{}</text>').format(
                x, HEIGHT - 4, Markup('style="font-size:11px"'), label
            ),
        ]
    )


def _shown(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.3g}"
    return str(value) if str(value) else "none"
