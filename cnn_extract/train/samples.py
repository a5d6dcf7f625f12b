"""What a network is trained on: images, their labels and weights, and which an epoch shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

if TYPE_CHECKING:
    from cnn_extract.train.recipe import SamplingRecipe

__all__ = ["Samples", "draw_epoch", "draw_weights", "hardest", "split_steps"]


@dataclass(frozen=True)
class Samples:
    """Images to learn from.

    Parameters
    ----------
    rows : int array of shape (n_samples,)
        Positions among the images.
    labels : CSR of shape (n_samples, n_classes)
        0 and 1.
    weights : float32 array of shape (n_samples,)
        Of each image in the loss; 1 for a labelled image, less for a pseudo-label (A7).
    listed_hard : bool array of shape (n_samples,)
        Images that every epoch shows once more, from ``--hard`` (A6).
    teacher : array or CSR of shape (n_samples, n_classes), optional
        A teacher's probabilities (A27).

    Examples
    --------
    >>> labels = sparse.csr_array(np.array([[1, 0], [1, 1]], dtype=np.int8))
    >>> samples = Samples(np.arange(2), labels, np.ones(2, np.float32), np.zeros(2, bool))
    >>> samples.counts.tolist(), len(samples.take(np.array([1])))
    ([2, 1], 1)
    """

    rows: NDArray[np.intp]
    labels: sparse.csr_array
    weights: NDArray[np.float32]
    listed_hard: NDArray[np.bool_]
    teacher: Any = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: NDArray[Any]) -> Self:
        """Return only these samples: positions or a mask."""
        index = np.flatnonzero(which) if which.dtype == bool else which
        teacher = None if self.teacher is None else self.teacher[index]
        return replace(
            self,
            rows=self.rows[index],
            labels=self.labels[index],
            weights=self.weights[index],
            listed_hard=self.listed_hard[index],
            teacher=teacher,
        )

    def columns(self, index: NDArray[np.intp]) -> Self:
        """Return the samples with only these classes."""
        teacher = None if self.teacher is None else self.teacher[:, index]
        return replace(self, labels=sparse.csr_array(self.labels[:, index]), teacher=teacher)

    def targets(self, positions: NDArray[np.intp], teacher_weight: float) -> NDArray[np.float32]:
        """Targets of some samples, dense: max(y, teacher_weight * teacher) (A27)."""
        dense = self.labels[positions].toarray().astype(np.float32)
        if not teacher_weight or self.teacher is None:
            return dense
        taught = self.teacher[positions]
        taught = taught.toarray() if sparse.issparse(taught) else np.asarray(taught)
        return np.maximum(dense, np.float32(teacher_weight) * taught.astype(np.float32))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Images with each class, shape (n_classes,)."""
        return np.asarray(self.labels.sum(axis=0)).ravel().astype(np.int64)


def draw_weights(labels: sparse.csr_array) -> NDArray[np.float64]:
    """Chance of each image in a draw by logarithmic class weights, summing to 1 (A4).

    A class of n images has weight 1 + log(largest n / n), an image the mean of its classes'
    weights; an image without labels that of the commonest class.

    Parameters
    ----------
    labels : CSR of shape (n_images, n_classes)

    Examples
    --------
    >>> draw_weights(sparse.csr_array(np.array([[1, 0], [1, 0], [1, 0], [0, 1]]))).round(2).tolist()
    [0.2, 0.2, 0.2, 0.41]
    """
    counts = np.asarray(labels.sum(axis=0)).ravel()
    per_class = 1 + np.log(max(1, counts.max(initial=1)) / np.maximum(counts, 1))
    n_labels = np.asarray(labels.sum(axis=1)).ravel()
    weights = np.where(n_labels > 0, (labels @ per_class) / np.maximum(n_labels, 1), 1.0)
    return np.asarray(weights / weights.sum())


def hardest(losses: NDArray[np.floating], share: float) -> NDArray[np.intp]:
    """Positions of the `share` of images with the highest losses, hardest first (A6).

    Images that have no loss yet (NaN) are never among them.

    Examples
    --------
    >>> hardest(np.array([0.1, 3.0, 2.0, np.nan]), 0.5).tolist()
    [1, 2]
    """
    known = np.flatnonzero(~np.isnan(losses))
    n_hard = min(round(share * len(losses)), len(known))
    return known[np.argsort(-losses[known], kind="stable")[:n_hard]]


def draw_epoch(
    samples: Samples,
    recipe: SamplingRecipe,
    rng: np.random.Generator,
    losses: NDArray[np.floating] | None = None,
) -> NDArray[np.intp]:
    """Positions that an epoch shows, in order.

    Parameters
    ----------
    samples : Samples
    recipe : SamplingRecipe
    rng : Generator
    losses : float array of shape (n_samples,), optional
        Of the epoch before, to replay the hardest.

    Examples
    --------
    >>> from cnn_extract.train.recipe import SamplingRecipe
    >>> labels = sparse.csr_array(np.ones((3, 1), np.int8))
    >>> listed_hard = np.array([False, False, True])
    >>> samples = Samples(np.arange(3), labels, np.ones(3, np.float32), listed_hard)
    >>> sorted(draw_epoch(samples, SamplingRecipe(), np.random.default_rng(0)).tolist())
    [0, 1, 2, 2]
    """
    if recipe.draw == "log-class":
        drawn = rng.choice(len(samples), len(samples), p=draw_weights(samples.labels))
    else:
        drawn = np.arange(len(samples))
    again = [np.flatnonzero(samples.listed_hard)]
    if recipe.hard_share and losses is not None:
        again.append(hardest(losses, recipe.hard_share))
    return rng.permutation(np.concatenate([drawn, *again]))


def split_steps(order: NDArray[np.intp], effective: int) -> Sequence[NDArray[np.intp]]:
    """Divide an epoch into steps of the optimiser; the last may be smaller (A3).

    Examples
    --------
    >>> [step.tolist() for step in split_steps(np.arange(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    return [order[k : k + effective] for k in range(0, len(order), effective)]
