"""What every numba kernel computes on a little real data, as one npz: ``python plain.py OUT.npz``.

Run twice, compiled and with ``NUMBA_DISABLE_JIT=1`` (`test_plain.py`).
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from features import Stack
from features.assemble import PairFeatures
from features.blocks import BLOCKS
from features.folds import make_folds
from stacker import FBetaDecision
from stacker.blend import LogisticBlend
from stacker.calibration import ProbabilityCalibrator
from stacker.decision import budgeted_sets
from stacker.evaluation import bootstrap_map
from stacker.fbeta import AVERAGES, expected_fbeta_sets, fbeta_score

LOADER = Path(__file__).parents[1] / "data" / "load_slice.py"
N_IMAGES, N_CLASSES = 60, 9
OTHERWISE = {"combinations": {"order": 3}, "ranks": {"per_model": "both"}}
STRATEGIES = ("global", "group", "class", "max_ratio", "max_affine", "top_k", "expected", "argmax")


def main() -> None:
    """Write what was found to the first argument."""
    stack, labels = read()
    fold = make_folds(labels, 3, np.arange(N_IMAGES) // 2, 0)
    found: dict[str, Any] = {"folds": fold}
    for name, given in (("dense", stack), ("top-k", top_k(stack))):
        found |= {f"{name} {key}": value for key, value in rows(given, labels, fold).items()}
        logistic = LogisticBlend().fit(given, labels).predict_proba(given)
        found[f"{name} logistic"] = dense(logistic)
        found |= {f"{name} {key}": value for key, value in decided(logistic, labels).items()}
    np.savez(sys.argv[1], **found)


def read() -> tuple[Stack, csr_array]:
    """Stack with every kind of context, and labels, of the first images and frequent classes."""
    data = runpy.run_path(str(LOADER))["load_slice"]()
    some = np.sort(np.argsort(-data["labels"][:N_IMAGES].sum(axis=0))[:N_CLASSES])
    stack = Stack(
        {
            str(data["model"][m]): np.float32(data["probabilities"][m][:N_IMAGES, some])
            for m in (0, 3, 5)
        },
        class_group=["a", "b", "b"] * (N_CLASSES // 3),
        class_parent=[None, "0", "0", *[None] * (N_CLASSES - 3)],
        classes=[str(k) for k in range(N_CLASSES)],
        embeddings={"e": data["embedding_lite0"][:N_IMAGES]},
        imagenet_logits={"e": data["imagenet_logits_lite0"][:N_IMAGES]},
        image_stats=data["image_stats"][:N_IMAGES],
    )
    return stack, csr_array(data["labels"][:N_IMAGES, some].astype(np.int8))


def top_k(stack: Stack, k: int = 4) -> Stack:
    """Stack of each model's k most probable classes."""
    kept = {}
    for model, values in stack.probabilities.items():
        kept[model] = csr_array(np.where(values >= np.sort(values)[:, [-k]], values, 0))
    return Stack(kept, image_ids=stack.image_ids, classes=stack.classes)


def rows(stack: Stack, labels: csr_array, fold: np.ndarray) -> dict[str, Any]:
    """Pair rows of every block, of training images and of new ones."""
    blocks: list[Any] = ["probabilities", "ranks"]
    if stack.embeddings:
        blocks = [name for name in BLOCKS if name not in ("metadata", *OTHERWISE)]
        blocks += list(OTHERWISE.items())
    per_group = {"a": 2, "b": 3} if stack.embeddings else 3
    features = PairFeatures(blocks=blocks, candidates=per_group).fit(stack, labels, fold)
    trained = [batch.features for batch in features.batches(stack, fold)]
    new = [batch.features for batch in features.batches(stack[:20])]
    return {"rows": np.concatenate(trained), "new rows": np.concatenate(new)}


def decided(proba: Any, labels: csr_array) -> dict[str, Any]:
    """Label sets of every rule for every average, calibrated probabilities, scores."""
    groups = np.array(["a", "b", "b"] * (N_CLASSES // 3))
    bounds = {
        "strategy": "expected",
        "min_labels": {"a": 1, "b": 0},
        "max_labels": {"a": 2, "b": 2},
    }
    bounded = FBetaDecision(**bounds, class_groups=groups).fit(proba, labels)
    found: dict[str, Any] = {"bounded": dense(bounded.predict(proba))}
    for average in AVERAGES:
        for strategy in STRATEGIES:
            rule = FBetaDecision(strategy=strategy, average=average, class_groups=groups)
            sets = rule.fit(proba, labels).predict(proba)
            found[f"{average} {strategy}"] = dense(sets)
            found[f"{average} {strategy} score"] = fbeta_score(labels, sets, average=average)
    for method in ("platt", "beta", "isotonic", "venn_abers"):
        for scope in ("pooled", "class"):
            fitted = ProbabilityCalibrator(method=method, scope=scope).fit(proba, labels)
            found[f"{method} {scope}"] = dense(fitted.transform(proba))
    found["budget"] = dense(budgeted_sets(proba, 2))
    found["exact"] = dense(expected_fbeta_sets(proba, beta=1.0, max_labels=3))
    found["map"] = np.array(bootstrap_map(labels, proba, proba * 0.5, n=10))
    return found


def dense(values: Any) -> np.ndarray:
    """Dense array of a dense or sparse one."""
    return values.toarray() if hasattr(values, "toarray") else np.asarray(values)


if __name__ == "__main__":
    main()
