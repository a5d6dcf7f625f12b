"""Makers of a report's content, every string of it hostile."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from features.schema import Stack
from stacker.estimator import PairStacker
from stacker.evaluation import Predictions, score_methods
from stacker.report import HeldOut, render_report

NASTY = '<script>alert("x")</script>'
QUOTES = """it's a "name" onerror=alert(1) \\"""
# One white pixel: browsers load it, and it is the smallest picture there is.
PIXEL = bytes.fromhex(
    "47494638396101000100800000ffffff00000021f90401000000002c00000000010001000002024401003b"
)


def make_held_out(classes, n_images=40, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n_images, len(classes))) < 0.3).astype(np.int8)
    averages = ("samples", "macro", "micro")

    def method(title, noise, **extra):
        proba = np.clip(0.6 * labels + noise * rng.random(labels.shape), 0, 1)
        sets = dict.fromkeys(averages, (proba > 0.5).astype(np.int8))
        return Predictions(title, proba, sets, dict.fromkeys(averages, "global"), **extra)

    methods = {
        "best_single": method(f"Best single model ({NASTY})", 0.8),
        "mean": method("Mean", 0.7, is_blend=True),
        "stack": method("Pair stack", 0.55),
    }
    ids = np.array([f"{NASTY}{i}" for i in range(n_images)])
    table = score_methods(labels, methods, n=20)
    values = rng.normal(size=(n_images, 8)).astype(np.float32)
    stack = Stack(
        {NASTY: rng.random(labels.shape), "b": rng.random(labels.shape)},
        image_ids=ids,
        classes=classes,
        embeddings={NASTY: values},
    )
    return HeldOut(ids, csr_array(labels), methods, table, stack)


def make_model(classes, n_train=50):
    rng = np.random.default_rng(1)
    oof = rng.random((n_train, len(classes))).astype(np.float32)
    names = [f"p:{NASTY}", "sum:a+b", "neighbours_k5:a"]
    blocks = [NASTY, "combinations", "neighbours"]
    columns = [SimpleNamespace(name=n, block=b) for n, b in zip(names, blocks, strict=True)]
    return SimpleNamespace(
        beta=2.0,
        average="samples",
        oof_proba_=oof,
        oof_base_proba_=oof**2,
        oof_score_=0.7,
        base_score_=0.6,
        base_name_=NASTY,
        classes_=np.array(classes),
        class_group_=np.array([name.split("::")[0] for name in classes]),
        feature_names_=names,
        feature_importances_=np.array([3.0, 1.0, 0.0]),
        columns_=columns,
        candidate_recall_={NASTY: 0.98},
        decision_=SimpleNamespace(strategy_="global"),
    )


def make_trials(n=12):
    """Trials as `stacker.tuning.study_frame` gives them, with a hostile name among the values."""
    rng = np.random.default_rng(3)
    value = 0.7 + 0.01 * rng.random(n)
    return pd.DataFrame(
        {
            "trial": np.arange(n),
            "value": np.where(np.arange(n) % 3 == 2, np.nan, value),
            "screen": value,
            "state": np.where(np.arange(n) % 3 == 2, "pruned", "complete"),
            "steps": 3,
            "seconds": 1.0,
            "num_leaves": rng.integers(8, 64, n),
            "learning_rate": rng.random(n),
            "without": np.where(rng.random(n) < 0.5, NASTY, QUOTES),
        }
    )


def make_page(**changes):
    """Make a page with every section: a fitted model, hostile names, pictures, trials."""
    rng = np.random.default_rng(2)
    classes = [f"{NASTY}::one", "tag::<b>two", "tag::three", "tag::four&amp;", QUOTES, "five"]
    held_out = make_held_out(classes)
    labels = (rng.random((60, len(classes))) < 0.4).astype(np.int8)
    ids = [f"{QUOTES}{i}" for i in range(60)]
    values = rng.normal(size=(60, 8)).astype(np.float32)
    values[[10, 20]] = held_out.stack.embeddings[NASTY][:2]  # held-out images seen in training
    values[41] = values[5]
    train = Stack(
        {
            name: np.clip(0.6 * labels + 0.4 * rng.random(labels.shape), 0, 1)
            for name in (NASTY, "b")
        },
        image_ids=ids,
        classes=classes,
        embeddings={NASTY: values},
    )
    model = PairStacker(cv=3, random_state=0).fit(train, labels)
    model.trials_ = make_trials()
    content = {
        "train_labels": labels,
        "train": train,
        "held_out": held_out,
        "read_image": lambda name: PIXEL,
        "title": f"Title {NASTY}",
        "command": f"stacker demo {NASTY} {QUOTES}",
        "about": [(NASTY, QUOTES)],
    }
    return render_report(model, **content | changes)
