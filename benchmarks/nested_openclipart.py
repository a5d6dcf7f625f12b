"""Strictly nested F2 on openclipart out-of-fold predictions: the figure the project is judged by.

    python benchmarks/nested_openclipart.py openclipart_oof.npz [--folds 0,1] [--models 4]

For each outer fold of the file everything (base, features, boosting, shrinkage, decision rule) is
fitted on the other four folds and label sets are predicted for it. The blends go through the same
protocol with their own `FBetaDecision(strategy="auto")`. The last line is the paired bootstrap
interval, over split groups, of the stack minus the best blend.
"""

import argparse
import time

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from features import Stack
from stacker import FBetaDecision, PairStacker
from stacker.blend import BLENDS, cross_fit
from stacker.evaluation import paired_bootstrap
from stacker.fbeta import fbeta_per_image

STATS = [f"{s}_{c}" for s in ("mean", "median", "std", "max", "min") for c in "rgb"]
STATS += ["brightness", "colourfulness", "longer_side", "height_over_width"]


def read(path: str) -> tuple[Stack, csr_array, np.ndarray, np.ndarray]:
    """Stack, labels, outer fold and split group of the file."""
    with np.load(path, allow_pickle=False) as file:
        data = {key: file[key] for key in file.files}
    prefixed = lambda p: {k.removeprefix(p): v for k, v in data.items() if k.startswith(p)}  # noqa: E731
    stack = Stack(
        dict(zip(data["model"].tolist(), data["probabilities"], strict=True)),
        image_ids=data["image_id"],
        classes=data["classes"],
        embeddings=prefixed("embedding_"),
        imagenet_logits=prefixed("imagenet_logits_"),
        image_stats=pd.DataFrame(data["image_stats"], columns=STATS, index=data["image_id"]),
    )
    labels = csr_array(data["labels"].astype(np.int8))
    return stack, labels, data["fold"].astype(np.int64), data["split_group"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--folds", default="0,1,2,3,4", help="outer folds to run")
    parser.add_argument("--blocks", default="default", help="comma separated block names")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--blends", action="store_true", help="the blends too")
    options = parser.parse_args()
    stack, labels, fold, groups = read(options.path)
    blocks = options.blocks if options.blocks == "default" else tuple(options.blocks.split(","))
    outer = [int(k) for k in options.folds.split(",")]
    scores: dict[str, dict[int, np.ndarray]] = {"stack": {}}
    for k in outer:
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        start = time.perf_counter()
        model = PairStacker(random_state=0, blocks=blocks, n_jobs=options.jobs)
        model.fit(stack[train], labels[train], groups=groups[train])
        fitted = time.perf_counter() - start
        scores["stack"][k] = fbeta_per_image(labels[test], model.predict(stack[test]))
        print(
            f"fold {k}: stack {scores['stack'][k].mean():.4f}  base {model.base_name_}  "
            f"rule {model.decision_.strategy_}  rounds {model.rounds_}  "
            f"shrinkage {model.shrinkage_:.1f}  fit {fitted:.0f} s",
            flush=True,
        )
        for name, blend in BLENDS.items() if options.blends else ():
            oof = cross_fit(blend(), stack[train], labels[train], model.folds_)
            rule = FBetaDecision(class_groups=stack.class_group, random_state=0)
            rule.fit(oof, labels[train], groups=groups[train])
            proba = blend().fit(stack[train], labels[train]).predict_proba(stack[test])
            scores.setdefault(name, {})[k] = fbeta_per_image(labels[test], rule.predict(proba))
            print(f"fold {k}: {name} {scores[name][k].mean():.4f}", flush=True)
    joined = {name: np.concatenate(list(parts.values())) for name, parts in scores.items()}
    print({name: round(float(values.mean()), 4) for name, values in joined.items()})
    if options.blends:
        best = max(BLENDS, key=lambda name: joined[name].mean())
        own = np.concatenate([groups[fold == k] for k in outer])
        gain = paired_bootstrap(joined["stack"], joined[best], own)
        print(f"stack - {best}: {gain}")


if __name__ == "__main__":
    main()
