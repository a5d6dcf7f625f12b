"""Write files and folders whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from features._locks import leased_name

__all__ = ["refuse_existing", "temporary_beside", "write_text"]


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse an output that is there already.

    Raises
    ------
    FileExistsError
        If `path` exists and `force` is False.
    """
    if path.exists() and not force:
        raise FileExistsError(
            f"the output {str(path)!r} exists already. Give another name, or --force to replace it."
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
