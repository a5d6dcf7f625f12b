"""`FBetaDecision`: from class probabilities to label sets that score a high F-beta."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from stacker._inputs import (
    Matrix,
    check_beta,
    check_empty_score,
    check_labels,
    check_probs,
    check_same_shape,
)
from stacker._rules import RULES, Bounds, Problem, apply_rule
from stacker._selection import choose_strategy
from stacker.fbeta import AVERAGES, as_sets, fbeta_score

__all__ = ["FBetaDecision"]

STATE_VERSION = 1


class FBetaDecision(BaseEstimator):
    """Turn class probabilities into label sets that maximise F-beta.

    Parameters
    ----------
    beta : float
        Weight of recall against precision, above 0.
    average : {"samples", "macro", "micro"}
        The mean that is maximised: over images, over classes, or over all pairs.
    strategy : {"auto", "global", "group", "max_ratio"}
        The rule, see the notes; ``"auto"`` chooses by cross-validation.
    class_groups : array-like of shape (n_classes,) or None
        Group name of each class; one group when None.
    min_labels, max_labels : int, {group: int} or None
        Fewest and most labels, of an image (int) or of each named class group (dict).
    empty_score : float in [0, 1]
        Score of a unit with no true and no predicted label.
    cv : int, splitter or array-like of shape (n_images,)
        Folds for ``"auto"``: a number, a scikit-learn splitter, or the fold of each image.
    random_state : int or None
        Seed of the folds.

    Attributes
    ----------
    strategy_ : str
        The rule in use.
    thresholds_ : float64 array of shape (n_classes,)
        Threshold of each class on the rule's score (the probability, or for ``"max_ratio"`` the
        probability over the image's largest); 2 where nothing is selected.
    cv_results_ : dict of arrays
        One entry per strategy compared, ready for a DataFrame; empty without ``"auto"``.
    n_features_in_ : int
        Number of classes.

    Notes
    -----
    A class whose probability is exactly 0 is predicted only where `min_labels` forces it.

    Examples
    --------
    >>> import numpy as np
    >>> from stacker import FBetaDecision
    >>> proba = np.array([[0.9, 0.3, 0.1], [0.2, 0.6, 0.1], [0.1, 0.4, 0.8], [0.7, 0.2, 0.1]])
    >>> Y = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 1], [1, 0, 0]])
    >>> FBetaDecision(strategy="global").fit(proba, Y).predict(proba).tolist()
    [[1, 1, 0], [0, 1, 0], [0, 1, 1], [1, 0, 0]]
    """

    def __init__(
        self,
        beta: float = 2.0,
        average: str = "samples",
        strategy: str = "auto",
        class_groups: ArrayLike | None = None,
        min_labels: int | dict[str, int] = 0,
        max_labels: int | dict[str, int] | None = None,
        empty_score: float = 1.0,
        cv: Any = 5,
        random_state: int | None = None,
    ) -> None:
        self.beta = beta
        self.average = average
        self.strategy = strategy
        self.class_groups = class_groups
        self.min_labels = min_labels
        self.max_labels = max_labels
        self.empty_score = empty_score
        self.cv = cv
        self.random_state = random_state

    def fit(
        self, proba: ArrayLike, Y: ArrayLike, groups: ArrayLike | None = None
    ) -> "FBetaDecision":
        """Fit the rule on out-of-fold probabilities.

        Parameters
        ----------
        proba : array-like or sparse matrix of shape (n_images, n_classes)
            Probabilities in [0, 1] from models that did not see the image.
        Y : 0/1 array-like or sparse matrix of shape (n_images, n_classes)
            True labels.
        groups : array-like of shape (n_images,) or None
            Images of one group stay in one fold of ``"auto"``.

        Returns
        -------
        FBetaDecision
            Itself.
        """
        probs, labels = check_probs(proba), check_labels(Y)
        check_same_shape(probs, labels, ("proba", "Y"))
        if probs.shape[0] == 0:
            raise ValueError("FBetaDecision.fit needs at least one image. Got 0 rows.")
        problem = self._problem(probs, labels)
        self.cv_results_: dict[str, Any] = {}
        self.strategy_ = self.strategy
        if self.strategy == "auto":
            self.strategy_, self.cv_results_ = choose_strategy(problem, groups, self.cv)
        self.rule_ = RULES[self.strategy_](problem)
        self.bounds_, self.class_group_ = problem.bounds, problem.class_group
        self.n_features_in_ = probs.shape[1]
        return self

    def predict(self, proba: ArrayLike) -> NDArray[np.int8] | sp.csr_array:
        """Label sets: int8 array of shape (n_images, n_classes), CSR for sparse input."""
        check_is_fitted(self, "rule_")
        probs = check_probs(proba)
        self._check_width(probs)
        chosen = apply_rule(self.strategy_, self.rule_, probs, self.class_group_, self.bounds_)
        return as_sets(chosen, probs)

    def score(self, proba: ArrayLike, Y: ArrayLike) -> float:
        """F-beta of the predicted sets, with this estimator's beta, average and empty_score."""
        return fbeta_score(Y, self.predict(proba), self.beta, self.average, self.empty_score)

    @property
    def thresholds_(self) -> NDArray[np.float64]:
        """Threshold of each class."""
        check_is_fitted(self, "rule_")
        threshold = np.asarray(self.rule_["threshold"], dtype=np.float64)
        if self.strategy_ == "group":
            return threshold[self.class_group_]
        return np.broadcast_to(threshold, (self.n_features_in_,)).copy()

    def to_state(self) -> dict[str, Any]:
        """Everything that `predict` needs, as JSON values and numpy arrays."""
        check_is_fitted(self, "rule_")
        return {
            "version": STATE_VERSION,
            "strategy": self.strategy_,
            "beta": float(self.beta),
            "average": self.average,
            "empty_score": float(self.empty_score),
            "rule": self.rule_,
            "class_group": self.class_group_,
            "bound_codes": self.bounds_.codes,
            "bound_low": self.bounds_.low,
            "bound_high": self.bounds_.high,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "FBetaDecision":
        """Rebuild a fitted estimator from `to_state`."""
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"FBetaDecision state must have version {STATE_VERSION}. "
                f"Got {state.get('version')!r}; save the model again with this release."
            )
        decision = cls(
            beta=state["beta"],
            average=state["average"],
            strategy=state["strategy"],
            empty_score=state["empty_score"],
        )
        decision.strategy_, decision.rule_ = state["strategy"], dict(state["rule"])
        decision.class_group_ = np.asarray(state["class_group"], np.int32)
        low, high = (np.asarray(state[k], np.int64) for k in ("bound_low", "bound_high"))
        decision.bounds_ = Bounds(np.asarray(state["bound_codes"], np.int32), low, high)
        decision.n_features_in_ = len(decision.class_group_)
        decision.cv_results_ = {}
        return decision

    def _problem(self, probs: Matrix, labels: sp.csr_array) -> Problem:
        if self.strategy != "auto" and self.strategy not in RULES:
            known = ("auto", *RULES)
            raise ValueError(
                f"The 'strategy' parameter must be one of {known}. Got {self.strategy!r}."
            )
        if self.average not in AVERAGES:
            raise ValueError(
                f"The 'average' parameter must be one of {AVERAGES}. Got {self.average!r}."
            )
        names, codes = _group_codes(self.class_groups, probs.shape[1])
        return Problem(
            probs=probs,
            labels=labels,
            class_group=codes,
            bounds=_make_bounds(names, codes, self.min_labels, self.max_labels),
            beta=check_beta(self.beta),
            average=self.average,
            empty_score=check_empty_score(self.empty_score),
            random_state=self.random_state,
        )

    def _check_width(self, probs: Matrix) -> None:
        if probs.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {probs.shape[1]} features, but FBetaDecision is expecting "
                f"{self.n_features_in_} features as input (one per class)."
            )


def _group_codes(
    class_groups: ArrayLike | None, n_classes: int
) -> tuple[list[str], NDArray[np.int32]]:
    if class_groups is None:
        return [""], np.zeros(n_classes, np.int32)
    groups = np.asarray(class_groups)
    if groups.shape != (n_classes,):
        raise ValueError(
            f"class_groups must name a group for each class: shape ({n_classes},), "
            f"however: class_groups.shape={groups.shape}."
        )
    names, codes = np.unique(groups.astype(str), return_inverse=True)
    return names.tolist(), codes.astype(np.int32)


def _make_bounds(
    names: list[str], codes: NDArray[np.int32], min_labels: Any, max_labels: Any
) -> Bounds:
    n_classes = len(codes)
    if isinstance(min_labels, dict) or isinstance(max_labels, dict):
        sizes = np.bincount(codes, minlength=len(names))
        low = _per_group(min_labels, names, np.zeros(len(names), np.int64), "min_labels")
        high = _per_group(max_labels, names, sizes.astype(np.int64), "max_labels")
        bounds = Bounds(codes, low, high)
    else:
        most = n_classes if max_labels is None else max_labels
        bounds = Bounds(np.zeros(n_classes, np.int32), np.array([min_labels]), np.array([most]))
    bad = np.flatnonzero((bounds.low < 0) | (bounds.high < bounds.low))
    if len(bad):
        g = bad[0]
        raise ValueError(
            "label-count bounds must satisfy 0 <= min_labels <= max_labels; Got min_labels="
            f"{bounds.low[g]}, max_labels={bounds.high[g]} for group {names[g]!r}."
        )
    return bounds


def _per_group(
    value: Any, names: list[str], default: NDArray[np.int64], parameter: str
) -> NDArray[np.int64]:
    out = default.copy()
    if value is None or value == 0:
        return out
    if not isinstance(value, dict):
        raise ValueError(
            f"{parameter} must be a dict of class groups when the other bound is one. "
            f"Got {value!r}."
        )
    unknown = [name for name in value if str(name) not in names]
    if unknown:
        raise ValueError(
            f"{parameter} names unknown class groups {unknown[:5]}; known: {names[:5]}."
        )
    for name, count in value.items():
        out[names.index(str(name))] = count
    return out
