"""Write files and folders whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: some writers choose the format by it.
    name = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield name
        if path.is_dir():
            shutil.rmtree(path)
        name.replace(path)
    finally:
        if name.is_dir():
            shutil.rmtree(name)
        else:
            name.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, force: bool = False) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with temporary_beside(path, force=force) as name:
        name.write_text(text, encoding="utf-8")
