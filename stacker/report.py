"""One self-contained HTML page about a fitted stack: scores, curves, importance, images."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from stacker._charts import Line, line_chart
from stacker._gallery import gallery
from stacker._inputs import check_labels, check_probs
from stacker._output import write_text
from stacker._tuning_report import tuning_section
from stacker.evaluation import (
    Predictions,
    ScoreTable,
    calibration_curve,
    class_average_precisions,
    frequency_bins,
    score_by_bin,
)
from stacker.fbeta import fbeta_score

__all__ = ["HeldOut", "library_versions", "render_report", "write_report"]

METRIC_TITLES = {
    "f{b}_samples": "F{b} (samples)",
    "f{b}_macro": "F{b} macro",
    "f{b}_micro": "F{b} micro",
    "map": "mAP",
}
BLOCK_LIMIT, FEATURE_LIMIT, CLASS_LIMIT = 24, 20, 2000


@dataclass(frozen=True)
class HeldOut:
    """Labelled images that no method was fitted on, and what each method says about them.

    Attributes
    ----------
    image_ids : str array of shape (n_images,)
    labels : csr_array of shape (n_images, n_classes)
    methods : dict of name to Predictions, "stack" among them
    table : ScoreTable
        Of `methods`, from `stacker.evaluation.score_methods`.
    changes : list of dicts
        Why labels were added or dropped, from `stacker._evaluate.explained_changes`.
    """

    image_ids: NDArray[np.str_]
    labels: csr_array
    methods: dict[str, Predictions]
    table: ScoreTable
    changes: list[dict[str, Any]] = field(default_factory=list)


def write_report(path: Path | str, model: Any, *, force: bool = False, **content: Any) -> None:
    """Render the report of a fitted model and write it, whole or not at all.

    Parameters
    ----------
    path : path
        The HTML file; refused when it exists, unless `force`.
    model : fitted PairStacker
    **content
        As for `render_report`.

    Raises
    ------
    FileExistsError
        If the file exists and `force` is False.
    """
    write_text(Path(path), render_report(model, **content), force=force)


def render_report(
    model: Any,
    *,
    train_labels: Any = None,
    held_out: HeldOut | None = None,
    read_image: Callable[[str], bytes | None] | None = None,
    title: str = "pairstack report",
    command: str = "",
    about: Sequence[tuple[str, str]] = (),
) -> str:
    """Render the report of a fitted model as one HTML page that needs nothing else.

    Parameters
    ----------
    model : fitted PairStacker
    train_labels : 0/1 matrix of shape (n_images, n_classes), optional
        Labels of the rows of ``model.oof_proba_``; without them (and without the model's own)
        there are no threshold curves.
    held_out : HeldOut, optional
        Gives the table with intervals, calibration, the breakdowns and the images.
    read_image : callable, optional
        Gives the file of an image id, or None.
    title, command : str
        Headline; the command that made the model.
    about : sequence of (name, value)
        Further facts for the last section.

    Returns
    -------
    str
        The page. Every string that came from a user is escaped.
    """
    page = _environment().get_template("report.html.jinja")
    beta = float(model.beta)
    return page.render(
        title=title,
        command=command,
        beta=f"{beta:g}",
        summary=_summary(held_out, beta),
        training=_training_scores(model),
        curves=_threshold_curves(model, train_labels),
        blocks=_block_importance(model),
        top_features=_top_features(model),
        tuning=tuning_section(getattr(model, "trials_", None)),
        changes=[] if held_out is None else held_out.changes,
        about=[*_model_facts(model), *about],
        versions=library_versions(),
        **_held_out_sections(model, held_out, train_labels, read_image, beta),
    )


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on.

    Examples
    --------
    >>> list(library_versions())[:2]
    ['pairstack', 'python']
    """
    names = ("numpy", "scipy", "pandas", "zarr", "numba", "scikit-learn", "lightgbm", "xgboost")
    found = {"pairstack": _version("pairstack"), "python": platform.python_version()}
    return found | {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("stacker", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["signed"] = lambda value: f"{value:+.4f}"
    environment.filters["score"] = lambda v: "–" if v is None or np.isnan(v) else f"{v:.4f}"
    environment.filters["count"] = lambda value: f"{int(value):,}"
    return environment


def _breakable(name: str) -> Markup:
    """Escape a name and let it wrap after its separators."""
    return Markup("<wbr>").join(re.findall(r"[^:._+/]+[:._+/]*|[:._+/]+", str(name)))


def _metric_titles(metrics: Sequence[str], beta: float) -> dict[str, str]:
    titles = {k.format(b=f"{beta:g}"): v.format(b=f"{beta:g}") for k, v in METRIC_TITLES.items()}
    return {metric: titles.get(metric, metric) for metric in metrics}


def _summary(held_out: HeldOut | None, beta: float) -> dict[str, Any] | None:
    """Numbers of the sentence at the top of the page."""
    if held_out is None:
        return None
    table = held_out.table
    metric = table.scores.columns[0]
    blend, gain = table.best_blend[metric], table.gain(metric)
    return {
        "n_images": table.n_images,
        "n_groups": table.n_groups,
        "metric": _metric_titles([metric], beta)[metric],
        "stack": table.scores.loc["stack", metric],
        "blend": table.scores.loc[blend, metric],
        "blend_title": table.titles[blend],
        "gain": gain,
        "verdict": "better" if gain.low > 0 else "worse" if gain.high < 0 else "level",
    }


def _training_scores(model: Any) -> dict[str, float]:
    return {"stack": float(model.oof_score_), "base": float(model.base_score_)}


def _held_out_sections(
    model: Any,
    held_out: HeldOut | None,
    train_labels: Any,
    read_image: Callable[[str], bytes | None] | None,
    beta: float,
) -> dict[str, Any]:
    """Everything that needs labelled images the model never saw."""
    names = ("table", "calibration", "frequency", "groups", "cards", "classes", "n_classes_left")
    if held_out is None:
        return dict.fromkeys(names)
    table = held_out.table
    blend = table.best_blend[str(table.scores.columns[0])]
    counts = check_labels(held_out.labels if train_labels is None else train_labels).sum(axis=0)
    bins, bin_names = frequency_bins(np.asarray(counts).ravel())
    group_names, group_codes = np.unique(model.class_group_, return_inverse=True)
    rows, left = _class_rows(model, held_out, blend, np.asarray(counts).ravel(), beta)
    return {
        "table": _score_rows(table, held_out.methods, beta),
        "calibration": _calibration(held_out, blend),
        "frequency": _bin_rows(held_out, blend, bins, bin_names, beta),
        "groups": _bin_rows(held_out, blend, group_codes, list(group_names), beta),
        "cards": [asdict(card) for card in _cards(model, held_out, blend, read_image, beta)],
        "classes": rows,
        "n_classes_left": left,
    }


def _score_rows(table: ScoreTable, methods: dict[str, Predictions], beta: float) -> dict[str, Any]:
    metrics = [str(metric) for metric in table.scores.columns]
    best = {metric: table.scores[metric].max() for metric in metrics}
    rows = [
        {
            "name": name,
            "title": table.titles[name],
            "strategy": next(iter(methods[name].strategy.values()), ""),
            "cells": [
                {
                    "value": table.scores.loc[name, metric],
                    "best": table.scores.loc[name, metric] == best[metric],
                    "gain": table.gains[metric].get(name),
                }
                for metric in metrics
            ],
        }
        for name in table.scores.index
    ]
    return {
        "metrics": list(_metric_titles(metrics, beta).values()),
        "rows": rows,
        "gains": [table.gain(metric) for metric in metrics],
        "blends": [table.titles[table.best_blend[metric]] for metric in metrics],
    }


def _threshold_curves(model: Any, train_labels: Any) -> Any:
    """F-beta of stack and base on training rows (out-of-fold) over a global threshold."""
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


def _importance(model: Any) -> pd.DataFrame:
    """Gain of each feature with its block, shares of the whole."""
    gain = np.asarray(model.feature_importances_, dtype=np.float64)
    block = {column.name: column.block for column in model.columns_}
    names = [str(name) for name in model.feature_names_]
    frame = pd.DataFrame({"feature": names, "gain": gain / max(float(gain.sum()), 1e-12)})
    return frame.assign(block=[block.get(name, "other") for name in names])


def _block_importance(model: Any) -> list[dict[str, Any]]:
    frame = _importance(model)
    blocks = frame.groupby("block")["gain"].agg(["sum", "count"]).sort_values("sum")[::-1]
    blocks = blocks.head(BLOCK_LIMIT)
    top = max(float(blocks["sum"].max()), 1e-12)
    shares, counts = blocks["sum"].tolist(), blocks["count"].tolist()
    return [
        {"name": str(name), "share": share, "width": share / top, "n": n}
        for name, share, n in zip(blocks.index, shares, counts, strict=True)
    ]


def _top_features(model: Any) -> list[dict[str, Any]]:
    frame = _importance(model).sort_values("gain", ascending=False).head(FEATURE_LIMIT)
    top = max(float(frame["gain"].max()), 1e-12)
    return [
        {"name": name, "block": block, "share": share, "width": share / top}
        for name, block, share in zip(frame["feature"], frame["block"], frame["gain"], strict=True)
    ]


def _calibration(held_out: HeldOut, blend: str) -> Any:
    lines = [Line("", [1e-3, 1.0], [1e-3, 1.0], colour=3, dashed=True)]
    for colour, name in enumerate(("stack", blend), start=1):
        method = held_out.methods[name]
        curve = calibration_curve(held_out.labels, method.proba)
        curve = curve[(curve["predicted"] > 1e-4) & (curve["observed"] > 0)]
        x, y = curve["predicted"].tolist(), curve["observed"].tolist()
        lines.append(Line(method.title, x, y, colour=colour, dots=True))
    return line_chart(
        lines,
        title="Predicted and observed share of positives",
        x_label="predicted",
        y_label="observed",
        log=True,
    )


def _bin_rows(
    held_out: HeldOut, blend: str, codes: Any, names: Sequence[str], beta: float
) -> list[dict[str, Any]]:
    """Micro F-beta of stack and blend for each bin of classes."""
    average = next(iter(held_out.methods["stack"].sets))
    frames = [
        score_by_bin(held_out.labels, m.sets[average], m.proba, codes, names, beta=beta)
        for m in (held_out.methods["stack"], held_out.methods[blend])
    ]
    return [
        {
            "name": str(name),
            "n_classes": int(ours["n_classes"]),
            "n_positives": int(ours["n_positives"]),
            "stack": ours[f"f{beta:g}_micro"],
            "blend": theirs[f"f{beta:g}_micro"],
        }
        for (name, ours), (_, theirs) in zip(
            frames[0].iterrows(), frames[1].iterrows(), strict=True
        )
        if ours["n_positives"] > 0
    ]


def _cards(
    model: Any,
    held_out: HeldOut,
    blend: str,
    read_image: Callable[[str], bytes | None] | None,
    beta: float,
) -> Any:
    average = next(iter(held_out.methods["stack"].sets))
    stack, other = (check_labels(held_out.methods[m].sets[average]) for m in ("stack", blend))
    return gallery(
        held_out.image_ids,
        held_out.labels,
        stack,
        other,
        model.classes_,
        read_image=read_image,
        beta=beta,
    )


def _class_rows(
    model: Any, held_out: HeldOut, blend: str, counts: NDArray[Any], beta: float
) -> tuple[list[dict[str, Any]], int]:
    """One row a class with held-out positives, the most frequent first; and how many are left."""
    average = next(iter(held_out.methods["stack"].sets))
    truth = held_out.labels
    n_true = np.asarray(truth.sum(axis=0)).ravel()
    columns: dict[str, NDArray[Any]] = {}
    for name in ("stack", blend):
        sets = check_labels(held_out.methods[name].sets[average])
        hits = np.asarray(truth.multiply(sets).sum(axis=0)).ravel()
        below = np.asarray(sets.sum(axis=0)).ravel() + beta**2 * n_true
        columns[f"f_{name}"] = (1 + beta**2) * hits / np.maximum(below, 1e-12)
        columns[f"ap_{name}"] = class_average_precisions(truth, held_out.methods[name].proba)
    shown = np.argsort(-counts, kind="stable")
    shown = shown[n_true[shown] > 0]
    rows = [
        {
            "name": str(model.classes_[c]),
            "n_train": int(counts[c]),
            "n_true": int(n_true[c]),
            "f_stack": columns["f_stack"][c],
            "f_blend": columns[f"f_{blend}"][c],
            "ap_stack": columns["ap_stack"][c],
            "ap_blend": columns[f"ap_{blend}"][c],
        }
        for c in shown[:CLASS_LIMIT]
    ]
    return rows, max(0, len(shown) - CLASS_LIMIT)


def _model_facts(model: Any) -> list[tuple[str, str]]:
    """Say what the model is, for the last section."""
    recall = ", ".join(f"{k or 'all'} {v:.3f}" for k, v in model.candidate_recall_.items())
    return [
        ("Classes", f"{len(model.classes_):,}"),
        ("Features", f"{len(model.feature_names_):,}"),
        ("Base", str(model.base_name_)),
        ("Decision rule", str(model.decision_.strategy_)),
        ("Candidate recall", recall),
    ]
