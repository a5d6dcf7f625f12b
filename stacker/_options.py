"""Arguments and options that several ``stacker`` commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Average", "Beta", "Dask", "Force", "Model", "Quiet", "Seed", "Store"]


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
Beta = Annotated[float, typer.Option(help="Weight of recall against precision.")]
