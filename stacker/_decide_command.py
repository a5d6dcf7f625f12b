"""The ``stacker decide`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stacker._options import Average, Beta, Force, Quiet, Seed
from stacker._output import refuse_existing
from stacker._progress import Log
from stacker._tables import print_key_values

__all__ = ["EPILOG", "decide_command"]

EPILOG = (
    "Example: [bold]stacker decide probs.parquet --labels labels.csv --out predictions.csv[/bold]"
)


def decide_command(
    probs: Annotated[
        Path,
        typer.Argument(
            help="Parquet or CSV: image_id and a column of probabilities for each class."
        ),
    ],
    labels: Annotated[
        Path,
        typer.Option(help="CSV of image_id,labels for some of the images.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="CSV to write.", show_default=False)],
    average: Average = "samples",
    beta: Beta = 2.0,
    strategy: Annotated[
        str,
        typer.Option(
            help="Decision rule: auto (the best by cross-validation), global, group, class, "
            "max_ratio, max_affine, top_k, expected or argmax."
        ),
    ] = "auto",
    id_column: Annotated[str, typer.Option(help="Column of image ids.")] = "image_id",
    label_column: Annotated[str, typer.Option(help="Column of labels.")] = "labels",
    random_state: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Label sets for probabilities from anywhere: fit a decision rule, write the sets."""
    from stacker._decide import decide_file

    refuse_existing(out, force=force)
    Log(quiet=quiet)(f"deciding by {strategy}")
    found = decide_file(
        probs,
        labels=labels,
        out=out,
        id_column=id_column,
        labels_column=label_column,
        average=average,
        beta=beta,
        strategy=strategy,
        random_state=random_state,
    )
    numbers = {
        "images": found["n_images"],
        "labelled images": found["n_labelled"],
        "labels an image": found["labels_per_image"],
    }
    if found["score"] is not None:
        numbers["score, cross-validated"] = found["score"]
    print_key_values(numbers, title=f"rule: {found['strategy']}")
    typer.echo(f"predictions: {out}")
