"""Folders at a URL that read like `pathlib.Path`: the few operations that a pair folder needs.

An object store has no rename: an object appears when all its bytes have arrived, whole or not at
all, and replaces the one before it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["Place", "Remote", "as_place", "size_of"]


class Remote:
    """A folder or file at an fsspec URL.

    Parameters
    ----------
    url : str
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        # Others write here too: what a listing said a moment ago may no longer hold.
        self.files, self.inside = fsspec.core.url_to_fs(self.url, use_listings_cache=False)

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self.url.rpartition("/")[2]

    def exists(self) -> bool:
        """Whether there is an object of this name, or some below it."""
        return bool(self.files.exists(self.inside))

    def is_dir(self) -> bool:
        """Whether objects have names below this one."""
        return bool(self.files.isdir(self.inside))

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return bool(self.files.isfile(self.inside))

    def iterdir(self) -> Iterator[Remote]:
        """Go over what lies directly below."""
        for found in self.files.ls(self.inside, detail=False):
            yield self / str(found).rstrip("/").rpartition("/")[2]

    def glob(self, pattern: str) -> Iterator[Remote]:
        """Go over what lies directly below and has such a name."""
        if self.is_dir():
            yield from [path for path in self.iterdir() if fnmatch(path.name, pattern)]

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: an object store has no empty folders."""

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the object."""
        if not missing_ok or self.is_file():
            self.files.rm_file(self.inside)

    def open(self, mode: str = "rb") -> Any:
        """Open the object for reading."""
        return self.files.open(self.inside, mode)

    def size(self) -> int:
        """Bytes of the object."""
        return int(self.files.size(self.inside))

    def write_whole(self, write: Callable[[BinaryIO], None]) -> None:
        """Write the object through a temporary file of this machine."""
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "part"
            with local.open("wb") as file:
                write(file)
            self.files.put_file(str(local), self.inside)


Place = Path | Remote


def as_place(path: str | os.PathLike[str] | Remote) -> Place:
    """Take a URL for a URL and all else for a path.

    Examples
    --------
    >>> as_place("pairs").name, str(as_place("memory://a/pairs/") / "part")
    ('pairs', 'memory://a/pairs/part')
    """
    if isinstance(path, Remote):
        return path
    return Remote(str(path)) if "://" in str(path) else Path(path)


def size_of(path: Place) -> int:
    """Bytes of a file."""
    return path.size() if isinstance(path, Remote) else path.stat().st_size
