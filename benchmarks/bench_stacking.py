"""Cost of stacking beside the bare booster on the same rows, and of tuning beside one fit.

    python benchmarks/bench_stacking.py openclipart_oof.npz [--parts fit,predict,tune]
        [--storage study.log] [--seconds 400] [--out benchmarks/results/stacking.md]

Trains on folds 1 to 4 of the file (4,178 images), or of the smaller set that ships where no file is
given, and predicts fold 0. Ratios are what to compare
between machines. With --storage the tuning part can be run in pieces of --seconds.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
from nested_openclipart import read

from stacker import PairStacker, fbeta_score
from stacker._training_set import read_training_set
from stacker.tuning import study_frame, tune


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def bare_fits(adapter: Any, binned: Any, rows: Any, rounds: dict[int, int], last: int) -> None:
    """Grow the same trees without our looks at held-out rows: subsets, then `update` alone."""
    kept = rows.thinned(adapter.params["seed"])[0]
    for fold, n in rounds.items():
        inside = np.flatnonzero(kept & (rows.row_fold != fold)).tolist()
        grow(adapter, binned.subset(inside), n)
    grow(adapter, binned.subset(np.flatnonzero(kept).tolist()), last)


def grow(adapter: Any, data: lgb.Dataset, rounds: int) -> None:
    booster = lgb.Booster(adapter.params, data)
    for _ in range(rounds):
        booster.update()


def bench_fit(stack: Any, labels: Any, groups: Any, jobs: int | None) -> dict[str, float]:
    """Whole fit, its boosting, and the bare booster with as many rounds on the same rows."""
    model = PairStacker(random_state=0, n_jobs=jobs)
    whole, _ = timed(lambda: model.fit(stack, labels, groups=groups))
    train = read_training_set(stack, labels, groups, None, None, cv=5, random_state=0)
    draft = PairStacker(random_state=0, n_jobs=jobs)
    prepare, (rows, _) = timed(lambda: draft._make_rows(train))
    adapter = draft._adapter("lightgbm")
    binning, binned = timed(lambda: adapter.bin(rows))
    from stacker import estimator
    from stacker.boosters import SNAPSHOT_EVERY

    def ours() -> dict[int, int]:
        rounds = {}
        for fold in range(5):
            fit = adapter.fit_fold(
                binned, rows, fold, rounds=estimator.MOST_ROUNDS, patience=estimator.PATIENCE
            )
            rounds[fold] = (len(fit.loss) - 1) * SNAPSHOT_EVERY
        adapter.fit(binned, rows, model.rounds_["lightgbm"])
        return rounds

    boosting, rounds = timed(ours)
    bare, _ = timed(lambda: bare_fits(adapter, binned, rows, rounds, model.rounds_["lightgbm"]))
    return {
        "rows": len(rows),
        "columns": len(model.columns_),
        "whole fit, s": whole,
        "base and features, s": prepare,
        "binning, s": binning,
        "boosting, s": boosting,
        "bare booster, s": bare,
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
    stack: Any, labels: Any, groups: Any, test: tuple[Any, Any], options: argparse.Namespace
) -> dict[str, float]:
    """Fifty trials against one plain fit, and what both reach on the held-out fold."""
    plain = PairStacker(random_state=0, n_jobs=options.jobs)
    once, _ = timed(lambda: plain.fit(stack, labels, groups=groups))
    spent, best = timed(
        lambda: tune(
            PairStacker(random_state=0, n_jobs=options.jobs),
            stack,
            labels,
            groups,
            n_trials=options.trials,
            storage=options.storage,
            timeout=options.seconds,
            objective=options.objective,
        )
    )
    frame = study_frame(best.study_)
    trials = float(frame["seconds"].sum())
    found = {
        "trials": len(frame),
        "one plain fit, s": once,
        "this run, s": spent,
        "trials, s": trials,
        "trials over one fit": trials / once,
        "default trial": float(frame["value"].iloc[0]),
        "best trial": float(frame["value"].max()),
        "complete": int((frame["state"] == "complete").sum()),
    }
    if len(frame) >= options.trials:
        best.fit(stack, labels, groups=groups)
        for name, model in {"plain": plain, "tuned": best}.items():
            found[f"F2 of fold 0, {name}"] = fbeta_score(test[1], model.predict(test[0]))
        print(best.tuned_params_)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="embedded")
    parser.add_argument("--parts", default="fit,predict,tune")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--storage", default=None)
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument("--objective", default="fbeta")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    stack, labels, fold, groups = read(options.path)
    inside, outside = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    known = stack[inside], labels[inside], groups[inside]
    tables = {}
    for part in options.parts.split(","):
        if part == "fit":
            tables[part] = bench_fit(*known, options.jobs)
        elif part == "predict":
            tables[part] = bench_predict(*known, stack[outside], options.jobs)
        else:
            tables[part] = bench_tune(*known, (stack[outside], labels[outside]), options)
        print(part, json.dumps(tables[part], indent=1), flush=True)
    if options.out is not None:
        write(options.out, tables)


def write(out: Path, tables: dict[str, dict[str, float]]) -> None:
    """Markdown, one table a part."""
    lines = ["# Stacking", ""]
    for part, table in tables.items():
        lines += [f"## {part}", "", "| what | value |", "|---|---|"]
        lines += [f"| {name} | {value:,.4g} |" for name, value in table.items()] + [""]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
