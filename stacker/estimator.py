"""`PairStacker`: many models' out-of-fold probabilities to label sets."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, issparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from features.assemble import PairFeatures, parse_bytes
from features.numeric import logit, sigmoid
from features.schema import Stack
from stacker._align import read_known, read_new, seen_names
from stacker._base import fit_base
from stacker._column_rules import CLASS_ID, class_id_pays, monotone_params, without_class_id
from stacker._frames_out import FrameMixin
from stacker._proba import cells, join_rows, spread_rows, values_of
from stacker._rounds import Stages, choose_stages
from stacker._saving import libraries, model_tree, restore_model
from stacker._training_folds import feature_folds
from stacker._training_set import TrainingSet, labels_of, read_training_set
from stacker.blend import BLENDS
from stacker.boosters import BOOSTERS, FoldFit, Rows
from stacker.decision import FBetaDecision
from stacker.fbeta import check_target, fbeta_score
from stacker.persistence import read_folder, write_folder

__all__ = ["PairStacker"]

logger = logging.getLogger(__name__)

MOST_ROUNDS = 600
PATIENCE = 60


class PairStacker(FrameMixin, BaseEstimator):
    """Second-level stacking for multi-label tagging: pair rows, boosting, F-beta decisions.

    Every (image, class) pair that is a candidate becomes a row; one booster answers "does the
    class belong to the image?" for all classes. What it finds is shrunk towards the best blend
    of the models, to that blend where it finds nothing; a decision rule turns the probabilities
    into label sets.

    Parameters
    ----------
    booster : {"lightgbm", "xgboost"} or tuple of both
        A tuple averages the boosters' logits.
    blocks : "default" or sequence of names or (name, options) pairs
        Feature blocks. "default" takes every default block whose inputs are there and logs the
        rest; in a sequence a missing input is an error.
    candidates : "auto", None, int, float or {class group: int}
        "auto": per class group the smallest k with recall 0.98 on the training labels, at most
        64; None: all classes; 30: the 30 most probable of each class group; 0.01: every class
        whose blended probability is above it.
    base : {"auto", "mean", "logit_mean", "selection", "logistic", None}
        Blend whose logit the boosting starts from; None starts from nothing. "auto" boosts
        from the logit mean and falls back to the blend with the lowest held-out log loss.
    cv : int, "store" or splitter
        Folds that boosting holds out; "store" takes the store's own. Features take finer folds
        inside them (docs/fitting.md).
    n_trials : int
        Optuna trials; 0 trains the defaults.
    decision : "auto" or FBetaDecision
        Rule that makes label sets; "auto" is ``FBetaDecision()`` for `beta` and `average`.
    beta : float
        Weight of recall against precision in F-beta.
    average : {"samples", "macro", "micro"}
        Mean of F-beta that the decision maximises.
    booster_params : dict or None
        Over the defaults of the booster; unknown names are refused. ``"monotone": True`` keeps
        the probability from falling where the blended one rises.
    dask : str or None
        Scheduler address of a cluster, or "current" for the active client: features, boosting
        and predictions run on its workers (docs/scale.md).
    device : {"cpu", "cuda"}
    max_memory : str or int
        Bound on the working memory of the pair rows.
    n_jobs : int or None
        Threads; None takes all cores.
    random_state : int or None
        None is 0: the same fit gives the same model.
    verbose : int
        1 logs progress.

    Attributes
    ----------
    classes_ : str array of shape (n_classes,)
    oof_proba_ : float32 array of shape (n_images, n_classes)
        Out-of-fold probabilities of the training images; NaN where the label is unknown.
    oof_score_, base_score_ : float
        F-beta of the out-of-fold label sets of the stack and of its base, each with its own
        decision rule.
    base_name_ : str
    shrinkage_ : float
        How far the log-odds go from the base (0) to the boosted ones (1).
    rounds_ : dict of booster name to int
    decision_, base_decision_ : fitted FBetaDecision
    candidate_recall_ : dict of class group to float
    feature_names_ : list of str
    feature_importances_ : float64 array of shape (n_columns,)
        Share of the boosters' total gain.
    study_ : optuna.Study or None
    sparse_output_ : bool
        Whether Y was sparse, and label sets are.
    libraries_ : dict of str
        Versions of Python and the libraries that `fit` ran with; a saved model keeps them.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> noisy = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> model = PairStacker(cv=3, random_state=0).fit(noisy, Y)
    >>> model.predict(noisy).shape
    (60, 4)
    """

    study_: Any = None
    sparse_output_ = False

    def __init__(
        self,
        booster: str | tuple[str, ...] = "lightgbm",
        *,
        blocks: Any = "default",
        candidates: Any = "auto",
        base: str | None = "auto",
        cv: Any = 5,
        n_trials: int = 0,
        decision: Any = "auto",
        beta: float = 2.0,
        average: str = "samples",
        booster_params: dict[str, Any] | None = None,
        dask: str | None = None,
        device: str = "cpu",
        max_memory: str | int = "4GB",
        n_jobs: int | None = None,
        random_state: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.booster = booster
        self.blocks = blocks
        self.candidates = candidates
        self.base = base
        self.cv = cv
        self.n_trials = n_trials
        self.decision = decision
        self.beta = beta
        self.average = average
        self.booster_params = booster_params
        self.dask = dask
        self.device = device
        self.max_memory = max_memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        Y: Any = None,
        groups: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> "PairStacker":
        """Fit on out-of-fold probabilities.

        Parameters
        ----------
        X : Stack, FeatureStore, mapping of model to (n_images, n_classes), or 3-D array
        Y : 0/1 array, sparse matrix or list of label lists, (n_images, n_classes)
            A store brings its own.
        groups : array-like of shape (n_images,), optional
            Images of one group never part.
        classes : array-like of shape (n_classes,), optional
            Class names, where X brings none.
        sample_weight : array-like of shape (n_images,), optional

        Returns
        -------
        PairStacker
            Itself.
        """
        self._check_params()
        for name in self.__dict__.pop("_tuned", ()):  # in an earlier fit
            self.__dict__.pop(name, None)
        train = read_training_set(
            X, Y, groups, classes, sample_weight, cv=self.cv, random_state=self.random_state or 0
        )
        self.sparse_output_ = issparse(Y)
        return self._fit_tuned(train) if self.n_trials else self._fit_known(train)

    def _fit_tuned(self, train: TrainingSet) -> "PairStacker":
        """Tune, then fit what was found; parameters stay as they were given."""
        from stacker.tuning import tune_known

        best = tune_known(self, train, n_trials=self.n_trials)
        best._fit_known(train)
        self._tuned = [name for name in vars(best) if name.endswith("_")]
        for name in self._tuned:
            setattr(self, name, getattr(best, name))
        return self

    def _check_params(self) -> None:
        unknown = [name for name in self._booster_names() if name not in BOOSTERS]
        if unknown or not self._booster_names():
            raise ValueError(
                f"The 'booster' parameter must be of {sorted(BOOSTERS)}. Got {self.booster!r}."
            )
        if self.n_trials and len(self._booster_names()) > 1:
            raise ValueError(f"tuning takes one booster at a time. Got {self.booster!r}.")
        if self.base not in (None, "auto", *BLENDS):
            raise ValueError(
                f"The 'base' parameter must be None, 'auto' or of {sorted(BLENDS)}. "
                f"Got {self.base!r} instead."
            )
        if self.decision != "auto" and not isinstance(self.decision, FBetaDecision):
            raise ValueError(
                f"The 'decision' parameter must be 'auto' or FBetaDecision. Got {self.decision!r}."
            )
        if not (self.dask is None or isinstance(self.dask, str)):
            raise ValueError(
                f"The 'dask' parameter must be None, a scheduler's address or 'current'. "
                f"Got {self.dask!r} instead."
            )
        parse_bytes(self.max_memory)
        check_target(self.beta, self.average)

    def _booster_names(self) -> tuple[str, ...]:
        return (self.booster,) if isinstance(self.booster, str) else tuple(self.booster)

    def _fit_known(self, train: TrainingSet) -> "PairStacker":
        """Fit on labelled images."""
        rows, base = self._make_rows(train)
        stages = self._boost(rows)
        oof = base.copy()
        moved = stages.correction != 0  # elsewhere the base stays, to the bit
        corrected = sigmoid(rows.base[moved] + stages.correction[moved])
        values_of(oof)[cells(oof, rows.image[moved], rows.cls[moved])] = corrected
        self.oof_base_proba_ = base
        self._decide(oof, train.labels, train.fold, train.groups)
        self.oof_proba_ = spread_rows(oof, train.picked, train.n_images)
        self.folds_ = np.full(train.n_images, -1, dtype=np.int16)
        self.folds_[train.picked] = train.fold
        self.libraries_ = libraries()
        return self

    def _make_rows(self, train: TrainingSet) -> tuple[Rows, NDArray[np.float32]]:
        """Fit base and features; the rows, and the base's out-of-fold probabilities."""
        stack, labels, fold, groups = train.stack, train.labels, train.fold, train.groups
        self.seen_ = seen_names(stack)
        self.classes_, self.class_group_ = stack.classes, stack.class_group
        self._say("base")
        self.base_, base, start = fit_base(self.base, stack, labels, fold)
        self.base_name_ = self.base_.name
        self._say("features")
        fine = feature_folds(
            fold,
            labels,
            groups,
            whole=groups is None and not isinstance(self.cv, int | np.integer),
            random_state=self.random_state or 0,
        )
        features, far = self._fit_features(train, fine)
        self._take_features(features)
        found = self.features_.all_candidates(stack)
        image, cls = found.row_image, found.classes
        at = cells(base, image, cls)
        rows = Rows(
            self.features_,
            stack,
            fold,
            fine,
            image,
            cls,
            label=labels_of(found, labels),
            base=logit(values_of(base)[at]),
            start=logit(values_of(start)[at]),
            weight=None if train.weight is None else train.weight[image],
            far=far,
        )
        return rows, base

    def _take_features(self, features: PairFeatures) -> None:
        """Keep fitted features, and what they say of columns and candidates."""
        self.features_, self.columns_ = features, features.columns_
        self.feature_names_ = features.feature_names_
        self.candidate_recall_ = features.candidate_recall_
        groups = self.seen_["space"].group_names.tolist()
        self.candidates_ = dict(zip(groups, features.per_group_.tolist(), strict=True))

    def _fit_features(
        self, train: TrainingSet, fold: NDArray[np.int64]
    ) -> tuple[PairFeatures, Any]:
        """Fit the feature blocks, here or on a Dask worker."""
        settings = {
            "blocks": self.blocks,
            "candidates": self.candidates,
            "max_memory": self.max_memory,
            "random_state": self.random_state or 0,
        }
        if self.dask is None:
            features = PairFeatures(**settings, n_jobs=self.n_jobs)
            return features.fit(train.stack, train.labels, fold), None
        from stacker._dask import fit_far

        return fit_far(self.dask, train, fold, settings)

    def _boost(self, rows: Rows) -> Stages:
        """Cross-validate the boosters, choose rounds and shrinkage, fit on all rows."""
        adapters: dict[str, Any] = {}
        binned: dict[str, Any] = {}
        fits: dict[str, dict[int, FoldFit]] = {}
        for name in self._booster_names():
            self._say("%s: binning %d rows x %d columns", name, len(rows), len(self.columns_))
            adapters[name] = self._adapter(name)
            binned[name] = adapters[name].bin(rows)
            self._drop_class_id(adapters[name], binned[name], rows)
            fits[name] = {}
            for k in range(int(rows.row_fold.max()) + 1):
                self._say("%s: fold %d", name, k)
                fits[name][k] = adapters[name].fit_fold(
                    binned[name], rows, k, rounds=MOST_ROUNDS, patience=PATIENCE
                )
        stages = choose_stages(fits, rows)
        self.rounds_, self.shrinkage_ = stages.rounds, stages.shrinkage
        self._say("rounds %s, shrinkage %.1f", stages.rounds, stages.shrinkage)
        if stages.shrinkage == 0:
            self._say(
                "boosting adds nothing beyond noise: the model is its base, %s", self.base_name_
            )
        self.boosters_ = [
            adapters[name].fit(binned[name], rows, max(1, stages.rounds[name])) for name in adapters
        ]
        return stages

    def _drop_class_id(self, adapter: Any, binned: Any, rows: Rows) -> None:
        """Leave the class id out where held-out folds do not choose it."""
        if (
            adapter.name != "lightgbm"
            or self.dask is not None
            or CLASS_ID not in self.feature_names_
        ):
            return
        if not class_id_pays(adapter, binned, rows, self.columns_):
            adapter.params = without_class_id(adapter.params, self.columns_)

    def _adapter(self, name: str) -> Any:
        params = monotone_params(dict(self.booster_params or {}), self.columns_, name)
        seed = self.random_state or 0
        if self.dask is not None:
            from stacker._dask import DASK_BOOSTERS

            device = {"device": self.device} if name == "xgboost" else {}
            return DASK_BOOSTERS[name](params, seed, **device)
        if name == "xgboost":
            return BOOSTERS[name](params, self.n_jobs, seed, self.device)
        return BOOSTERS[name](
            params | ({"device_type": "cuda"} if self.device == "cuda" else {}), self.n_jobs, seed
        )

    def _decide(
        self,
        oof: NDArray[np.float32],
        labels: csr_array,
        fold: NDArray[np.int64],
        groups: NDArray[Any] | None,
    ) -> None:
        """Fit the decision rules of the stack and of its base, and score both held out."""
        self._say("decision")
        self.decision_ = self._new_decision().fit(oof, labels, groups)
        self.base_decision_ = self._new_decision().fit(self.oof_base_proba_, labels, groups)
        self.oof_score_ = self._held_out_score(oof, labels, fold, self.decision_)
        self.base_score_ = self._held_out_score(
            self.oof_base_proba_, labels, fold, self.base_decision_
        )

    def _new_decision(self) -> FBetaDecision:
        if self.decision != "auto":
            return FBetaDecision(**self.decision.get_params())
        return FBetaDecision(
            beta=self.beta,
            average=self.average,
            class_groups=self.class_group_,
            random_state=self.random_state or 0,
        )

    def _held_out_score(self, proba: Any, labels: csr_array, fold: Any, rule: Any) -> float:
        """Score label sets whose thresholds were fitted on the other folds."""
        sets, rows = [], []
        for k in range(int(fold.max()) + 1):
            rest, inside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            own = FBetaDecision(**{**rule.get_params(), "strategy": rule.strategy_})
            sets.append(own.fit(proba[rest], labels[rest]).predict(proba[inside]))
            rows.append(inside)
        return fbeta_score(labels, join_rows(sets, rows), self.beta, self.average)

    @property
    def feature_importances_(self) -> NDArray[np.float64]:
        """Share of the boosters' total gain, (n_columns,)."""
        check_is_fitted(self, "boosters_")
        gains = [booster.gain() for booster in self.boosters_]
        return np.mean([gain / max(gain.sum(), 1e-300) for gain in gains], axis=0)

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Probability of every class of every image, float32 (n_images, n_classes).

        Classes that are no candidates of an image keep the base's probability. Of a top-k stack
        a CSR array: what no model holds has probability 0.
        """
        check_is_fitted(self, "boosters_")
        stack = read_new(X, self.seen_)
        out, start = self.base_.predict(stack)
        if self.shrinkage_ == 0:
            return out
        out = out.copy()
        for image, cls, correction in self._corrections(X, stack):
            at = cells(out, image, cls)
            boosted = logit(values_of(start)[at]) + correction
            base = logit(values_of(out)[at])
            values_of(out)[at] = sigmoid(base + np.float32(self.shrinkage_) * (boosted - base))
        return out

    def _corrections(self, X: Any, stack: Stack) -> Any:
        """Image, class and mean correction of the boosters, a batch of rows at a time."""
        if self.dask is not None:
            from stacker._dask import corrections, images_of

            yield from corrections(self.dask, self.features_, self.boosters_, images_of(X, stack))
            return
        for batch in self.features_.batches(stack):
            parts = [booster.correction(batch.features) for booster in self.boosters_]
            yield batch.row_image, batch.row_class, np.mean(parts, axis=0)

    def predict(self, X: Any) -> NDArray[np.int8] | csr_array:
        """Label sets, int8 (n_images, n_classes); CSR of a top-k stack, or after a sparse Y."""
        sets = self.decision_.predict(self.predict_proba(X))
        return csr_array(sets) if self.sparse_output_ else sets

    def predict_labels(self, X: Any) -> list[list[str]]:
        """Label names of every image, in the order of the classes."""
        sets = csr_array(self.predict(X))
        return [
            self.classes_[sets.indices[a:b]].tolist()
            for a, b in zip(sets.indptr[:-1], sets.indptr[1:], strict=True)
        ]

    def score(self, X: Any, Y: Any = None, sample_weight: Any = None) -> float:
        """F-beta, with the beta and average that were asked for, of the predicted label sets."""
        check_is_fitted(self, "boosters_")
        stack, labels, _ = read_known(X, Y, self.seen_)
        return fbeta_score(labels, self.predict(stack), self.beta, self.average)

    def explain(self, X: Any, image: Any, labels: Any = "changed") -> Any:
        """Why labels of an image were added or dropped against the base; see `stacker.explain`.

        Parameters
        ----------
        X : Stack, FeatureStore, mapping or 3-D array that holds the image
        image : str or int
            Its id or position.
        labels : {"changed", "predicted"} or sequence of class names

        Returns
        -------
        DataFrame
            One row a label: probabilities before and after, the correction of its log-odds and
            each block's share of it.
        """
        from stacker.explain import explain

        return explain(self, X, image, labels=labels)

    def save(self, path: str | Path) -> None:
        """Write the model as a folder of JSON, arrays and boosters' text, without pickle."""
        check_is_fitted(self, "boosters_")
        tree, texts = model_tree(self)
        write_folder(path, tree, texts)

    @classmethod
    def load(cls, path: str | Path) -> "PairStacker":
        """Read a model that `save` wrote; every file is checked first."""
        tree, texts = read_folder(path)
        return restore_model(cls, tree, texts)

    def _say(self, message: str, *values: Any) -> None:
        logger.log(logging.INFO if self.verbose else logging.DEBUG, message, *values)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "classifier"
        tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = False
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        return tags
