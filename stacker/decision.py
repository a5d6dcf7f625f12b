"""`FBetaDecision`: from class probabilities to label sets that score a high F-beta."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from stacker._assignment import assign_one_to_one
from stacker._budget import budgeted_sets
from stacker._frame_order import (
    in_fitted_order,
    in_image_order,
    in_one_order,
    index_of,
    names_from_state,
    names_to_state,
    remember_names,
)
from stacker._inputs import (
    Matrix,
    check_beta,
    check_empty_score,
    check_labels,
    check_pairs,
    check_probs,
    group_names_and_codes,
)
from stacker._keys import Bounds, fill_required
from stacker._rules import RULES, Problem, Task, apply_rule
from stacker._selection import choose_strategy
from stacker._splits import group_codes
from stacker._state import flatten, unflatten
from stacker.calibration import ProbabilityCalibrator
from stacker.fbeta import AVERAGES, as_sets, fbeta_score

__all__ = ["FBetaDecision", "assign_one_to_one", "budgeted_sets"]

STATE_VERSION = 1


class FBetaDecision(ClassifierMixin, BaseEstimator):
    """Turn class probabilities into label sets that maximise F-beta.

    Parameters
    ----------
    beta : float
        Weight of recall against precision, above 0.
    average : {"samples", "macro", "micro"}
        The mean that is maximised: over images, over classes, or over all pairs.
    strategy : str
        The rule: ``"global"``, ``"group"``, ``"class"``, ``"max_ratio"``, ``"max_affine"``,
        ``"top_k"``, ``"expected"`` or ``"argmax"``, see the notes; ``"auto"`` chooses one by
        cross-validation.
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
    shrinkage : float
        Strength of the shrinkage of class-wise parameters, in positives: a class with n of them
        keeps n / (n + shrinkage) of its own. 0 gives raw thresholds per class.

    Attributes
    ----------
    strategy_ : str
        The rule in use.
    thresholds_ : float64 array of shape (n_classes,)
        Threshold of each class on the rule's score, at least 2 where nothing is selected: the
        probability; for ``"max_ratio"`` the probability over the image's largest; for
        ``"expected"`` with macro and micro averages the calibrated probability. NaN for rules
        without a threshold.
    rule_ : dict
        Parameters of the rule.
    cv_results_ : dict of arrays
        One entry per strategy compared, ready for a DataFrame; empty without ``"auto"``.
    calibrator_ : ProbabilityCalibrator
        Only for ``"expected"``.
    n_features_in_ : int
        Number of classes.

    Notes
    -----
    Label sets by strategy, with p the probabilities of an image:

    - ``global``: p >= t; ``group``: a t per class group; ``class``: a t per class. Thresholds come
      from exact sweeps over every cut-off of the average asked for. Class thresholds are shrunk:
      for ``"macro"`` each class's best one is pulled to the global one, else each class's
      log-odds get a MAP shift before one threshold is searched.
    - ``max_ratio``: p >= r max(p); ``max_affine``: p >= a + b max(p).
    - ``top_k``: the k most probable of each class group.
    - ``expected``: calibrate (`stacker.calibration`), then for ``"samples"`` the set of highest
      expected F-beta, exactly (`stacker.fbeta.expected_fbeta_sets`), for ``"macro"`` and
      ``"micro"`` the threshold F* / (1 + beta^2) from expected counts.
    - ``argmax``: the most probable class; see `assign_one_to_one` for one label per image and
      class.
    - ``auto``: global, top_k, max_ratio, group (where there are groups), class and expected are
      cross-validated over split groups, and the simplest within one standard error of the best
      is taken, in that order.

    `min_labels` and `max_labels` hold under every rule. A class whose probability is exactly 0 is
    predicted only where `min_labels` forces it.

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
        shrinkage: float = 20.0,
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
        self.shrinkage = shrinkage

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
        probs, labels = check_pairs(proba, Y, owner=type(self).__name__)
        groups = in_image_order(groups, index_of(proba, Y), "groups")
        self._check_parameters()
        task = self._make_task(probs.shape[1])
        split_group = group_codes(groups, probs.shape[0])
        problem = Problem(task, fill_required(probs, task.bounds), labels, split_group)
        self.cv_results_: dict[str, Any] = {}
        self.strategy_ = self.strategy
        if self.strategy == "auto":
            self.strategy_, self.cv_results_ = choose_strategy(problem, self.cv)
        self.rule_ = RULES[self.strategy_](problem)
        self.task_ = task
        self.n_features_in_ = probs.shape[1]
        remember_names(self, proba)
        self.classes_ = np.arange(probs.shape[1])
        return self

    def predict(self, proba: ArrayLike) -> NDArray[np.int8] | sp.csr_array:
        """Label sets: int8 array of shape (n_images, n_classes), CSR for sparse input."""
        check_is_fitted(self, "rule_")
        probs = check_probs(in_fitted_order(self, proba))
        self._check_width(probs)
        probs = fill_required(probs, self.task_.bounds)
        return as_sets(apply_rule(self.strategy_, self.rule_, probs, self.task_), probs)

    def score(self, proba: ArrayLike, Y: ArrayLike) -> float:
        """F-beta of the predicted sets, with this estimator's beta, average and empty_score."""
        proba, Y = in_one_order(in_fitted_order(self, proba), Y)
        sets = self.predict(proba)
        labels = check_labels(Y, n_classes=sets.shape[1])
        return fbeta_score(labels, sets, self.beta, self.average, self.empty_score)

    @property
    def thresholds_(self) -> NDArray[np.float64]:
        """Threshold of each class."""
        check_is_fitted(self, "rule_")
        threshold = np.asarray(self.rule_.get("threshold", np.nan), dtype=np.float64)
        return np.broadcast_to(threshold, (self.n_features_in_,)).copy()

    @property
    def calibrator_(self) -> ProbabilityCalibrator:
        """Calibrator of the ``"expected"`` strategy."""
        check_is_fitted(self, "rule_")
        if "calibrator" not in self.rule_:
            raise AttributeError(
                f"calibrator_ exists for strategy 'expected' only; this is {self.strategy_!r}."
            )
        return ProbabilityCalibrator.from_state(self.rule_["calibrator"])

    def to_state(self) -> dict[str, Any]:
        """Everything that `predict` needs: a flat dict of JSON values and numpy arrays."""
        check_is_fitted(self, "rule_")
        task = self.task_
        return flatten(
            {
                "version": STATE_VERSION,
                "strategy": self.strategy_,
                "rule": self.rule_,
                "beta": task.beta,
                "average": task.average,
                "empty_score": task.empty_score,
                "shrinkage": task.shrinkage,
                "class_group": task.class_group,
                "bounds": task.bounds._asdict(),
                **names_to_state(self),
            }
        )

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "FBetaDecision":
        """Rebuild a fitted estimator from `to_state`."""
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"FBetaDecision state must have version {STATE_VERSION}. "
                f"Got {state.get('version')!r}; save the model again with this release."
            )
        nested = unflatten(state)
        names = ("beta", "average", "empty_score", "shrinkage")
        parameters = {name: nested[name] for name in names}
        decision = cls(strategy=nested["strategy"], **parameters)
        bounds = Bounds(*(np.asarray(nested["bounds"][k]) for k in Bounds._fields))
        class_group = np.asarray(nested["class_group"], np.int32)
        decision.task_ = Task(class_group=class_group, bounds=bounds, **parameters)
        # A rule without parameters leaves no key behind.
        decision.strategy_, decision.rule_ = nested["strategy"], nested.get("rule", {})
        decision.n_features_in_ = len(class_group)
        decision.cv_results_ = {}
        names_from_state(decision, nested)
        return decision

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = True
        tags.target_tags.required = True
        tags.target_tags.two_d_labels = True
        tags.target_tags.multi_output = True
        return tags

    def _check_parameters(self) -> None:
        for name, known in (("strategy", ("auto", *RULES)), ("average", AVERAGES)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"The {name!r} parameter must be one of {known}. Got {value!r}.")
        if not self.shrinkage >= 0:
            raise ValueError(
                f"The 'shrinkage' parameter must be at least 0. Got {self.shrinkage!r}."
            )

    def _make_task(self, n_classes: int) -> Task:
        names, codes = group_names_and_codes(self.class_groups, n_classes)
        return Task(
            class_group=codes,
            bounds=_make_bounds(names, codes, self.min_labels, self.max_labels),
            beta=check_beta(self.beta),
            average=self.average,
            empty_score=check_empty_score(self.empty_score),
            shrinkage=float(self.shrinkage),
            random_state=self.random_state,
        )

    def _check_width(self, probs: Matrix) -> None:
        if probs.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {probs.shape[1]} features, but FBetaDecision is expecting "
                f"{self.n_features_in_} features as input (one per class)."
            )


def _make_bounds(
    names: list[str], codes: NDArray[np.int32], min_labels: Any, max_labels: Any
) -> Bounds:
    n_classes = len(codes)
    for value in (min_labels, max_labels):
        counts = value.values() if isinstance(value, dict) else [0 if value is None else value]
        if any(int(count) != count for count in counts):
            raise ValueError(f"label-count bounds must be whole numbers. Got {value!r}.")
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
    # None is no bound; a lower bound of 0 is none either, an upper one forbids every label.
    if value is None or (parameter == "min_labels" and value == 0):
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
