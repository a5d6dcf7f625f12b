"""`StackingMultilabelClassifier`: a stack over ordinary features and scikit-learn classifiers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import ClassifierMixin, clone
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import _safe_indexing, get_tags
from sklearn.utils.metaestimators import _BaseComposition, available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from features.schema import Stack
from stacker._frame_order import as_pandas, in_image_order, in_order_of, index_of
from stacker._inputs import check_labels, refuse_names
from stacker._level_one import (
    STACK_METHODS,
    choose_method,
    folds_of,
    out_of_fold,
    read_probabilities,
)
from stacker.estimator import PairStacker
from stacker.fbeta import fbeta_score

__all__ = ["StackingMultilabelClassifier"]

logger = logging.getLogger(__name__)


def _final_has(method: str) -> Any:
    def check(self: StackingMultilabelClassifier) -> bool:
        final = getattr(self, "final_estimator_", self.final_estimator)
        return final is None or hasattr(final, method)

    return check


class StackingMultilabelClassifier(ClassifierMixin, _BaseComposition):
    """Stack scikit-learn classifiers on ordinary features, with many labels an image.

    scikit-learn's ``StackingClassifier`` takes one label an image. Here each estimator predicts
    every class out-of-fold, and a `PairStacker` (or any estimator) learns from these.

    Parameters
    ----------
    estimators : list of (str, estimator)
        Level one: classifiers that take a 0/1 matrix of labels. "drop" leaves one out.
    final_estimator : estimator, optional
        Default: a `PairStacker`. An estimator that takes three-dimensional X gets a `Stack`; any
        other gets the probabilities side by side, (n_images, n_models * n_classes).
    cv : int, splitter or iterable of (train, test)
        Folds of level one. A number makes folds that are stratified by every label and keep
        groups together; images that a splitter never holds out do not reach the final estimator.
    stack_method : {"auto", "predict_proba", "decision_function", "predict"}
        What is asked of the estimators; "auto" takes the first that each has. Scores of
        `decision_function` go through a sigmoid.
    passthrough : bool
        Give the final estimator the features too: a `Stack` gets them as embeddings, from which
        the stack builds neighbours and class centroids.
    random_state : int or None
        Seed of the folds and of the default final estimator.

    Attributes
    ----------
    estimators_ : list of estimators fitted on all images
    named_estimators_ : dict of name to fitted estimator
    final_estimator_ : fitted estimator
    classes_ : array of shape (n_classes,)
        Column names where Y is a DataFrame, else positions; the labels of a vector.
    oof_stack_ : Stack of the images that were held out
        Out-of-fold probabilities of level one.
    folds_ : int16 array of shape (n_images,)
        Fold in which an image was held out; -1 where in none.
    n_features_in_ : int
    feature_names_in_ : str array of shape (n_features,)
        Where X is a DataFrame.

    Notes
    -----
    A vector y (one label an image) is taken too: probabilities then sum to 1 and the most
    probable class is predicted.

    Examples
    --------
    >>> from sklearn.datasets import make_multilabel_classification
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> X, Y = make_multilabel_classification(120, n_classes=4, random_state=0)
    >>> forest = RandomForestClassifier(20, random_state=0)
    >>> models = [("near", KNeighborsClassifier()), ("forest", forest)]
    >>> stack = StackingMultilabelClassifier(models, cv=3, random_state=0).fit(X, Y)
    >>> stack.predict(X).shape, stack.oof_stack_.models
    ((120, 4), ['near', 'forest'])
    """

    def __init__(
        self,
        estimators: Sequence[tuple[str, Any]],
        final_estimator: Any = None,
        *,
        cv: Any = 5,
        stack_method: str = "auto",
        passthrough: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.estimators = estimators
        self.final_estimator = final_estimator
        self.cv = cv
        self.stack_method = stack_method
        self.passthrough = passthrough
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: ArrayLike | None = None) -> StackingMultilabelClassifier:
        """Fit level one out-of-fold and on all images, and the final estimator on the former.

        Parameters
        ----------
        X : array, DataFrame, sparse matrix or list with n_images rows
            Handed to the estimators as it is; of a polars frame a column ``image_id`` holds the
            names of the rows and is no feature.
        y : 0/1 array, DataFrame or sparse matrix (n_images, n_classes), or (n_images,) labels
            Rows of frames, and `groups` as a Series, are matched with those of X by their index.
        groups : array-like of shape (n_images,), optional
            Images of one group never part.

        Returns
        -------
        StackingMultilabelClassifier
            Itself.
        """
        named = self._check_estimators()
        groups = in_image_order(groups, index_of(X, y), "groups")
        y = in_order_of(as_pandas(y), index_of(X))
        X = self._read_features(X, reset=True)
        target, labels = self._read_target(y)
        check_consistent_length(X, target, groups)
        seed = self.random_state or 0
        self.folds_ = folds_of(self.cv, X, target, labels, groups, seed)
        self.stack_method_ = {n: choose_method(e, self.stack_method, n) for n, e in named}
        held = {}
        for name, estimator in named:
            logger.debug("level one: %s", name)
            method = self.stack_method_[name]
            held[name] = out_of_fold(estimator, X, target, self.folds_, method, len(self.classes_))
        self.estimators_ = [clone(estimator).fit(X, target) for _, estimator in named]
        self._fit_final(held, X, target, labels, groups)
        return self

    def _fit_final(
        self, held: dict[str, Any], X: Any, target: Any, labels: Any, groups: Any
    ) -> None:
        picked = np.flatnonzero(self.folds_ >= 0)
        self.oof_stack_ = self._stack(
            {name: values[picked] for name, values in held.items()}, _safe_indexing(X, picked)
        )
        final = self.final_estimator
        final = PairStacker(random_state=self.random_state) if final is None else clone(final)
        takes_groups = "groups" in inspect.signature(final.fit).parameters
        extra = (
            {"groups": np.asarray(groups)[picked]} if takes_groups and groups is not None else {}
        )
        self.final_takes_stack_ = get_tags(final).input_tags.three_d_array
        own = labels if self.final_takes_stack_ else target
        self.final_estimator_ = final.fit(self._final_input(self.oof_stack_), own[picked], **extra)

    @property
    def named_estimators_(self) -> dict[str, Any]:
        """Fitted estimators of level one by name."""
        check_is_fitted(self, "estimators_")
        return dict(zip(self.stack_method_, self.estimators_, strict=True))

    def level_one(self, X: Any) -> Stack:
        """Probabilities of level one for new images, as a `Stack`."""
        check_is_fitted(self, "final_estimator_")
        X = self._read_features(X, reset=False)
        ndim, n_classes = 1 if self.one_label_ else 2, len(self.classes_)
        probs = {
            name: read_probabilities(fitted, X, self.stack_method_[name], ndim, n_classes)
            for name, fitted in self.named_estimators_.items()
        }
        return self._stack(probs, X)

    @available_if(_final_has("predict_proba"))
    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Probability of every class of every image, float32 (n_images, n_classes)."""
        level_one = self._final_input(self.level_one(X))
        if self.final_takes_stack_:
            proba = self.final_estimator_.predict_proba(level_one)
            return _to_one(proba) if self.one_label_ else proba
        ndim, n_classes = 1 if self.one_label_ else 2, len(self.classes_)
        return read_probabilities(
            self.final_estimator_, level_one, "predict_proba", ndim, n_classes
        )

    @available_if(_final_has("predict"))
    def predict(self, X: Any) -> NDArray[Any]:
        """Label sets, 0/1 of shape (n_images, n_classes); labels where `fit` had a vector."""
        stack = self.level_one(X)
        if self.one_label_ and self.final_takes_stack_:
            proba = self.final_estimator_.predict_proba(self._final_input(stack))
            return self.classes_[proba.argmax(axis=1)]
        found = self.final_estimator_.predict(self._final_input(stack))
        if self.one_label_:
            return self.classes_[np.asarray(found, dtype=np.int64)]
        return found.astype(self.label_dtype_)

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """F-beta of the label sets, by the final estimator's beta and average (default 2, samples).

        Where `fit` had a vector: accuracy.
        """
        check_is_fitted(self, "final_estimator_")
        if sample_weight is not None and not self.one_label_:
            raise ValueError("sample_weight must be None: F-beta of label sets has no weights.")
        y = in_order_of(as_pandas(y), index_of(X), None if self.one_label_ else self.classes_)
        if self.one_label_:
            return float(super().score(X, y, sample_weight))
        final = self.final_estimator_
        beta, average = getattr(final, "beta", 2.0), getattr(final, "average", "samples")
        return fbeta_score(check_labels(y), self.predict(X), beta, average)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters; with `deep` the estimators by name and their own as ``name__parameter``."""
        return self._get_params("estimators", deep=deep)

    def set_params(self, **params: Any) -> StackingMultilabelClassifier:
        """Set parameters, whole estimators by name, or their own as ``name__parameter``."""
        self._set_params("estimators", **params)
        return self

    def _check_estimators(self) -> list[tuple[str, Any]]:
        """Give the estimators that are not "drop", after checking names and parameters."""
        given = self.estimators
        if not given or any(not isinstance(e, tuple) or len(e) != 2 for e in given):
            raise ValueError(
                "The 'estimators' parameter must be a non-empty list of (name, estimator). "
                f"Got {given!r} instead."
            )
        self._validate_names([name for name, _ in given])
        if self.stack_method not in ("auto", *STACK_METHODS):
            raise ValueError(
                f"The 'stack_method' parameter must be 'auto' or of {STACK_METHODS}. "
                f"Got {self.stack_method!r} instead."
            )
        named = [(name, e) for name, e in given if not (isinstance(e, str) and e == "drop")]
        if not named:
            raise ValueError("all estimators are 'drop': at least one must be left.")
        return named

    def _read_target(self, Y: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give what level one is fitted on, and 0/1 labels (n_images, n_classes).

        The first is the same matrix, or class positions (n_images,) where Y is a vector.
        """
        if Y is None:
            raise ValueError(
                "This StackingMultilabelClassifier estimator requires y to be passed, but the "
                "target y is None."
            )
        Y = as_pandas(Y)
        matrix = _binary_matrix(Y)
        self.one_label_ = matrix is None
        if matrix is not None:
            given = np.dtype(getattr(Y, "dtype", np.int64))
            self.label_dtype_ = given if given.kind in "iu" else np.dtype(np.int64)
            self.classes_ = np.asarray(
                Y.columns if isinstance(Y, pd.DataFrame) else np.arange(matrix.shape[1])
            )
            return matrix, matrix
        check_classification_targets(Y)
        encoder = LabelEncoder().fit(column_or_1d(Y, warn=True))
        self.classes_ = encoder.classes_
        if len(self.classes_) < 2:
            raise ValueError(
                f"y holds one class only, {self.classes_[0]!r}: there is nothing to learn. "
                "Classifier can't train when only one class is present."
            )
        codes = encoder.transform(column_or_1d(Y)).astype(np.int64)
        return codes, (codes[:, None] == np.arange(len(self.classes_))).astype(np.int64)

    def _read_features(self, X: Any, *, reset: bool) -> Any:
        """Check numbers; leave tables and texts to the estimators, with their names remembered."""
        if hasattr(X, "get_columns") and "image_id" in X.columns:
            X = X.drop("image_id")
        if _is_table_or_text(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        finite = not get_tags(self).input_tags.allow_nan
        return validate_data(
            self, X, reset=reset, accept_sparse="csr", dtype=None, ensure_all_finite=finite
        )

    def _stack(self, probs: dict[str, Any], X: Any) -> Stack:
        features = {"features": _as_embeddings(X)} if self.passthrough else None
        return Stack(probs, classes=self.classes_.astype(str), embeddings=features)

    def _final_input(self, stack: Stack) -> Any:
        if self.final_takes_stack_:
            return stack
        parts = [*stack.probabilities.values(), *stack.embeddings.values()]
        return np.hstack(parts)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.target_tags.multi_output = True
        given = [e for _, e in self.estimators if not isinstance(e, str)]
        tags.input_tags.sparse = all(get_tags(e).input_tags.sparse for e in given)
        tags.input_tags.allow_nan = all(get_tags(e).input_tags.allow_nan for e in given)
        return tags


def _is_table_or_text(X: Any) -> bool:
    """Whether X is a DataFrame, or one text an image: for the estimators to read."""
    if sparse.issparse(X) or isinstance(X, np.ndarray):
        return isinstance(X, np.ndarray) and X.ndim == 1 and X.dtype.kind in "OUT"
    if hasattr(X, "iloc") or hasattr(X, "get_columns"):
        return True
    return isinstance(X, list) and bool(X) and isinstance(X[0], str)


def _binary_matrix(Y: Any) -> NDArray[np.int64] | None:
    """Dense 0/1 labels of shape (n_images, n_classes), or None where Y is a vector of labels."""
    if sparse.issparse(Y):
        return np.asarray(check_labels(Y).toarray(), dtype=np.int64)
    refuse_names(Y, "y")
    values = np.asarray(Y)
    column = values.ndim == 2 and values.shape[1] == 1
    if column and values.size and values.dtype.kind in "biuf" and np.isin(values, (0, 1)).all():
        return values.astype(np.int64)
    if values.ndim != 2 or column:
        return None
    return np.asarray(check_labels(values).toarray(), dtype=np.int64)


def _as_embeddings(X: Any) -> NDArray[np.float32]:
    if sparse.issparse(X):
        raise ValueError(
            "passthrough=True needs dense features. Reduce sparse ones first, for example with "
            "sklearn.decomposition.TruncatedSVD."
        )
    return np.asarray(X, dtype=np.float32)


def _to_one(proba: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide rows by their sums: exactly one label is true."""
    total = proba.sum(axis=1, keepdims=True)
    even = np.float32(1 / proba.shape[1])
    return np.where(total > 0, proba / np.maximum(total, 1e-30), even)
