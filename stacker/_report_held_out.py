"""What labelled images that the model never saw add to the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stacker._charts import Line, line_chart
from stacker._gallery import Card, gallery
from stacker._inputs import check_labels
from stacker.evaluation import (
    Interval,
    Predictions,
    ScoreTable,
    calibration_curve,
    class_average_precisions,
    frequency_bins,
    paired_bootstrap,
    score_by_bin,
)
from stacker.explain import explain
from stacker.fbeta import fbeta_per_image

if TYPE_CHECKING:
    from stacker.report import HeldOut

__all__ = ["gain_without", "held_out_sections", "summary"]

METRIC_TITLES = {
    "f{b}_samples": "F{b} (samples)",
    "f{b}_macro": "F{b} macro",
    "f{b}_micro": "F{b} micro",
    "map": "mAP",
}
CLASS_LIMIT, REASON_LIMIT = 2000, 3
SECTIONS = (
    "table", "calibration", "label_counts", "frequency", "groups", "cards", "classes",
    "n_classes_left",
)  # fmt: skip


def summary(held_out: HeldOut | None, beta: float) -> dict[str, Any] | None:
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
        "verdict": verdict(gain),
    }


def verdict(gain: Interval) -> str:
    """Say "better" or "worse" where the interval leaves no doubt, else "level"."""
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "level"


def held_out_sections(
    model: Any,
    held_out: HeldOut | None,
    train_labels: Any,
    read_image: Callable[[str], bytes | None] | None,
    beta: float,
) -> dict[str, Any]:
    """Everything that needs labelled images the model never saw."""
    if held_out is None:
        return dict.fromkeys(SECTIONS)
    blend = best_blend(held_out)
    known = held_out.labels if train_labels is None else train_labels
    counts = np.asarray(check_labels(known).sum(axis=0)).ravel()
    bins, bin_names = frequency_bins(counts)
    group_names, group_codes = np.unique(model.class_group_, return_inverse=True)
    rows, left = _class_rows(model, held_out, blend, counts, beta)
    return {
        "table": _score_rows(held_out.table, held_out.methods, beta),
        "calibration": _calibration(held_out, blend),
        "label_counts": _label_counts(held_out, blend),
        "frequency": _bin_rows(held_out, blend, bins, bin_names, beta),
        "groups": _bin_rows(held_out, blend, group_codes, list(group_names), beta),
        "cards": _cards(model, held_out, blend, read_image, beta),
        "classes": rows,
        "n_classes_left": left,
    }


def best_blend(held_out: HeldOut) -> str:
    """Name of the blend that the stack is set against."""
    return held_out.table.best_blend[str(held_out.table.scores.columns[0])]


def gain_without(held_out: HeldOut, left_out: NDArray[np.bool_], beta: float) -> Interval | None:
    """Gain in F-beta (samples) over the best blend without some of the images."""
    kept = np.flatnonzero(~left_out)
    average = _average(held_out)
    if average != "samples" or not len(kept):
        return None
    ours, theirs = (
        fbeta_per_image(held_out.labels, check_labels(held_out.methods[m].sets[average]), beta=beta)
        for m in ("stack", best_blend(held_out))
    )
    groups = None if held_out.groups is None else np.asarray(held_out.groups)[kept]
    return paired_bootstrap(ours[kept], theirs[kept], groups)


def _average(held_out: HeldOut) -> str:
    return next(iter(held_out.methods["stack"].sets))


def _metric_titles(metrics: Sequence[str], beta: float) -> dict[str, str]:
    titles = {k.format(b=f"{beta:g}"): v.format(b=f"{beta:g}") for k, v in METRIC_TITLES.items()}
    return {metric: titles.get(metric, metric) for metric in metrics}


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
        "gains": [(gain, verdict(gain)) for gain in map(table.gain, metrics)],
        "blends": [table.titles[table.best_blend[metric]] for metric in metrics],
    }


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


def _label_counts(held_out: HeldOut, blend: str) -> Any:
    """Share of the images by number of labels: true, of the stack, of the blend."""
    average = _average(held_out)
    sets = {"true": held_out.labels}
    for name in ("stack", blend):
        sets[held_out.methods[name].title] = check_labels(held_out.methods[name].sets[average])
    counts = [np.bincount(np.diff(own.indptr)) for own in sets.values()]
    most = max(map(len, counts))
    shares = [np.pad(own, (0, most - len(own))) / max(own.sum(), 1) for own in counts]
    x = list(range(most))
    lines = [
        Line(title, x, share.tolist(), colour=colour, dashed=title == "true")
        for (title, share), colour in zip(zip(sets, shares, strict=True), (3, 1, 2), strict=True)
    ]
    return line_chart(
        lines, title="Labels of an image", x_label="labels of an image", y_label="share of images"
    )


def _bin_rows(
    held_out: HeldOut, blend: str, codes: Any, names: Sequence[str], beta: float
) -> list[dict[str, Any]]:
    """Micro F-beta of stack and blend for each bin of classes."""
    average = _average(held_out)
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
) -> list[tuple[Card, list[dict[str, Any]]]]:
    """Images on which stack and blend differ, each with the reasons for its changes."""
    average = _average(held_out)
    stack, other = (check_labels(held_out.methods[m].sets[average]) for m in ("stack", blend))
    cards = gallery(
        held_out.image_ids,
        held_out.labels,
        stack,
        other,
        model.classes_,
        read_image=read_image,
        beta=beta,
    )
    return [(card, _reasons(model, held_out, card)) for card in cards]


def _reasons(model: Any, held_out: HeldOut, card: Card) -> list[dict[str, Any]]:
    """Largest contributions of blocks to each label that was added or removed."""
    changed = [("+", name) for name, _ in card.added] + [("\u2212", n) for n, _ in card.removed]
    if held_out.stack is None or not changed:
        return []
    table = explain(model, held_out.stack, card.image_id, labels=[name for _, name in changed])
    blocks = list(table.columns[list(table.columns).index("correction") + 1 :])
    numbers = dict(zip(table.index, table.to_dict(orient="records"), strict=True))
    rows = []
    for sign, name in changed:
        own: dict[Any, Any] = numbers[name]
        top = sorted(blocks, key=lambda block: -abs(own[block]))[:REASON_LIMIT]
        rows.append(
            {
                "sign": sign,
                "label": name,
                "base": float(own["base"]),
                "stack": float(own["stack"]),
                "parts": [(str(block), float(own[block])) for block in top if own[block]],
            }
        )
    return rows


def _class_rows(
    model: Any, held_out: HeldOut, blend: str, counts: NDArray[Any], beta: float
) -> tuple[list[dict[str, Any]], int]:
    """One row a class with held-out positives, the most frequent first; and how many are left."""
    average, truth = _average(held_out), held_out.labels
    n_true = np.asarray(truth.sum(axis=0)).ravel()
    columns: dict[str, NDArray[Any]] = {}
    for key, name in (("stack", "stack"), ("blend", blend)):
        sets = check_labels(held_out.methods[name].sets[average])
        hits = np.asarray(truth.multiply(sets).sum(axis=0)).ravel()
        below = np.asarray(sets.sum(axis=0)).ravel() + beta**2 * n_true
        columns[f"f_{key}"] = (1 + beta**2) * hits / np.maximum(below, 1e-12)
        columns[f"ap_{key}"] = class_average_precisions(truth, held_out.methods[name].proba)
    shown = np.argsort(-counts, kind="stable")
    shown = shown[n_true[shown] > 0]
    rows = [
        {
            "name": str(model.classes_[c]),
            "n_train": int(counts[c]),
            "n_true": int(n_true[c]),
            **{key: float(values[c]) for key, values in columns.items()},
        }
        for c in shown[:CLASS_LIMIT]
    ]
    return rows, max(0, len(shown) - CLASS_LIMIT)
