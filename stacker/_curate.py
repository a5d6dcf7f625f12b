"""The tables of `stacker.curate` for a store, as CSV files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features._tables import quoting
from features.store import FeatureStore
from stacker._evaluate import training_labels
from stacker.blend import LogitMeanBlend
from stacker.curate import hard_examples, high_loss_images, label_issues, pseudo_labels
from stacker.decision import FBetaDecision

__all__ = ["FILES", "CurateSettings", "curate_store", "write_tables"]

FILES = ("drop.csv", "hard.csv", "pseudo.csv", "label_issues.csv")


@dataclass(frozen=True)
class CurateSettings:
    """What to look for.

    Attributes
    ----------
    drop, hard, pseudo : float
        Share of the (unlabelled) images listed.
    by : {"chance", "loss"}
        Order of the images to drop.
    confidence : {"margin", "fbeta"}
        Order of the pseudo-labelled images.
    noise : float
        Share of labels assumed wrong.
    """

    drop: float = 0.02
    hard: float = 0.05
    pseudo: float = 0.2
    by: str = "chance"
    confidence: str = "margin"
    noise: float = 0.1


def curate_store(
    store: FeatureStore, model: Any = None, settings: CurateSettings | None = None
) -> dict[str, pd.DataFrame]:
    """Make the tables of a store: labelled images out-of-fold, unlabelled ones predicted.

    Parameters
    ----------
    store : FeatureStore
        With labels for some images.
    model : fitted PairStacker, optional
        Fitted on this store's labelled images; without one the logit mean of the store's
        models speaks.
    settings : CurateSettings, optional

    Returns
    -------
    dict of file name to DataFrame
        ``pseudo.csv`` only where the store has images without labels.

    Raises
    ------
    ValueError
        When the model was fitted on other images.
    """
    chosen = settings or CurateSettings()
    store = store.without_skipped()
    labelled = store.subset(store.labels_known)
    if model is None:
        proba, Y = LogitMeanBlend().fit(labelled).predict_proba(labelled), labelled.labels
        classes = labelled.classes
    else:
        proba, Y, classes = model.oof_proba_, training_labels(model, labelled), model.classes_
    names: dict[str, Any] = {"image_ids": labelled.image_ids}
    named = {**names, "classes": classes}
    tables = {
        "drop.csv": high_loss_images(
            proba, Y, share=chosen.drop, by=chosen.by, noise=chosen.noise, **named
        ),
        "hard.csv": hard_examples(proba, Y, share=chosen.hard, **names),
        "label_issues.csv": label_issues(proba, Y, noise=chosen.noise, **named),
    }
    if not store.labels_known.all():
        tables["pseudo.csv"] = _pseudo(store, model, chosen)
    return tables


def _pseudo(store: FeatureStore, model: Any, chosen: CurateSettings) -> pd.DataFrame:
    unknown = store.subset(~store.labels_known)
    if model is None:
        labelled = store.subset(store.labels_known)
        blend = LogitMeanBlend().fit(labelled)
        rule = FBetaDecision(strategy="max_ratio", random_state=0)
        rule.fit(blend.predict_proba(labelled), labelled.labels)
        proba, classes, beta = blend.predict_proba(unknown), unknown.classes, 2.0
    else:
        rule, proba = model.decision_, model.predict_proba(unknown)
        classes, beta = model.classes_, float(model.beta)
    return pseudo_labels(
        proba,
        rule.predict(proba),
        share=chosen.pseudo,
        by=chosen.confidence,
        beta=beta,
        image_ids=unknown.image_ids,
        classes=classes,
    )


def write_tables(folder: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Write the tables as CSV, numbers with four digits."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        rounded = table.round(dict.fromkeys(table.select_dtypes(np.number), 4))
        rounded.to_csv(folder / name, index=False, **quoting(rounded))
