"""The ``stacker predict`` command: a fitted model's label sets as a CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from stacker._options import Dask, Force, Model, Quiet, Store
from stacker._output import refuse_existing, refuse_other_than_csv
from stacker._progress import Log

if TYPE_CHECKING:
    from features.store import FeatureStore

__all__ = ["EPILOG", "predict"]

EPILOG = (
    "Example: [bold]stacker predict model/ store/ --out predictions.csv[/bold]; for a competition "
    "[bold]--like sample_submission.csv[/bold]. Images that have labels are left out, unless --all."
)


def predict(
    model: Model,
    store: Store,
    out: Annotated[Path, typer.Option(help="CSV to write.", show_default=False)],
    everything: Annotated[
        bool, typer.Option("--all", help="Predict labelled images, too.")
    ] = False,
    submission: Annotated[
        str | None,
        typer.Option(
            help="Form of the CSV: joined (labels in one column) or wide (a 0/1 column for each "
            "class). Default: that of --like, else joined.",
            show_default=False,
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Sample submission: its ids, order and columns.", show_default=False),
    ] = None,
    id_column: Annotated[str, typer.Option(help="Name of the first column.")] = "image_id",
    label_column: Annotated[str, typer.Option(help="Name of the second column.")] = "labels",
    dask: Dask = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Predict label sets: a CSV of image_id and space-separated labels, or a submission.

    With --dask and an --out that is no CSV, workers write a folder of Parquet parts.
    """
    from features.store import FeatureStore
    from stacker.estimator import PairStacker
    from stacker.submission import write_submission

    parts = dask is not None and out.suffix != ".csv"
    if not parts:
        refuse_other_than_csv(out)  # before the work, not after it
    refuse_existing(out, force=force or parts)  # parts that are there are not made again
    images = _choose_images(FeatureStore.open(store), like, everything=everything)
    fitted = PairStacker.load(model)
    fitted.dask = dask
    if parts:
        from stacker._dask_predict import write_predictions

        n_parts = write_predictions(fitted, images, out, str(dask))
        typer.echo(f"predictions: {n_parts:,} parts in {out}")
        return
    write_submission(
        out,
        fitted.predict(images),
        image_ids=images.image_ids,
        classes=fitted.classes_,
        form=submission,
        like=like,
        id_column=id_column,
        label_column=label_column,
        force=force,
    )
    Log(quiet=quiet)(f"{images.n_images:,} images written")
    typer.echo(f"predictions: {out}")


def _choose_images(store: FeatureStore, like: Path | None, *, everything: bool) -> FeatureStore:
    """Images to predict: those of a sample submission, else those without labels, or all."""
    whole = store.without_skipped()
    if like is not None:
        from stacker.submission import read_sample

        return whole.subset(read_sample(like)[1])
    wanted = np.ones(whole.n_images, dtype=bool) if everything else ~whole.labels_known
    if not wanted.any():
        raise ValueError(f"every image of {store.path} has labels. Give --all to predict them too.")
    return whole.subset(wanted)
