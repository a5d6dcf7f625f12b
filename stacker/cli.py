"""The ``stacker`` command."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import numpy as np
import typer
from numpy.typing import NDArray

from stacker import _decide_command, _import_command, _predict, _verify
from stacker._image_files import image_reader
from stacker._options import (
    Average,
    Beta,
    Blocks,
    Booster,
    Candidates,
    Dask,
    Force,
    Jobs,
    Model,
    Quiet,
    Seed,
    Store,
    Trials,
)
from stacker._output import refuse_existing, temporary_beside, write_text
from stacker._progress import Log
from stacker._tables import print_key_values, print_score_table

if TYPE_CHECKING:
    from features.store import FeatureStore
    from stacker.estimator import PairStacker

__all__ = ["app", "main"]

# What to do after Ctrl-C, where it is not to begin again.
INTERRUPTED = {
    "demo": "the same command resumes",
    "tune": "finished trials are kept where --storage names a study: the same command resumes",
}

app = typer.Typer(
    help="Better label sets from several models' predictions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

P = ParamSpec("P")


def _ends_well(command: Callable[P, None]) -> Callable[P, None]:
    """Turn errors into one line on stderr and an exit code: 2 refused, 1 failed."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        from features._console import exit_codes

        with exit_codes(INTERRUPTED.get(command.__name__, "nothing was written; run it again")):
            command(*args, **kwargs)

    return wrapped


def _version(value: bool) -> None:
    if value:
        from features._console import show_versions
        from stacker.report import LIBRARIES

        show_versions(*LIBRARIES)


@app.callback(
    epilog="To see it work: [bold]stacker demo[/bold]. With predictions of your own: "
    "[bold]stacker import[/bold], [bold]compare[/bold], [bold]fit[/bold], [bold]predict[/bold], "
    "each with an example under --help."
)
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Versions, then stop."),
    ] = False,
) -> None:
    """Better label sets from several models' predictions."""


@app.command(epilog="Example: [bold]stacker demo --n-images 600 --out small_demo[/bold]")
@_ends_well
def demo(
    full: Annotated[bool, typer.Option("--full", help="All images, three backbones.")] = False,
    n_images: Annotated[int, typer.Option(help="Images to use (without --full).")] = 2000,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    report: Annotated[
        Path | None, typer.Option(help="HTML report; default OUT/report.html.", show_default=False)
    ] = None,
    random_state: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Run everything on the openclipart images that ship with the package."""
    from stacker.demo import DemoSettings, run_demo

    settings = (
        DemoSettings.full(random_state)
        if full
        else DemoSettings(n_images=n_images, random_state=random_state)
    )
    table = run_demo(
        out, settings, report=report, command=_command_line(), force=force, log=Log(quiet=quiet)
    )
    print_score_table(table, title="openclipart, held-out images")
    typer.echo(f"report: {report or out / 'report.html'}")


app.command("import", epilog=_import_command.EPILOG)(_ends_well(_import_command.import_command))


@app.command(
    epilog="Example: [bold]stacker compare store/ --average samples --json scores.json[/bold]"
)
@_ends_well
def compare(
    store: Store,
    average: Average = "samples",
    beta: Beta = 2.0,
    booster: Booster = "lightgbm",
    blocks: Blocks = "default",
    candidates: Candidates = "auto",
    trials: Trials = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the scores as JSON.", show_default=False)
    ] = None,
    jobs: Jobs = None,
    random_state: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Is stacking worth it for me? Every blend and the stack, nested over the store's folds."""
    from stacker import _compare

    if json_path is not None:
        refuse_existing(json_path, force=force)
    model = _new_stack(
        booster,
        blocks,
        candidates,
        n_trials=trials,
        average=average,
        beta=beta,
        n_jobs=jobs,
        random_state=random_state,
    )
    labelled = _labelled(_open(store), folds=True)
    log, fold = Log(quiet=quiet), labelled.fold
    with log.steps(_compare.N_STEPS * len(np.unique(fold))) as step:
        table = _compare.compare(
            labelled.to_stack(),
            labelled.labels,
            fold,
            model,
            groups=labelled.split_group,
            average=average,
            random_state=random_state,
            step=step,
        )
    print_score_table(table, title=f"{store}: nested over {len(np.unique(fold))} folds")
    if json_path is not None:
        text = json.dumps(_compare.as_json(table, average), indent=2)
        write_text(json_path, text + "\n", force=force)


@app.command(epilog="Example: [bold]stacker fit store/ --out model/[/bold]")
@_ends_well
def fit(
    store: Store,
    out: Annotated[Path, typer.Option(help="Folder of the fitted model.", show_default=False)],
    average: Average = "samples",
    beta: Beta = 2.0,
    booster: Booster = "lightgbm",
    blocks: Blocks = "default",
    candidates: Candidates = "auto",
    trials: Trials = 0,
    dask: Dask = None,
    jobs: Jobs = None,
    random_state: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Fit a stack on the store's labelled images."""
    refuse_existing(out, force=force)
    labelled = _labelled(_open(store))
    model = _new_stack(
        booster,
        blocks,
        candidates,
        cv="store" if (labelled.fold >= 0).all() else 5,
        n_trials=trials,
        average=average,
        beta=beta,
        dask=dask,
        n_jobs=jobs,
        random_state=random_state,
        verbose=0 if quiet else 1,
    )
    with Log(quiet=quiet).listening():
        model.fit(labelled, groups=labelled.split_group)
    with temporary_beside(out, force=force) as folder:
        model.save(folder)
    scores = {"stack, out-of-fold": model.oof_score_, "its base, out-of-fold": model.base_score_}
    print_key_values(scores, title=f"F{beta:g} ({average}), {labelled.n_images:,} images")
    typer.echo(f"model: {out}")


@app.command(
    epilog="Example: [bold]stacker tune store/ --trials 50 --storage study.db --out model/[/bold]. "
    "Given again it goes on where it stopped; several processes may share a storage."
)
@_ends_well
def tune(
    store: Store,
    out: Annotated[Path, typer.Option(help="Folder of the fitted model.", show_default=False)],
    trials: Annotated[int, typer.Option(help="Finished trials to stop after.")] = 50,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds after which no trial is started.", show_default=False),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="File that keeps the trials: SQLite where it ends in .db, else a journal.",
            show_default=False,
        ),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="What trials maximise: fbeta, or log_loss (its negative).")
    ] = "fbeta",
    average: Average = "samples",
    beta: Beta = 2.0,
    booster: Annotated[str, typer.Option(help="lightgbm or xgboost.")] = "lightgbm",
    jobs: Jobs = None,
    random_state: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Tune a stack on the store's labelled images, then fit it with the best settings."""
    from stacker.estimator import PairStacker
    from stacker.tuning import tune as search

    refuse_existing(out, force=force)
    labelled = _labelled(_open(store))
    model = PairStacker(
        booster=booster,
        cv="store" if (labelled.fold >= 0).all() else 5,
        average=average,
        beta=beta,
        n_jobs=jobs,
        random_state=random_state,
        verbose=0 if quiet else 1,
    )
    log = Log(quiet=quiet)
    with log.steps(trials) as step:
        best = search(
            model,
            labelled,
            n_trials=trials,
            timeout=timeout,
            storage=storage,
            objective=objective,
            step=step,
        )
    with log.listening():
        best.fit(labelled)
    with temporary_beside(out, force=force) as folder:
        best.save(folder)
    maximised = objective.replace("_", " ")
    print_key_values(
        {
            f"{maximised} of the defaults": best.trials_["value"].iloc[0],
            f"{maximised} of the best trial": best.trials_["value"].max(),
            "stack, out-of-fold": best.oof_score_,
            "its base, out-of-fold": best.base_score_,
        },
        title=f"{len(best.trials_)} trials, {labelled.n_images:,} images",
    )
    typer.echo(f"model: {out}")


app.command(epilog=_predict.EPILOG)(_ends_well(_predict.predict))


@app.command(epilog="Example: [bold]stacker evaluate model/ test_store/ --json scores.json[/bold]")
@_ends_well
def evaluate(
    model: Model,
    store: Store,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the scores as JSON.", show_default=False)
    ] = None,
    trained_on: Annotated[
        Path | None,
        typer.Option(
            help="Store the model was fitted on: shows every blend beside the stack.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Score a fitted model on the labelled images of a store that it was not fitted on."""
    from stacker._evaluate import evaluate as score
    from stacker._tables import print_bins
    from stacker.estimator import PairStacker

    if json_path is not None:
        refuse_existing(json_path, force=force)
    labelled = _labelled(_open(store))
    Log(quiet=quiet)(f"predicting {labelled.n_images:,} images")
    known = None if trained_on is None else _labelled(_open(trained_on))
    found = score(PairStacker.load(model), labelled, trained_on=known)
    print_score_table(found.table, title=f"{model} on {store}")
    print_bins(found.scores, title="all scores, one rule for all averages")
    print_bins(found.by_group.xs("stack"), title="the stack by class group")
    print_bins(found.by_frequency.xs("stack"), title="the stack by positives of a class")
    if json_path is not None:
        write_text(json_path, json.dumps(found.to_dict(), indent=2) + "\n", force=force)


@app.command(
    epilog="Example: [bold]stacker report model/ --store test_store/ --images images/ "
    "--out report.html[/bold]"
)
@_ends_well
def report(
    model: Model,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    store: Annotated[
        Path | None,
        typer.Option(help="Store of labelled images the model never saw.", show_default=False),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder or zip of the images, for pictures.", show_default=False),
    ] = None,
    trained_on: Annotated[
        Path | None,
        typer.Option(
            help="Store the model was fitted on: adds threshold curves and data checks.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about a fitted model; it opens offline."""
    from stacker._evaluate import held_out_of, training_labels
    from stacker.estimator import PairStacker
    from stacker.report import write_report

    refuse_existing(out, force=force)
    fitted = PairStacker.load(model)
    labelled, known = (
        None if path is None else _labelled(_open(path)) for path in (store, trained_on)
    )
    ids = [name for s in (labelled, known) if s is not None for name in s.image_ids.tolist()]
    read_image = None if images is None else image_reader(images, ids)
    held_out = None
    if labelled is not None:
        Log(quiet=quiet)(f"predicting {labelled.n_images:,} images")
        held_out = held_out_of(fitted, labelled)
    write_report(
        out,
        fitted,
        train_labels=None if known is None else training_labels(fitted, known),
        train=None if known is None else known.to_stack(),
        held_out=held_out,
        read_image=read_image,
        title=f"pairstack: {model.name}",
        command=_command_line(),
        force=force,
    )
    typer.echo(f"report: {out}")


app.command("decide", epilog=_decide_command.EPILOG)(_ends_well(_decide_command.decide_command))


@app.command(
    epilog="Example: [bold]stacker curate store/ --model model/ --out curated/[/bold]. "
    "cnn-extract train reads drop.csv, hard.csv and pseudo.csv."
)
@_ends_well
def curate(
    store: Store,
    out: Annotated[Path, typer.Option(help="Folder of CSVs to write.", show_default=False)],
    model: Annotated[
        Path | None,
        typer.Option(help="Model fitted on this store; else the logit mean.", show_default=False),
    ] = None,
    drop: Annotated[
        float, typer.Option(help="Share of the labelled images to list as suspects.")
    ] = 0.02,
    hard: Annotated[
        float, typer.Option(help="Share of the labelled images to list as hard.")
    ] = 0.05,
    pseudo: Annotated[float, typer.Option(help="Share of the unlabelled images to label.")] = 0.2,
    by: Annotated[
        str, typer.Option(help="Order of the suspects: chance (of a wrong label) or loss.")
    ] = "chance",
    confidence: Annotated[
        str, typer.Option(help="Order of the pseudo-labels: margin or fbeta.")
    ] = "margin",
    noise: Annotated[float, typer.Option(help="Share of labels assumed wrong.")] = 0.1,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Find wrong labels, hard examples and pseudo-labels from out-of-fold predictions."""
    from stacker._curate import CurateSettings, curate_store, write_tables
    from stacker.estimator import PairStacker

    refuse_existing(out, force=force)
    whole = _open(store)
    _labelled(whole)  # refuses a store without labels
    fitted = None if model is None else PairStacker.load(model)
    settings = CurateSettings(drop, hard, pseudo, by, confidence, noise)
    tables = curate_store(whole, fitted, settings)
    with temporary_beside(out, force=force) as folder:
        write_tables(folder, tables)
    Log(quiet=quiet)("pseudo.csv needs images without labels" if len(tables) < 4 else "all written")
    print_key_values({name: len(table) for name, table in tables.items()}, title=f"rows in {out}")


app.command("verify", epilog=_verify.EPILOG)(_ends_well(_verify.verify_command))


def _new_stack(booster: str, blocks: str, candidates: str, **settings: Any) -> PairStacker:
    """Make a stack that is not fitted yet from options of the command line."""
    from features._specs import parse_blocks, parse_candidates
    from stacker.estimator import PairStacker

    names = tuple(name.strip() for name in booster.split(","))
    model = PairStacker(
        booster=names[0] if len(names) == 1 else names,
        blocks=parse_blocks(blocks),
        candidates=parse_candidates(candidates),
        **settings,
    )
    model._check_params()  # before the blends of a comparison, not after them
    return model


def _open(path: Path) -> FeatureStore:
    # Imported here: zarr takes a second, and --help needs none of it.
    from features.store import FeatureStore

    return FeatureStore.open(path)


def _labelled(store: FeatureStore, *, folds: bool = False) -> FeatureStore:
    """Labelled images of a store (that have a fold)."""
    store = store.without_skipped()
    keep: NDArray[np.bool_] = store.labels_known
    if not keep.any():
        raise ValueError(f"no image of {store.path} has labels. Add them with store.set_labels.")
    if folds:
        keep = keep & (store.fold >= 0)
        if len(np.unique(store.fold[keep])) < 2:
            raise ValueError(
                f"comparing needs the labelled images in at least two folds; {store.path} has "
                "none assigned. Give them in Python: store.set_fold(features.folds.make_folds("
                "store.labels, 5, store.split_group))."
            )
    return store.subset(keep)


def _command_line() -> str:
    return shlex.join(["stacker", *sys.argv[1:]])


def main(*arguments: Any) -> None:
    """Run the command, for ``python -m stacker.cli``."""
    app(*arguments)


if __name__ == "__main__":
    main()
