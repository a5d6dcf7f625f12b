"""Calibrate class probabilities before a decision is derived from them.

A decision that maximises expected F-beta believes its probabilities: logits stretched by 1.6 turn
its gain into a loss. `ProbabilityCalibrator` maps log-odds through one curve for all classes, one
per class group, or one shifted per class, and chooses between them by cross-validated log loss.
"""

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from stacker._calibration_maps import (
    BinCounts,
    add_classes,
    apply_curves,
    bin_pairs,
    fit_curve,
    fit_isotonic,
    fit_offsets,
    fit_venn_abers,
    log_loss_sum,
    log_odds,
    parametric_features,
    shifted_log_loss,
)
from stacker._frame_order import (
    in_fitted_order,
    in_image_order,
    index_of,
    names_from_state,
    names_to_state,
    remember_names,
)
from stacker._inputs import (
    Matrix,
    as_rows,
    check_pairs,
    check_probs,
    check_scored,
    entry_columns,
    group_names_and_codes,
)
from stacker._splits import fold_of_images, group_codes

__all__ = ["METHODS", "SCOPES", "ProbabilityCalibrator", "reliability_curve"]

METHODS = ("none", "temperature", "platt", "beta", "isotonic", "venn_abers")
SCOPES = ("pooled", "group", "class")
PARAMETRIC = ("temperature", "platt", "beta")
# From simple to rich; "auto" takes the lowest cross-validated log loss.
AUTO = (
    ("none", "pooled"),
    ("temperature", "pooled"),
    ("platt", "pooled"),
    ("beta", "pooled"),
    ("isotonic", "pooled"),
    ("platt", "group"),
    ("beta", "group"),
    ("platt", "class"),
    ("beta", "class"),
)
# An isotonic map of a class's own needs about this many positives.
OWN_ISOTONIC = 500
STATE_VERSION = 1


class ProbabilityCalibrator(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Calibrate the probabilities of a multi-label model.

    Parameters
    ----------
    method : {"auto", "none", "temperature", "platt", "beta", "isotonic", "venn_abers"}
        Family of the map on the log-odds l: l / T; a l + b; a ln p - b ln(1 - p) + c; a rising
        step function; or the inductive Venn-Abers predictor. ``"auto"`` chooses method and scope
        by cross-validated log loss.
    scope : {"pooled", "group", "class"}
        One map; one per class group, shrunk to the pooled map; or the pooled map and a shift of
        each class's log-odds, shrunk to 0 (for ``"isotonic"`` and ``"venn_abers"``: a map of its
        own for each class with 500 positives). Ignored by ``method="auto"``.
    class_groups : array-like of shape (n_classes,) or None
        Group name of each class, for ``scope="group"``.
    shrinkage : float
        Strength of the shrinkage, in positives: a class with n positives keeps about
        n / (n + shrinkage) of its own shift.
    cv : int, splitter or array-like of shape (n_images,)
        Folds of ``method="auto"``.
    random_state : int or None
        Seed of the folds.

    Attributes
    ----------
    method_, scope_ : str
        What is in use.
    cv_results_ : dict of arrays
        Method, scope and log loss per pair of each combination tried; empty without ``"auto"``.
    n_features_in_ : int
        Number of classes.

    Notes
    -----
    A probability of exactly 0 stays 0 and is left out of the fit, so dense and sparse input with
    the same non-zero values agree. Pair rows are a matrix of one column. Maps are fitted on counts
    in 256 bins of log-odds; ties in order are kept, so rankings within a class change only where
    an isotonic map is flat.

    Examples
    --------
    >>> import numpy as np
    >>> from stacker.calibration import ProbabilityCalibrator
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.random((500, 4)) * 0.6
    >>> Y = (rng.random((500, 4)) < truth).astype(int)
    >>> stretched = 1 / (1 + ((1 - truth) / truth) ** 1.6)
    >>> fixed = ProbabilityCalibrator(method="temperature").fit(stretched, Y).transform(stretched)
    >>> bool(np.abs(fixed - truth).mean() < np.abs(stretched - truth).mean() / 3)
    True
    """

    def __init__(
        self,
        method: str = "auto",
        scope: str = "pooled",
        class_groups: ArrayLike | None = None,
        shrinkage: float = 20.0,
        cv: Any = 5,
        random_state: int | None = None,
    ) -> None:
        self.method = method
        self.scope = scope
        self.class_groups = class_groups
        self.shrinkage = shrinkage
        self.cv = cv
        self.random_state = random_state

    def fit(
        self, proba: ArrayLike, Y: ArrayLike, groups: ArrayLike | None = None
    ) -> "ProbabilityCalibrator":
        """Fit the maps on out-of-fold probabilities.

        Parameters
        ----------
        proba : array-like or sparse matrix of shape (n_images, n_classes)
            Probabilities in [0, 1].
        Y : 0/1 array-like or sparse matrix of shape (n_images, n_classes)
            True labels.
        groups : array-like of shape (n_images,) or None
            Images of one group stay in one fold.
        """
        probs, labels = check_pairs(proba, Y, owner=type(self).__name__)
        groups = in_image_order(groups, index_of(proba, Y), "groups")
        self._check_parameters()
        remember_names(self, proba)
        codes = group_names_and_codes(self.class_groups, probs.shape[1])[1]
        fold = np.zeros(probs.shape[0], np.intp)
        if self.method == "auto":
            images = group_codes(groups, probs.shape[0])
            fold = fold_of_images(self.cv, probs, labels, images, self.random_state)
        counts = bin_pairs(probs, labels, fold, int(fold.max(initial=0)) + 1)
        self.method_, self.scope_ = self.method, self.scope
        self.cv_results_: dict[str, Any] = {}
        if self.method == "auto":
            self.cv_results_ = _compare(counts, codes, self.shrinkage)
            best = int(np.argmin(self.cv_results_["log_loss"]))
            self.method_, self.scope_ = (self.cv_results_[k][best] for k in ("method", "scope"))
        self.map_ = _fit_map(self.method_, self.scope_, _all_folds(counts), codes, self.shrinkage)
        self.class_group_ = codes
        self.n_features_in_ = probs.shape[1]
        return self

    def transform(self, proba: ArrayLike) -> NDArray[np.float32] | sp.csr_array:
        """Calibrated probabilities, float32, dense or CSR as the input."""
        check_is_fitted(self, "map_")
        probs = check_probs(in_fitted_order(self, proba))
        if probs.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {probs.shape[1]} features, but ProbabilityCalibrator is expecting "
                f"{self.n_features_in_} features as input (one per class)."
            )
        if self.method_ == "none":
            return probs
        rows = as_rows(probs)
        if self.method_ in PARAMETRIC:
            fitted = (self.map_[name] for name in ("curve", "of_class", "offset"))
            values = apply_curves(rows, *fitted)
        else:
            values = _apply_knots(self.method_, self.map_, rows.values, entry_columns(rows))
        if sp.issparse(probs):
            return sp.csr_array((values, probs.indices, probs.indptr), shape=probs.shape, copy=True)
        return values.reshape(probs.shape)

    def to_state(self) -> dict[str, Any]:
        """Everything that `transform` needs, as JSON values and numpy arrays."""
        check_is_fitted(self, "map_")
        return {
            "version": STATE_VERSION,
            "method": self.method_,
            "scope": self.scope_,
            "class_group": self.class_group_,
            "map": self.map_,
            **names_to_state(self),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ProbabilityCalibrator":
        """Rebuild a fitted calibrator from `to_state`."""
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"ProbabilityCalibrator state must have version {STATE_VERSION}. "
                f"Got {state.get('version')!r}; save it again with this release."
            )
        calibrator = cls(method=state["method"], scope=state["scope"])
        calibrator.method_, calibrator.scope_ = state["method"], state["scope"]
        calibrator.class_group_ = np.asarray(state["class_group"], np.int32)
        calibrator.map_ = {k: np.asarray(v) for k, v in state["map"].items()}
        calibrator.cv_results_ = {}
        calibrator.n_features_in_ = len(calibrator.class_group_)
        names_from_state(calibrator, state)
        return calibrator

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = True
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _check_parameters(self) -> None:
        for name, value, known in (
            ("method", self.method, ("auto", *METHODS)),
            ("scope", self.scope, SCOPES),
        ):
            if value not in known:
                raise ValueError(f"The {name!r} parameter must be one of {known}. Got {value!r}.")
        if not self.shrinkage >= 0:
            raise ValueError(
                f"The 'shrinkage' parameter must be at least 0. Got {self.shrinkage!r}."
            )


def reliability_curve(
    proba: ArrayLike, Y: ArrayLike, n_bins: int = 15
) -> dict[str, NDArray[np.float64]]:
    """Mean probability and rate of true labels in bins that hold like numbers of positives.

    Parameters
    ----------
    proba : array-like or sparse matrix of shape (n_images, n_classes)
        Probabilities; zeros are left out.
    Y : 0/1 array-like or sparse matrix of shape (n_images, n_classes)
        True labels.
    n_bins : int
        Number of bins. They hold like shares of the expected positives, since with hundreds of
        classes nearly all pairs have tiny probabilities.

    Returns
    -------
    dict of float64 arrays of shape (at most n_bins,)
        ``mean_proba``, ``rate``, ``standard_error`` of the rate, ``count``.

    Examples
    --------
    >>> curve = reliability_curve([[0.2], [0.2], [0.8], [0.8]], [[0], [0], [1], [1]], n_bins=2)
    >>> curve["mean_proba"].round(1).tolist(), curve["rate"].tolist()
    ([0.2, 0.8], [0.0, 1.0])
    """
    labels, probs = check_scored(Y, proba)
    values, hits = _flat(probs, labels)
    order = np.argsort(values, kind="stable")
    values, hits = values[order].astype(np.float64), hits[order]
    share = np.cumsum(values)
    edges = np.searchsorted(share, np.linspace(0, share[-1] if len(share) else 0, n_bins + 1)[1:-1])
    starts = np.unique(np.concatenate([[0], edges]))[: len(values)]
    count = np.diff(np.append(starts, len(values))).astype(float)
    mean, rate = (np.add.reduceat(v, starts) / count for v in (values, hits.astype(float)))
    error = np.sqrt(np.maximum(mean * (1 - mean), 1e-12) / count)
    return {"mean_proba": mean, "rate": rate, "standard_error": error, "count": count}


def _flat(probs: Matrix, labels: sp.csr_array) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Non-zero probabilities and whether their labels are true."""
    stored = probs if sp.issparse(probs) else sp.csr_array(probs)
    # Adding 2 to each stored place leaves the label in the rest.
    places = sp.csr_array(
        (np.full(stored.nnz, 2, np.int8), stored.indices, stored.indptr), stored.shape
    )
    marks = (places + labels).tocsr()
    marks.data[marks.data < 2] = 0
    marks.eliminate_zeros()
    return stored.data, marks.data == 3


def _all_folds(counts: BinCounts) -> BinCounts:
    return counts._replace(total=counts.total.sum(axis=0), positive=counts.positive.sum(axis=0))


def _of_groups(counts: BinCounts, codes: NDArray[np.int32]) -> BinCounts:
    """Add up the counts of each class group, (n_groups, n_bins)."""
    total, positive = (add_classes(part, codes) for part in (counts.total, counts.positive))
    return counts._replace(total=total, positive=positive)


def _compare(
    counts: BinCounts, codes: NDArray[np.int32], shrinkage: float
) -> dict[str, NDArray[Any]]:
    """Cross-validated log loss per pair of every combination in `AUTO`."""
    n_groups = int(codes.max(initial=0)) + 1
    tried = [pair for pair in AUTO if not (n_groups == 1 and pair[1] == "group")]
    losses = np.zeros(len(tried))
    everything = _all_folds(counts)
    for f in range(len(counts.total)):
        held = counts._replace(total=counts.total[f], positive=counts.positive[f])
        rest = everything._replace(
            total=everything.total - held.total, positive=everything.positive - held.positive
        )
        # With tens of thousands of classes only a shift of each is worth a pass over all counts.
        own = np.arange(n_groups, dtype=np.int32)
        merged = _of_groups(rest, codes), _of_groups(held, codes), own
        for m, (method, scope) in enumerate(tried):
            learned, left, of = (rest, held, codes) if scope == "class" else merged
            fitted = _fit_map(method, scope, learned, of, shrinkage)
            losses[m] += _loss(method, scope, fitted, left)
    return {
        "method": np.array([method for method, _ in tried]),
        "scope": np.array([scope for _, scope in tried]),
        "log_loss": losses / max(counts.total.sum(dtype=np.float64), 1.0),
    }


def _fit_map(
    method: str, scope: str, counts: BinCounts, codes: NDArray[np.int32], shrinkage: float
) -> dict[str, NDArray[Any]]:
    """Fitted map: ``curve`` (n_maps, n_coefficients) or knots, ``of_class``, ``offset``."""
    n_classes = len(codes)
    fitted: dict[str, NDArray[Any]] = {
        "of_class": np.zeros(n_classes, np.int32),
        "offset": np.zeros(n_classes),
    }
    if method == "none":
        return fitted
    if scope == "group":
        fitted["of_class"] = codes
    if method in PARAMETRIC:
        return fitted | _fit_parametric(method, scope, counts, codes, shrinkage)
    if scope == "class":
        enough = counts.positive.sum(axis=1) >= OWN_ISOTONIC
        fitted["of_class"] = np.where(enough, np.cumsum(enough), 0).astype(np.int32)
    return fitted | _fit_knots(method, counts, fitted["of_class"], first_is_pooled=scope == "class")


def _fit_parametric(
    method: str, scope: str, counts: BinCounts, codes: NDArray[np.int32], shrinkage: float
) -> dict[str, NDArray[Any]]:
    merged = _of_groups(counts, codes)
    pooled = fit_curve(method, counts.centre, merged.total.sum(axis=0), merged.positive.sum(axis=0))
    if scope == "group":
        curves = [
            fit_curve(method, counts.centre, total, positive, prior=pooled, strength=shrinkage)
            for total, positive in zip(merged.total, merged.positive, strict=True)
        ]
        return {"curve": np.array(curves)}
    if scope == "pooled":
        return {"curve": pooled[None]}
    eta = parametric_features(counts.centre, method) @ pooled
    offset = fit_offsets(eta, counts.total, counts.positive, max(shrinkage, 1e-6))
    return {"curve": pooled[None], "offset": offset}


def _fit_knots(
    method: str, counts: BinCounts, of_class: NDArray[np.int32], *, first_is_pooled: bool
) -> dict[str, NDArray[Any]]:
    """Knots of all maps one after another, ``starts`` their positions."""
    fit = fit_isotonic if method == "isotonic" else fit_venn_abers
    knots = []
    for m in range(of_class.max(initial=0) + 1):
        mine = (of_class == m) | (first_is_pooled and m == 0)
        pair = (
            part[mine].sum(axis=0, dtype=np.float64) for part in (counts.total, counts.positive)
        )
        knots.append(fit(counts.centre, *pair))
    sizes = [len(x) for x, _ in knots]
    return {
        "knot_odds": np.concatenate([x for x, _ in knots]),
        "knot_proba": np.concatenate([y for _, y in knots]),
        "starts": np.concatenate([[0], np.cumsum(sizes)]),
    }


def _loss(method: str, scope: str, fitted: dict[str, NDArray[Any]], held: BinCounts) -> float:
    """Log loss of a fitted map on held-out counts."""
    if scope == "class":  # parametric in `AUTO`: one curve, and a shift of each class
        eta = _map_odds(method, fitted, 0, held.centre)
        return shifted_log_loss(eta, fitted["offset"], held.total, held.positive)
    n_maps = int(fitted["of_class"].max(initial=0)) + 1
    eta = np.stack([_map_odds(method, fitted, m, held.centre) for m in range(n_maps)])
    # Classes of one map share their log-odds: their counts are added first.
    merged = _of_groups(held, fitted["of_class"])
    return log_loss_sum(eta, merged.total, merged.positive)


def _map_odds(
    method: str, fitted: dict[str, NDArray[Any]], m: int, odds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Calibrated log-odds under map m."""
    if method == "none":
        return odds
    if method in PARAMETRIC:
        return parametric_features(odds, method) @ fitted["curve"][m]
    a, b = fitted["starts"][m : m + 2]
    level = np.interp(odds, fitted["knot_odds"][a:b], fitted["knot_proba"][a:b])
    return logit(level)


def _apply_knots(
    method: str,
    fitted: dict[str, NDArray[Any]],
    values: NDArray[np.float32],
    columns: NDArray[np.int32],
) -> NDArray[np.float32]:
    """Calibrated probabilities of flat entries; zeros stay."""
    out = np.zeros(len(values), np.float32)
    of_entry = fitted["of_class"][columns]
    n_maps = int(fitted["of_class"].max(initial=0)) + 1
    for m in range(n_maps):
        mine = (values > 0) & (of_entry == m) if n_maps > 1 else values > 0
        out[mine] = expit(_map_odds(method, fitted, m, log_odds(values[mine])))
    return out
