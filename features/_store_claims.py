"""`StoreClaims`: who may write what, while several processes have one store open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from features import _layout, _zarr
from features._store_reading import StoreReader

__all__ = ["StoreClaims"]


class StoreClaims(StoreReader):
    """Claims rows, and changes what stands in a store, while other processes are kept out."""

    def claim_rows(self, name: str, start: int, stop: int) -> None:
        """Claim rows of an array for this process before they are computed; see `write_rows`.

        Raises
        ------
        BlockingIOError
            When another process writes some of images ``start`` to ``stop - 1``.
        """
        self._refuse_view()
        self._locks.take(name, start, stop, self.chunk_images)

    def release(self, name: str | None = None) -> None:
        """Let other processes write the rows of an array again, or of all arrays."""
        self._locks.release(name)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Change what stands in the store while no other process does.

        What other readers open the store by is gone meanwhile: it would not be true.
        """
        with self._locks.structure():
            if _layout.is_sealed(self._root):
                _zarr.forget_consolidated(self._root)
            try:
                yield
            finally:
                self.consolidate()

    def consolidate(self) -> None:
        """Gather all metadata in one place for other readers; writing methods do this themselves.

        While a new store is being built nothing is gathered: that happens once, at the end.
        """
        if _layout.is_sealed(self._root):
            _zarr.consolidate(self._root)

    def _refuse_view(self) -> None:
        if self._rows is not None:
            raise ValueError("a subset cannot be written to; write to the store, or subset(path=)")
        if self._root.read_only:
            raise ValueError(f"{self.path} is open for reading; use FeatureStore.open(path, 'r+')")
