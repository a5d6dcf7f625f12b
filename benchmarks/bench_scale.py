"""Past one machine's memory: tens of thousands of classes, a hundred million rows, workers.

    python benchmarks/bench_scale.py wide [--images 300000] [--classes 32000] [--top 100]
    python benchmarks/bench_scale.py rows [--millions 3]
    python benchmarks/bench_scale.py weak [--images 20000]
    python benchmarks/bench_scale.py predict

wide  a top-k stack of three models: fit, predict and evaluate; nothing of images x classes.
rows  pair rows of six models, made, featurised and fitted for 50 rounds range by range through
      XGBoost's external memory: neither the stack nor the rows are ever in memory.
weak  as many images a worker on one Dask worker as on two: time of every stage, and the ratio.
predict  200,000 rows through 100 rounds of trees, on one thread.

Each run prints one line of JSON a stage with its seconds and the largest resident memory so far;
`rows` tells on stderr how far it has come. Its temporary files, in TMPDIR, take 0.22 GB a million
rows for the rows and 0.12 GB for their bins.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb
from measure import peak_rss
from scipy.sparse import csr_array, vstack

from features import PairFeatures, Stack
from features.numeric import sigmoid
from features.parquet import label_at
from stacker import PairStacker
from stacker._booster_params import XGBOOST_DEFAULTS
from stacker._spool import Spool
from stacker.evaluation import evaluate_sets

RANGE = 10_000  # images that are in memory at a time
N_CLASSES = 250
N_MODELS = 6
CANDIDATES = 50
RANGES_A_LINE = 10  # five million rows
ROUNDS = 50


class Stages:
    """Prints what each stage took.

    CPU seconds are those of this process and of the workers: on a busy machine they say more than
    the clock.
    """

    def __init__(self, client: Any = None, **about: Any) -> None:
        self.client, self.about, self.rows = client, about, []
        self.start, self.cpu = time.perf_counter(), self._cpu()

    def _cpu(self) -> list[float]:
        workers = self.client.run(time.process_time).values() if self.client else ()
        return [time.process_time(), *workers]

    def done(self, stage: str, **more: Any) -> None:
        """End a stage."""
        seconds, cpu = time.perf_counter() - self.start, self._cpu()
        spent = [round(now - before, 1) for now, before in zip(cpu, self.cpu, strict=True)]
        row = {**self.about, "stage": stage, "seconds": round(seconds, 1), "cpu": spent}
        self.rows.append({**row, "peak_gb": round(peak_rss(), 2), **more})
        print(json.dumps(self.rows[-1]), flush=True)
        self.start, self.cpu = time.perf_counter(), self._cpu()


def wide_stack(n_images: int, n_classes: int, top: int) -> tuple[Stack, csr_array]:
    """Make three models' best classes of every image, and three labels that they mostly hold."""
    rng = np.random.default_rng(0)
    theme = rng.integers(0, n_classes, n_images)
    indptr = np.arange(n_images + 1) * top
    # Labels and rivals lie near the image's theme: classes have neighbours that occur with them.
    near = [np.sort(rng.choice(400, size=top + 60, replace=False)) for _ in range(64)]
    labels = np.empty((n_images, 3), dtype=np.int32)
    index = np.empty((n_images, top), dtype=np.int32)
    models = {f"model{m}": np.empty((n_images, top), dtype=np.float32) for m in range(3)}
    for start in range(0, n_images, RANGE):
        span = slice(start, min(start + RANGE, n_images))
        n = span.stop - start
        offsets = np.stack([near[k] for k in rng.integers(0, 64, n)])
        picked = np.argsort(rng.random(offsets.shape, dtype=np.float32), axis=1)[:, :top]
        held = (theme[span, None] + np.take_along_axis(offsets, picked, 1)) % n_classes
        labels[span], index[span] = held[:, :3], held
        true = np.arange(top) < 3
        for values in models.values():
            # Hard enough that boosting helps, and predicting is not the base's affair alone.
            odds = rng.standard_normal((n, top), dtype=np.float32) - 4 + 2 * true
            values[span] = sigmoid(odds)
    shape = (n_images, n_classes)
    stack = Stack(
        {m: csr_array((v.ravel(), index.ravel(), indptr), shape) for m, v in models.items()},
        classes=[f"species{c}" for c in range(n_classes)],
        class_group=np.repeat("species", n_classes),
    )
    ones = np.ones(labels.size, dtype=np.int8)
    return stack, csr_array((ones, labels.ravel(), np.arange(n_images + 1) * 3), shape)


def bench_wide(n_images: int, n_classes: int, top: int, n_jobs: int) -> None:
    """Fit, predict and evaluate a top-k stack."""
    stages = Stages(part="wide", n_images=n_images, n_classes=n_classes, top=top)
    stack, labels = wide_stack(n_images, n_classes, top)
    stages.done("made")
    model = PairStacker(
        "xgboost",
        candidates=16,
        cv=3,
        booster_params={"learning_rate": 0.3},
        max_memory="1GB",
        n_jobs=n_jobs,
        random_state=0,
        verbose=1,
    ).fit(stack, labels)
    stages.done("fit", oof=round(model.oof_score_, 4), base=round(model.base_score_, 4))
    proba = model.predict_proba(stack)
    sets = model.decision_.predict(proba)
    stages.done("predict", stored=int(proba.nnz))
    scores = evaluate_sets(labels, sets, proba)
    stages.done("evaluate", **{name: round(value, 4) for name, value in scores.items()})


def image_range(number: int, n_images: int) -> tuple[Stack, csr_array]:
    """Make the stack and labels of one range; the same each time it is asked for."""
    rng = np.random.default_rng([7, number])
    shared = np.random.default_rng(0)
    direction = shared.standard_normal((8, N_CLASSES), dtype=np.float32)
    odds = rng.standard_normal((n_images, 8), dtype=np.float32) @ direction - 5
    true = rng.random(odds.shape, dtype=np.float32) < sigmoid(odds)
    probs = {
        f"model{m}": sigmoid(odds + true + rng.standard_normal(odds.shape, dtype=np.float32))
        for m in range(N_MODELS)
    }
    return Stack(probs), csr_array(true.astype(np.int8))


class Ranges(xgb.DataIter):
    """Streams the rows of all ranges; XGBoost keeps their bins on disk.

    `spent` says for how many CPU seconds predictions were generated, and rows made of them.
    """

    def __init__(self, features: PairFeatures, n_ranges: int, cache: str) -> None:
        self.features, self.n_ranges = features, n_ranges
        self.spent = {"generate": 0.0, "featurise": 0.0}
        self.bytes = 4 * n_ranges * RANGE * CANDIDATES * (len(features.columns_) + 1)
        self.spool = Spool(self._all, self.bytes)
        self.batches = self.spool.batches()
        super().__init__(cache_prefix=cache, release_data=True, on_host=False)

    def _all(self) -> Iterator[np.ndarray]:
        """Make all rows, the label in a last column."""
        for number in range(self.n_ranges):
            start = time.process_time()
            stack, labels = image_range(number, RANGE)
            dense = labels.toarray()
            self.spent["generate"] += time.process_time() - start
            start = time.process_time()
            for batch in self.features.batches(stack):
                label = dense[batch.row_image, batch.row_class]
                rows = np.column_stack([batch.features, label.astype(np.float32)])
                self.spent["featurise"] += time.process_time() - start
                yield rows
                start = time.process_time()
            if (number + 1) % RANGES_A_LINE == 0:
                say("made", rows=(number + 1) * RANGE * CANDIDATES, **rounded(self.spent))

    def next(self, input_data: Any) -> bool:
        """Hand over one batch."""
        batch = next(self.batches, None)
        if batch is None:
            return False
        input_data(data=batch[:, :-1], label=batch[:, -1])
        return True

    def reset(self) -> None:
        """Begin anew."""
        self.batches = self.spool.batches()


def say(what: str, **more: Any) -> None:
    """Print how far a long run has come: a part of it is worth something too."""
    cpu = round(time.process_time(), 1)
    row = {"progress": what, "cpu": cpu, "peak_gb": round(peak_rss(), 2), **more}
    print(json.dumps(row), file=sys.stderr, flush=True)


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds to print."""
    return {name: round(value, 1) for name, value in seconds.items()}


class Told(xgb.callback.TrainingCallback):
    """Tells of every tenth round."""

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Go on."""
        if (epoch + 1) % 10 == 0:
            say("boosted", rounds=epoch + 1)
        return False


def bench_rows(millions: float, n_jobs: int) -> None:
    """Make, featurise and fit so many rows for 50 rounds."""
    n_ranges = max(1, round(millions * 1e6 / (RANGE * CANDIDATES)))
    stages = Stages(part="rows", millions=n_ranges * RANGE * CANDIDATES / 1e6)
    stack, labels = image_range(0, RANGE)
    features = PairFeatures(candidates=CANDIDATES, max_memory="1GB", n_jobs=n_jobs)
    features.fit(stack, labels, np.arange(RANGE) % 5)
    stages.done("blocks fitted", columns=len(features.columns_))
    folder = Path(tempfile.mkdtemp(prefix="pairstack-"))
    try:
        ranges = Ranges(features, n_ranges, str(folder / "cache"))
        data = xgb.ExtMemQuantileDMatrix(ranges, max_bin=64, nthread=n_jobs)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
        disk = {"cache_gb": round(size, 2), "spool_gb": round(ranges.bytes / 1e9, 2)}
        stages.done("rows and bins", **rounded(ranges.spent), **disk)
        params = {
            "objective": "binary:logistic",
            "tree_method": "hist",
            "grow_policy": "depthwise",  # lossguide would read the cache once a leaf
            "max_depth": 5,
            "max_bin": 64,
            "nthread": n_jobs,
            "colsample_bytree": 0.4,
        }
        xgb.train(params, data, num_boost_round=ROUNDS, callbacks=[Told()])
        stages.done("fit", rounds=ROUNDS)
        del data, ranges  # they hold files of the folder
    finally:
        shutil.rmtree(folder)


def bench_predict() -> None:
    """Send ready rows through a booster with the default parameters."""
    rng = np.random.default_rng(0)
    few = rng.standard_normal((60_000, 54), dtype=np.float32)
    label = few[:, :8].sum(axis=1) + 2 * rng.standard_normal(len(few)) > 3
    params = {**XGBOOST_DEFAULTS, "nthread": 1}
    data = xgb.QuantileDMatrix(few, label, max_bin=params["max_bin"], nthread=1)
    booster = xgb.train(params, data, num_boost_round=100)
    booster.set_param({"nthread": 1})
    many = rng.standard_normal((200_000, 54), dtype=np.float32)
    booster.inplace_predict(many)  # the first call sets buffers up
    stages = Stages(part="predict", rows=len(many), rounds=100)
    booster.inplace_predict(many)
    stages.done("predict")


def bench_weak(n_images: int) -> None:
    """Give one worker so many images, two workers twice as many."""
    import distributed

    found: dict[str, list[tuple[float, float]]] = {}
    for n_workers in (1, 2):
        with (
            distributed.LocalCluster(
                n_workers=n_workers, threads_per_worker=1, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            for row in on_workers(client, n_workers, n_images * n_workers):
                found.setdefault(row["stage"], []).append((row["seconds"], max(row["cpu"][1:])))
    print("| stage | 1 worker, s | 2 workers, s | ratio | CPU s of the busiest worker | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for stage, (one, two) in found.items():
        clock, cpu = two[0] / max(one[0], 0.1), two[1] / max(one[1], 0.1)
        busiest = f"{one[1]:.1f}, {two[1]:.1f} | {cpu:.2f}"
        print(f"| {stage} | {one[0]:.1f} | {two[0]:.1f} | {clock:.2f} | {busiest} |")


def on_workers(client: Any, n_workers: int, n_images: int) -> list[dict[str, Any]]:
    """Time every stage on a cluster."""
    import distributed
    import xgboost.dask as xgbd

    from features import dask as features_dask
    from stacker._dask import DaskXGBoost, Far, corrections
    from stacker.boosters import Rows

    size = min(RANGE, n_images // n_workers)
    parts = [image_range(n, size) for n in range(n_images // size)]
    probs = {m: np.concatenate([s.probabilities[m] for s, _ in parts]) for m in parts[0][0].models}
    stack, labels = Stack(probs), csr_array(vstack([y for _, y in parts]))
    fold = np.arange(len(stack)) % 5
    stages = Stages(client, part="weak", workers=n_workers, n_images=len(stack))
    images = features_dask.Images(stack)
    settings = {"candidates": CANDIDATES, "max_memory": "1GB"}
    state, features = features_dask.fit_features(client, images, labels, fold, settings)
    stages.done("fit blocks")
    rows_of = features.all_candidates(stack)
    start = np.zeros(len(rows_of), dtype=np.float32)
    label = label_at(labels, rows_of.row_image.astype(np.int64), rows_of.classes)
    far = Far(client, images, state)
    keys = (rows_of.row_image, rows_of.classes, label.astype(np.float32), start, start)
    rows = Rows(features, stack, fold, fold, *keys, None, far)
    stages.done("keys, on the client", rows=len(rows))
    distributed.wait([part.features for part in far.partitions(rows)])
    stages.done("rows")
    adapter = DaskXGBoost({}, 0)
    data = adapter._matrix(rows, np.ones(len(rows), dtype=bool), start + 1)
    stages.done("to xgboost.dask")
    booster = xgbd.train(client, adapter.params, data, num_boost_round=ROUNDS)["booster"]
    stages.done(f"bins and {ROUNDS} rounds")
    local = adapter.local.from_text(booster.save_raw("json").decode())
    for _ in corrections("current", features, [local], images):
        pass
    stages.done("predict")
    return stages.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("wide", "rows", "weak", "predict"))
    parser.add_argument("--images", type=int)
    parser.add_argument("--classes", type=int, default=32_000)
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--millions", type=float, default=3.0)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    if options.part == "wide":
        bench_wide(options.images or 300_000, options.classes, options.top, options.jobs)
    elif options.part == "rows":
        bench_rows(options.millions, options.jobs)
    elif options.part == "predict":
        bench_predict()
    else:
        bench_weak(options.images or 20_000)


if __name__ == "__main__":
    main()
