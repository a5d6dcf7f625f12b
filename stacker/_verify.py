"""The ``stacker verify`` command."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["EPILOG", "verify_command"]

EPILOG = (
    "Example: [bold]stacker verify store/[/bold]. Exit code 0: intact, 1: damaged, 2: nothing "
    "that could be checked."
)


def verify_command(
    path: Annotated[
        str,
        typer.Argument(
            help="Store, pair folder, model or training run (a folder).", show_default=False
        ),
    ],
) -> None:
    """Is every byte as it was written? Reads everything and compares checksums."""
    from stacker.verify import verify

    found = verify(path)
    for part in found:
        typer.echo("\n".join(part.lines()))
    n_damaged = sum(len(part.problems) for part in found)
    if n_damaged:
        raise RuntimeError(
            f"{path} is damaged in {n_damaged} places. Copy it again from where it was intact, "
            "or write it anew."
        )
