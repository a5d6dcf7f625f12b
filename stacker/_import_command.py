"""The ``stacker import`` command: predictions in files to a store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stacker._options import Force, Quiet
from stacker._output import refuse_existing, temporary_beside
from stacker._progress import Log
from stacker._tables import print_key_values

__all__ = ["EPILOG", "import_command"]

EPILOG = (
    "Example: [bold]stacker import *_oof.npy *_test.npy --labels labels.csv --out store/[/bold]. "
    "On a terminal it asks where a mismatch has an obvious repair; elsewhere it refuses and names "
    "the option."
)


def import_command(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Out-of-fold predictions: .npy, .npz, .h5, .csv or .parquet files, folders or "
            "patterns, each optionally NAME=; FILE:KEY is one array of a file.",
            show_default=False,
        ),
    ],
    labels: Annotated[
        Path,
        typer.Option(
            help="CSV of ids and labels, or of ids and a 0/1 column for each class.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Store to write.", show_default=False)],
    test: Annotated[
        list[str] | None,
        typer.Option(
            help="Test predictions; default: FILES with 'test' in their names.", show_default=False
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Text file: names of the columns, one on each line.", show_default=False),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(help="Ids of the rows; default: those of --labels.", show_default=False),
    ] = None,
    test_ids: Annotated[
        Path | None,
        typer.Option(help="Ids of the test rows: text, or a CSV's id column.", show_default=False),
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(
            help="CSV of ids and columns; split_group keeps images together, fold says which fold.",
            show_default=False,
        ),
    ] = None,
    embeddings: Annotated[
        list[str] | None,
        typer.Option(
            help="Embeddings, files like FILES: ids inside, or a row for each labelled image and "
            "(with 'test' in the file's name) for each test image.",
            show_default=False,
        ),
    ] = None,
    imagenet_logits: Annotated[
        list[str] | None,
        typer.Option(help="Logits of the 1,000 ImageNet classes, likewise.", show_default=False),
    ] = None,
    image_stats: Annotated[
        list[Path] | None,
        typer.Option(
            help="CSV or Parquet of ids and statistics, as cnn-extract stats writes it.",
            show_default=False,
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="Column of ids. Default: image_id, else the first.", show_default=False),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="Column of labels. Default: found by its content.", show_default=False),
    ] = None,
    logits: Annotated[
        bool, typer.Option("--logits", help="Values are logits: apply a sigmoid.")
    ] = False,
    any_order: Annotated[
        bool,
        typer.Option(
            "--any-order",
            help="Do not check that predictions fit the labels (rows or columns in another order).",
        ),
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Make a store of predictions in files, naming what does not match."""
    from features.importing import find_context_files, find_files, import_predictions

    refuse_existing(out, force=force)
    out_of_fold, new = find_files(files, test or [])
    vectors, scores = (find_context_files(given or []) for given in (embeddings, imagenet_logits))
    log = Log(quiet=quiet)
    log(f"out-of-fold: {', '.join(out_of_fold)}; test: {', '.join(new) or 'none'}")
    with temporary_beside(out, force=force) as folder:
        store = import_predictions(
            folder,
            out_of_fold,
            labels,
            test=new,
            classes=classes,
            image_ids=ids,
            test_ids=test_ids,
            metadata=metadata,
            embeddings=vectors,
            imagenet_logits=scores,
            image_stats=image_stats,
            id_column=id_column,
            label_column=label_column,
            logits=logits,
            check_order=not any_order,
            ask=_ask,
            say=log,
        )
        known = int(store.labels_known.sum())
        found = {
            "models": len(store.models),
            **{
                what: len(names)
                for what, names in (("embeddings", vectors), ("ImageNet logits", scores))
                if names
            },
            "classes": store.n_classes,
            "labelled images": known,
            "test images": store.n_images - known,
            "labels an image": float(store.labels.nnz / max(known, 1)),
        }
    print_key_values(found, title=str(out))
    typer.echo(f"store: {out}")


def _ask(question: str) -> bool:
    """Ask on a terminal; elsewhere the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return typer.confirm(question, default=False, err=True)
