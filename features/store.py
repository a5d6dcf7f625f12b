"""`FeatureStore`: predictions, labels and image features on disk, keyed by image id and class name.

A Zarr v3 group that any Zarr reader opens; the layout is the first contract of `docs/design.md`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from features import _checks as checks
from features import _layout, _rows, _tables, _zarr
from features._locks import RowLocks
from features._store_reading import StoreReader
from features._store_writing import StoreWriter
from features.schema import LabelSpace

__all__ = ["FeatureStore"]


class FeatureStore(StoreWriter):
    """Predictions, labels and image features of one set of images, on disk.

    Made by `create`, `open`, `from_arrays`, `from_csv` or `from_parquet`, never directly.
    Everything is keyed by `image_ids` and `classes`. Rows are written in whole chunks and marked
    complete only after their data is on disk, so a killed job resumes where it stopped; readers
    see NaN where a row is not complete. Several processes may write rows of different images;
    one that begins with rows of another is refused (`BlockingIOError`).

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = FeatureStore.from_arrays(
    ...     folder.name + "/store", image_ids=["i", "j"], classes=["cat", "dog"],
    ...     probabilities={"se101": np.array([[0.9, 0.1], [0.2, 0.8]])}, labels=[["cat"], ["dog"]])
    >>> store.probabilities("se101").loc["j"].idxmax(), store.labels.nnz
    ('dog', 2)
    >>> folder.cleanup()
    """

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        image_ids: ArrayLike,
        classes: ArrayLike,
        class_group: ArrayLike | None = None,
        class_parent: Sequence[Any] | None = None,
        labels: Any = None,
        labels_known: ArrayLike | None = None,
        fold: ArrayLike | None = None,
        split_group: ArrayLike | None = None,
        metadata: pd.DataFrame | None = None,
        attrs: Mapping[str, Any] | None = None,
        chunk_images: int = 1024,
    ) -> Self:
        """Make a store without predictions; it appears whole or not at all.

        Parameters
        ----------
        path : path or fsspec URL
            Must not exist.
        image_ids, classes : array-like of str
            Unique names of the images and of the classes.
        class_group, class_parent : array-like of shape (n_classes,), optional
            As in `LabelSpace`.
        labels : array, sparse matrix, DataFrame or list of label lists, optional
            As in `as_label_matrix`.
        labels_known : bool array-like of shape (n_images,), optional
            Which images have labels. Default: all when labels are given, else none.
        fold : int array-like of shape (n_images,), optional
            -1 where not assigned, the default.
        split_group : array-like of shape (n_images,), optional
            Images of one group never part. Default: every image is its own group.
        metadata : DataFrame, optional
            User columns, indexed by image id.
        attrs : mapping, optional
            Further attributes, stored as JSON.
        chunk_images : int, default=1024
            Images in a chunk: the unit of writing and of resuming.

        Raises
        ------
        FileExistsError
            When there is anything at `path`.
        """
        space = LabelSpace(classes, class_group, class_parent)
        ids = checks.as_names(image_ids, "image id")
        with cls._building(path, ids, space, attrs, chunk_images) as store:
            store._describe(labels, labels_known, fold, split_group, metadata)
        return cls.open(path, "r+")

    @classmethod
    def open(cls, path: str | os.PathLike[str], mode: str = "r") -> Self:
        """Open a store, "r" to read or "r+" to add to it.

        Raises
        ------
        FileNotFoundError
            When there is nothing at `path`.
        ValueError
            When what is there is no store, or one of a newer version.

        Examples
        --------
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "store"
        >>> _ = FeatureStore.create(path, image_ids=["i", "j"], classes=["cat", "dog"])
        >>> store = FeatureStore.open(path, "r+")
        >>> store.add_probabilities("se101", [[0.9, 0.2], [0.1, 0.8]])
        >>> FeatureStore.open(path).probabilities("se101").loc["j"].idxmax()
        'dog'
        """
        if mode not in ("r", "r+"):
            raise ValueError(f"mode must be 'r' or 'r+'; got {mode!r}. Use create for a new store.")
        root = _layout.open_checked(path, mode)
        if mode == "r+":
            with RowLocks(_zarr.local_root(root)).structure():
                _zarr.clean_stale(root)
        return cls(root, str(path) if _zarr.is_remote(path) else Path(path))

    @classmethod
    def from_arrays(
        cls,
        path: str | os.PathLike[str],
        *,
        image_ids: ArrayLike,
        classes: ArrayLike,
        probabilities: Mapping[str, Any],
        labels: Any = None,
        class_group: ArrayLike | None = None,
        class_parent: Sequence[Any] | None = None,
        fold: ArrayLike | None = None,
        split_group: ArrayLike | None = None,
        imagenet_logits: Mapping[str, Any] | None = None,
        embeddings: Mapping[str, Any] | None = None,
        image_stats: pd.DataFrame | None = None,
        metadata: pd.DataFrame | None = None,
        labels_known: ArrayLike | None = None,
        attrs: Mapping[str, Any] | None = None,
        chunk_images: int = 1024,
    ) -> Self:
        """Make a store of arrays you have; it appears whole or not at all.

        Parameters
        ----------
        probabilities : mapping of str to (n_images, n_classes)
            Arrays in the order of `image_ids` and `classes`, DataFrames (realigned by index and
            columns) or sparse matrices (kept as top-k). Values in [0, 1].
        imagenet_logits, embeddings : mapping of str to (n_images, dim), optional
        image_stats : DataFrame, optional
            Statistics of each image, indexed by image id.

        The rest is as in `create`.
        """
        space = LabelSpace(classes, class_group, class_parent)
        ids = checks.as_names(image_ids, "image id")
        with cls._building(path, ids, space, attrs, chunk_images) as store:
            store._describe(labels, labels_known, fold, split_group, metadata)
            for model, values in probabilities.items():
                store.add_probabilities(model, values)
            for name, values in (embeddings or {}).items():
                store.add_embeddings(name, values)
            for name, values in (imagenet_logits or {}).items():
                store.add_imagenet_logits(name, values)
            if image_stats is not None:
                store.add_image_stats(image_stats)
        return cls.open(path, "r+")

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        probabilities: Mapping[str, str | os.PathLike[str]],
        *,
        labels: str | os.PathLike[str] | None = None,
        metadata: str | os.PathLike[str] | None = None,
        id_column: str = "image_id",
        label_column: str = "labels",
        **settings: Any,
    ) -> Self:
        r"""Make a store of CSV files: one a model, with an id column and a column for each class.

        Parameters
        ----------
        probabilities : mapping of str to path
            The first file gives the order of images and classes; the others are realigned.
        labels : path, optional
            Columns `id_column` and `label_column`, labels separated by spaces. Images that it
            does not list have unknown labels.
        metadata : path, optional
            `id_column` and any columns; ``split_group`` and ``fold`` are taken as such.
        **settings
            `class_group`, `class_parent`, `attrs`, `chunk_images` of `create`.

        Raises
        ------
        ValueError
            For a file without the expected columns, repeated ids or columns, cells that are no
            numbers, and names that do not match between files.

        Examples
        --------
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.csv").write_text("image_id,cat,dog\ni,0.9,0.2\nj,0.1,0.8\n")
        >>> _ = (folder / "b.csv").write_text("image_id,dog,cat\nj,0.7,0.2\ni,0.1,0.6\n")
        >>> _ = (folder / "labels.csv").write_text("image_id,labels\ni,cat\nj,cat dog\n")
        >>> store = FeatureStore.from_csv(
        ...     folder / "store",
        ...     {name: folder / f"{name}.csv" for name in "ab"},
        ...     labels=folder / "labels.csv",
        ... )
        >>> store.models, store.labels.toarray().tolist()
        (['a', 'b'], [[1, 0], [1, 1]])
        """
        read = _tables.CsvReader(id_column)
        given = _tables.gather(read, probabilities, labels, metadata, label_column)
        return cls.from_arrays(path, **given, **_layout.check_settings(settings))

    @classmethod
    def from_parquet(
        cls,
        path: str | os.PathLike[str],
        probabilities: Mapping[str, str | os.PathLike[str]],
        *,
        labels: str | os.PathLike[str] | None = None,
        metadata: str | os.PathLike[str] | None = None,
        id_column: str = "image_id",
        label_column: str = "labels",
        **settings: Any,
    ) -> Self:
        """Make a store of Parquet files laid out like the CSV files of `from_csv`.

        The label column may hold lists of names too; `labels` and `metadata` may also be CSV.
        """
        read = _tables.ParquetReader(id_column)
        given = _tables.gather(read, probabilities, labels, metadata, label_column)
        return cls.from_arrays(path, **given, **_layout.check_settings(settings))

    @classmethod
    @contextmanager
    def _building(
        cls,
        path: str | os.PathLike[str],
        image_ids: NDArray[np.str_],
        space: LabelSpace,
        attrs: Mapping[str, Any] | None,
        chunk_images: int,
    ) -> Iterator[Self]:
        """Give a store under a temporary name, renamed to `path` when the body has succeeded."""
        _layout.refuse_existing(path)
        with _zarr.building(path) as target:
            root = _layout.create_root(target, image_ids, space, chunk_images)
            store = cls(root, target)
            # Nobody else knows of it yet.
            store._locks = RowLocks(None)
            yield store
            _layout.seal(root, space, attrs, chunk_images)

    def subset(self, image_ids: ArrayLike, path: str | os.PathLike[str] | None = None) -> Self:
        """View some images, in the order given; with `path`, copy them to a new store.

        Parameters
        ----------
        image_ids : array-like of str, or bool mask of shape (n_images,)
        path : path or fsspec URL, optional
            Must not exist.

        Raises
        ------
        ValueError
            Naming the first few ids that are not in the store, or that stand twice.

        Examples
        --------
        >>> import tempfile
        >>> store = FeatureStore.from_arrays(
        ...     Path(tempfile.mkdtemp()) / "store",
        ...     image_ids=["i", "j"],
        ...     classes=["cat"],
        ...     probabilities={"a": [[0.9], [0.2]]},
        ...     labels=[["cat"], []],
        ...     labels_known=[True, False],
        ... )
        >>> store.subset(["j", "i"]).image_ids.tolist(), store.subset(store.labels_known).n_images
        (['j', 'i'], 1)
        """
        view = super().subset(image_ids)
        return view if path is None else view.copy(path)

    def copy(self, path: str | os.PathLike[str]) -> Self:
        """Copy the store, or this view of it, to a new store; unwritten rows stay unwritten."""
        own = {k: v for k, v in self.attrs.items() if k not in _layout.OWN_ATTRS}
        with self._building(
            path, self.image_ids, self.label_space, own, self.chunk_images
        ) as store:
            store._describe(
                self.labels, self.labels_known, self.fold, self.split_group, self.metadata
            )
            store.set_errors(np.flatnonzero(self.skipped), self.errors[self.skipped])
            for name in self.array_names:
                store._copy_rows(name, self)
        return self.open(path, "r+")

    def _copy_rows(self, name: str, source: StoreReader) -> None:
        """Copy one array's complete rows, chunk by chunk."""
        array = source._array(name)
        dims = array.metadata.dimension_names
        axis = _rows.image_axis(dims)
        if name == "image_stats":
            self.require_image_stats(_zarr.read_strings(source._root, "stat").tolist(), array.attrs)
        row_shape = array.shape[:axis] + array.shape[axis + 1 :]
        self.require_array(name, row_shape, array.dtype, dims, array.attrs)
        values, written = source._read(name), source.written(name)
        self._write_blocks(name, values, axis, written)
