"""Train level one anew inside each outer fold: is the gain real, are fold models better apart.

    python benchmarks/measure_fold_models.py openclipart_oof.npz [--folds 0,1]

The out-of-fold predictions of a file come from models that saw the outer fold's labels when they
predicted the other folds, so a nested score on such a file is nested from the stack upwards only.
Here level one (logistic heads on the file's embeddings, see measure_curation.py) is trained for
each outer fold: out-of-fold on the other four, and by each of the four fold models on the outer
fold itself, whose labels nothing has seen. The stack then reads the mean of the fold models, or
each of them in turn; the blends read the mean.
"""

import argparse
from collections.abc import Mapping

import numpy as np
from measure_curation import adam
from nested_openclipart import read

from features import Stack
from features.numeric import sigmoid
from stacker import FBetaDecision, PairStacker
from stacker.blend import BLENDS, cross_fit
from stacker.evaluation import log_loss, paired_bootstrap
from stacker.fbeta import fbeta_per_image
from stacker.fold_models import predict_proba_by_fold


def head_inputs(embedding: np.ndarray, train: np.ndarray) -> np.ndarray:
    """256 half-whitened principal components of the training images' embedding, and a one."""
    values = embedding.astype(np.float32)
    centred = values - values[train].mean(axis=0)
    axes = np.linalg.svd(centred[train][:3000], full_matrices=False)[2][:256]
    scores = centred @ axes.T
    scores /= np.sqrt(scores[train].std(axis=0))
    return np.c_[scores / scores[train].std(), np.ones(len(scores), np.float32)].astype(np.float32)


def level_one(
    embedding: np.ndarray, Y: np.ndarray, fold: np.ndarray, outer: int
) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold probabilities of all images but the outer fold's, and each model's of those."""
    X = head_inputs(embedding, fold != outer)
    out, new = np.zeros(Y.shape, np.float32), []
    for k in [k for k in np.unique(fold) if k != outer]:
        train = (fold != outer) & (fold != k)
        W = adam(X[train], Y[train].astype(np.float32))
        out[fold == k] = sigmoid(X[fold == k] @ W)
        new.append(sigmoid(X[fold == outer] @ W))
    return out, np.stack(new)


def with_probs(stack: Stack, probs: Mapping[str, np.ndarray]) -> Stack:
    """Give the same images and their context other predictions."""
    return Stack(
        dict(probs),
        image_ids=stack.image_ids,
        classes=stack.classes,
        embeddings=stack.embeddings,
        imagenet_logits=stack.imagenet_logits,
        image_stats=stack.image_stats,
    )


def one_fold(data: tuple, outer: int, jobs: int | None) -> dict[str, np.ndarray]:
    """F2 of every image of the outer fold: stack by the mean and by each model, and the blends."""
    stack, labels, fold, groups = data
    inside, outside = np.flatnonzero(fold != outer), np.flatnonzero(fold == outer)
    Y = labels.toarray()
    made = {name: level_one(e, Y, fold, outer) for name, e in stack.embeddings.items()}
    known = with_probs(stack[inside], {name: oof[inside] for name, (oof, _) in made.items()})
    mean = with_probs(stack[outside], {name: new.mean(axis=0) for name, (_, new) in made.items()})
    apart = [
        with_probs(stack[outside], {name: new[k] for name, (_, new) in made.items()})
        for k in range(len(next(iter(made.values()))[1]))
    ]
    model = PairStacker(random_state=0, n_jobs=jobs)
    model.fit(known, labels[inside], groups=groups[inside])
    found = {
        "stack, mean": (model.predict_proba(mean), model.decision_),
        "stack, each": (predict_proba_by_fold(model, apart), model.decision_),
    }
    for name, blend in BLENDS.items():
        oof = cross_fit(blend(), known, labels[inside], fold[inside])
        rule = FBetaDecision(random_state=0).fit(oof, labels[inside], groups[inside])
        found[name] = (blend().fit(known, labels[inside]).predict_proba(mean), rule)
    scores = {}
    for name, (proba, rule) in found.items():
        scores[name] = fbeta_per_image(labels[outside], rule.predict(proba))
        loss = log_loss(labels[outside], proba)
        print(f"fold {outer} {name}: F2 {scores[name].mean():.4f} log loss {loss:.5f}", flush=True)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--folds", default="0,1")
    parser.add_argument("--jobs", type=int, default=None)
    options = parser.parse_args()
    data = read(options.path)
    outer = [int(k) for k in options.folds.split(",")]
    parts = [one_fold(data, k, options.jobs) for k in outer]
    groups = np.concatenate([data[3][data[2] == k] for k in outer])
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    best = max(BLENDS, key=lambda name: joined[name].mean())
    for better, than in (("stack, each", "stack, mean"), ("stack, mean", best)):
        gap = paired_bootstrap(joined[better], joined[than], groups)
        print(f"{better} minus {than}: {gap[0]:+.4f} [{gap[1]:+.4f}, {gap[2]:+.4f}]")


if __name__ == "__main__":
    main()
