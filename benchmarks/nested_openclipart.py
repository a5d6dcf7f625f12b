"""Does the stack beat the best blend? Strictly nested, on openclipart out-of-fold predictions.

    python benchmarks/nested_openclipart.py openclipart_oof.npz [--part folds|small|grouped]

The file does not ship; tests/data/README.md says how to make a store like it from the images that
do, which is taken in its place (benchmarks/nested_openclipart.py openclipart_store/).

folds    the outer folds of the file: everything (base, features, boosting, shrinkage, decision
         rule) is fitted on the other four, for F2 samples, macro and micro.
small    five random subsets of 400 images, each nested over five folds: too small to learn from,
         the stack must not lose to the best blend.
grouped  522 images, each repeated eight times with jittered logits, the copies one split group:
         every class has its positives in few groups, and memorising those is the failure to avoid.

Blends go through the same protocol with rules of their own. Intervals are paired bootstraps over
split groups.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from features import FeatureStore, Stack
from features.folds import make_folds
from features.numeric import logit, sigmoid
from stacker import PairStacker
from stacker._compare import compare
from stacker.datasets import load_openclipart_oof
from stacker.evaluation import AVERAGES, ScoreTable

STATS = [f"{s}_{c}" for s in ("mean", "median", "std", "max", "min") for c in "rgb"]
STATS += ["brightness", "colourfulness", "longer_side", "height_over_width"]

Data = tuple[Stack, csr_array, np.ndarray, np.ndarray]


class KeptStacker(PairStacker):
    """A `PairStacker` whose fits lie in a folder: a long run that was stopped goes on there."""

    folder: Path

    def fit(self, X: Stack, Y: csr_array, groups: Any = None, **given: Any) -> "KeptStacker":
        """Read the fit on these images back, or make and keep it."""
        images = hashlib.sha256("\n".join(X.image_ids.tolist()).encode()).hexdigest()[:16]
        path = self.folder / images
        if path.exists():
            vars(self).update(vars(PairStacker.load(path)))
        else:
            super().fit(X, Y, groups=groups, **given).save(path)
        return self


def read(path: str) -> Data:
    """Stack, labels, outer fold and split group: of a file, a store, or the "embedded" set."""
    if path == "embedded":
        own = load_openclipart_oof()
        return own.stack, own.labels, own.fold, own.split_group
    if Path(path).is_dir():
        store = FeatureStore.open(path).without_skipped()
        store = store.subset(store.labels_known)
        return store.to_stack(), store.labels, store.fold.astype(np.int64), store.split_group
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


def subset(data: Data, n_images: int, seed: int) -> Data:
    """Random images with five folds of their own, and the classes that they have."""
    stack, labels, _, groups = data
    picked = np.sort(np.random.default_rng(seed).choice(len(stack), n_images, replace=False))
    fold = make_folds(labels[picked], 5, groups[picked], random_state=seed).astype(np.int64)
    return stack[picked], labels[picked], fold, groups[picked]


def repeated(data: Data, n_images: int, times: int, seed: int = 0, jitter: float = 0.3) -> Data:
    """Every image several times, its logits and vectors jittered, copies in one split group."""
    stack, labels, _, _ = data
    rng = np.random.default_rng(seed)
    picked = np.sort(rng.choice(len(stack), n_images, replace=False))
    at = np.repeat(picked, times)

    def shaken(values: Any, scale: float) -> np.ndarray:
        noise = rng.normal(size=(len(at), values.shape[1])).astype(np.float32)
        return np.asarray(values[at], dtype=np.float32) + scale * noise

    probs = {m: sigmoid(shaken(logit(p), jitter)) for m, p in stack.probabilities.items()}
    vectors = {
        n: shaken(v, 0.1 * float(np.std(v, dtype=np.float64))) for n, v in stack.embeddings.items()
    }
    logits = {
        n: shaken(v, 0.1 * float(np.std(v, dtype=np.float64)))
        for n, v in stack.imagenet_logits.items()
    }
    ids = [f"{i}-{j}" for i in stack.image_ids[picked] for j in range(times)]
    many = Stack(
        probs,
        image_ids=ids,
        classes=stack.classes,
        embeddings=vectors,
        imagenet_logits=logits,
        image_stats=pd.DataFrame(stack.image_stats.to_numpy()[at], columns=STATS, index=ids),
    )
    fold = np.repeat(make_folds(labels[picked], 5, random_state=seed).astype(np.int64), times)
    return many, labels[at], fold, np.repeat(picked, times)


def nested(data: Data, model: PairStacker, average: Any) -> ScoreTable:
    """Nested scores over the folds of the data, with progress."""
    stack, labels, fold, groups = data
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - start:6.0f} s  {text}", flush=True)

    return compare(stack, labels, fold, model, groups=groups, average=average, step=say)


def rows(name: str, table: ScoreTable) -> list[dict[str, Any]]:
    """One row a metric: the stack, the best blend, their difference and its interval."""
    found = []
    for metric in table.scores.columns:
        gain = table.gain(metric)
        best = table.best_blend[metric]
        found.append(
            {
                "data": name,
                "metric": str(metric),
                "stack": float(table.scores.loc["stack", metric]),
                "best_blend": f"{best} {table.scores.loc[best, metric]:.4f}",
                "gain": gain.difference,
                "interval": [gain.low, gain.high],
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="the whole file, a store, or 'embedded': the part that ships")
    parser.add_argument("--part", default="folds", choices=("folds", "small", "grouped"))
    parser.add_argument("--blocks", default="default", help="comma separated block names")
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--keep", type=Path, help="folder of fits, to go on after a stop")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    data = read(options.path)
    blocks = options.blocks if options.blocks == "default" else tuple(options.blocks.split(","))
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        KeptStacker.folder = options.keep
    make = KeptStacker if options.keep else PairStacker
    model = make(blocks=blocks, n_trials=options.trials, n_jobs=options.jobs, random_state=0)
    found = []
    if options.part == "folds":
        found += rows("openclipart", nested(data, model, AVERAGES))
    elif options.part == "small":
        for seed in range(5):
            table = nested(subset(data, 400, seed), model, "samples")
            found += rows(f"400 images, draw {seed}", table)
    else:
        found += rows("522 images, 8 times", nested(repeated(data, 522, 8), model, "samples"))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
