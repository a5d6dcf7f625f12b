"""Score a fitted stack, its base beside it, on labelled images that it never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stacker._align import align_stack, read_stack
from stacker.evaluation import AVERAGES, Predictions, ScoreTable, score_methods
from stacker.explain import explain
from stacker.report import HeldOut

__all__ = ["evaluate_model", "held_out_of", "training_labels"]


def evaluate_model(model: Any, store: Any, *, n: int = 1000) -> ScoreTable:
    """Score the stack and its base on every labelled image of a store.

    Parameters
    ----------
    model : fitted PairStacker
    store : FeatureStore
        Labelled images; its classes are matched by name.
    n : int, default 1000
        Bootstrap resamples.

    Returns
    -------
    ScoreTable
        Rows "base" and "stack". Both use the rule fitted with the model, for all averages.

    Raises
    ------
    ValueError
        If the model's classes are not all in the store.
    """
    return held_out_of(model, store, n=n).table


def held_out_of(model: Any, store: Any, *, n: int = 1000) -> HeldOut:
    """Give predictions and scores of stack and base on a store's labelled images."""
    stack = store.to_stack()
    labels = labels_for(model, store)
    methods = {
        "base": _as_decided(
            f"Base: {model.base_name_}",
            _base_proba(model, stack),
            model.base_decision_,
            is_blend=True,
        ),
        "stack": _as_decided("Pair stack", model.predict_proba(stack), model.decision_),
    }
    table = score_methods(labels, methods, store.split_group, beta=float(model.beta), n=n)
    return HeldOut(
        store.image_ids, labels, methods, table, explained_changes(model, stack, methods)
    )


def explained_changes(
    model: Any, stack: Any, methods: dict[str, Predictions], n_images: int = 8
) -> list[dict[str, Any]]:
    """Explain the images whose label sets differ the most between stack and base.

    Returns
    -------
    list of dicts
        ``image``, ``label``, ``change``, ``base``, ``stack`` (probabilities) and ``reasons``:
        the four largest contributions as (block, log-odds).
    """
    ours, theirs = (next(iter(methods[m].sets.values())) for m in ("stack", "base"))
    differing = np.asarray((csr_array(ours) != csr_array(theirs)).sum(axis=1)).ravel()
    rows = []
    for image in np.argsort(-differing, kind="stable")[:n_images]:
        if not differing[image]:
            break
        table = explain(model, stack, int(image))
        blocks = table.columns[list(table.columns).index("correction") + 1 :]
        for label, row in table.head(6).iterrows():
            parts = row[blocks].astype(float)
            top = parts.abs().sort_values(ascending=False, kind="stable").index[:4]
            rows.append(
                {
                    "image": str(stack.image_ids[image]),
                    "label": str(label),
                    "change": row["change"],
                    "base": float(row["base"]),
                    "stack": float(row["stack"]),
                    "reasons": [(str(name), float(parts[name])) for name in top],
                }
            )
    return rows


def training_labels(model: Any, store: Any) -> csr_array:
    """Give the labels of the images that a model was fitted on, in the rows of `oof_proba_`.

    Raises
    ------
    ValueError
        If the store has another number of labelled images than the model was fitted on.
    """
    if store.n_images != len(model.oof_proba_):
        raise ValueError(
            f"the model was fitted on {len(model.oof_proba_):,} images, but {store.path} has "
            f"{store.n_images:,} labelled ones. Give the store that `stacker fit` read."
        )
    return labels_for(model, store)


def _base_proba(model: Any, stack: Any) -> Any:
    """Probabilities of the blend that the stack starts from."""
    aligned = align_stack(read_stack(stack), model.seen_)
    return model.base_.predict(aligned)[0]


def _as_decided(title: str, proba: Any, decision: Any, *, is_blend: bool = False) -> Predictions:
    sets = decision.predict(proba)
    return Predictions(
        title,
        proba,
        dict.fromkeys(AVERAGES, sets),
        dict.fromkeys(AVERAGES, decision.strategy_),
        is_blend,
    )


def labels_for(model: Any, store: Any) -> csr_array:
    """Give a store's labels with the model's classes as columns.

    Raises
    ------
    ValueError
        If the model's classes are not all in the store.
    """
    position = {name: column for column, name in enumerate(store.classes)}
    missing = [str(name) for name in model.classes_ if name not in position]
    if missing:
        raise ValueError(
            f"{len(missing):,} of the model's classes are not in {store.path}, first: "
            f"{missing[:3]}. Use a store made with the same label vocabulary."
        )
    columns: NDArray[np.intp] = np.array([position[name] for name in model.classes_])
    return csr_array(store.labels.tocsc()[:, columns])
