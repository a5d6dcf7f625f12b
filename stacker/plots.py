"""Pictures of a decision: its threshold curve, its promise against its result, its label counts."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from stacker._inputs import check_labels, check_scored
from stacker.calibration import reliability_curve
from stacker.fbeta import expected_fbeta_sets, fbeta_per_image

__all__ = [
    "plot_expected_and_achieved",
    "plot_label_counts",
    "plot_reliability",
    "plot_threshold_curve",
]


def plot_threshold_curve(
    proba: ArrayLike,
    Y: ArrayLike,
    threshold: float,
    *,
    beta: float = 2.0,
    empty_score: float = 1.0,
    ax: Any = None,
) -> Any:
    """Mean F-beta over images against one threshold, with the chosen one and its 95% interval.

    Parameters
    ----------
    proba, Y : array-like or sparse matrix of shape (n_images, n_classes)
        Probabilities and true labels.
    threshold : float
        The chosen threshold.
    beta, empty_score : float
        The metric.
    ax : matplotlib Axes or None
        Where to draw; a new figure when None.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> from stacker.plots import plot_threshold_curve
    >>> ax = plot_threshold_curve([[0.9, 0.2], [0.4, 0.6]], [[1, 0], [0, 1]], 0.5)
    >>> ax.get_xlabel()
    'threshold'
    """
    probs, labels = _checked(proba, Y)
    grid = np.unique(np.concatenate([np.geomspace(0.005, 0.95, 60), [threshold]]))
    scores = [_image_scores(probs, labels, cut, beta, empty_score) for cut in grid]
    mean = np.array([score.mean() for score in scores])
    chosen = scores[int(np.searchsorted(grid, threshold))]
    half = 1.96 * chosen.std() / np.sqrt(len(chosen))
    ax = _axes(ax)
    ax.plot(grid, mean)
    ax.errorbar([threshold], [chosen.mean()], yerr=[half], fmt="o", capsize=4)
    ax.set(xscale="log", xlabel="threshold", ylabel=f"F{beta:g}, mean over images")
    return ax


def plot_expected_and_achieved(
    proba: ArrayLike,
    Y: ArrayLike,
    *,
    beta: float = 2.0,
    empty_score: float = 1.0,
    n_bins: int = 12,
    ax: Any = None,
) -> Any:
    """Achieved F-beta of the exact sets against what they promise; calibrated ones on the line.

    Parameters
    ----------
    proba, Y : array-like or sparse matrix of shape (n_images, n_classes)
        Probabilities and true labels.
    beta, empty_score : float
        The metric.
    n_bins : int
        Number of groups of images, of like size by expected F-beta.
    ax : matplotlib Axes or None
        Where to draw; a new figure when None.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> from stacker.plots import plot_expected_and_achieved
    >>> ax = plot_expected_and_achieved([[0.9, 0.2], [0.4, 0.6]], [[1, 0], [0, 1]])
    >>> ax.get_xlabel()
    'expected F2'
    """
    probs, labels = _checked(proba, Y)
    sets, promised = expected_fbeta_sets(probs, beta, empty_score, return_scores=True)
    achieved = fbeta_per_image(labels, sets, beta, empty_score)
    parts = np.array_split(np.argsort(promised, kind="stable"), min(n_bins, len(promised)))
    x, y = (np.array([v[part].mean() for part in parts]) for v in (promised, achieved))
    half = [1.96 * achieved[part].std() / np.sqrt(len(part)) for part in parts]
    ax = _axes(ax)
    ax.axline((0, 0), slope=1, color="0.7", zorder=0)
    ax.errorbar(x, y, yerr=half, fmt="o", capsize=3)
    ax.set(xlabel=f"expected F{beta:g}", ylabel=f"achieved F{beta:g}", xlim=(0, 1), ylim=(0, 1))
    return ax


def plot_label_counts(Y: ArrayLike, Y_pred: ArrayLike, *, ax: Any = None) -> Any:
    """Share of images by number of labels, true and predicted.

    Parameters
    ----------
    Y, Y_pred : 0/1 array-like or sparse matrix of shape (n_images, n_classes)
        True and predicted labels.
    ax : matplotlib Axes or None
        Where to draw; a new figure when None.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> from stacker.plots import plot_label_counts
    >>> ax = plot_label_counts([[1, 0], [1, 1]], [[1, 0], [0, 1]])
    >>> ax.get_xlabel()
    'labels of an image'
    """
    counts = [np.diff(check_labels(m, name=n).indptr) for m, n in ((Y, "Y"), (Y_pred, "Y_pred"))]
    edges = np.arange(max(int(c.max(initial=0)) for c in counts) + 2) - 0.5
    ax = _axes(ax)
    for count, label in zip(counts, ("true", "predicted"), strict=True):
        share = np.histogram(count, edges)[0] / max(len(count), 1)
        ax.stairs(share, edges, label=label, fill=label == "true", alpha=0.6)
    ax.set(xlabel="labels of an image", ylabel="share of images")
    ax.legend()
    return ax


def plot_reliability(proba: ArrayLike, Y: ArrayLike, *, n_bins: int = 15, ax: Any = None) -> Any:
    """Reliability diagram on logarithmic axes, since most probabilities are tiny.

    Parameters
    ----------
    proba, Y : array-like or sparse matrix of shape (n_images, n_classes)
        Probabilities and true labels.
    n_bins : int
        As in `stacker.calibration.reliability_curve`.
    ax : matplotlib Axes or None
        Where to draw; a new figure when None.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> from stacker.plots import plot_reliability
    >>> ax = plot_reliability([[0.9, 0.2], [0.4, 0.6]], [[1, 0], [0, 1]], n_bins=2)
    >>> ax.get_ylabel()
    'share true'
    """
    curve = reliability_curve(proba, Y, n_bins)
    ax = _axes(ax)
    ax.axline((1e-3, 1e-3), (1, 1), color="0.7", zorder=0)
    half = 1.96 * curve["standard_error"]
    ax.errorbar(curve["mean_proba"], curve["rate"], yerr=half, fmt="o-", capsize=3)
    ax.set(xscale="log", yscale="log", xlabel="mean probability", ylabel="share true")
    return ax


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(4, 3), layout="constrained").subplots()


def _checked(proba: ArrayLike, Y: ArrayLike) -> tuple[Any, sp.csr_array]:
    labels, probs = check_scored(Y, proba)
    return probs, labels


def _image_scores(
    probs: Any, labels: sp.csr_array, cut: float, beta: float, empty_score: float
) -> NDArray[np.float64]:
    return fbeta_per_image(labels, (probs >= cut).astype(np.int8), beta, empty_score)
