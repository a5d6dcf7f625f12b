"""Synthetic stacks with the shape of real competitions, made range by range.

Images have 12 hidden traits; a class's log-odds are linear in them, embeddings a bent projection
of them. So co-occurrence, neighbours and centroids find structure, as on real data.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numba import njit, prange
from scipy.sparse import csr_array, vstack

from features.numeric import sigmoid
from features.schema import Stack

IMET_CLASSES = {"culture": 398, "tag": 705}
LABELS_PER_IMAGE = 3.17
STEP = 4096
N_TRAITS = 12  # the intrinsic dimension that openclipart's embeddings have


@dataclass(frozen=True)
class Problem:
    """A stack, its labels as CSR, and a fold of every image."""

    stack: Stack
    labels: csr_array
    fold: np.ndarray


def imet(n_images: int, n_models: int = 10) -> Problem:
    """Make iMet's shape: 398 + 705 classes, float16 predictions, one embedding, ImageNet logits.

    The first images of a larger set are those of a smaller one.
    """
    classes = [f"{g}::{i}" for g, size in IMET_CLASSES.items() for i in range(size)]
    n_classes = len(classes)
    traits, level = np.random.default_rng(0), _levels(IMET_CLASSES, LABELS_PER_IMAGE)
    direction = traits.standard_normal((N_TRAITS, n_classes), dtype=np.float32) / 2.5
    bend = traits.standard_normal((N_TRAITS, 1280 + 1000), dtype=np.float32) / 4
    pool = traits.standard_normal(2**23, dtype=np.float32) * np.float32(0.7)
    probs = [np.empty((n_images, n_classes), np.float16) for _ in range(n_models)]
    vectors = np.empty((n_images, 1280 + 1000), np.float16)
    labels = []
    for start in range(0, n_images, STEP):
        stop = min(start + STEP, n_images)
        rng = np.random.default_rng([1, start])
        hidden = rng.standard_normal((STEP, N_TRAITS), dtype=np.float32)
        odds = hidden @ direction + level
        true = rng.random(odds.shape, dtype=np.float32) < sigmoid(odds)
        vectors[start:stop] = _vectors(hidden @ bend, rng)[: stop - start]
        labels.append(csr_array(true[: stop - start].astype(np.int8)))
        seen = odds + 3 * true - 0.5 + _noise(rng, odds.shape)
        given = np.empty_like(seen)
        for values in probs:
            _predict(seen, pool, rng.integers(len(pool)), given)
            values[start:stop] = given[: stop - start]
    stack = Stack(
        {f"model{m}": values for m, values in enumerate(probs)},
        classes=classes,
        embeddings={"model0": vectors[:, :1280]},
        imagenet_logits={"model0": vectors[:, 1280:]},
        image_stats=_statistics(n_images),
    )
    return Problem(stack, csr_array(vstack(labels)), np.arange(n_images) % 5)


def wide(n_images: int, n_classes: int, top: int = 200, n_models: int = 3) -> Problem:
    """Make tens of thousands of classes of which every model keeps the `top` best of an image."""
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, n_classes + 1) ** 0.8
    cumulated = np.cumsum(popularity / popularity.sum())
    theme = rng.integers(0, 500, n_images)
    order = np.argsort(rng.random((500, n_classes), dtype=np.float32), axis=1).astype(np.int32)
    # Half of the drawn classes come from the image's theme: its own order of popularity.
    draws = np.searchsorted(cumulated, rng.random((n_images, 2 * top), dtype=np.float32))
    draws[:, ::2] = order[theme[:, None], np.minimum(draws[:, ::2], n_classes - 1)]
    draws = np.minimum(draws, n_classes - 1).astype(np.int32)
    models = {}
    for m in range(n_models):
        picked = draws[:, m * 50 : m * 50 + top]
        values = rng.random(picked.shape, dtype=np.float32) ** 12 * 0.9 + 1e-4
        models[f"model{m}"] = _topk(picked, values, n_classes)
    labels = _topk(draws[:, [100, 101, 103]], np.ones((n_images, 3), np.float32), n_classes)
    labels.data[:] = 1
    stack = Stack(
        models,
        classes=[f"species{c}" for c in range(n_classes)],
        class_group=np.repeat("species", n_classes),
        class_parent=np.array([-1] * 300 + [c % 300 for c in range(n_classes - 300)]),
    )
    return Problem(stack, labels.astype(np.int8), np.arange(n_images) % 5)


def embeddings(n_images: int, n_features: int = 1280) -> np.ndarray:
    """Make float16 embeddings (n_images, n_features) of 12 hidden traits, bent, with noise."""
    bend = np.random.default_rng(0).standard_normal((N_TRAITS, n_features), dtype=np.float32) / 4
    out = np.empty((n_images, n_features), np.float16)
    for start in range(0, n_images, STEP):
        rng = np.random.default_rng([2, start])
        hidden = rng.standard_normal((STEP, N_TRAITS), dtype=np.float32)
        out[start : start + STEP] = _vectors(hidden @ bend, rng)[: n_images - start]
    return out


def _levels(groups: dict[str, int], labels_per_image: float) -> np.ndarray:
    """Log-odds of each class: a long tail in each group, about `labels_per_image` in all."""
    tails = np.concatenate([1 / np.arange(1, size + 1) ** 1.1 for size in groups.values()])
    share = np.clip(tails / tails.sum() * labels_per_image, 0, 0.5)
    # The traits' spread of 1.41 raises the mean of rare classes about exp(1.41**2 / 2)-fold.
    return (np.log(share / (1 - share)) - 0.9).astype(np.float32)


def _vectors(projected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.maximum(projected, 0) + 0.2 * _noise(rng, projected.shape)


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


@njit(parallel=True)
def _predict(seen, pool, offset, out):
    """Fill a model's probabilities: what all models see, and noise of its own."""
    n_classes = seen.shape[1]
    for image in prange(len(out)):
        for c in range(n_classes):
            noise = pool[(offset + image * n_classes + c) % len(pool)]
            out[image, c] = np.float32(1) / (np.float32(1) + np.exp(-seen[image, c] - noise))


def _statistics(n_images: int) -> pd.DataFrame:
    values = np.random.default_rng(3).random((n_images, 19), dtype=np.float32)
    return pd.DataFrame(values, columns=[f"stat{i}" for i in range(19)])


def _topk(classes: np.ndarray, values: np.ndarray, n_classes: int) -> csr_array:
    """CSR of some (image, class) pairs; of a class drawn twice the sum, below 1."""
    image = np.repeat(np.arange(len(classes)), classes.shape[1])
    found = csr_array((values.ravel(), (image, classes.ravel())), (len(classes), n_classes))
    found.sum_duplicates()
    np.minimum(found.data, 0.99, out=found.data)
    return found
