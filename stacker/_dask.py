"""Boosting on a Dask cluster: rows live on workers, `xgboost.dask` and `lightgbm.dask` train.

The two adapters do what those of `stacker.boosters` do, with the same folds, start and thinning.
Features never pass through the client; of each row it knows label, base, start, image and class
(20 bytes), and the fold corrections that the shrinkage is chosen on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from features import dask as features_dask
from features.assemble import PairFeatures
from features.dask import Images, Partition, submit
from features.schema import Stack
from features.store import FeatureStore
from stacker.blend import weighted_log_loss
from stacker.boosters import (
    BOOSTERS,
    SNAPSHOT_EVERY,
    FoldFit,
    LightGBMBooster,
    Rows,
    XGBoostBooster,
)

__all__ = ["DASK_BOOSTERS", "Far", "corrections", "fit_far", "images_of"]

logger = logging.getLogger("stacker.estimator")

Float = NDArray[np.float32]
T = TypeVar("T")

ATTEMPTS = 4  # a worker may be lost in three of them
# After a worker was lost: longer than beginning again takes a round of boosting.
STUCK_SECONDS = 600.0
LOOK_EVERY = 5.0
ROWS_PER_PARTITION = 131_072
PARTS_PER_WORKER = 3
# lightgbm.dask has no early stopping: every fold is fitted for so many rounds.
LIGHTGBM_ROUNDS = 300


@dataclass
class Far:
    """Rows on workers.

    Attributes
    ----------
    client : distributed.Client
    images : Images
    state : future of the fitted features
    parts : list of Partition, made when first asked for
    """

    client: Any
    images: Images
    state: Any
    parts: list[Partition] | None = None

    def partitions(self, rows: Rows) -> list[Partition]:
        """Build the rows on the workers, once."""
        if self.parts is None:
            n_rows = np.bincount(rows.image, minlength=self.images.n_images)
            indptr = np.concatenate([[0], np.cumsum(n_rows)])
            _warn_of_memory(self.client, len(rows) * len(rows.features.columns_) * 4)
            # Every worker gets some, so that none waits for the others.
            share = -(-len(rows) // (PARTS_PER_WORKER * len(_workers(self.client))))
            self.parts = features_dask.row_partitions(
                self.client,
                self.state,
                self.images,
                rows.feature_fold,
                indptr,
                rows_per_part=max(1, min(ROWS_PER_PARTITION, share)),
            )
        return self.parts


def fit_far(dask: str, train: Any, fold: NDArray[Any], settings: Any) -> tuple[PairFeatures, Far]:
    """Fit the features of a `TrainingSet` on a worker."""
    client = features_dask.connect(dask)
    if train.store is None:
        images = Images(train.stack)
    else:
        images = Images.of_store(train.store, train.picked)
    state, features = features_dask.fit_features(client, images, train.labels, fold, settings)
    return features, Far(client, images, state)


def images_of(X: Any, stack: Stack) -> Images:
    """Say where workers find new images: in their store, unless it orders its classes otherwise."""
    if isinstance(X, FeatureStore) and X.classes.tolist() == stack.classes.tolist():
        return replace(Images.of_store(X), models=list(stack.models))
    return Images(stack)


class _FarRaw:
    """A fold's corrections after each look at its curve, fetched from the workers when asked."""

    def __init__(self, adapter: _DaskBooster, rows: Rows, held_out: Any, text: str, n: int) -> None:
        self.adapter, self.rows, self.held_out, self.text, self.n = adapter, rows, held_out, text, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, moment: int) -> Float:
        """Correction of the held-out rows, float32 (n_held_out,)."""
        if moment == 0:
            return np.zeros(int(self.held_out.sum()), dtype=np.float32)
        return self.adapter.margins(self.rows, self.held_out, self.text, moment * SNAPSHOT_EVERY)


class _DaskBooster:
    """What the two have in common."""

    name = ""

    def __init__(self, params: dict[str, Any], random_state: int, **extra: Any) -> None:
        # The local adapter checks the parameters, and knows the defaults.
        self.local = BOOSTERS[self.name](params, 1, random_state, **extra)
        self.random_state = random_state

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the booster, without threads: a worker knows how many it has."""
        return {k: v for k, v in self.local.params.items() if k not in ("nthread", "num_threads")}

    def bin(self, rows: Rows) -> list[Partition]:
        """Build the rows on the workers; binning is the boosters' own affair there."""
        return rows.far.partitions(rows)

    def thinned(self, rows: Rows) -> tuple[NDArray[np.bool_], Float]:
        """Rows to train on, and their weights: as on one machine."""
        return rows.thinned(self.random_state)

    def margins(self, rows: Rows, mask: NDArray[np.bool_], text: str, rounds: int) -> Float:
        """Sum of a booster's first trees on some rows, float32 (n_chosen,)."""
        from stacker import _dask_tasks as tasks

        client = rows.far.client

        def gather() -> list[Float]:
            model = submit(client, tasks.same, text)
            return client.gather(
                [
                    submit(client, tasks.margin, part.features, mask[own], self.name, model, rounds)
                    for part, own in _spans(rows)
                ]
            )

        return np.concatenate(_again(client, f"{self.name}: predicting held-out rows", gather))


class DaskXGBoost(_DaskBooster):
    """XGBoost through `xgboost.dask`."""

    name = "xgboost"

    def fit_fold(
        self, binned: Any, rows: Rows, fold: int, *, rounds: int, patience: int
    ) -> FoldFit:
        """Fit without one fold; stop when its log loss has not fallen for `patience` rounds."""
        import xgboost.dask as xgbd

        held_out = rows.row_fold == fold
        kept, weight = self.thinned(rows)
        own = np.ones(len(rows), dtype=np.float32) if rows.weight is None else rows.weight
        client = rows.far.client

        def train() -> Any:
            data = self._matrix(rows, kept & ~held_out, weight)
            held = self._matrix(rows, held_out, own, ref=data)
            return xgbd.train(
                client,
                self.params,
                data,
                num_boost_round=rounds,
                evals=[(held, "held_out")],
                early_stopping_rounds=patience,
                verbose_eval=False,
            )

        found = _again(client, f"xgboost: fold {fold}", train)
        text = found["booster"].save_raw("json").decode()
        losses = found["history"]["held_out"]["logloss"][SNAPSHOT_EVERY - 1 :: SNAPSHOT_EVERY]
        weights = None if rows.weight is None else rows.weight[held_out]
        start = weighted_log_loss(rows.start[held_out], rows.label[held_out], weights)
        curve = np.array([start, *losses], dtype=np.float64)
        return FoldFit(curve, _FarRaw(self, rows, held_out, text, len(curve)))

    def fit(self, binned: Any, rows: Rows, rounds: int) -> XGBoostBooster:
        """Fit on all rows; the booster is a local one from here on."""
        import xgboost.dask as xgbd

        kept, weight = self.thinned(rows)
        client = rows.far.client

        def train() -> Any:
            data = self._matrix(rows, kept, weight)
            return xgbd.train(client, self.params, data, num_boost_round=rounds)["booster"]

        booster = _again(client, "xgboost: all rows", train)
        return self.local.from_text(booster.save_raw("json").decode())

    def _matrix(self, rows: Rows, mask: NDArray[np.bool_], weight: Float, ref: Any = None) -> Any:
        import xgboost.dask as xgbd

        data, label, weights, start = _collections(rows, mask, weight)
        return xgbd.DaskQuantileDMatrix(
            rows.far.client,
            data,
            label,
            weight=weights,
            base_margin=start,
            max_bin=self.params["max_bin"],
            ref=ref,
        )


class DaskLightGBM(_DaskBooster):
    """LightGBM through `lightgbm.dask`: a fixed number of rounds, one fit at a time.

    Its early stopping fails on several workers, and two fits at once wait for each other.
    """

    name = "lightgbm"

    def fit_fold(
        self, binned: Any, rows: Rows, fold: int, *, rounds: int, patience: int
    ) -> FoldFit:
        """Fit without one fold for a fixed number of rounds, then follow its log loss."""
        held_out = rows.row_fold == fold
        kept, weight = self.thinned(rows)
        rounds = min(rounds, LIGHTGBM_ROUNDS)
        text = self._train(rows, kept & ~held_out, weight, rounds, f"fold {fold}")
        curve = self._curve(rows, held_out, text, rounds)
        return FoldFit(curve, _FarRaw(self, rows, held_out, text, len(curve)))

    def fit(self, binned: Any, rows: Rows, rounds: int) -> LightGBMBooster:
        """Fit on all rows; the booster is a local one from here on."""
        kept, weight = self.thinned(rows)
        return self.local.from_text(self._train(rows, kept, weight, rounds, "all rows"))

    def _train(
        self, rows: Rows, mask: NDArray[np.bool_], weight: Float, rounds: int, what: str
    ) -> str:
        import lightgbm.dask as lgbd

        client = rows.far.client

        def train() -> str:
            data, label, weights, start = _collections(rows, mask, weight)
            # A regressor with a binary objective: a classifier would look for its classes on
            # every worker, and a worker may hold one of them only.
            params = {k: v for k, v in self.params.items() if k not in ("boost_from_average",)}
            model = lgbd.DaskLGBMRegressor(
                client=client, n_estimators=rounds, boost_from_average=False, **params
            )
            model.fit(data, label, sample_weight=weights, init_score=start)
            return str(model.booster_.model_to_string(num_iteration=-1))

        return _again(client, f"lightgbm: {what}", train)

    def _curve(
        self, rows: Rows, mask: NDArray[np.bool_], text: str, rounds: int
    ) -> NDArray[np.float64]:
        """Log loss of the held-out rows, before any tree and after every SNAPSHOT_EVERY."""
        from stacker import _dask_tasks as tasks

        client = rows.far.client
        own = np.ones(len(rows), dtype=np.float32) if rows.weight is None else rows.weight

        def gather() -> list[NDArray[np.float64]]:
            model = submit(client, tasks.same, text)
            futures = []
            for part, span in _spans(rows):
                chosen = np.flatnonzero(mask[span]) + span.start
                known = {"label": rows.label[chosen], "start": rows.start[chosen]}
                known["weight"] = own[chosen]
                args = (part.features, mask[span], known, self.name, model, rounds)
                futures.append(submit(client, tasks.curve, *args))
            return client.gather(futures)

        sums = np.sum(_again(client, "lightgbm: held-out loss", gather), axis=0)
        start = weighted_log_loss(rows.start[mask], rows.label[mask], own[mask])
        return np.concatenate([[start], sums / own[mask].sum(dtype=np.float64)])


DASK_BOOSTERS: dict[str, Any] = {"lightgbm": DaskLightGBM, "xgboost": DaskXGBoost}


def corrections(
    dask: str, features: PairFeatures, boosters: list[Any], images: Images
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32], Float]]:
    """Image, class and mean correction of the rows of new images, range by range, from workers."""
    import distributed

    from stacker import _dask_tasks as tasks

    client = features_dask.connect(dask)
    state = features_dask.send_features(client, features)
    texts = submit(client, tasks.same, {b.name: b.to_text() for b in boosters})
    step = max(1, ROWS_PER_PARTITION // features.rows_per_image_)
    futures = {
        submit(client, tasks.corrections, state, images.source(a, a + step), texts): a
        for a in range(0, images.n_images, step)
    }
    for future, (image, cls, raw) in distributed.as_completed(
        futures, with_results=True, loop=client.loop
    ):
        yield futures.pop(future) + image.astype(np.int64), cls, raw


def _spans(rows: Rows) -> Iterator[tuple[Partition, slice]]:
    """Partitions, each with its range of rows."""
    for part in rows.far.partitions(rows):
        first, last = np.searchsorted(rows.image, [part.start, part.stop]).tolist()
        yield part, slice(first, last)


def _collections(rows: Rows, mask: NDArray[np.bool_], weight: Float) -> list[Any]:
    """Features, labels, weights and starts of some rows as Dask arrays with equal partitions."""
    import dask
    import dask.array as da

    from stacker import _dask_tasks as tasks

    n_columns = len(rows.features.columns_)
    take, same = dask.delayed(tasks.take, pure=False), dask.delayed(tasks.same, pure=False)
    parts: list[list[Any]] = [[], [], [], []]
    for part, span in _spans(rows):
        own = mask[span]
        n_rows = int(own.sum())
        if not n_rows:
            continue
        chunk = da.from_delayed(take(part.features, own), (n_rows, n_columns), np.float32)
        parts[0].append(chunk)
        for kept, values in zip(parts[1:], (rows.label, weight, rows.start), strict=True):
            kept.append(da.from_delayed(same(values[span][own]), (n_rows,), np.float32))
    return [da.concatenate(chunks) for chunks in parts]


def _again(client: Any, what: str, run: Callable[[], T]) -> T:
    """Run something on the cluster, and once more when a worker was lost under it.

    Raises
    ------
    RuntimeError
        When it fails though every worker is there, when workers keep being lost, or when those
        that are left wait for a lost one.
    """
    attempt = 0
    while True:
        attempt += 1
        before = _workers(client)
        try:
            return _watched(client, what, run, before)
        except _StuckError:
            raise
        except Exception as error:
            lost = sorted(before - _workers(client))
            if not lost or attempt == ATTEMPTS:
                raise RuntimeError(
                    f"{what} failed on {client.scheduler.address} "
                    f"({len(lost)} of {len(before)} workers were lost): {error}"
                ) from error
            logger.warning("%s: lost the worker %s; it begins again", what, ", ".join(lost))


class _StuckError(RuntimeError):
    """Workers wait for one that is gone."""


def _watched(client: Any, what: str, run: Callable[[], T], before: set[str]) -> T:
    """Run in a thread of its own, and stop waiting for it some time after a worker was lost."""
    outcome: list[T | BaseException] = []

    def work() -> None:
        try:
            # The boosters' Dask modules look for the current client.
            with client.as_current():
                outcome.append(run())
        except BaseException as error:  # handed on to the caller
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    patience = STUCK_SECONDS
    while thread.is_alive():
        thread.join(LOOK_EVERY)
        if thread.is_alive() and before - _workers(client):
            patience -= LOOK_EVERY
            if patience <= 0:
                raise _StuckError(
                    f"{what}: {len(before - _workers(client))} of {len(before)} workers were "
                    f"lost, and for {STUCK_SECONDS:.0f} s the others have waited for them. Restart "
                    "the workers and fit again; booster='xgboost' recovers by itself."
                )
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _warn_of_memory(client: Any, n_bytes: int) -> None:
    """Say so where the rows will not fit the workers: Dask then writes them to disk."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limit = sum(worker["memory_limit"] or 0 for worker in workers)
    if limit and n_bytes > 0.4 * limit:
        logger.warning(
            "the rows take %.1f GB, the %d workers have %.1f GB: what does not fit is spilled to "
            "their disks. Add workers, or take fewer candidates or blocks.",
            n_bytes / 1e9,
            len(workers),
            limit / 1e9,
        )


def _workers(client: Any) -> set[str]:
    return set(client.scheduler_info(n_workers=-1)["workers"])
