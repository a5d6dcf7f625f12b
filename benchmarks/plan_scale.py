"""Time and memory of a run, from its size: the model of docs/scale.md.

    python benchmarks/plan_scale.py --images 100000000 --classes 30000 --models 4 --top 100
        --candidates 30 --fit-images 5000000 --rounds 200 --workers 64 --threads 8

Costs are those of one thread of the machine that `bench_scale.py` was run on (COSTS below, with
the commands in docs/scale.md): expect the ratios to hold elsewhere, not the seconds.
"""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Seconds on one thread.

    Attributes
    ----------
    row : a million rows of 46 columns, built
    cell : a thousand million cells (images x classes x models) read a few images at a time
    binned : a million rows, quantiles and bins
    round_ : a million rows, one round of boosting
    predicted : a million rows through 100 rounds
    lost : share of a second worker's speed that waiting costs
    """

    row: float
    cell: float
    binned: float
    round_: float
    predicted: float
    lost: float


@dataclass(frozen=True)
class Run:
    """Size of a run; `fit_images` of the images are trained on, all are predicted."""

    images: float
    classes: int
    models: int
    candidates: int
    fit_images: float
    rounds: int = 200
    folds: int = 5
    columns: int = 46
    spaces: int = 1
    top: int = 0
    workers: int = 1
    threads: int = 1


def seconds(run: Run, costs: Costs) -> dict[str, float]:
    """Wall-clock of each stage."""
    hands = run.workers * run.threads * (1 - (costs.lost if run.workers > 1 else 0))
    rows, new = run.fit_images * run.candidates / 1e6, run.images * run.candidates / 1e6
    cells = run.classes * run.models / 1e9
    # An easy negative in ten is kept: about a third of the rows are trained on.
    kept = rows / 3
    share = (run.folds - 1 + 1 / run.folds) / run.folds
    fits = run.folds * share + 1
    return {
        "rows": (rows * costs.row + run.fit_images * cells * costs.cell) / hands,
        "bins": kept * fits * costs.binned / hands,
        "boosting": kept * fits * run.rounds * costs.round_ / hands,
        "predict": (
            new * (costs.row + costs.predicted * run.rounds / 100) + run.images * cells * costs.cell
        )
        / hands,
    }


def gigabytes(run: Run) -> dict[str, float]:
    """Memory of one worker, and of the client, in GB."""
    stored = run.top * 8 if run.top else run.classes * 2
    stack = run.fit_images * run.models * stored / 1e9
    rows = run.fit_images * run.candidates
    return {
        "worker that fits the blocks": stack * 1.5 + run.spaces * run.fit_images * 256 / 1e9,
        "state, on every worker": run.spaces * run.fit_images * 260 / 1e9,
        "rows, of a worker": rows * run.columns * 4 / run.workers / 1e9,
        "bins, of a worker": rows / 3 * run.columns * 2 / run.workers / 1e9,
        "client": stack + rows * 20 / 1e9 + run.fit_images * 8 * (run.top or run.classes) / 1e9,
    }


COSTS = Costs(row=0.0, cell=0.0, binned=0.0, round_=0.0, predicted=0.0, lost=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, field in Run.__dataclass_fields__.items():
        kind = float if "images" in name else int
        needed = not isinstance(field.default, int)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, required=needed, default=field.default
        )
    run = Run(**vars(parser.parse_args()))
    for stage, value in seconds(run, COSTS).items():
        print(f"{stage:30} {value / 3600:10.2f} h")
    for where, value in gigabytes(run).items():
        print(f"{where:30} {value:10.1f} GB")


if __name__ == "__main__":
    main()
