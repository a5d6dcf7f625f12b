"""New images from elsewhere: other label frequencies, with no labels or a few hundred.

`PriorShift` estimates how often each class occurs among new images without their labels and moves
the probabilities there; `TargetAdapter` re-fits calibration and decision on a few labelled ones
(recipes D2-D4). Both take probabilities, so they work with any model's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from stacker._calibration_maps import log_odds
from stacker._frame_order import (
    in_fitted_order,
    in_image_order,
    in_one_order,
    index_of,
    remember_names,
)
from stacker._inputs import Matrix, as_rows, check_pairs, check_probs, entry_columns
from stacker._prior_evidence import LikelihoodEvidence, MomentEvidence
from stacker._proba_scores import log_loss
from stacker._splits import group_codes, make_splits
from stacker.calibration import ProbabilityCalibrator
from stacker.decision import FBetaDecision

__all__ = ["PriorShift", "TargetAdapter"]

Floats = NDArray[np.float64]
METHODS = ("em", "moments")
FOLDS = 4  # parts of the source that the estimates are tried on
SHARES = np.linspace(0, 1, 11)  # of the estimated shift: 0 leaves the probabilities alone
MOST_WEIGHT = 4.0  # an image is drawn e^4 times as often as another, at most
WEAK = 0.5  # precision that keeps a single class's estimate finite


class PriorShift(TransformerMixin, BaseEstimator):
    """Move probabilities to the class frequencies of new images, estimated without labels.

    Assumes that images *of a class* look alike in both places and only the frequencies differ
    (label shift). Given source labels it tries that first: source images are drawn so that their
    classes shift as estimated, and no more of the estimate is applied than helps there.

    Parameters
    ----------
    method : {"em", "moments"}
        "em": the frequencies under which the new probabilities are most likely, the fixed point
        of the EM iteration of Saerens, Latinne and Decaestecker (2002). "moments": frequencies
        at which the mean probability comes out as observed (Lipton, Wang and Smola, 2018, with
        soft predictions).
    shrinkage : "auto" or float
        Precision of each class's shift in log-odds around the shift common to all classes: a
        class whose shift is known as well as from n labelled positives keeps about
        n / (n + shrinkage) of its own. "auto" chooses it by marginal likelihood. 0 keeps every
        class's own, which for rare classes is mostly noise.
    calibrate : bool
        Calibrate per class on the source first, where `fit` gets its labels: both methods
        believe the probabilities.
    trust : "auto" or float in [0, 1]
        Share of the estimated shift that is applied. "auto": the one with the lowest log loss on
        source images that are drawn to shift likewise; 1 without source labels.

    Attributes
    ----------
    shift_ : float64 array of shape (n_classes,)
        Added to the log-odds of each class.
    common_shift_ : float
        Shift shared by all classes.
    shrinkage_ : float
    spread_ : float
        Variance of the estimates over what they claim, measured on parts of the source.
    trust_ : float
    source_prior_, target_prior_ : float64 arrays of shape (n_classes,)
        Frequency of each class among source and new images, as the probabilities see it.
    n_features_in_ : int
        Number of classes.

    Notes
    -----
    Works on counts in 256 bins of log-odds: after one pass over the probabilities its cost does
    not depend on the number of images.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> def look(n, prior):
    ...     y = rng.random((n, 1)) < prior
    ...     return y, expit(4 * (rng.normal(size=(n, 1)) + y - 0.5) + np.log(0.1 / 0.9))
    >>> Y, source = look(4000, 0.1)
    >>> target = look(4000, 0.3)[1]
    >>> PriorShift().fit(source, Y, target).target_prior_.round(1).tolist()
    [0.3]
    """

    def __init__(
        self,
        method: str = "em",
        shrinkage: str | float = "auto",
        calibrate: bool = True,
        trust: str | float = "auto",
    ) -> None:
        self.method = method
        self.shrinkage = shrinkage
        self.calibrate = calibrate
        self.trust = trust

    def fit(
        self,
        proba_source: Any,
        Y_source: Any = None,
        proba_target: Any = None,
        groups: ArrayLike | None = None,
    ) -> PriorShift:
        """Estimate the shift.

        Parameters
        ----------
        proba_source : array or CSR of shape (n_source, n_classes)
            Out-of-fold probabilities of the training images.
        Y_source : 0/1 array or CSR of shape (n_source, n_classes), optional
            Their labels; without them the probabilities are taken as calibrated.
        proba_target : array or CSR of shape (n_target, n_classes)
            Probabilities of the new images, by the same models.
        groups : array-like of shape (n_source,), optional
            Split groups of the source: how far the estimates can be trusted is measured on
            parts of the source that share no group.

        Raises
        ------
        ValueError
            For missing target probabilities, other classes, or unknown parameters.
        """
        self._check_parameters()
        if proba_target is None:
            raise ValueError(
                "proba_target is missing: PriorShift.fit(proba_source, Y_source, proba_target) "
                "needs the new images' probabilities; Y_source may be None."
            )
        remember_names(self, proba_source)
        proba_target = in_fitted_order(self, proba_target)
        groups = in_image_order(groups, index_of(proba_source, Y_source), "groups")
        proba_source, Y_source = in_one_order(proba_source, Y_source)
        source, target = check_probs(proba_source), check_probs(proba_target)
        if source.shape[1] != target.shape[1]:
            raise ValueError(
                f"proba_source has {source.shape[1]} classes and proba_target has "
                f"{target.shape[1]}: both must have the same, in the same order."
            )
        self.n_features_in_ = source.shape[1]
        self.calibrator_, labels = None, None
        if Y_source is not None:
            source, labels = check_pairs(source, Y_source, owner=type(self).__name__)
        if labels is not None and self.calibrate:
            self.calibrator_ = ProbabilityCalibrator("platt", "class").fit(source, labels)
            source = self.calibrator_.transform(source)
            target = self.calibrator_.transform(target)
        # The prior that the probabilities themselves believe in, not the labels' frequency: with
        # another one, a class whose calibration is shrunk would seem to have shifted.
        self.source_prior_ = _prior(source)
        self.spread_ = 1.0
        if labels is not None:
            self.spread_ = self._spread(source, labels, group_codes(groups, source.shape[0]))
        known = self._evidence(source, target, self.source_prior_, self.spread_)
        self._solve(known)
        self.trust_ = 1.0 if self.trust == "auto" else float(self.trust)
        if labels is not None and self.trust == "auto":
            self.trust_ = self._trust(source, labels, group_codes(groups, source.shape[0]))
        self.shift_ *= self.trust_
        self.target_prior_ = expit(logit(self.source_prior_) + self.shift_)
        return self

    def _evidence(
        self, source: Matrix, target: Matrix, prior: Floats, spread: float = 1.0
    ) -> LikelihoodEvidence:
        if self.method == "em":
            return LikelihoodEvidence(target, prior, spread)
        return MomentEvidence(source, target, prior, spread)

    def _spread(self, source: Matrix, labels: sp.csr_array, codes: NDArray[np.intp]) -> float:
        """How much further estimates lie off than they claim, on parts of the source.

        Each fold of split groups in turn is taken for the new images; its labels are known.
        """
        squares, claims = 0.0, 0
        for train, test in make_splits(FOLDS, source, labels, codes, 0):
            prior = _prior(source[train])
            known = self._evidence(source[train], source[test], prior)
            own = known.shifts(0.0, WEAK)
            part = source[test]
            positive, mean, square = (
                np.asarray(m.sum(axis=0), dtype=np.float64).ravel()
                for m in (labels[test], part, part * part)
            )
            # One step to the shift that these labels ask for, given the probabilities: what a
            # whole group of like images adds to the frequency it does not add to the others.
            weight = mean - square + 1
            needed = (positive - mean) / weight
            sure = positive >= 3
            claim = 1 / (known.information(own)[sure] + WEAK) + 1 / weight[sure]
            squares += float(((own[sure] - needed[sure]) ** 2 / claim).sum())
            claims += int(sure.sum())
        return max(1.0, squares / claims) if claims else 1.0

    def _trust(self, source: Matrix, labels: sp.csr_array, codes: NDArray[np.intp]) -> float:
        """Share of a shift like the estimated one that is worth applying.

        Each fold of split groups is drawn from, with the estimated shift as the drawing's own, and
        stands for the new images.
        """
        losses = np.zeros(len(SHARES))
        for k, (train, test) in enumerate(make_splits(FOLDS, source, labels, codes, 0)):
            drawn = test[_draw(labels[test], self.shift_, np.random.default_rng(k))]
            new, truth = source[drawn], labels[drawn]
            known = self._evidence(source[train], new, _prior(source[train]), self.spread_)
            shift = known.shifts(known.common(), self.shrinkage_)
            losses += [log_loss(truth, _shifted(new, share * shift)) for share in SHARES]
        return float(SHARES[int(np.argmin(losses))])

    def _solve(self, known: LikelihoodEvidence) -> None:
        self.common_shift_ = known.common()
        self.shrinkage_ = float(
            known.best_precision(self.common_shift_) if self.shrinkage == "auto" else self.shrinkage
        )
        self.shift_ = known.shifts(self.common_shift_, self.shrinkage_)

    def transform(self, proba: Any) -> Any:
        """Probabilities under the new frequencies, float32, dense or CSR as the input.

        A probability of exactly 0 stays 0.
        """
        check_is_fitted(self, "shift_")
        probs = check_probs(in_fitted_order(self, proba))
        if probs.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {probs.shape[1]} features, but PriorShift is expecting "
                f"{self.n_features_in_} features as input (one per class)."
            )
        if self.calibrator_ is not None:
            probs = self.calibrator_.transform(probs)
        return _shifted(probs, self.shift_)

    def _check_parameters(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"The 'method' parameter must be one of {METHODS}. Got {self.method!r} instead."
            )
        number = isinstance(self.shrinkage, int | float) and self.shrinkage >= 0
        if self.shrinkage != "auto" and not number:
            raise ValueError(
                f"The 'shrinkage' parameter must be 'auto' or a number of at least 0. "
                f"Got {self.shrinkage!r} instead."
            )
        number = isinstance(self.trust, int | float) and 0 <= self.trust <= 1
        if self.trust != "auto" and not number:
            raise ValueError(
                f"The 'trust' parameter must be 'auto' or a number in [0, 1]. "
                f"Got {self.trust!r} instead."
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = True
        return tags


class TargetAdapter(BaseEstimator):
    """Calibration and decision for new images, from a few hundred labelled ones.

    Parameters
    ----------
    beta : float
    average : {"samples", "macro", "micro"}
    strategy : str
        Decision rule, as in `FBetaDecision`.
    class_groups : array-like of shape (n_classes,) or None
    shrinkage : float
        A class with n target positives keeps about n / (n + shrinkage) of its own shift.
    source_share : float in [0, 1)
        Share of source images among those that the decision is fitted on (recipe D2); both are
        calibrated first, each to its own place.
    cv : int
        Folds that the target images are calibrated over before the decision sees them.
    random_state : int or None

    Attributes
    ----------
    calibrator_ : ProbabilityCalibrator
        From the model's probabilities to the target's.
    decision_ : FBetaDecision

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> p = rng.random((300, 3))
    >>> Y = rng.random((300, 3)) < p**2
    >>> adapter = TargetAdapter(strategy="global", random_state=0).fit(p, p > 0.5, p, Y)
    >>> bool(np.abs(adapter.predict_proba(p) - p**2).mean() < 0.05)
    True
    """

    def __init__(
        self,
        beta: float = 2.0,
        average: str = "samples",
        strategy: str = "auto",
        class_groups: ArrayLike | None = None,
        shrinkage: float = 20.0,
        source_share: float = 0.5,
        cv: int = 5,
        random_state: int | None = None,
    ) -> None:
        self.beta = beta
        self.average = average
        self.strategy = strategy
        self.class_groups = class_groups
        self.shrinkage = shrinkage
        self.source_share = source_share
        self.cv = cv
        self.random_state = random_state

    def fit(
        self,
        proba_source: Any,
        Y_source: Any,
        proba_target: Any,
        Y_target: Any,
        groups: ArrayLike | None = None,
    ) -> TargetAdapter:
        """Fit on out-of-fold source probabilities and on labelled target images.

        Parameters
        ----------
        proba_source, proba_target : arrays or CSR of shape (n_images, n_classes)
        Y_source, Y_target : 0/1 arrays or CSR of the same shapes
        groups : array-like of shape (n_target,), optional
            Target images of one group stay in one fold.
        """
        if not 0 <= self.source_share < 1:
            raise ValueError(
                f"The 'source_share' parameter must lie in [0, 1). Got {self.source_share!r}."
            )
        source, from_labels = check_pairs(proba_source, Y_source, owner=type(self).__name__)
        remember_names(self, proba_source)
        proba_target = in_fitted_order(self, proba_target)
        groups = in_image_order(groups, index_of(proba_target, Y_target), "groups")
        target, to_labels = check_pairs(proba_target, Y_target, owner=type(self).__name__)
        codes = group_codes(groups, target.shape[0])
        self.calibrator_ = self._calibrator().fit(target, to_labels)
        held_out = self._cross_calibrated(target, to_labels, codes)
        picked = self._some_source(source.shape[0], target.shape[0])
        known = self._calibrator().fit(source, from_labels).transform(source[picked])
        both = _stacked([held_out, known])
        labels = _stacked([to_labels, from_labels[picked]])
        # Source images come after the target's groups, each its own.
        split = np.concatenate([codes, codes.max(initial=0) + 1 + np.arange(len(picked))])
        self.decision_ = FBetaDecision(
            beta=self.beta,
            average=self.average,
            strategy=self.strategy,
            class_groups=self.class_groups,
            random_state=self.random_state,
        ).fit(both, labels, groups=split)
        self.n_features_in_ = target.shape[1]
        return self

    def predict_proba(self, proba: Any) -> Any:
        """Calibrated probabilities of target images."""
        check_is_fitted(self, "calibrator_")
        return self.calibrator_.transform(in_fitted_order(self, proba))

    def predict(self, proba: Any) -> Any:
        """Label sets of target images, int8, dense or CSR as the input."""
        return self.decision_.predict(self.predict_proba(proba))

    def _calibrator(self) -> ProbabilityCalibrator:
        return ProbabilityCalibrator("platt", "class", shrinkage=self.shrinkage)

    def _cross_calibrated(
        self, probs: Matrix, labels: sp.csr_array, codes: NDArray[np.intp]
    ) -> Matrix:
        """Target probabilities, each image calibrated by the other folds."""
        out = np.zeros(probs.shape, np.float32)
        for train, test in make_splits(self.cv, probs, labels, codes, self.random_state):
            fitted = self._calibrator().fit(probs[train], labels[train])
            held_out = fitted.transform(probs[test])
            out[test] = held_out if isinstance(held_out, np.ndarray) else held_out.toarray()
        return sp.csr_array(out) if sp.issparse(probs) else out

    def _some_source(self, n_source: int, n_target: int) -> NDArray[np.intp]:
        n = min(n_source, round(n_target * self.source_share / (1 - self.source_share)))
        picked = np.random.default_rng(self.random_state).choice(n_source, n, replace=False)
        return np.sort(picked)


def _shifted(probs: Matrix, shift: Floats) -> Any:
    """Probabilities with a shift of each class's log-odds; zeros stay."""
    rows = as_rows(probs)
    moved = expit(log_odds(rows.values) + shift[entry_columns(rows)]).astype(np.float32)
    moved[rows.values == 0] = 0.0
    if sp.issparse(probs):
        return sp.csr_array((moved, probs.indices, probs.indptr), shape=probs.shape, copy=True)
    return moved.reshape(probs.shape)


def _draw(labels: sp.csr_array, shift: Floats, rng: np.random.Generator) -> NDArray[np.intp]:
    """Positions of as many images, drawn so that each class's odds shift by about so much."""
    weight = np.exp(np.clip(labels @ shift, -MOST_WEIGHT, MOST_WEIGHT))
    return rng.choice(len(weight), len(weight), p=weight / weight.sum())


def _prior(probs: Matrix) -> Floats:
    mean = np.asarray(probs.mean(axis=0), dtype=np.float64).ravel()
    return np.clip(mean, 1e-7, 1 - 1e-7)


def _stacked(parts: list[Any]) -> Any:
    return sp.vstack(parts, format="csr") if sp.issparse(parts[0]) else np.concatenate(parts)
