"""Curation from out-of-fold predictions: wrong labels, hard examples, pseudo-labels.

Every function takes probabilities that did not see the image's own labels and returns a
DataFrame, best candidates first; `stacker curate` writes them as the CSVs that
``cnn-extract train`` reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, issparse

from stacker._frame_order import as_pandas, in_one_order
from stacker._inputs import check_beta, check_labels, check_probs, check_same_shape

__all__ = ["hard_examples", "high_loss_images", "label_issues", "pseudo_labels"]

ROWS_AT_ONCE = 2048
# Sure mistakes stay comparable: beyond this every miss would count the same.
FLOOR = 1e-6
SCORES = ("chance", "loss")
CONFIDENCES = ("margin", "fbeta")


def high_loss_images(
    proba: Any,
    Y: Any,
    *,
    share: float = 0.02,
    by: str = "chance",
    noise: float = 0.1,
    image_ids: ArrayLike | None = None,
    classes: ArrayLike | None = None,
) -> pd.DataFrame:
    """Images whose labels look wrong, to be left out of training (docs/recipes.md: A5).

    Parameters
    ----------
    proba : array or CSR of shape (n_images, n_classes)
        Out-of-fold probabilities, as `PairStacker.oof_proba_`. Rows of NaN are left out.
    Y : 0/1 array or sparse matrix of shape (n_images, n_classes)
    share : float, default 0.02
        Share of the images to return.
    by : {"chance", "loss"}
        "loss" is the published filter: the summed log loss of the image. "chance" orders by the
        image's most suspect label (see `label_issues`), which finds wrong labels far better:
        an image with many rare labels has a high loss and nothing wrong with it.
    noise : float, default 0.1
        Share of labels assumed wrong, for "chance"; the order hardly depends on it.
    image_ids : array-like of shape (n_images,), optional
    classes : array-like of shape (n_classes,), optional

    Returns
    -------
    DataFrame
        ``image_id``, ``loss`` (nats), ``chance`` (of the most suspect label), ``class`` and
        ``kind`` ("wrong" or "missing") of that label; the most suspect image first.

    Examples
    --------
    >>> Y = np.array([[1, 0], [0, 1], [1, 0]])
    >>> proba = np.array([[0.9, 0.1], [0.99, 0.01], [0.8, 0.3]])
    >>> high_loss_images(proba, Y, share=0.34)["image_id"].tolist()
    ['1']
    """
    _one_of(by, SCORES, "by")
    rows = _Rows(proba, Y, image_ids, classes)
    loss, chance, worst, given = (
        np.concatenate(part) for part in zip(*rows.worst(noise), strict=True)
    )
    frame = pd.DataFrame(
        {
            "image_id": rows.image_ids,
            "loss": loss,
            "chance": chance,
            "class": rows.classes[worst],
            "kind": np.where(given, "wrong", "missing"),
        }
    )
    return _top(frame, by, share)


def hard_examples(
    proba: Any,
    Y: Any,
    *,
    share: float = 0.05,
    image_ids: ArrayLike | None = None,
) -> pd.DataFrame:
    """Images of the highest loss, to be shown again in each epoch (docs/recipes.md: A6).

    Parameters
    ----------
    proba, Y, image_ids
        As in `high_loss_images`.
    share : float, default 0.05

    Returns
    -------
    DataFrame
        ``image_id`` and ``loss`` (summed log loss in nats), the hardest first.

    Examples
    --------
    >>> hard_examples([[0.9], [0.2]], [[1], [1]], share=0.5)["image_id"].tolist()
    ['1']
    """
    rows = _Rows(proba, Y, image_ids, None)
    losses = [_losses(y, p).sum(axis=1) for y, p in rows.blocks()]
    frame = pd.DataFrame({"image_id": rows.image_ids, "loss": np.concatenate(losses)})
    return _top(frame, "loss", share)


def label_issues(
    proba: Any,
    Y: Any,
    *,
    noise: float = 0.1,
    at_least: float = 0.5,
    image_ids: ArrayLike | None = None,
    classes: ArrayLike | None = None,
) -> pd.DataFrame:
    """Single labels that are probably wrong or missing.

    Parameters
    ----------
    proba, Y, image_ids, classes
        As in `high_loss_images`.
    noise : float in (0, 1), default 0.1
        Share of true labels assumed missing; as many labels of each class are assumed wrong.
    at_least : float, default 0.5
        Least chance to be listed.

    Returns
    -------
    DataFrame
        ``image_id``, ``class``, ``kind`` ("wrong": given, probably not true; "missing"),
        ``proba``, ``chance``; the most suspect first.

    Notes
    -----
    With r = `noise` and wrong labels spread like the class's frequency f, the chance by Bayes is
    (1 - p) r f / ((1 - p) r f + p (1 - r)) for a given label and p r / (p r + (1 - p) (1 - r f))
    for a missing one. The log loss -log p(label) ranks a rare class's true label above a
    frequent class's wrong one; this does not.

    Examples
    --------
    >>> issues = label_issues([[0.99, 0.2], [0.9, 0.1]], [[0, 1], [1, 0]], noise=0.2)
    >>> issues[["image_id", "class", "kind"]].values.tolist()
    [['0', '0', 'missing']]
    """
    rows = _Rows(proba, Y, image_ids, classes)
    parts = []
    for start, chance, y, p in rows.chances(noise):
        i, c = np.nonzero(chance >= at_least)
        parts.append(
            pd.DataFrame(
                {
                    "image_id": rows.image_ids[start + i],
                    "class": rows.classes[c],
                    "kind": np.where(y[i, c], "wrong", "missing"),
                    "proba": p[i, c],
                    "chance": chance[i, c],
                }
            )
        )
    found = pd.concat(parts, ignore_index=True)
    return found.sort_values("chance", ascending=False, kind="stable", ignore_index=True)


def pseudo_labels(
    proba: Any,
    sets: Any,
    *,
    share: float = 0.2,
    by: str = "margin",
    beta: float = 2.0,
    keep_empty: bool = False,
    image_ids: ArrayLike | None = None,
    classes: ArrayLike | None = None,
) -> pd.DataFrame:
    """Label sets of the most confident unlabelled images, to train on (docs/recipes.md: A7).

    Parameters
    ----------
    proba : array or CSR of shape (n_images, n_classes)
        Probabilities of images without labels.
    sets : 0/1 array or CSR of shape (n_images, n_classes)
        Their predicted label sets.
    share : float, default 0.2
        Share of the images to return.
    by : {"margin", "fbeta"}
        "margin" is the published confidence: the mean over classes of abs(p - 0.5). "fbeta" is
        the weight below.
    beta : float, default 2
    keep_empty : bool, default False
        Keep images with an empty label set, too.
    image_ids, classes
        As in `high_loss_images`.

    Returns
    -------
    DataFrame
        ``image_id``, ``labels`` (names joined by spaces), ``weight``, ``confidence``; the most
        confident first. The weight, in [0, 1], is how good the set is expected to be:
        about its expected F-beta, (1 + beta^2) sum of p / (n_predicted + beta^2 E[n_true | c])
        over its classes c; for an empty set the chance that no label is true.

    Examples
    --------
    >>> frame = pseudo_labels([[0.95, 0.02], [0.6, 0.5]], [[1, 0], [1, 1]], share=0.5)
    >>> frame[["image_id", "labels"]].values.tolist()
    [['0', '0']]
    """
    _one_of(by, CONFIDENCES, "by")
    rows = _Rows(proba, sets, image_ids, classes)
    beta2 = check_beta(beta) ** 2
    margin, weight = [], []
    for y, p in rows.blocks():
        margin.append(np.abs(p - 0.5).mean(axis=1))
        weight.append(_expected_quality(y, p, beta2))
    frame = pd.DataFrame(
        {
            "image_id": rows.image_ids,
            "labels": rows.label_texts(),
            "weight": np.concatenate(weight),
            "confidence": np.concatenate(margin if by == "margin" else weight),
        }
    )
    if not keep_empty:
        frame = frame[np.diff(rows.labels.indptr) > 0]
    return _top(frame, "confidence", share, n_images=len(rows.image_ids))


class _Rows:
    """Checked probabilities and labels with names, read block by block; rows of NaN left out."""

    def __init__(
        self, proba: Any, Y: Any, image_ids: ArrayLike | None, classes: ArrayLike | None
    ) -> None:
        frame = as_pandas(proba)
        if isinstance(frame, pd.DataFrame):
            image_ids = frame.index if image_ids is None else image_ids
            classes = frame.columns if classes is None else classes
        proba, Y = in_one_order(frame, Y)
        labels = check_labels(Y)
        self.image_ids = _names(image_ids, labels.shape[0], "image_ids")
        self.classes = _names(classes, labels.shape[1], "classes")
        if not issparse(proba):
            proba = np.asarray(proba)
            known = ~np.isnan(proba).all(axis=1)
            if not known.all() and len(known) == labels.shape[0]:
                proba, labels = proba[known], csr_array(labels[np.flatnonzero(known)])
                self.image_ids = self.image_ids[known]
        self.probs, self.labels = check_probs(proba), labels
        check_same_shape(self.probs, self.labels, ("proba", "Y"))

    def blocks(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
        """Dense labels and probabilities of image ranges."""
        for start in range(0, len(self.image_ids), ROWS_AT_ONCE):
            part = self.probs[start : start + ROWS_AT_ONCE]
            dense = part if isinstance(part, np.ndarray) else part.toarray()
            labels = self.labels[start : start + ROWS_AT_ONCE].toarray() != 0
            yield labels, dense.astype(np.float64)

    def chances(self, noise: float) -> Iterator[tuple[int, NDArray[np.float64], Any, Any]]:
        """Start, chance of every label to be wrong, labels and probabilities of image ranges."""
        if not 0 < noise < 1:
            raise ValueError(f"noise must lie between 0 and 1. Got {noise!r} instead.")
        n_positive = np.asarray(self.labels.sum(axis=0), dtype=np.float64).ravel()
        added = noise * (n_positive + 0.5) / (len(self.image_ids) + 1)
        start = 0
        for y, p in self.blocks():
            p = np.clip(p, FLOOR, 1 - FLOOR)
            wrong, right = (1 - p) * added, p * (1 - noise)
            missing, absent = p * noise, (1 - p) * (1 - added)
            yield start, np.where(y, wrong / (wrong + right), missing / (missing + absent)), y, p
            start += len(y)

    def worst(self, noise: float) -> Iterator[tuple[Any, Any, Any, Any]]:
        """Per image: loss, chance, class and presence of the most suspect label."""
        for _, chance, y, p in self.chances(noise):
            worst = chance.argmax(axis=1)
            at = np.arange(len(worst)), worst
            yield _losses(y, p).sum(axis=1), chance[at], worst, y[at]

    def label_texts(self) -> list[str]:
        """Label names of every image, joined by spaces."""
        names = self.classes[self.labels.indices]
        bounds = self.labels.indptr
        return [" ".join(names[a:b]) for a, b in pairwise(bounds)]


def _losses(labels: NDArray[np.bool_], probs: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(probs, FLOOR, 1 - FLOOR)
    losses: NDArray[np.float64] = -np.log(np.where(labels, p, 1 - p))
    return losses


def _expected_quality(
    sets: NDArray[np.bool_], probs: NDArray[np.float64], beta2: float
) -> NDArray[np.float64]:
    """About the expected F-beta; for an empty set the chance that no label is true."""
    # A predicted class that is true counts itself among the true labels: 1, not p.
    below = sets.sum(axis=1)[:, None] + beta2 * (1 + probs.sum(axis=1)[:, None] - probs)
    ratio = (1 + beta2) * (sets * probs / below).sum(axis=1)
    none = np.exp(np.log1p(-np.minimum(probs, 1 - FLOOR)).sum(axis=1))
    quality: NDArray[np.float64] = np.where(sets.any(axis=1), ratio, none)
    return quality


def _top(frame: pd.DataFrame, by: str, share: float, n_images: int | None = None) -> pd.DataFrame:
    """Rows with the highest values, as many as `share` of the images, at least one."""
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1]. Got {share!r} instead.")
    n = max(1, round(share * (len(frame) if n_images is None else n_images)))
    return frame.sort_values(by, ascending=False, kind="stable", ignore_index=True).head(n)


def _names(names: ArrayLike | None, n: int, what: str) -> NDArray[np.str_]:
    values = np.arange(n).astype(str) if names is None else np.asarray(names, dtype=str)
    if values.shape != (n,):
        raise ValueError(f"{what} must have shape ({n},). Got {values.shape} instead.")
    return values


def _one_of(value: str, known: Sequence[str], name: str) -> None:
    if value not in known:
        raise ValueError(f"{name} must be of {list(known)}. Got {value!r} instead.")
