"""One small adapter for LightGBM and XGBoost: streamed pair rows in, corrections to a base out.

Rows are binned once and reused by every fold and by the last fit. The base's logit is the
initial score (docs/recipes.md: E2), so a booster only learns what the base does not know.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import lightgbm as lgb
import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from features.assemble import PairFeatures
from features.schema import Stack
from stacker._booster_params import (
    LIGHTGBM_DEFAULTS,
    XGBOOST_DEFAULTS,
    by_main_name,
    check_params,
    lightgbm_names,
    xgboost_names,
)
from stacker._booster_text import END, check_lightgbm, check_xgboost
from stacker._spool import Spool
from stacker.blend import weighted_log_loss

Float = NDArray[np.float32]

SAMPLE_ROWS = 200_000  # rows that the bin boundaries are read from: LightGBM's own default
SNAPSHOT_EVERY = 10  # rounds between two looks at the held-out rows
# Negatives that the base already puts below this teach little: a tenth of them, weighted up,
# leaves a third of the rows and the same held-out loss.
EASY = 0.01
EASY_KEPT = 0.1


@dataclass
class Rows:
    """The pair rows of a stack: what is known of each row, and a way to stream its features.

    Attributes
    ----------
    features : fitted PairFeatures
    stack : Stack of n_images
    fold, feature_fold : int arrays of shape (n_images,)
        Folds that boosting holds out, and the finer ones that features are fitted without.
    image, cls : int32 arrays of shape (n_rows,)
    label : float32 array of shape (n_rows,)
    base : float32 array of shape (n_rows,)
        Logit of the base, which the stack falls back to.
    start : float32 array of shape (n_rows,)
        Initial score of the boosters.
    weight : float32 array of shape (n_rows,) or None
    far : stacker._dask.Far or None
        Where the features are on a Dask cluster.
    """

    features: PairFeatures
    stack: Stack
    fold: NDArray[Any]
    feature_fold: NDArray[Any]
    image: NDArray[np.int32]
    cls: NDArray[np.int32]
    label: Float
    base: Float
    start: Float
    weight: Float | None = None
    far: Any = None

    def __post_init__(self) -> None:
        """Refuse folds that nothing can be learned about.

        Raises
        ------
        ValueError
            For a fold whose images have no candidate.
        """
        sizes = np.bincount(self.row_fold, minlength=int(self.fold.max(initial=0)) + 1)
        if not sizes.all():
            raise ValueError(
                f"no image of fold {int(np.argmin(sizes))} has a candidate: there is nothing to "
                "boost. Lower the threshold in candidates=, or give models that hold more classes."
            )

    def __len__(self) -> int:
        return len(self.image)

    @property
    def row_fold(self) -> NDArray[Any]:
        """Fold of each row."""
        return self.fold[self.image]

    def thinned(self, random_state: int) -> tuple[NDArray[np.bool_], Float]:
        """Choose the rows to train on, and the weight of every row that makes up for the rest.

        Returns
        -------
        bool array, float32 array of shape (n_rows,)
        """
        easy = (self.label == 0) & (self.start < np.float32(np.log(EASY / (1 - EASY))))
        lucky = np.random.default_rng(random_state).random(len(self)) < EASY_KEPT
        weight = np.where(easy, np.float32(1 / EASY_KEPT), np.float32(1))
        return ~easy | lucky, weight if self.weight is None else weight * self.weight

    def batches(self) -> Iterator[Float]:
        """Stream the features, float32 (n_batch_rows, n_columns) each; copy to keep."""
        for batch in self.features.batches(self.stack, self.feature_fold):
            if len(batch.features):
                yield batch.features

    def sample(self) -> Float:
        """Features of evenly spaced images, about 200,000 rows, to read bin boundaries from."""
        n_images = max(1, min(len(self.stack), SAMPLE_ROWS // self.features.rows_per_image_))
        picked = np.unique(np.linspace(0, len(self.stack) - 1, n_images).astype(np.int64))
        some = self.features.batches(self.stack[picked], self.feature_fold[picked])
        return np.concatenate([batch.features for batch in (_kept(b) for b in some)])


def _kept(batch: Any) -> Any:
    """Copy a batch out of the shared buffer."""
    return type(batch)(batch.start, batch.candidates, batch.features.copy(), batch.blend)


@dataclass
class FoldFit:
    """What one fold's booster said about its held-out rows.

    Attributes
    ----------
    loss : float64 array of shape (n_rounds // SNAPSHOT_EVERY + 1,)
        Held-out log loss; entry 0 is the start alone, entry j after j * SNAPSHOT_EVERY rounds.
    raw : float32 array of shape (n_snapshots, n_held_out)
        The trees' sum, which goes on top of the start's logit, at each of these moments.
    """

    loss: NDArray[np.float64]
    raw: Any  # an array, or on Dask what fetches a row of it from the workers


class Booster(Protocol):
    """What the two adapters offer."""

    def bin(self, rows: Rows) -> Any:
        """Bin the rows once, for all later fits."""

    def fit_fold(
        self, binned: Any, rows: Rows, fold: int, *, rounds: int, patience: int
    ) -> FoldFit:
        """Fit without one fold and follow its held-out log loss."""

    def fit(self, binned: Any, rows: Rows, rounds: int) -> "Booster":
        """Fit on all rows for a fixed number of rounds."""

    def correction(self, features: Float) -> Float:
        """Sum of the trees, which goes on top of the start's logit, float32 (n_rows,)."""

    def contributions(self, features: Float) -> Float:
        """SHAP values of each column and the bias, float32 (n_rows, n_columns + 1)."""


class LightGBMBooster:
    """LightGBM over streamed rows.

    Parameters
    ----------
    params : dict
        Over the defaults; unknown names are refused.
    n_jobs : int or None
    random_state : int
    """

    name = "lightgbm"

    def __init__(self, params: dict[str, Any], n_jobs: int | None, random_state: int) -> None:
        check_params(params, lightgbm_names(), "LightGBM")
        self.params = {
            **LIGHTGBM_DEFAULTS,
            **by_main_name(params, "LightGBM"),
            "num_threads": n_jobs or 0,
            "seed": random_state,
        }

    def bin(self, rows: Rows) -> lgb.Dataset:
        """Bin the rows: boundaries from a sample, then one pass over the batches.

        Letting LightGBM sample a `Sequence` itself reads 200,000 single rows; a reference data
        set made from our own sample needs none, and keeps the batches in float32.
        """
        binning = {**self.params, "bin_construct_sample_cnt": SAMPLE_ROWS}
        names = [f"f{i}" for i in range(len(rows.features.columns_))]
        reference = lgb.Dataset(
            rows.sample(),
            params=binning,
            feature_name=names,
            categorical_feature=_categorical(rows),
        ).construct()
        stream = _BatchSequences(rows)
        data = lgb.Dataset(stream.sequences, reference=reference, params=binning).construct()
        data.set_label(rows.label)
        data.set_init_score(rows.start.astype(np.float64))
        data.set_weight(rows.thinned(self.params["seed"])[1])
        return data

    def fit_fold(
        self, binned: lgb.Dataset, rows: Rows, fold: int, *, rounds: int, patience: int
    ) -> FoldFit:
        """Fit without one fold; stop when its log loss has not fallen for `patience` rounds."""
        held_out = rows.row_fold == fold
        kept = rows.thinned(self.params["seed"])[0]
        train = binned.subset(np.flatnonzero(kept & ~held_out).tolist())
        valid = binned.subset(np.flatnonzero(held_out).tolist())
        start, label = rows.start[held_out], rows.label[held_out]
        follow = _Follower(start, label, None if rows.weight is None else rows.weight[held_out])
        booster = lgb.Booster(self.params, train)
        booster.add_valid(valid, "held_out")
        for round_ in range(rounds):
            finished = booster.update()
            if (round_ + 1) % SNAPSHOT_EVERY == 0:
                booster.eval_valid(follow.feval)
                if follow.stale(patience) or finished:
                    break
        return follow.result()

    def fit(self, binned: lgb.Dataset, rows: Rows, rounds: int) -> "LightGBMBooster":
        """Fit on all rows."""
        kept = rows.thinned(self.params["seed"])[0]
        train = binned.subset(np.flatnonzero(kept).tolist())
        self.booster_ = lgb.Booster(self.params, train)
        for _ in range(rounds):
            self.booster_.update()
        self.booster_.free_dataset()
        return self

    def correction(self, features: Float) -> Float:
        """Correction to the base's logit of (n_rows, n_columns) features."""
        return self.margin(features, 0, -1)

    def margin(self, features: Float, first: int, stop: int) -> Float:
        """Sum of the trees of rounds first .. stop - 1 (-1: to the last), float32 (n_rows,)."""
        if not len(features):
            return np.empty(0, dtype=np.float32)
        raw = self.booster_.predict(
            features,
            start_iteration=first,
            num_iteration=stop - first if stop >= 0 else -1,
            raw_score=True,
            num_threads=self.params["num_threads"],
        )
        return np.asarray(raw, dtype=np.float32)

    def contributions(self, features: Float) -> Float:
        """SHAP values of each column, and the bias last; rows sum to the correction."""
        threads = self.params["num_threads"]
        parts = self.booster_.predict(features, pred_contrib=True, num_threads=threads)
        return np.asarray(parts, dtype=np.float32)

    def gain(self) -> NDArray[np.float64]:
        """Total gain of each column, (n_columns,)."""
        return np.asarray(self.booster_.feature_importance("gain"), dtype=np.float64)

    def to_text(self) -> str:
        """Write head and trees in LightGBM's text format.

        Without the parameters after them: the number of threads would make two files of one model,
        and no prediction reads them.
        """
        text = str(self.booster_.model_to_string(num_iteration=-1))
        return text[: text.index(END)] + END + "\n"

    def from_text(self, text: str) -> "LightGBMBooster":
        """Read the model from LightGBM's text format, which may come from a stranger."""
        checked = check_lightgbm(text)
        try:
            self.booster_ = lgb.Booster(model_str=checked)
        except lgb.basic.LightGBMError as error:
            raise ValueError(f"the model's booster cannot be read: {error}") from error
        return self


class XGBoostBooster:
    """XGBoost over streamed rows; parameters as for :class:`LightGBMBooster`."""

    name = "xgboost"

    def __init__(
        self, params: dict[str, Any], n_jobs: int | None, random_state: int, device: str = "cpu"
    ) -> None:
        check_params(params, xgboost_names(), "XGBoost")
        self.params = {
            **XGBOOST_DEFAULTS,
            **by_main_name(params, "XGBoost"),
            "nthread": n_jobs or 0,
            "seed": random_state,
            "device": device,
        }

    def bin(self, rows: Rows) -> xgb.QuantileDMatrix:
        """Bin the rows batch by batch."""
        data = xgb.QuantileDMatrix(
            _XGBoostBatches(rows), max_bin=self.params["max_bin"], nthread=self.params["nthread"]
        )
        data.set_info(label=rows.label, base_margin=rows.start)
        return data

    def fit_fold(
        self, binned: xgb.QuantileDMatrix, rows: Rows, fold: int, *, rounds: int, patience: int
    ) -> FoldFit:
        """Fit without one fold: its rows weigh nothing, so the binned rows serve every fold."""
        held_out = rows.row_fold == fold
        kept, weight = rows.thinned(self.params["seed"])
        binned.set_info(weight=np.where(kept & ~held_out, weight, np.float32(0)))
        start, label = rows.start[held_out], rows.label[held_out]
        follow = _Follower(start, label, None if rows.weight is None else rows.weight[held_out])
        booster = xgb.Booster(self.params, [binned])
        for round_ in range(rounds):
            booster.update(binned, round_)
            if (round_ + 1) % SNAPSHOT_EVERY == 0:
                follow.see(booster.predict(binned, output_margin=True)[held_out] - start)
                if follow.stale(patience):
                    break
        return follow.result()

    def fit(self, binned: xgb.QuantileDMatrix, rows: Rows, rounds: int) -> "XGBoostBooster":
        """Fit on all rows."""
        kept, weight = rows.thinned(self.params["seed"])
        binned.set_info(weight=np.where(kept, weight, np.float32(0)))
        self.booster_ = xgb.Booster(self.params, [binned])
        for round_ in range(rounds):
            self.booster_.update(binned, round_)
        self.booster_.reset()
        return self

    def correction(self, features: Float) -> Float:
        """Correction to the base's logit of (n_rows, n_columns) features."""
        return self.margin(features, 0, 0)

    def margin(self, features: Float, first: int, stop: int) -> Float:
        """Sum of the trees of rounds first .. stop - 1 (0: to the last), float32 (n_rows,)."""
        margin = self.booster_.inplace_predict(
            features,
            iteration_range=(first, stop),
            predict_type="margin",
            base_margin=np.zeros(len(features), np.float32),
        )
        return np.asarray(margin, dtype=np.float32)

    def contributions(self, features: Float) -> Float:
        """SHAP values of each column, and the bias last; rows sum to the correction."""
        data = xgb.DMatrix(features, base_margin=np.zeros(len(features), np.float32))
        return np.asarray(self.booster_.predict(data, pred_contribs=True), dtype=np.float32)

    def gain(self) -> NDArray[np.float64]:
        """Total gain of each column, (n_columns,)."""
        found = self.booster_.get_score(importance_type="total_gain")
        width = self.booster_.num_features()
        return np.array([found.get(f"f{i}", 0.0) for i in range(width)], dtype=np.float64)

    def to_text(self) -> str:
        """Write the model in XGBoost's JSON format."""
        return self.booster_.save_raw("json").decode()

    def from_text(self, text: str) -> "XGBoostBooster":
        """Read the model from XGBoost's JSON format, which may come from a stranger."""
        checked = check_xgboost(text)
        self.booster_ = xgb.Booster(self.params)
        try:
            self.booster_.load_model(bytearray(checked.encode()))
        except xgb.core.XGBoostError as error:
            raise ValueError(f"the model's booster cannot be read: {error}") from error
        return self


BOOSTERS: dict[str, Any] = {"lightgbm": LightGBMBooster, "xgboost": XGBoostBooster}


class _Follower:
    """Follows the log loss of held-out rows while a booster grows."""

    def __init__(self, start: Float, label: Float, weight: Float | None) -> None:
        self.start, self.label, self.weight = start, label, weight
        self.losses = [weighted_log_loss(start, label, weight)]
        self.raw = [np.zeros(len(start), dtype=np.float32)]

    def see(self, raw: Float) -> None:
        """Take in the correction after SNAPSHOT_EVERY more rounds."""
        self.raw.append(raw.astype(np.float32))
        self.losses.append(weighted_log_loss(self.start + self.raw[-1], self.label, self.weight))

    def feval(self, predicted: NDArray[Any], data: Any) -> tuple[str, float, bool]:
        """LightGBM's hook: held-out probabilities, start included."""
        p = np.clip(predicted, 1e-12, 1 - 1e-12)
        self.see((np.log(p) - np.log1p(-p)).astype(np.float32) - self.start)
        return "log_loss", self.losses[-1], False

    def stale(self, patience: int) -> bool:
        """Whether the best moment lies `patience` rounds back."""
        since = len(self.losses) - 1 - int(np.argmin(self.losses))
        return since * SNAPSHOT_EVERY >= patience

    def result(self) -> FoldFit:
        return FoldFit(np.array(self.losses), np.stack(self.raw))


class _BatchSequences:
    """One LightGBM `Sequence` a batch, read once and in order from one shared stream."""

    def __init__(self, rows: Rows) -> None:
        self.stream = rows.batches()
        # Images of a top-k stack have different numbers of rows: count them batch by batch.
        starts = np.arange(0, len(rows.stack), rows.features.batch_images())
        stops = np.searchsorted(rows.image, [*starts[1:], len(rows.stack)])
        sizes = np.diff(stops, prepend=0).tolist()
        self.sequences = [_OneBatch(self, size) for size in sizes if size]


class _OneBatch(lgb.Sequence):
    def __init__(self, source: _BatchSequences, size: int) -> None:
        self.source, self.size, self.batch_size = source, size, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Float:
        return next(self.source.stream)


class _XGBoostBatches(xgb.DataIter):
    """Streams the batches to XGBoost, which walks over them more than once."""

    def __init__(self, rows: Rows) -> None:
        size = 4 * len(rows) * len(rows.features.columns_)
        self.spool = Spool(rows.batches, size)
        self.stream = self.spool.batches()
        super().__init__()

    def next(self, input_data: Any) -> bool:
        batch = next(self.stream, None)
        if batch is None:
            return False
        input_data(data=batch)
        return True

    def reset(self) -> None:
        self.stream = self.spool.batches()


def _categorical(rows: Rows) -> list[int]:
    return [i for i, column in enumerate(rows.features.columns_) if column.name == "class_id"]
