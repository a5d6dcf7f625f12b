"""Cost of stacking beside the bare booster on the same rows, and of tuning beside one fit.

    python benchmarks/bench_stacking.py openclipart_oof.npz [--parts fit,predict,tune]
        [--storage study.log] [--seconds 400] [--jobs 1]
    python benchmarks/bench_stacking.py embedded --parts full
    python benchmarks/bench_stacking.py --parts imet [--images 109237]

fit, predict, tune and full train on folds 1 to 4 of the file (4,178 images), or of the smaller
"embedded" set that ships, and predict fold 0. Ratios are what to compare between machines. With
--storage the tuning part can be run in pieces of --seconds. full runs the trials once as they
are, screened and pruned, and once all of them to their end. imet fits five folds of 300 rounds on
the synthetic set of iMet's shape, in memory. Each part writes `benchmarks/results/
stacking-<part>.md`.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import synthetic
from measure import peak_rss, rss, table, write_section
from nested_openclipart import read

from stacker import PairStacker, estimator, fbeta_score, tuning
from stacker._training_set import read_training_set
from stacker.boosters import SNAPSHOT_EVERY
from stacker.evaluation import bootstrap_fbeta
from stacker.tuning import study_frame, tune

IMET_CANDIDATES = {"culture": 20, "tag": 30}
IMET_ROUNDS = 300


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def computed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of all threads: on one thread they tell what the clock would, were it quiet."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def grow(adapter: Any, data: lgb.Dataset, rounds: int) -> None:
    booster = lgb.Booster(adapter.params, data)
    for _ in range(rounds):
        booster.update()


def bench_fit(stack: Any, labels: Any, groups: Any, jobs: int | None) -> dict[str, float]:
    """Whole fit, its boosting, and the bare booster with as many rounds on the same rows."""
    model = PairStacker(random_state=0, n_jobs=jobs)
    cpu, (whole, _) = computed(lambda: timed(lambda: model.fit(stack, labels, groups=groups)))
    train = read_training_set(stack, labels, groups, None, None, cv=5, random_state=0)
    draft = PairStacker(random_state=0, n_jobs=jobs)
    prepare, (rows, _) = computed(lambda: draft._make_rows(train))
    adapter = draft._adapter("lightgbm")
    binning, binned = computed(lambda: adapter.bin(rows))

    # Fold by fold, ours and then the same trees without our looks at held-out rows: subsets, then
    # `update` alone. What else the machine does meets both.
    kept = rows.thinned(adapter.params["seed"])[0]
    boosting, bare = 0.0, 0.0
    for fold in range(5):
        how = {"rounds": estimator.MOST_ROUNDS, "patience": estimator.PATIENCE}
        seconds, fit = computed(lambda k=fold, h=how: adapter.fit_fold(binned, rows, k, **h))
        boosting += seconds
        inside = np.flatnonzero(kept & (rows.row_fold != fold)).tolist()
        n = (len(fit.loss) - 1) * SNAPSHOT_EVERY
        bare += computed(lambda i=inside, n=n: grow(adapter, binned.subset(i), n))[0]
    last, inside = model.rounds_["lightgbm"], np.flatnonzero(kept).tolist()
    boosting += computed(lambda: adapter.fit(binned, rows, last))[0]
    bare += computed(lambda: grow(adapter, binned.subset(inside), last))[0]
    return {
        "rows": len(rows),
        "columns": len(model.columns_),
        "whole fit, s": whole,
        "whole fit, CPU s": cpu,
        "base and features, CPU s": prepare,
        "binning, CPU s": binning,
        "boosting, CPU s": boosting,
        "bare booster, CPU s": bare,
        "boosting over bare": boosting / bare,
    }


def bench_predict(train: Any, labels: Any, groups: Any, new: Any, jobs: int | None) -> dict:
    """Rows a second of `predict_proba`, features included, and of the booster alone."""
    model = PairStacker(random_state=0, n_jobs=jobs).fit(train, labels, groups=groups)
    features = np.concatenate([b.features.copy() for b in model.features_.batches(new)])
    model.predict_proba(new)
    ours = min(timed(lambda: model.predict_proba(new))[0] for _ in range(3))
    bare = min(timed(lambda: model.boosters_[0].correction(features))[0] for _ in range(3))
    return {
        "rows": len(features),
        "predict_proba, s": ours,
        "booster alone, s": bare,
        "rows/s against the booster's": bare / ours,
    }


def bench_tune(
    stack: Any, labels: Any, groups: Any, test: tuple[Any, ...], options: argparse.Namespace
) -> dict[str, float]:
    """Fifty trials against one plain fit, and what both reach on the held-out fold."""
    plain = PairStacker(random_state=0, n_jobs=options.jobs)
    once, _ = timed(lambda: plain.fit(stack, labels, groups=groups))
    found = {"one plain fit, s": once}
    best = search(stack, labels, groups, options, found, options.storage)
    found["trials over one fit"] = found["trials, s"] / once
    if found["trials"] >= options.trials:
        best.fit(stack, labels, groups=groups)
        compare_sets(found, test, tuned=best, plain=plain)
    return found


def bench_full(
    stack: Any, labels: Any, groups: Any, test: tuple[Any, ...], options: argparse.Namespace
) -> dict[str, float]:
    """Fifty trials that are screened and pruned against fifty that all run to their end."""
    found: dict[str, float] = {}
    cheap = search(stack, labels, groups, options, found, None, "screened: ")
    with_pruning, tuning._worse = tuning._worse, lambda *told: False
    try:
        full = search(stack, labels, groups, options, found, None, "full: ")
    finally:
        tuning._worse = with_pruning
    found["full over screened, s"] = found["full: trials, s"] / found["screened: trials, s"]
    for model in (cheap, full):
        model.fit(stack, labels, groups=groups)
    compare_sets(found, test, screened=cheap, full=full)
    return found


def search(
    stack: Any,
    labels: Any,
    groups: Any,
    options: argparse.Namespace,
    found: dict[str, float],
    storage: str | None,
    prefix: str = "",
) -> PairStacker:
    """Tune, and note what it took and found."""
    model = PairStacker(random_state=0, n_jobs=options.jobs)
    how = {"n_trials": options.trials, "timeout": options.seconds, "objective": options.objective}
    spent, best = timed(lambda: tune(model, stack, labels, groups, storage=storage, **how))
    frame = study_frame(best.study_)
    told = {
        "trials": len(frame),
        "complete": int((frame["state"] == "complete").sum()),
        "this run, s": spent,
        "trials, s": float(frame["seconds"].sum()),
        "default trial": float(frame["value"].iloc[0]),
        "best trial": float(frame["value"].max()),
    }
    found |= {prefix + name: value for name, value in told.items()}
    print(best.tuned_params_, flush=True)
    return best


def compare_sets(found: dict[str, float], test: tuple[Any, ...], **models: PairStacker) -> None:
    """F2 of fold 0 under two models, and the interval of first minus second."""
    new, labels, groups = test
    sets = {name: model.predict(new) for name, model in models.items()}
    found |= {f"F2 of fold 0, {name}": fbeta_score(labels, own) for name, own in sets.items()}
    a, b = sets
    interval = bootstrap_fbeta(labels, sets[a], sets[b], groups)
    for name, value in zip(("", ", low", ", high"), interval, strict=True):
        found[f"{a} minus {b}{name}"] = value


def bench_imet(options: argparse.Namespace) -> dict[str, float]:
    """Five folds of 300 rounds each and the fit on all rows, on iMet's shape; peak memory."""
    logging.basicConfig(format="%(relativeCreated)8.0f ms  %(message)s", level=logging.INFO)
    given = synthetic.imet(options.images)
    inputs, cpu = rss(), time.process_time()
    model = PairStacker(candidates=IMET_CANDIDATES, random_state=0, n_jobs=options.jobs, verbose=1)
    estimator.MOST_ROUNDS = estimator.PATIENCE = IMET_ROUNDS
    seconds, _ = timed(lambda: model.fit(given.stack, given.labels))
    return {
        "images": options.images,
        "rows": options.images * sum(IMET_CANDIDATES.values()),
        "columns": len(model.columns_),
        "rounds of a fold": IMET_ROUNDS,
        "rounds of the last fit": model.rounds_["lightgbm"],
        "fit, s": seconds,
        "fit, CPU s": time.process_time() - cpu,
        "inputs, GB": inputs,
        "peak, GB (limit 10)": peak_rss(),
        "out-of-fold F2, stack": model.oof_score_,
        "out-of-fold F2, blend": model.base_score_,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="embedded")
    parser.add_argument("--parts", default="fit,predict,tune")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--storage", default=None)
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument("--objective", default="fbeta")
    parser.add_argument("--images", type=int, default=109_237, help="of the part imet")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if parts == ["imet"]:  # its peak must be its own: no other data in this process
        report("imet", bench_imet(options))
        return
    stack, labels, fold, groups = read(options.path)
    inside, outside = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    known = stack[inside], labels[inside], groups[inside]
    test = stack[outside], labels[outside], groups[outside]
    for part in parts:
        if part == "fit":
            report(part, bench_fit(*known, options.jobs))
        elif part == "predict":
            report(part, bench_predict(*known, stack[outside], options.jobs))
        else:
            report(part, {"tune": bench_tune, "full": bench_full}[part](*known, test, options))


def report(part: str, found: dict[str, float]) -> None:
    """Keep a part's figures for `assemble.py`."""
    rows = [
        [name, f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"] for name, value in found.items()
    ]
    given = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    command = " ".join(["python benchmarks/bench_stacking.py", *given])
    write_section(
        f"stacking-{part}",
        f"## Stacking: {part}\n\n`{command}`\n\n{table(['what', 'value'], rows)}",
    )


if __name__ == "__main__":
    main()
