"""F-beta for label sets: the metric, and the sets that maximise its expectation.

For one unit (an image for ``average="samples"``, a class for ``"macro"``, everything for
``"micro"``) with ``tp`` true positives, ``n_true`` true and ``n_pred`` predicted labels::

    F_beta = (1 + beta^2) tp / (beta^2 n_true + n_pred)        0 / 0 counts as empty_score
"""

from typing import Any, Literal, overload

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from stacker._fbeta_kernels import best_sets
from stacker._frame_order import in_one_order
from stacker._hits import (
    Counts,
    count_by_class,
    count_by_image,
    score_images,
    total_over_images,
)
from stacker._inputs import (
    Matrix,
    as_rows,
    check_beta,
    check_empty_score,
    check_labels,
    check_probs,
    check_same_shape,
)

__all__ = ["expected_fbeta_sets", "fbeta_per_image", "fbeta_score", "joint_fbeta_sets"]

AVERAGES = ("samples", "macro", "micro")


def fbeta_score(
    Y: ArrayLike,
    Y_pred: ArrayLike,
    beta: float = 2.0,
    average: str = "samples",
    empty_score: float = 1.0,
) -> float:
    """F-beta of predicted label sets, dense or sparse.

    Equals ``sklearn.metrics.fbeta_score(Y, Y_pred, beta=beta, average=average,
    zero_division=empty_score)``, many times faster on sparse input.

    Parameters
    ----------
    Y, Y_pred : 0/1 array-like or sparse matrix of shape (n_images, n_classes)
        True and predicted labels.
    beta : float
        Weight of recall against precision, above 0; 2 counts a missed label about four times a
        wrong one.
    average : {"samples", "macro", "micro"}
        Mean over images, mean over classes, or one ratio over all pairs.
    empty_score : float in [0, 1] or NaN
        Score of an image (``"samples"``), class (``"macro"``) or matrix (``"micro"``) with no true
        and no predicted label; NaN leaves it out of the mean.

    Returns
    -------
    float
        In [0, 1]; NaN only when `empty_score` is NaN and nothing is left to average.

    Raises
    ------
    ValueError
        For values other than 0 and 1, shapes that differ, no images, or an unknown `average`.

    Examples
    --------
    >>> from stacker import fbeta_score
    >>> round(fbeta_score([[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]), 4)
    0.6944
    """
    beta = check_target(beta, average)
    empty = check_empty_score(empty_score, allow_nan=True)
    truth, pred = _check_pair(Y, Y_pred)
    if truth.shape[0] == 0:
        raise ValueError("fbeta_score needs at least one image. Got a matrix with 0 rows.")
    if average == "macro":
        scores = count_by_class(truth, pred).fbeta(beta=beta, empty_score=empty)
        scores = scores[~np.isnan(scores)]
        return float(scores.mean()) if len(scores) else float("nan")
    total = total_over_images(truth, pred, beta, empty)
    if average == "samples":
        return total.score / total.n_scored if total.n_scored else float("nan")
    below = beta**2 * total.n_true + total.n_pred
    return (1 + beta**2) * total.tp / below if below else empty


def fbeta_per_image(
    Y: ArrayLike, Y_pred: ArrayLike, beta: float = 2.0, empty_score: float = 1.0
) -> NDArray[np.float64]:
    """F-beta of each image's label set; their mean is ``fbeta_score(average="samples")``.

    Parameters
    ----------
    Y, Y_pred : 0/1 array-like or sparse matrix of shape (n_images, n_classes)
        True and predicted labels.
    beta : float
        Weight of recall against precision, above 0.
    empty_score : float in [0, 1] or NaN
        Score of an image with no true and no predicted label.

    Returns
    -------
    float64 array of shape (n_images,)
        Scores in [0, 1].

    Examples
    --------
    >>> from stacker.fbeta import fbeta_per_image
    >>> fbeta_per_image([[1, 0], [0, 0]], [[1, 0], [0, 0]]).tolist()
    [1.0, 1.0]
    """
    beta, empty = check_beta(beta), check_empty_score(empty_score, allow_nan=True)
    return score_images(*_check_pair(Y, Y_pred), beta, empty)


@overload
def expected_fbeta_sets(
    proba: ArrayLike,
    beta: float = ...,
    empty_score: float = ...,
    max_labels: int | None = ...,
    *,
    return_scores: Literal[False] = ...,
) -> NDArray[np.int8] | sp.csr_array: ...


@overload
def expected_fbeta_sets(
    proba: ArrayLike,
    beta: float = ...,
    empty_score: float = ...,
    max_labels: int | None = ...,
    *,
    return_scores: Literal[True],
) -> tuple[NDArray[np.int8] | sp.csr_array, NDArray[np.float64]]: ...


def expected_fbeta_sets(
    proba: ArrayLike,
    beta: float = 2.0,
    empty_score: float = 1.0,
    max_labels: int | None = None,
    *,
    return_scores: bool = False,
) -> NDArray[np.int8] | sp.csr_array | tuple[NDArray[np.int8] | sp.csr_array, NDArray[np.float64]]:
    """Find the label set with the highest expected F-beta for each image, exactly.

    Labels are taken as independent given the image, with the probabilities given; these must be
    calibrated for the answer to mean anything (see `stacker.calibration`).

    Parameters
    ----------
    proba : array-like or sparse matrix of shape (n_images, n_classes)
        Probabilities in [0, 1]; what a sparse matrix does not store is 0.
    beta : float
        Any real number above 0.
    empty_score : float in [0, 1]
        Score of predicting nothing where nothing is true.
    max_labels : int or None
        Largest set allowed.
    return_scores : bool
        Return the expected F-beta of each set too.

    Returns
    -------
    sets : int8 array of shape (n_images, n_classes), or csr_array for sparse input
        0/1 label sets. On ties the smaller set wins.
    scores : float64 array of shape (n_images,)
        Only with ``return_scores=True``.

    Raises
    ------
    ValueError
        For values outside [0, 1], NaN, or a parameter out of range.

    Notes
    -----
    With independent labels the best set of size k is the k most probable classes, and the number
    of true labels S is Poisson-binomial. For each k the distribution of the other labels is S with
    label k divided out, so E[F] of all sizes costs O((C + K) S) for C candidates, K sizes and S
    counts. The search stops at a size after which no set can win: E[F(k)] is at most
    (1 + beta^2) m / (beta^2 m + k) with m the expected count. Classes below the candidates enter
    the count exactly, through power sums. Sources: Lewis (1995); Chai (2005); Ye, Chai, Lee, Chieu
    (2012), "Optimizing F-measures: a tale of two approaches"; Dembczynski et al. (2011).

    Examples
    --------
    >>> from stacker import expected_fbeta_sets
    >>> expected_fbeta_sets([[0.9, 0.4, 0.1], [0.0, 0.0, 0.01]]).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    beta, empty = check_beta(beta), check_empty_score(empty_score)
    probs = check_probs(proba, dtype=None)
    cap = probs.shape[1] if max_labels is None else check_max_labels(max_labels)
    chosen, scores = best_sets(as_rows(probs), beta, empty, max_labels=cap)
    sets = as_sets(chosen, probs)
    return (sets, scores) if return_scores else sets


def joint_fbeta_sets(
    joint: ArrayLike,
    empty_proba: ArrayLike,
    beta: float = 2.0,
    empty_score: float = 1.0,
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Find the sets of highest expected F-beta under any joint distribution of the labels.

    Parameters
    ----------
    joint : array-like of shape (n_images, n_classes, n_counts)
        ``joint[i, c, s - 1]`` is the probability that image i has class c and s labels in all.
    empty_proba : array-like of shape (n_images,)
        Probability that an image has no label.
    beta, empty_score : float
        As in `expected_fbeta_sets`.

    Returns
    -------
    sets : int8 array of shape (n_images, n_classes)
        0/1 label sets.
    scores : float64 array of shape (n_images,)
        Their expected F-beta.

    Raises
    ------
    ValueError
        For shapes that do not fit, or probabilities below 0 or above 1.

    Notes
    -----
    The general F-maximiser of Dembczynski, Waegeman, Cheng and Huellermeier (2011): a label in a
    set of size k contributes sum_s P(c, s) (1 + beta^2) / (beta^2 s + k), so the best set of each
    size is its k largest contributions. Cost O(C^2 S) an image. No label is taken as independent.

    Examples
    --------
    Two labels that always come together, or none:

    >>> import numpy as np
    >>> from stacker.fbeta import joint_fbeta_sets
    >>> joint = np.array([[[0.0, 0.4], [0.0, 0.4]]])
    >>> sets, scores = joint_fbeta_sets(joint, [0.6], empty_score=0.0)
    >>> sets.tolist(), scores.round(6).tolist()
    ([[1, 1]], [0.4])
    """
    beta, empty = check_beta(beta), check_empty_score(empty_score)
    chance, none = np.asarray(joint, np.float64), np.asarray(empty_proba, np.float64)
    if chance.ndim != 3 or none.shape != chance.shape[:1]:
        raise ValueError(
            "joint must have shape (n_images, n_classes, n_counts) and empty_proba (n_images,), "
            f"however: joint.shape={chance.shape}, empty_proba.shape={none.shape}."
        )
    for name, values in (("joint", chance), ("empty_proba", none)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} must lie in [0, 1]. Got NaN or a value outside.")
    return _joint_sets(chance, none, beta * beta, empty)


def _joint_sets(
    chance: NDArray[np.float64], none: NDArray[np.float64], beta2: float, empty: float
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    n_images, n_classes, n_counts = chance.shape
    counts = np.arange(1, n_counts + 1)
    best, sets = empty * none, np.zeros((n_images, n_classes), np.int8)
    for k in range(1, n_classes + 1):
        gain = (1 + beta2) * (chance @ (1.0 / (beta2 * counts + k)))
        top = np.argsort(-gain, axis=1, kind="stable")[:, :k]
        value = np.take_along_axis(gain, top, axis=1).sum(axis=1)
        better = value > best
        best = np.where(better, value, best)
        chosen = np.zeros_like(sets)
        np.put_along_axis(chosen, top, 1, axis=1)
        sets[better] = chosen[better]
    return sets, best


def check_target(beta: float, average: str) -> float:
    """Return beta, a real number above 0; the average must be a known one, too."""
    if average not in AVERAGES:
        raise ValueError(f"The 'average' parameter must be one of {AVERAGES}. Got {average!r}.")
    return check_beta(beta)


def check_max_labels(max_labels: int) -> int:
    """Return a whole number of labels, at least 0."""
    if int(max_labels) != max_labels or max_labels < 0:
        raise ValueError(f"The 'max_labels' parameter must be an int >= 0. Got {max_labels!r}.")
    return int(max_labels)


def as_sets(chosen: NDArray[np.int8], like: Matrix) -> NDArray[np.int8] | sp.csr_array:
    """Label sets from a 0/1 mark per entry of `like`: dense as it is dense, else CSR."""
    if not sp.issparse(like):
        return chosen.reshape(like.shape)
    sets = sp.csr_array((chosen, like.indices, like.indptr), shape=like.shape, copy=True)
    sets.eliminate_zeros()
    return sets


def _check_pair(Y: ArrayLike, Y_pred: ArrayLike) -> tuple[sp.csr_array, sp.csr_array]:
    names = ("Y", "Y_pred")
    truth, pred = (
        part if _is_plain(part) else check_labels(part, name=name)
        for part, name in zip(in_one_order(Y, Y_pred, names=names), names, strict=True)
    )
    check_same_shape(truth, pred, names)
    return truth, pred


def _is_plain(labels: Any) -> bool:
    """Whether labels are canonical CSR of ones already: the usual case, which needs no copy."""
    return (
        sp.issparse(labels)
        and labels.format == "csr"
        and labels.ndim == 2
        and bool(labels.data.min(initial=1) == 1)
        and bool(labels.data.max(initial=1) == 1)
        and bool(labels.has_canonical_format)
    )


def unit_counts(truth: sp.csr_array, pred: sp.csr_array, average: str) -> Counts:
    """Count the labels of each unit of the average."""
    if average == "macro":
        return count_by_class(truth, pred)
    counts = count_by_image(truth, pred)
    if average == "samples":
        return counts
    return Counts(*(part.sum(keepdims=True) for part in counts))
