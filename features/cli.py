"""The ``build-features`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from features.parquet import ROWS_PER_PART

__all__ = ["app"]

app = typer.Typer(
    help="From a store of predictions to pair rows: one row per image and candidate class.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from features._console import show_versions

        show_versions("numpy", "scipy", "pandas", "pyarrow", "zarr", "numba")


@app.command(
    epilog="Example: `build-features store/ --out pairs/`\n\n"
    "Chosen blocks and rows: `build-features store/ --out pairs/ "
    "--blocks probabilities,ranks,combinations:order=3 --candidates culture=20,tag=30`\n\n"
    "What it would cost, nothing written: `build-features store/ --explain`"
)
def build_features(
    store: Annotated[str, typer.Argument(help="Feature store: a folder or URL.")],
    out: Annotated[
        str | None,
        typer.Option(help="Folder or URL to write. Not needed with --explain.", show_default=False),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Blocks separated by commas, options after colons: "
            "default,metadata,combinations:order=3. Default: default,combinations.",
            show_default=False,
        ),
    ] = None,
    candidates: Annotated[
        str,
        typer.Option(
            help="Classes of an image that become rows: auto, all, 50 (in each class group), or "
            "culture=20,tag=30, or threshold=0.01 (every class above this probability)."
        ),
    ] = "auto",
    max_memory: Annotated[
        str, typer.Option(help="Working memory, beyond the store's arrays and one row group.")
    ] = "4GB",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Threads. Default: all cores.", show_default=False)
    ] = None,
    negatives: Annotated[
        float,
        typer.Option(
            help="Share of the negative rows of labelled images to keep, for example 0.1; a "
            "column weight makes up for the rest."
        ),
    ] = 1.0,
    rows_per_part: Annotated[
        int, typer.Option(min=1, help="Most rows of one Parquet file (whole images).")
    ] = ROWS_PER_PART,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Print each block's columns, seconds and bytes, and candidate recall. Without "
            "--out, on some images and writing nothing.",
        ),
    ] = False,
    dask: Annotated[
        str | None,
        typer.Option(
            help="Scheduler address of a Dask cluster: its workers fit the blocks and write the "
            "parts. They must see STORE and --out under these names.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write anew what is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No log and no progress.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Versions, then stop."),
    ] = False,
) -> None:
    """Write pair rows as a folder of Parquet files; a killed run resumes where it stopped.

    Blocks are fitted on the labelled images, out of fold; rows are written for all images.
    """
    from features._build import Request, build
    from features._console import Reporter, exit_codes
    from features._specs import parse_blocks, parse_candidates

    report = Reporter(quiet=quiet)
    with exit_codes(), report.logging("features"):
        if out is None and not explain:
            raise ValueError("give --out FOLDER to write to, or --explain to only measure.")
        request = Request(
            store=store,
            out=out if out is None or "://" in out else Path(out),
            blocks=None if blocks is None else parse_blocks(blocks),
            candidates=parse_candidates(candidates),
            max_memory=max_memory,
            n_jobs=jobs,
            rows_per_part=rows_per_part,
            force=force,
            negatives=negatives,
            dask=dask,
        )
        summary = build(request, report)
        lines = summary.lines()
        if explain:
            lines = [*summary.explanation(), "", *lines]
        typer.echo("\n".join(lines))


if __name__ == "__main__":
    app()
