"""Why the stack moved a label: importance of blocks, and each label's own contributions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils.validation import check_is_fitted

from features.numeric import logit, sigmoid
from features.schema import Stack
from stacker._align import read_known, read_new
from stacker._proba import cells, values_of
from stacker.blend import weighted_log_loss
from stacker.evaluation import log_loss
from stacker.fbeta import fbeta_score

__all__ = ["explain", "explain_features", "gain_importance", "permutation_importance"]

Float = NDArray[np.float32]
BIAS, START = "(bias)", "(start)"
LABELS = ("changed", "predicted")


def gain_importance(model: Any, by: str = "block") -> pd.DataFrame:
    """Share of the boosters' gain by block or by feature.

    Parameters
    ----------
    model : fitted PairStacker
    by : {"block", "feature"}

    Returns
    -------
    DataFrame
        ``block``, (``feature``,) ``gain`` (shares that sum to 1), ``n_columns`` for blocks; the
        most important first.

    Examples
    --------
    >>> from stacker import PairStacker
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> model = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1).fit(X, Y)
    >>> gain_importance(model)["block"].tolist()
    ['logits']
    """
    if by not in ("block", "feature"):
        raise ValueError(f"by must be 'block' or 'feature'. Got {by!r} instead.")
    frame = pd.DataFrame(
        {
            "block": [column.block for column in model.columns_],
            "feature": model.feature_names_,
            "gain": model.feature_importances_,
        }
    )
    if by == "block":
        gains = frame.groupby("block", sort=False)["gain"]
        frame = pd.DataFrame({"gain": gains.sum(), "n_columns": gains.size()}).reset_index()
    return frame.sort_values("gain", ascending=False, kind="stable", ignore_index=True)


def permutation_importance(
    model: Any,
    X: Any,
    Y: Any = None,
    *,
    n_repeats: int = 3,
    max_images: int = 1000,
    random_state: int | None = 0,
) -> pd.DataFrame:
    """Measure what is lost when a block's columns are shuffled over the rows.

    All columns of a block move together, so that blocks that repeat each other column by column
    are not taken for useless. Unlike gain it is measured on images of your choice: give images
    that the model was not fitted on.

    Parameters
    ----------
    model : fitted PairStacker
    X, Y
        As for `PairStacker.score`.
    n_repeats : int, default 3
    max_images : int, default 1000
        A random sample of this many images is used.
    random_state : int or None, default 0

    Returns
    -------
    DataFrame
        ``block``, ``fbeta_loss`` (drop of the model's own F-beta), ``fbeta_std`` (over repeats),
        ``log_loss_rise`` (nats per candidate row); the greatest drop of log loss first.

    Examples
    --------
    >>> from stacker import PairStacker
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> model = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1).fit(X, Y)
    >>> permutation_importance(model, X, Y, n_repeats=1)["block"].tolist()
    ['logits']
    """
    check_is_fitted(model, "boosters_")
    rng = np.random.default_rng(random_state)
    stack, labels = _labelled(model, X, Y, max_images, rng)
    base, start = model.base_.predict(stack)
    blocks = list(dict.fromkeys(column.block for column in model.columns_))
    columns = {b: [i for i, c in enumerate(model.columns_) if c.block == b] for b in blocks}
    trials = [(None, 0)] + [(block, r) for block in blocks for r in range(n_repeats)]
    found = {trial: base.copy() for trial in trials}
    for batch in model.features_.batches(stack):
        at = cells(base, batch.row_image, batch.row_class)
        own_base = values_of(base)[at]
        for trial in trials:
            features = batch.features
            if trial[0] is not None:
                features = features.copy()
                order = rng.permutation(len(features))
                own = np.asarray(columns[trial[0]])
                features[:, own] = batch.features[order][:, own]
            trees = np.mean([b.correction(features) for b in model.boosters_], axis=0)
            ahead = _head_start(model, own_base, values_of(start)[at])
            moved = logit(own_base) + ahead + model.shrinkage_ * trees
            values_of(found[trial])[at] = sigmoid(moved)
    scores = {trial: _scores(model, labels, proba) for trial, proba in found.items()}
    return _permutation_table(scores, blocks, n_repeats, model, stack)


def _permutation_table(
    scores: dict[Any, tuple[float, float]], blocks: list[str], n_repeats: int, model: Any, X: Stack
) -> pd.DataFrame:
    f0, loss0 = scores[(None, 0)]
    # Only rows can change: the rise is told per row, not per pair.
    n_pairs = len(X) * len(model.classes_)
    per_row = n_pairs / max(len(model.features_.all_candidates(X)), 1)
    rows = []
    for block in blocks:
        own = np.array([scores[(block, r)] for r in range(n_repeats)])
        rows.append(
            {
                "block": block,
                "fbeta_loss": f0 - own[:, 0].mean(),
                "fbeta_std": own[:, 0].std(),
                "log_loss_rise": (own[:, 1].mean() - loss0) * per_row,
            }
        )
    frame = pd.DataFrame(rows)
    return frame.sort_values("log_loss_rise", ascending=False, kind="stable", ignore_index=True)


def explain(
    model: Any, X: Any, image: Any, *, labels: str | Sequence[str] = "changed"
) -> pd.DataFrame:
    """Why each label of an image was added or dropped against the base.

    Parameters
    ----------
    model : fitted PairStacker
    X : Stack, FeatureStore, mapping or 3-D array
        Predictions that hold the image.
    image : str or int
        Its id, or its position.
    labels : {"changed", "predicted"} or sequence of class names
        "changed": in the label set of the stack or of the base, not both; "predicted": in either.

    Returns
    -------
    DataFrame
        Indexed by class: ``change`` ("added", "dropped", "kept" or ""), ``base`` and ``stack``
        (probabilities), ``correction`` (of the log-odds), then one column for each block: its
        share of the correction, by SHAP values from the booster itself (Lundberg, Erion and Lee,
        2018). Blocks, "(bias)" (the boosters' mean) and "(start)" (the blend that they start
        from, against the base) sum to the correction. The greatest correction first.

    Examples
    --------
    >>> from stacker import PairStacker
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> model = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1).fit(X, Y)
    >>> explain(model, X, 0, labels=["2"])[["change", "logits"]].shape
    (1, 2)
    """
    told = _Told(model, X, image, labels)
    blocks = np.array([column.block for column in model.columns_])
    names = list(dict.fromkeys(blocks.tolist()))
    frame = told.frame()
    for name in names:
        frame[name] = told.parts[:, :-1][:, blocks == name].sum(axis=1)
    frame[BIAS], frame[START] = told.parts[:, -1], told.start
    order = np.argsort(-frame["correction"].abs().to_numpy(), kind="stable")
    return frame.iloc[order]


def explain_features(
    model: Any,
    X: Any,
    image: Any,
    *,
    labels: str | Sequence[str] = "changed",
    n_features: int = 10,
) -> pd.DataFrame:
    """Single features behind `explain`: the strongest contributions to each label.

    Returns
    -------
    DataFrame
        ``class``, ``change``, ``block``, ``feature``, ``value`` (the feature's), ``contribution``
        (to the log-odds); `n_features` a class, the strongest first.

    Examples
    --------
    >>> from stacker import PairStacker
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> model = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1).fit(X, Y)
    >>> explain_features(model, X, 0, labels=["2"], n_features=2)["block"].tolist()
    ['logits', 'logits']
    """
    told = _Told(model, X, image, labels)
    contributions = told.parts[:, :-1]
    top = np.argsort(-np.abs(contributions), axis=1, kind="stable")[:, :n_features]
    at = np.repeat(np.arange(len(top)), top.shape[1]), top.ravel()
    frame = told.frame()
    return pd.DataFrame(
        {
            "class": frame.index.to_numpy()[at[0]],
            "change": frame["change"].to_numpy()[at[0]],
            "block": np.array([column.block for column in model.columns_])[at[1]],
            "feature": np.array(model.feature_names_)[at[1]],
            "value": told.values[at],
            "contribution": contributions[at],
        }
    )


class _Told:
    """One image's classes of interest, with the contributions to their corrections.

    Attributes
    ----------
    classes : int array of shape (n_shown,)
    parts : float32 array of shape (n_shown, n_columns + 1)
        Contributions to the log-odds, the bias last; zero where the class is no candidate.
    start : float32 array of shape (n_shown,)
        Contribution of the boosters' initial score, where it is not the base's.
    values : float32 array of shape (n_shown, n_columns)
        Features; NaN where the class is no candidate.
    """

    def __init__(self, model: Any, X: Any, image: Any, labels: str | Sequence[str]) -> None:
        check_is_fitted(model, "boosters_")
        self.model = model
        one = _one_image(model, X, image)
        self.base, start = map(_dense, model.base_.predict(one))
        self.proba = _dense(model.predict_proba(one))
        # The rules see the image among no others: label sets are made image by image.
        self.before = np.asarray(model.base_decision_.predict(self.base))[0] > 0
        self.after = np.asarray(model.decision_.predict(self.proba))[0] > 0
        self.classes = self._shown(labels)
        n_columns = len(model.columns_)
        self.parts = np.zeros((len(self.classes), n_columns + 1), dtype=np.float32)
        self.start = np.zeros(len(self.classes), dtype=np.float32)
        self.values = np.full((len(self.classes), n_columns), np.nan, dtype=np.float32)
        for features, cls in _rows_of(model, one):
            wanted = np.isin(cls, self.classes)
            place, own = np.searchsorted(self.classes, cls[wanted]), features[wanted]
            self.parts[place] = contributions(model, own)
            at = 0, cls[wanted]
            self.start[place] = _head_start(model, self.base[at], start[at])
            self.values[place] = own

    def _shown(self, labels: str | Sequence[str]) -> NDArray[np.intp]:
        if isinstance(labels, str):
            if labels not in LABELS:
                raise ValueError(f"labels must be of {LABELS} or class names. Got {labels!r}.")
            shown = self.before != self.after if labels == "changed" else self.before | self.after
            return np.flatnonzero(shown)
        return np.sort(self.model.seen_["space"].index(list(labels)))

    def frame(self) -> pd.DataFrame:
        """Class, change, probabilities and correction."""
        c = self.classes
        change = np.select(
            [self.after[c] & ~self.before[c], self.before[c] & ~self.after[c], self.after[c]],
            ["added", "dropped", "kept"],
            default="",
        )
        return pd.DataFrame(
            {
                "change": change,
                "base": self.base[0, c],
                "stack": self.proba[0, c],
                "correction": self.parts.sum(axis=1) + self.start,
            },
            index=pd.Index(self.model.classes_[c], name="class"),
        )


def _dense(proba: Any) -> Float:
    """Probabilities of one image as an array, also of a top-k stack."""
    return np.asarray(proba.toarray() if issparse(proba) else proba)


def contributions(model: Any, features: Float) -> Float:
    """Contribution of each column, and of the bias, to the log-odds, shrunk as they are.

    Parameters
    ----------
    model : fitted PairStacker
    features : float32 array of shape (n_rows, n_columns)

    Returns
    -------
    float32 array of shape (n_rows, n_columns + 1)
        Rows sum to the shrinkage times the sum of the trees.
    """
    if model.shrinkage_ == 0 or not len(features):
        return np.zeros((len(features), features.shape[1] + 1), dtype=np.float32)
    own = [booster.contributions(features) for booster in model.boosters_]
    return np.asarray(model.shrinkage_ * np.mean(own, axis=0), dtype=np.float32)


def _head_start(model: Any, base: Float, start: Float) -> Float:
    """Tell what the boosters' start adds to the base's log-odds before any tree."""
    return np.asarray(model.shrinkage_ * (logit(start) - logit(base)), dtype=np.float32)


def _rows_of(model: Any, stack: Stack) -> Iterator[tuple[Float, NDArray[np.int32]]]:
    for batch in model.features_.batches(stack):
        yield batch.features.copy(), batch.row_class


def _one_image(model: Any, X: Any, image: Any) -> Stack:
    stack = read_new(X, model.seen_)
    if isinstance(image, int | np.integer):
        if not -len(stack) <= image < len(stack):
            raise ValueError(f"image must be a position below {len(stack)}. Got {image}.")
        return stack[[int(image)]]
    found = np.flatnonzero(stack.image_ids == str(image))
    if not len(found):
        first = stack.image_ids[:3].tolist()
        raise ValueError(f"X has no image {str(image)!r}; its first images are {first}.")
    return stack[found[:1]]


def _labelled(
    model: Any, X: Any, Y: Any, max_images: int, rng: np.random.Generator
) -> tuple[Stack, Any]:
    """Pick some labelled images, labels in the model's order of classes."""
    stack, labels, _ = read_known(X, Y, model.seen_)
    if len(stack) <= max_images:
        return stack, labels
    picked = np.sort(rng.choice(len(stack), max_images, replace=False))
    return stack[picked], labels[picked]


def _scores(model: Any, labels: Any, proba: Any) -> tuple[float, float]:
    score = fbeta_score(labels, model.decision_.predict(proba), model.beta, model.average)
    if issparse(proba):
        return score, log_loss(labels, proba)
    return score, weighted_log_loss(logit(proba), labels.toarray().astype(np.float32))
