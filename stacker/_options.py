"""Arguments and options that several ``stacker`` commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Average",
    "Beta",
    "Blocks",
    "Booster",
    "Candidates",
    "Dask",
    "Force",
    "Jobs",
    "Model",
    "Quiet",
    "Seed",
    "Store",
    "Trials",
]


def place(text: str) -> Path | str:
    """Read the place of a store: a path, or a URL as it stands."""
    return text if "://" in text else Path(text)


Store = Annotated[
    Path,
    typer.Argument(parser=place, help="Feature store: a folder or URL.", show_default=False),
]
Dask = Annotated[
    str | None,
    typer.Option(
        help="Scheduler address of a Dask cluster whose workers see the store.", show_default=False
    ),
]
Model = Annotated[Path, typer.Argument(help="Fitted model (a folder).", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No log and no progress.")]
Force = Annotated[bool, typer.Option("--force", help="Replace outputs that exist.")]
Seed = Annotated[int, typer.Option("--random-state", help="Seed of everything random.")]
Average = Annotated[str, typer.Option(help="F-beta over samples, macro or micro.")]
Beta = Annotated[float, typer.Option(help="Of F-beta: 2 weighs recall over precision.")]
Booster = Annotated[
    str, typer.Option(help="lightgbm, xgboost, or lightgbm,xgboost: both, averaged.")
]
Blocks = Annotated[
    str,
    typer.Option(
        help="Feature blocks separated by commas, options after colons: "
        "default,combinations:order=3."
    ),
]
Candidates = Annotated[
    str,
    typer.Option(
        help="Classes of an image that become rows: auto, all, 50 (in each class group), "
        "culture=20,tag=30, or threshold=0.01."
    ),
]
Trials = Annotated[int, typer.Option(help="Tuning trials; 0 fits the defaults.")]
Jobs = Annotated[
    int | None, typer.Option(min=1, help="Threads. Default: all cores.", show_default=False)
]
