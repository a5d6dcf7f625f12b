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
    row : a million rows of 54 columns, built
    neighbour : a million images, each space beyond the first
    cell : a thousand million cells (images x classes x models) read a few images at a time
    binned : a million rows, quantiles and bins
    round_ : a million rows, one round of boosting
    predicted : a million rows through 100 rounds
    lost : share of a second worker's speed that waiting costs
    """

    row: float
    neighbour: float
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
    columns: int = 54
    spaces: int = 1
    top: int = 0
    workers: int = 1
    threads: int = 1


def seconds(run: Run, costs: Costs) -> dict[str, float]:
    """Wall-clock of each stage."""
    hands = run.workers * run.threads * (1 - (costs.lost if run.workers > 1 else 0))
    rows, new = run.fit_images * run.candidates / 1e6, run.images * run.candidates / 1e6
    wide = run.columns / MEASURED_COLUMNS
    image = run.classes * run.models / 1e9 * costs.cell + (run.spaces - 1) * costs.neighbour / 1e6
    # An easy negative in ten is kept: about a third of the rows are trained on.
    kept = rows / 3
    share = (run.folds - 1 + 1 / run.folds) / run.folds
    fits = run.folds * share + 1
    predicted = wide * costs.row + costs.predicted * run.rounds / 100
    return {
        "rows": (rows * wide * costs.row + run.fit_images * image) / hands,
        "bins": kept * fits * wide * costs.binned / hands,
        "boosting": kept * fits * run.rounds * wide * costs.round_ / hands,
        "predict": (new * predicted + run.images * image) / hands,
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
        "bins, of a worker": rows / 3 * (run.columns * 2.3 + 41) / run.workers / 1e9,
        "client": stack + rows * 20 / 1e9 + run.fit_images * 8 * (run.top or run.classes) / 1e9,
    }


MEASURED_COLUMNS = 54

# rows, bins, rounds: `bench_scale.py rows --millions 30`, whose bins go through files; cells: the
# 104 s, neighbours: the 30.5 s of `bench_features.py --parts wide` for 100,000 x 32,000 x 3.
# Predicted: `bench_scale.py predict`. Lost: assumed for large shares; `bench_scale.py weak` found
# 0.33 with 100,000 rows a worker.
COSTS = Costs(row=6.6, neighbour=300.0, cell=11.0, binned=8.3, round_=0.2, predicted=3.0, lost=0.2)


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
