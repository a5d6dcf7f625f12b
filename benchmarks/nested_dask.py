"""Is the stack on Dask workers the stack of one machine? On openclipart out-of-fold predictions.

    python benchmarks/nested_dask.py openclipart_oof.npz [--folds 0,1,2,3,4] [--workers 2]
        [--rate 0.05] [--keep FOLDER] [--address tcp://...] [--out FILE]

For each outer fold both paths are fitted on the other folds with the same settings and XGBoost.
The fitted features and all rows, of training images without their folds and of held-out images,
are compared bit for bit; then the F2 of the held-out label sets. With `--keep` the models of one
machine are fitted once, and serve for other numbers of workers.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import distributed
import numpy as np
from nested_openclipart import read

from features import dask as features_dask
from stacker import PairStacker
from stacker.evaluation import evaluate_sets


def same_rows(client: Any, here: PairStacker, stack: Any, fold: Any) -> bool:
    """Whether workers build the rows that this process builds, to the bit."""
    features = here.features_
    indptr = features.all_candidates(stack).indptr
    state = features_dask.send_features(client, features)
    images = features_dask.Images(stack)
    parts = features_dask.row_partitions(client, state, images, fold, indptr, rows_per_part=65_536)
    for part in parts:
        span = slice(part.start, part.stop)
        local = [b.features.copy() for b in features.batches(stack[span], fold[span])]
        if not np.array_equal(part.features.result(), np.concatenate(local)):
            return False
    return True


def same_state(one: Any, other: Any) -> bool:
    """Whether two fitted states hold the same numbers, to the bit."""
    if isinstance(one, dict):
        return set(one) == set(other) and all(same_state(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    if hasattr(one, "indptr"):
        names = ("data", "indices", "indptr")
        return all(same_state(getattr(one, name), getattr(other, name)) for name in names)
    here, there = np.asarray(one), np.asarray(other)
    same = here.dtype == there.dtype and here.shape == there.shape
    # Bytes, so that NaN equals NaN and -0.0 differs from 0.0.
    return same and (one == other if here.dtype == object else here.tobytes() == there.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--folds", default="0,1,2,3,4")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate of both")
    parser.add_argument("--address", help="scheduler of workers started by hand")
    parser.add_argument("--keep", type=Path, help="folder of the models of one machine")
    parser.add_argument("--out", type=Path, help="JSON lines are added here")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    stack, labels, fold, groups = read(options.path)
    common = {"booster_params": {"learning_rate": options.rate}, "n_jobs": 1, "random_state": 0}
    local = distributed.LocalCluster(
        n_workers=0 if options.address else options.workers,
        threads_per_worker=1,
        dashboard_address=None,
    )
    with local, distributed.Client(options.address or local) as client:
        for k in map(int, options.folds.split(",")):
            rest, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            row: dict[str, Any] = {"fold": k, "workers": len(client.scheduler_info()["workers"])}
            models = {}
            for name, dask in (("local", None), ("dask", client.scheduler.address)):
                start = time.perf_counter()
                model = PairStacker("xgboost", dask=dask, **common)
                kept = options.keep and dask is None and options.keep / f"fold{k}-{options.rate}"
                if kept and kept.exists():
                    model = PairStacker.load(kept)
                else:
                    model.fit(stack[rest], labels[rest], groups=groups[rest])
                    if kept:
                        model.save(kept)
                row[f"{name}_seconds"] = round(time.perf_counter() - start, 1)
                scores = evaluate_sets(labels[held], model.predict(stack[held]))
                row |= {f"{name}_{metric}": round(v, 5) for metric, v in scores.items()}
                row[f"{name}_rounds"] = model.rounds_["xgboost"]
                row[f"{name}_rule"] = model.decision_.strategy_
                models[name] = model
            here, there = models["local"].features_, models["dask"].features_
            row["same_state"] = same_state(here.states_, there.states_)
            row["same_rows"] = same_rows(
                client, models["local"], stack[rest], models["dask"].folds_.astype(np.int64)
            ) and same_rows(client, models["dask"], stack[held], np.full(len(held), -1))
            print(json.dumps(row), flush=True)
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
