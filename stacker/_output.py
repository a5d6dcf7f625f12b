"""Write files and folders whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from features._locks import leased_name

__all__ = [
    "refuse_existing",
    "refuse_other_than_csv",
    "refuse_url",
    "temporary_beside",
    "write_text",
]


def refuse_url(path: str | os.PathLike[str]) -> None:
    """Refuse a URL, which as a path would be a local folder named after its scheme.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> refuse_url("s3://bucket/model")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: the output 's3://bucket/model' is a URL; only stores and pair folders can be ...
    """
    # A Path has lost one of the two slashes; a single letter is a drive.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):
        raise ValueError(
            f"the output {os.fspath(path)!r} is a URL; only stores and pair folders can be at one. "
            "Give a local path, and copy what is there."
        )


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse an output that is there already, or that is no local path.

    Raises
    ------
    FileExistsError
        If `path` exists and `force` is False.
    ValueError
        If it is a URL.
    """
    refuse_url(path)
    if path.exists() and not force:
        raise FileExistsError(
            f"the output {str(path)!r} exists already. Give another name, or --force to replace it."
        )


# What these names promise is not what a CSV is.
NO_CSV = {".parquet", ".pq", ".npy", ".npz", ".h5", ".hdf5", ".json", ".xlsx", ".gz", ".zip"}


def refuse_other_than_csv(path: Path) -> None:
    """Refuse a name that says that the file is no CSV.

    Raises
    ------
    ValueError
    """
    if path.suffix.lower() in NO_CSV:
        raise ValueError(
            f"the output {str(path)!r} would be a CSV with the name of another format. "
            "End it in .csv."
        )


@contextmanager
def temporary_beside(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a temporary name to write to; rename it to `path` when the block ends well.

    An existing output stays as it is until the new one is complete.

    Examples
    --------
    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with temporary_beside(out, force=False) as name:
    ...     _ = name.write_text("done")
    >>> out.read_text()
    'done'
    """
    refuse_existing(path, force=force)
    with leased_name(path) as name:
        yield name
        if name.is_file():
            _sync(name)
        if not path.is_dir():
            name.replace(path)
            return
        # A folder cannot be replaced in one step; whole folders change places.
        with leased_name(path) as old:
            path.rename(old)
            name.rename(path)


def _sync(path: Path) -> None:
    """Flush a file to the disk before it gets its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str, *, force: bool = False) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with temporary_beside(path, force=force) as name:
        name.write_text(text, encoding="utf-8")
