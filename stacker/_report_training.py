"""What a fitted stack knows by itself: threshold curves, decision rules, importance, facts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, issparse

from stacker._charts import Line, line_chart
from stacker._inputs import check_labels, check_probs
from stacker.fbeta import fbeta_score

__all__ = ["block_importance", "decision_rules", "model_facts", "threshold_curves", "top_features"]

BLOCK_LIMIT, FEATURE_LIMIT = 24, 20


def threshold_curves(model: Any, train_labels: Any) -> Any:
    """F-beta of stack and base on training rows (out-of-fold) over one threshold for all."""
    if train_labels is None or getattr(model, "oof_proba_", None) is None:
        return None
    labels = check_labels(train_labels)
    grid = np.linspace(0.01, 0.8, 40)
    lines = []
    pairs = {"Pair stack": model.oof_proba_, f"Base: {model.base_name_}": model.oof_base_proba_}
    for colour, (label, proba) in enumerate(pairs.items(), start=1):
        probs = check_probs(proba)
        for rule, values in (("threshold", probs), ("ratio to the maximum", _ratios(probs))):
            scores = [_score_above(labels, values, cut, model) for cut in grid]
            best = int(np.argmax(scores))
            lines.append(
                Line(
                    f"{label}, {rule}",
                    list(grid),
                    scores,
                    colour=colour,
                    dashed=rule != "threshold",
                    mark=(float(grid[best]), scores[best]),
                )
            )
    return line_chart(
        lines,
        title="F-beta over the threshold",
        x_label="threshold",
        y_label=f"F{model.beta:g} ({model.average})",
    )


def _score_above(labels: csr_array, values: Any, cut: float, model: Any) -> float:
    sets = csr_array(values > cut, dtype=np.int8)
    return fbeta_score(labels, sets, beta=model.beta, average=model.average)


def _ratios(probs: Any) -> Any:
    """Probability over the image's largest."""
    if issparse(probs):
        top = np.maximum(probs.max(axis=1).toarray().ravel(), 1e-12)
        return csr_array(probs.multiply(1 / top[:, None]))
    return probs / np.maximum(probs.max(axis=1, keepdims=True), 1e-12)


def decision_rules(model: Any) -> list[dict[str, Any]]:
    """Rules that the decision compared by cross-validation, the best first."""
    table = getattr(model.decision_, "cv_results_", None) or {}
    if "strategy" not in table:
        return []
    rows = [
        {"name": str(name), "score": float(score), "chosen": bool(chosen)}
        for name, score, chosen in zip(
            table["strategy"], table["mean_score"], table["chosen"], strict=True
        )
    ]
    return sorted(rows, key=lambda row: -row["score"])


def _importance(model: Any) -> pd.DataFrame:
    """Gain of each feature with its block, shares of the whole."""
    gain = np.asarray(model.feature_importances_, dtype=np.float64)
    block = {column.name: column.block for column in model.columns_}
    names = [str(name) for name in model.feature_names_]
    frame = pd.DataFrame({"feature": names, "gain": gain / max(float(gain.sum()), 1e-12)})
    return frame.assign(block=[block.get(name, "other") for name in names])


def block_importance(model: Any) -> list[dict[str, Any]]:
    """Share of the gain by block, the largest first."""
    frame = _importance(model)
    blocks = frame.groupby("block")["gain"].agg(["sum", "count"]).sort_values("sum")[::-1]
    blocks = blocks.head(BLOCK_LIMIT)
    top = max(float(blocks["sum"].max()), 1e-12)
    shares, counts = blocks["sum"].tolist(), blocks["count"].tolist()
    return [
        {"name": str(name), "share": share, "width": share / top, "n": n}
        for name, share, n in zip(blocks.index, shares, counts, strict=True)
    ]


def top_features(model: Any) -> list[dict[str, Any]]:
    """Features with the largest share of the gain."""
    frame = _importance(model).sort_values("gain", ascending=False).head(FEATURE_LIMIT)
    top = max(float(frame["gain"].max()), 1e-12)
    return [
        {"name": name, "block": block, "share": share, "width": share / top}
        for name, block, share in zip(frame["feature"], frame["block"], frame["gain"], strict=True)
    ]


def model_facts(model: Any) -> list[tuple[str, str]]:
    """Say what the model is, for the last section."""
    recall = ", ".join(f"{k or 'all'} {v:.3f}" for k, v in model.candidate_recall_.items())
    return [
        ("Classes", f"{len(model.classes_):,}"),
        ("Features", f"{len(model.feature_names_):,}"),
        ("Base", str(model.base_name_)),
        ("Decision rule", str(model.decision_.strategy_)),
        ("Candidate recall", recall),
        ("Fitted as", repr(model)),
    ]
