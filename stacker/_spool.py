"""Batches of rows that are read more than once: made once, then read back from a file."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["Spool"]

Float = NDArray[np.float32]


class Spool:
    """Batches of float32 rows, kept in a temporary file from their first pass on.

    Where the disk has no room for twice their size they are made anew in each pass.

    Parameters
    ----------
    make : function without arguments to an iterator of arrays of shape (n_batch_rows, n_columns)
        A batch may be overwritten by the next one.
    n_bytes : int
        Size of all batches, or a bound on it.

    Examples
    --------
    >>> spool = Spool(lambda: iter([np.ones((2, 3), np.float32)]), n_bytes=24)
    >>> [batch.shape for _ in range(2) for batch in spool.batches()]
    [(2, 3), (2, 3)]
    """

    def __init__(self, make: Callable[[], Iterator[Float]], n_bytes: int) -> None:
        self.make = make
        self.shapes: list[tuple[int, int]] = []
        self.whole = False
        free = shutil.disk_usage(tempfile.gettempdir()).free
        # Nameless: it is gone with the process, however that ends.
        self.file = tempfile.TemporaryFile() if 2 * n_bytes < free else None  # noqa: SIM115
        if self.file is not None:
            weakref.finalize(self, self.file.close)

    def batches(self) -> Iterator[Float]:
        """Go over all batches, each an array of its own."""
        if self.file is None:
            yield from (batch.copy() for batch in self.make())
        elif self.whole:
            yield from self._read()
        else:
            yield from self._write()

    def _write(self) -> Iterator[Float]:
        assert self.file is not None
        self.file.seek(0)
        self.shapes = []
        for batch in self.make():
            kept: Float = np.array(batch, dtype=np.float32, order="C")
            self.file.write(kept.tobytes())
            self.shapes.append((kept.shape[0], kept.shape[1]))
            yield kept
        self.whole = True

    def _read(self) -> Iterator[Float]:
        assert self.file is not None
        self.file.seek(0)
        for shape in self.shapes:
            size = 4 * shape[0] * shape[1]
            content = self.file.read(size)
            if len(content) != size:
                raise OSError("the temporary file of the rows was cut short; is the disk full?")
            yield np.frombuffer(content, dtype=np.float32).reshape(shape)
