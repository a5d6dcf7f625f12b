"""Fold models apart or their mean: what new images lose to the smoother average.

    python benchmarks/measure_fold_models.py openclipart_oof.npz [--folds 0,1]

Level one is trained anew (logistic heads on the file's embeddings, see measure_curation.py): for
each outer fold out-of-fold on the other four, and by each of the four fold models on the outer
fold itself. The stack then reads the mean of the fold models, or each of them in turn.
"""

import argparse

import numpy as np
from measure_curation import adam
from nested_openclipart import read

from features import Stack
from features.numeric import sigmoid
from stacker import PairStacker
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--folds", default="0,1")
    parser.add_argument("--jobs", type=int, default=None)
    options = parser.parse_args()
    stack, labels, fold, groups = read(options.path)
    Y = labels.toarray()
    scores: dict[str, list[np.ndarray]] = {"mean": [], "each": []}
    images = []
    for outer in map(int, options.folds.split(",")):
        made = {name: level_one(e, Y, fold, outer) for name, e in stack.embeddings.items()}
        inside, outside = np.flatnonzero(fold != outer), np.flatnonzero(fold == outer)

        def make(probs: dict[str, np.ndarray], rows: np.ndarray) -> Stack:
            context = stack[rows]
            return Stack(
                probs,
                image_ids=context.image_ids,
                classes=context.classes,
                embeddings=context.embeddings,
                imagenet_logits=context.imagenet_logits,
                image_stats=context.image_stats,
            )

        model = PairStacker(random_state=0, n_jobs=options.jobs)
        known = make({name: oof[inside] for name, (oof, _) in made.items()}, inside)
        model.fit(known, labels[inside], groups=groups[inside])
        mean = make({name: new.mean(axis=0) for name, (_, new) in made.items()}, outside)
        n_folds = len(next(iter(made.values()))[1])
        apart = [make({n: new[k] for n, (_, new) in made.items()}, outside) for k in range(n_folds)]
        found = {"mean": model.predict_proba(mean), "each": predict_proba_by_fold(model, apart)}
        images.append(groups[outside])
        for name, proba in found.items():
            scores[name].append(fbeta_per_image(labels[outside], model.decision_.predict(proba)))
            loss = log_loss(labels[outside], proba)
            print(f"fold {outer} {name}: F2 {scores[name][-1].mean():.4f} log loss {loss:.5f}")
    each, mean_scores = (np.concatenate(scores[name]) for name in ("each", "mean"))
    print("each minus mean:", paired_bootstrap(each, mean_scores, np.concatenate(images)))


if __name__ == "__main__":
    main()
