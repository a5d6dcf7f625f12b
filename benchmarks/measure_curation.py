"""How well flipped labels are found on openclipart: the figures of docs/curate.md.

    python benchmarks/measure_curation.py openclipart_oof.npz [--heads] [--stack]

A tenth of the labels moves to another class, drawn by frequency. The out-of-fold predictions of
the file come from heads that saw the true labels; with --heads logistic heads are trained anew on
the wrong ones, as they would be in practice. --stack lets PairStacker speak instead of the blend.
"""

import argparse

import numpy as np
from cleanlab.multilabel_classification import get_label_quality_scores
from nested_openclipart import read
from scipy.sparse import csr_array
from sklearn.metrics import average_precision_score

from features import Stack
from features.numeric import sigmoid
from stacker import PairStacker
from stacker.blend import LogisticBlend, cross_fit
from stacker.curate import high_loss_images, label_issues


def flip_labels(Y: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Move `share` of the labels to other classes."""
    image, cls = np.nonzero(Y)
    picked = rng.random(len(image)) < share
    noisy = Y.copy()
    noisy[image[picked], cls[picked]] = 0
    noisy[image[picked], rng.choice(Y.shape[1], picked.sum(), p=Y.sum(0) / Y.sum())] = 1
    return noisy


def train_heads(embedding: np.ndarray, Y: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Out-of-fold logistic regression on 256 principal axes, by Adam."""
    centred = embedding.astype(np.float32) - embedding.astype(np.float32).mean(axis=0)
    axes = np.linalg.svd(centred[:3000], full_matrices=False)[2][:256]
    scores = centred @ axes.T
    scores /= np.sqrt(scores.std(axis=0))
    X = np.c_[scores / scores.std(), np.ones(len(scores), np.float32)].astype(np.float32)
    out = np.zeros(Y.shape, np.float32)
    for k in np.unique(fold):
        train = fold != k
        out[~train] = sigmoid(X[~train] @ adam(X[train], Y[train].astype(np.float32)))
    return out


def adam(X: np.ndarray, Y: np.ndarray, steps: int = 150, penalty: float = 1e-3) -> np.ndarray:
    W = np.zeros((X.shape[1], Y.shape[1]), np.float32)
    W[-1] = np.log((Y.mean(0) + 1e-3) / (1 - Y.mean(0)))
    first, second = np.zeros_like(W), np.zeros_like(W)
    for t in range(1, steps + 1):
        slope = X.T @ (sigmoid(X @ W) - Y) / len(X)
        slope[:-1] += penalty * W[:-1]
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        W -= 0.05 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.99**t)) + 1e-8)
    return W


def report(name: str, proba: np.ndarray, noisy: np.ndarray, wrong: np.ndarray) -> None:
    truth = wrong.any(axis=1)
    frame = high_loss_images(proba, noisy, share=1.0).set_index("image_id")
    frame = frame.loc[np.arange(len(noisy)).astype(str)]
    lists = [np.flatnonzero(row).tolist() for row in noisy]
    images = {
        "chance": frame["chance"],
        "loss": frame["loss"],
        "cleanlab": -get_label_quality_scores(lists, proba.astype(float)),
        "cleanlab, weighted entropy": -get_label_quality_scores(
            lists, proba.astype(float), method="confidence_weighted_entropy"
        ),
    }
    print(name, f"{truth.mean():.3f} of the images, {wrong.mean():.5f} of the rows are wrong")
    for method, value in images.items():
        print(f"  images by {method}: {average_precision_score(truth, value):.4f}")
    issues = label_issues(proba, noisy, at_least=0.0)
    chance = np.zeros(noisy.size)
    chance[issues["image_id"].astype(int) * noisy.shape[1] + issues["class"].astype(int)] = issues[
        "chance"
    ]
    p = np.clip(proba.astype(float), 1e-6, 1 - 1e-6)
    loss = -np.log(np.where(noisy, p, 1 - p)).ravel()
    for method, value in {"chance": chance, "loss (self-confidence)": loss}.items():
        print(f"  rows by {method}: {average_precision_score(wrong.ravel(), value):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--heads", action="store_true")
    parser.add_argument("--stack", action="store_true")
    options = parser.parse_args()
    stack, labels, fold, groups = read(options.path)
    Y = labels.toarray()
    noisy = flip_labels(Y, 0.1, np.random.default_rng(0))
    if options.heads:
        probs = {n: train_heads(e, noisy, fold) for n, e in stack.embeddings.items()}
        stack = Stack(
            probs,
            image_ids=stack.image_ids,
            classes=stack.classes,
            embeddings=stack.embeddings,
            imagenet_logits=stack.imagenet_logits,
            image_stats=stack.image_stats,
        )
    proba = cross_fit(LogisticBlend(), stack, csr_array(noisy), fold)
    report("per-class logistic blend:", proba, noisy, noisy != Y)
    if options.stack:
        model = PairStacker(random_state=0).fit(stack, csr_array(noisy), groups=groups)
        report("pair stack:", model.oof_proba_, noisy, noisy != Y)


if __name__ == "__main__":
    main()
