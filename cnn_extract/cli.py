"""The `cnn-extract` command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    help="From images to a store of CNN predictions, embeddings and image statistics.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Images = Annotated[Path, typer.Argument(help="A folder or a zip of images.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Write anew what is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No log and no progress.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes that decode images; 0: none but this one. Default: one a core."),
]
IdColumn = Annotated[str, typer.Option(help="Column with the image's id, in every table.")]
LabelColumn = Annotated[str, typer.Option(help="Column with the labels, separated by spaces.")]


@app.callback()
def main() -> None:
    """From images to a store of CNN predictions, embeddings and image statistics."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors into a line on stderr and an exit code: 1 failed, 2 refused."""
    from cnn_extract.run import RefusedError

    try:
        yield
    except RefusedError as error:
        typer.echo(f"refused: {error}", err=True)
        raise typer.Exit(2) from error
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the same command resumes", err=True)
        raise typer.Exit(1) from error


@app.command("run")
def run_command(
    images: Images,
    labels: Annotated[
        Path, typer.Option(help="CSV: image_id,labels. Images it does not name are unlabelled.")
    ],
    model: Annotated[
        list[str],
        typer.Option(
            help="timm model NAME or NAME=WEIGHTS; WEIGHTS is a checkpoint, package, pretrained "
            "or none. Repeat for more models."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The store to write.")],
    metadata: Annotated[
        Path | None,
        typer.Option(help="CSV: image_id and any columns; split_group keeps images together."),
    ] = None,
    heads: Annotated[
        str, typer.Option(help="Heads to fit on each backbone: linear, mlp.")
    ] = "linear,mlp",
    folds: Annotated[int, typer.Option(help="Number of folds.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the folds and the heads.")] = 0,
    size: Annotated[
        int | None, typer.Option(help="Input side in pixels. Default: each model's own.")
    ] = None,
    tta: Annotated[
        str, typer.Option(help="Test-time augmentation: none, or hflip (twice the time).")
    ] = "none",
    batch_size: Annotated[int, typer.Option(help="Images in a batch.")] = 16,
    workers: Workers = None,
    on_error: Annotated[
        str, typer.Option(help="On an unreadable image: stop, or skip and record it.")
    ] = "stop",
    id_column: IdColumn = "image_id",
    label_column: LabelColumn = "labels",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Extract features and fit a head a fold; a killed run resumes where it stopped.

    Example: `cnn-extract run photos.zip --labels labels.csv --metadata meta.csv
    --model tf_efficientnet_lite0 --model resnet50=checkpoint.safetensors --out store/`
    """
    from cnn_extract._console import Reporter
    from cnn_extract.run import Request, run

    with exit_codes():
        request = Request(
            images=images,
            labels=labels,
            models=model,
            out=out,
            metadata=metadata,
            heads=[head.strip() for head in heads.split(",")],
            folds=folds,
            seed=seed,
            size=size,
            tta=tta,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            id_column=id_column,
            label_column=label_column,
            force=force,
        )
        summary = run(request, Reporter(quiet=quiet))
        typer.echo("\n".join(summary.lines()))


@app.command("stats")
def stats_command(
    images: Images,
    out: Annotated[Path, typer.Option(help="CSV to write: image_id and the statistics.")],
    workers: Workers = None,
    on_error: Annotated[
        str, typer.Option(help="On an unreadable image: stop, or skip and leave its line empty.")
    ] = "stop",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Compute statistics of the original pixels: colour, contrast, shape. Needs no torch.

    Example: `cnn-extract stats photos/ --out stats.csv`
    """
    from cnn_extract._console import Reporter
    from cnn_extract.commands import write_stats

    with exit_codes():
        typer.echo(
            write_stats(
                images,
                out,
                workers=workers,
                on_error=on_error,
                force=force,
                report=Reporter(quiet=quiet),
            )
        )


@app.command("folds")
def folds_command(
    labels: Annotated[Path, typer.Argument(help="CSV: image_id,labels.", show_default=False)],
    out: Annotated[Path, typer.Option(help="CSV to write: image_id,fold.")],
    metadata: Annotated[
        Path | None, typer.Option(help="CSV with split_group: images of one group stay together.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Number of folds.")] = 5,
    seed: Annotated[int, typer.Option(help="Decides ties.")] = 0,
    id_column: IdColumn = "image_id",
    label_column: LabelColumn = "labels",
    force: Force = False,
) -> None:
    """Make folds with each label spread evenly, and no split group parted.

    Example: `cnn-extract folds labels.csv --metadata meta.csv --out folds.csv`
    """
    from cnn_extract.commands import write_folds

    with exit_codes():
        typer.echo(
            write_folds(
                labels,
                out,
                metadata=metadata,
                n_folds=folds,
                seed=seed,
                id_column=id_column,
                label_column=label_column,
                force=force,
            )
        )


if __name__ == "__main__":
    app()
