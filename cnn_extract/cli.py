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
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Images = Annotated[Path, typer.Argument(help="A folder or a zip of images.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Write anew what is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No log and no progress.")]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that decode images; 0: this one alone. Default: as many as cores."
    ),
]
IdColumn = Annotated[str, typer.Option(help="Column with the image's id, in every table.")]
LabelColumn = Annotated[str, typer.Option(help="Column with the labels, separated by spaces.")]


def _version(value: bool) -> None:
    if value:
        from features._console import show_versions

        libraries = ("torch", "torchvision", "timm", "accelerate", "safetensors", "pillow")
        show_versions("numpy", "pandas", "zarr", *libraries)


@app.callback(
    epilog="Most work is one command: `cnn-extract run images/ --labels labels.csv "
    "--model tf_efficientnet_lite0 --out store/`; each has an example under --help."
)
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Versions, then stop."),
    ] = False,
) -> None:
    """From images to a store of CNN predictions, embeddings and image statistics."""


@contextmanager
def exit_codes(interrupted: str = "the same command resumes") -> Iterator[None]:
    """Turn errors into a line on stderr and an exit code: 1 failed, 2 refused."""
    # Imported here: numba takes seconds, and --help needs none of it.
    from features._console import exit_codes as shared

    with shared(interrupted):
        yield


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
    out: Annotated[str, typer.Option(help="The store to write: a folder, or a URL like s3://.")],
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
    precision: Annotated[
        str, typer.Option(help="Forward pass in float32, bf16 or fp16.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compile_: Annotated[
        bool, typer.Option("--compile", help="torch.compile each backbone.")
    ] = False,
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
    """Images to a store: features, and heads fitted fold by fold; a killed run resumes.

    Example: `cnn-extract run photos.zip --labels labels.csv --metadata meta.csv
    --model tf_efficientnet_lite0 --model resnet50=checkpoint.safetensors --out store/`
    """
    from cnn_extract.run import Request, run
    from features._console import Reporter

    with exit_codes():
        request = Request(
            images=images,
            labels=labels,
            models=model,
            out=out if "://" in out else Path(out),
            metadata=metadata,
            heads=[head.strip() for head in heads.split(",")],
            folds=folds,
            seed=seed,
            size=size,
            tta=tta,
            precision=precision,
            device=device,
            compile=compile_,
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
    from cnn_extract.commands import write_stats
    from features._console import Reporter

    with exit_codes("nothing was written"):
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

    with exit_codes("nothing was written"):
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


@app.command("train")
def train_command(
    images: Images,
    labels: Annotated[
        Path, typer.Option(help="CSV: image_id,labels. Images it does not name are unlabelled.")
    ],
    recipe: Annotated[
        str, typer.Option(help="A preset (see `cnn-extract recipes`) or a TOML file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, curves and the store.")],
    store: Annotated[
        Path | None,
        typer.Option(help="Store to add the model to; its folds are used. Default: OUT/store."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name in the store. Default: the recipe's.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="timm model NAME or NAME=WEIGHTS in place of the recipe's."),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Input side in pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Most epochs of each stage.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: TABLE.KEY=VALUE. Repeat for more."),
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(help="CSV: image_id and any columns; split_group keeps images together."),
    ] = None,
    drop: Annotated[
        Path | None, typer.Option(help="CSV with images to leave out of training.")
    ] = None,
    hard: Annotated[
        Path | None, typer.Option(help="CSV with images to show once more an epoch.")
    ] = None,
    pseudo: Annotated[
        Path | None, typer.Option(help="CSV: image_id,labels[,weight] of unlabelled images.")
    ] = None,
    parents: Annotated[
        Path | None, typer.Option(help="CSV: class,parent of hierarchical classes.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="STORE[:MODEL] whose predictions are distilled.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Run whose networks training begins from.")
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="Metadata column with each image's domain.")
    ] = None,
    domain_weight: Annotated[
        list[str] | None,
        typer.Option(help="DOMAIN=WEIGHT of its images in the loss; 0 leaves them out."),
    ] = None,
    only_head: Annotated[
        bool, typer.Option("--only-head", help="Every stage trains the head alone.")
    ] = False,
    folds: Annotated[int | None, typer.Option(help="Number of folds.")] = None,
    fold: Annotated[
        list[int] | None, typer.Option(help="Train only this fold, from 0. Repeat for more.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder for frozen stages' activations, shared by runs. Default: OUT."),
    ] = None,
    embeddings: Annotated[
        bool, typer.Option(help="Also write embeddings and ImageNet logits of the backbone.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    workers: Workers = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    on_error: Annotated[
        str, typer.Option(help="On an unreadable image: stop, or skip and record it.")
    ] = "stop",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Curves for TensorBoard, in OUT/tensorboard.")
    ] = False,
    id_column: IdColumn = "image_id",
    label_column: LabelColumn = "labels",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe's networks fold by fold; a killed run resumes from its last epoch.

    Example: `cnn-extract train photos/ --labels labels.csv --recipe imet-1st
    --model seresnext101_32x4d=pretrained --out runs/first`
    """
    from cnn_extract.train.request import TrainRequest, parse_weights
    from cnn_extract.train.run import train
    from features._console import Reporter

    with exit_codes():
        request = TrainRequest(
            images=images,
            labels=labels,
            recipe=recipe,
            out=out,
            store=store,
            name=name,
            model=model,
            size=size,
            epochs=epochs,
            metadata=metadata,
            drop=drop,
            hard=hard,
            pseudo=pseudo,
            parents=parents,
            teacher=teacher,
            init=init,
            domain=domain,
            domain_weights=parse_weights(domain_weight or ()),
            only_head=only_head,
            folds=folds,
            only_folds=fold or (),
            settings=set_ or (),
            cache=cache,
            embeddings=embeddings,
            seed=seed,
            workers=workers,
            device=device,
            on_error=on_error,
            tensorboard=tensorboard,
            id_column=id_column,
            label_column=label_column,
            force=force,
        )
        summary = train(request, Reporter(quiet=quiet))
        typer.echo("\n".join(summary.lines()))


@app.command("imagenet")
def imagenet_command(
    images: Images,
    model: Annotated[
        str, typer.Option(help="timm model NAME or NAME=WEIGHTS with its ImageNet classifier.")
    ],
    store: Annotated[
        Path | None, typer.Option(help="Store of the same images that gets the logits.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="CSV to write: image_id and 1,000 probabilities.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Input side in pixels.")] = None,
    tta: Annotated[str, typer.Option(help="Test-time augmentation: none or hflip.")] = "none",
    batch_size: Annotated[int, typer.Option(help="Images in a batch.")] = 16,
    workers: Workers = None,
    on_error: Annotated[
        str, typer.Option(help="On an unreadable image: stop, or skip and leave it empty.")
    ] = "stop",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write what an ImageNet classifier says of every image, into a store or a CSV.

    Example: `cnn-extract imagenet photos/ --model tf_efficientnet_lite0 --out imagenet.csv`
    """
    from cnn_extract.imagenet import ImagenetRequest, write_imagenet
    from features._console import Reporter

    with exit_codes("nothing was written"):
        request = ImagenetRequest(
            images=images,
            model=model,
            store=store,
            out=out,
            size=size,
            tta=tta,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            force=force,
        )
        typer.echo(write_imagenet(request, Reporter(quiet=quiet)))


@app.command("recipes")
def recipes_command(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe's TOML.", show_default=False)
    ] = None,
) -> None:
    """List the recipes that ship with the package, or print one.

    Example: `cnn-extract recipes imet-1st > mine.toml`
    """
    from cnn_extract.train.presets import find_recipe, preset_names, preset_text

    with exit_codes("nothing was written"):
        if name is not None:
            typer.echo(preset_text(name), nl=False)
            return
        width = max(map(len, preset_names()))
        for preset in preset_names():
            typer.echo(f"{preset:<{width}}  {find_recipe(preset).about}")


if __name__ == "__main__":
    app()
