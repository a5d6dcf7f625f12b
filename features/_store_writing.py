"""`StoreWriter`: the writing half of `FeatureStore`, whole arrays or resumable ranges of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy import sparse

from features import _checks as checks
from features import _frames, _layout, _rows, _zarr
from features._store_claims import StoreClaims
from features.schema import as_label_matrix

__all__ = ["StoreWriter"]

# Whole arrays are written about this many values at a time.
WRITE_BLOCK = 1 << 25


class StoreWriter(StoreClaims):
    """Writes a store: data first, then the marks that say it is complete."""

    def require_array(
        self,
        name: str,
        row_shape: Sequence[int],
        dtype: DTypeLike,
        dims: Sequence[str],
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Make an empty array to be filled by `write_rows`, or resume the one that is there.

        Parameters
        ----------
        name : str
            For example "probabilities/lite0.linear" or "image_stats".
        row_shape : sequence of int
            The shape without the image axis.
        dtype : dtype
        dims : sequence of str
            Dimension names, "image" among them; without it the image axis comes first.
        attrs : mapping, optional
            Settings the values depend on. An array made with others is refused.

        Raises
        ------
        ValueError
            When the array is there with another shape, type or settings.
        """
        self._refuse_view()
        dims = tuple(dims) if "image" in dims else ("image", *dims)
        axis = _rows.image_axis(dims)
        shape = (*row_shape[:axis], self.n_images, *row_shape[axis:])
        path = _zarr.array_path(name)
        # Gathered also on resuming: the killed run may have died before it got there.
        with self._changing():
            if path in self._root and f"written/{path}" in self._root:
                _layout.refuse_other(self._root[path], name, shape, dtype, attrs)
            else:
                _layout.create_rows(self._root, path, shape, dtype, dims, attrs, self.chunk_images)

    def require_image_stats(
        self, names: Sequence[str], attrs: Mapping[str, Any] | None = None
    ) -> None:
        """Make the empty array "image_stats" (image, stat) with these statistics, or resume it."""
        self._refuse_view()
        with self._locks.structure():
            self._require_stat(names)
        self.require_array("image_stats", (len(names),), np.float32, ("image", "stat"), attrs)

    def _require_stat(self, names: Sequence[str]) -> None:
        """Name the statistics, or compare with the names that are there."""
        if "stat" in self._root:
            there = _zarr.read_strings(self._root, "stat").tolist()
            if there != list(names):
                raise ValueError(
                    f"image_stats of {self.path} holds other statistics: there "
                    f"{checks.first_few(there)}, asked {checks.first_few(names)}. Use a new store."
                )
        else:
            unique = checks.as_names(names, "statistic")
            with _zarr.replacing(self._root, "stat") as path:
                _zarr.write_strings(self._root, path, unique, "stat")

    def write_rows(self, name: str, start: int, values: ArrayLike) -> None:
        """Write whole chunks of rows, then mark them complete.

        Rows of images with an entry in `errors` are kept empty and unmarked. The rows belong to
        this process from now on: another one that writes some of them is refused, until this
        one ends, calls `release` or gives up the store object.

        Parameters
        ----------
        name : str
            An array made by `require_array`.
        start : int
            First image; a multiple of `chunk_images`.
        values : array-like
            Rows for images ``start, start + 1, ...``: up to the end of a chunk or of the store.

        Raises
        ------
        ValueError
            For ranges that cut a chunk, other shapes, and values the array may not hold.
        BlockingIOError
            When another process writes some of these rows.
        """
        self._refuse_view()
        array, marks = (
            self._array(name),
            self._array(f"written/{_zarr.array_path(name)}", escaped=True),
        )
        axis = _rows.image_axis(array.metadata.dimension_names)
        block = np.asarray(values)
        _layout.check_range(name, array, start, block, axis, self.chunk_images)
        self.claim_rows(name, start, start + block.shape[axis])
        span = slice(start, start + block.shape[axis])
        good = np.asarray(self._root["errors"][span] == "", dtype=bool)
        keep = (slice(None),) * axis + (good,)
        _rows.check_rows(
            name, block[keep], image_ids=self._all_ids[span][good], classes=self.classes
        )
        if not good.all():
            block = np.where(_rows.along(good, block.ndim, axis), block, array.fill_value)
        # Values about to change are not complete, whatever was said of them before.
        if marks[span].any():
            _zarr.write_block(marks, start, np.zeros_like(good), 0)
        _zarr.write_block(array, start, block.astype(array.dtype, copy=False), axis)
        _zarr.write_block(marks, start, good, 0)

    def add_probabilities(
        self,
        model: str,
        values: Any,
        image_ids: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        attrs: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Add a model's probabilities, realigned by image id and class name.

        Parameters
        ----------
        model : str
        values : array, DataFrame or sparse matrix of shape (n_images, n_classes)
            In [0, 1]. float16 is kept, other numbers become float32. Sparse goes to `add_topk`.
        image_ids, classes : array-like of str, optional
            Names of the rows and columns of `values`. Default: a DataFrame's own, else the
            store's order.
        attrs : mapping, optional
            What made them: model name, checkpoint, folds, versions.
        overwrite : bool, default=False
            Replace a model of that name instead of refusing.
        """
        if sparse.issparse(values):
            self.add_topk(model, values, image_ids, classes, attrs, overwrite=overwrite)
            return
        self._refuse_view()
        self._refuse_model(model, overwrite)
        where = f"probabilities of model {model!r}"
        matrix = checks.as_float(self._align(values, image_ids, classes, where), where)
        self._write_all(f"probabilities/{model}", matrix, ("image", "class"), attrs)

    def add_topk(
        self,
        model: str,
        values: sparse.csr_array,
        image_ids: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        attrs: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Add each image's top classes as a sparse matrix; see `add_probabilities`."""
        self._refuse_view()
        self._refuse_model(model, overwrite)
        where = f"probabilities of model {model!r}"
        aligned = self._align(checks.as_canonical_csr(values, where), image_ids, classes, where)
        matrix = checks.as_canonical_csr(aligned, where)
        checks.check_probabilities(
            matrix, model=model, image_ids=self.image_ids, classes=self.classes
        )
        k = max(1, int(np.diff(matrix.indptr).max(initial=0)))
        index, value = _rows.csr_to_topk(matrix, k)
        self._write_all(f"topk/{model}/index", index, ("image", "rank"), attrs)
        self._write_all(f"topk/{model}/value", value, ("image", "rank"), attrs)

    def add_fold_probabilities(
        self,
        model: str,
        values: Sequence[Any] | NDArray[Any],
        image_ids: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Add each fold model's predictions, (n_folds, n_images, n_classes).

        A whole row of NaN says that a fold model made no prediction for an image.
        """
        self._refuse_view()
        where = f"fold probabilities of model {model!r}"
        folds = [checks.as_float(self._align(v, image_ids, classes, where), where) for v in values]
        self._write_all(
            f"fold_probabilities/{model}", np.stack(folds), ("fold", "image", "class"), attrs
        )

    def add_embeddings(
        self,
        name: str,
        values: Any,
        image_ids: ArrayLike | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Add embeddings (n_images, dim), stored as float16."""
        self._add_vectors("embeddings", name, values, image_ids, "dim", attrs)

    def add_imagenet_logits(
        self,
        name: str,
        values: Any,
        image_ids: ArrayLike | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Add the logits of the ImageNet classes (n_images, 1000), stored as float16."""
        self._add_vectors("imagenet_logits", name, values, image_ids, "imagenet_class", attrs)

    def add_image_stats(self, frame: pd.DataFrame) -> None:
        """Add image statistics: a DataFrame indexed by image id, a column a statistic."""
        self._refuse_view()
        frame = checks.from_polars(frame, self.image_ids)
        where = "image_stats"
        if not isinstance(frame, pd.DataFrame):
            raise ValueError(
                "image_stats must be a DataFrame, image ids in its index and names of the "
                f"statistics in its columns; got {type(frame).__name__}."
            )
        values = checks.as_float(_frames.align_rows(frame, self.image_ids, None, where), where)
        self.require_image_stats([str(c) for c in frame.columns])
        self._write_blocks("image_stats", values, 0)
        self.release("image_stats")

    def add_metadata(self, frame: pd.DataFrame) -> None:
        """Add user columns: a DataFrame indexed by image id; a column of that name is replaced."""
        self._refuse_view()
        frame = checks.from_polars(frame, self.image_ids)
        order = checks.positions(self.image_ids, frame.index, what="image id", where="metadata")
        aligned = frame if order is None else frame.iloc[order]
        with self._changing():
            self._write_columns(aligned)

    def _write_columns(self, aligned: pd.DataFrame) -> None:
        for name in checks.as_names(aligned.columns, "metadata column").tolist():
            column = aligned.iloc[:, list(map(str, aligned.columns)).index(name)]
            path = _zarr.array_path(f"metadata/{name}")
            _frames.write_column(self._root, path, column, self.chunk_images)

    def set_labels(
        self, labels: Any, known: ArrayLike | None = None, image_ids: ArrayLike | None = None
    ) -> None:
        """Set the labels of all images.

        Parameters
        ----------
        labels : array, sparse matrix, DataFrame or list of label lists
            As in `as_label_matrix`; a DataFrame is realigned by index and columns.
        known : bool array-like of shape (n_images,), optional
            Which images have labels; default all. The others' rows must be empty.
        image_ids : array-like of str, optional
            Names of the rows of `labels` and `known`; default the store's order.
        """
        self._refuse_view()
        ids = self.image_ids if image_ids is None else checks.as_names(image_ids, "image id")
        matrix = as_label_matrix(labels, classes=self.classes, n_images=len(ids), image_ids=ids)
        mask = np.ones(len(ids), dtype=bool) if known is None else np.asarray(known, dtype=bool)
        order = checks.positions(self.image_ids, ids, what="image id", where="labels")
        _layout.check_known(mask, matrix, ids)
        with self._changing():
            _layout.write_labels(
                self._root,
                checks.take_axis(matrix, order, 0),
                checks.take_axis(mask, order, 0),
                self.chunk_images,
            )

    def set_fold(self, fold: ArrayLike) -> None:
        """Set each image's fold, shape (n_images,); -1 where not assigned."""
        values = self._column(fold, "fold")
        if values.dtype.kind not in "iu" or (len(values) and values.min() < -1):
            raise ValueError(
                f"fold must hold integers of at least -1; got dtype {values.dtype}, "
                f"least {values.min() if len(values) else None}"
            )
        if len(values) and values.max() > np.iinfo(np.int16).max:
            raise ValueError(f"fold must be below 32,768; got {values.max()}")
        with self._changing(), _zarr.replacing(self._root, "fold") as path:
            array = _zarr.create_array(
                self._root,
                path,
                shape=values.shape,
                dtype=np.int16,
                chunks=(self.chunk_images,),
                dims=("image",),
                whole=True,
            )
            _zarr.write_block(array, 0, values.astype(np.int16), 0)

    def set_split_group(self, split_group: ArrayLike) -> None:
        """Set each image's split group, shape (n_images,): images of one group never part."""
        column = self._column(split_group, "split_group")
        values = checks.as_names(column, "split group", unique=False)
        empty = self.image_ids[values == ""]
        if empty.size:
            raise ValueError(
                f"{empty.size:,} images have an empty split group, first: "
                f"{checks.first_few(empty)}. Give each a group of its own, such as its id."
            )
        with self._changing(), _zarr.replacing(self._root, "split_group") as path:
            _zarr.write_strings(self._root, path, values, "image")

    def set_errors(self, index: ArrayLike, message: str | Sequence[str] | NDArray[Any]) -> None:
        """Record why images were skipped; "" takes it back.

        Parameters
        ----------
        index : int or int array-like
            Positions of the images.
        message : str, or one for each position
        """
        self._refuse_view()
        rows = np.atleast_1d(np.asarray(index, dtype=np.intp))
        texts = [message] * len(rows) if isinstance(message, str) else [str(m) for m in message]
        if len(texts) != len(rows):
            raise ValueError(f"{len(rows):,} images but {len(texts):,} messages")
        if len(rows):
            self._root["errors"].oindex[rows] = np.array(texts, dtype=np.dtypes.StringDType())

    def update_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Set attributes of the store, stored as JSON."""
        self._refuse_view()
        _layout.refuse_own(attrs)
        with self._locks.structure():
            # Another process may have set others since this one opened the store.
            there = dict(_zarr.reopen(self._root).attrs)
            _layout.put_attrs(self._root, {**there, **dict(attrs)})
            self.consolidate()

    def _describe(
        self,
        labels: Any,
        labels_known: ArrayLike | None,
        fold: ArrayLike | None,
        split_group: ArrayLike | None,
        metadata: pd.DataFrame | None,
    ) -> None:
        """Write what a new store says about its images; the defaults where nothing is given."""
        no_labels = sparse.csr_array((self.n_images, self.n_classes), dtype=np.int8)
        if labels is None and labels_known is None:
            labels_known = np.zeros(self.n_images, dtype=bool)
        self.set_labels(no_labels if labels is None else labels, labels_known)
        self.set_fold(np.full(self.n_images, -1) if fold is None else fold)
        self.set_split_group(self.image_ids if split_group is None else split_group)
        if metadata is not None:
            self.add_metadata(metadata)

    def _column(self, values: ArrayLike, what: str) -> NDArray[Any]:
        """One value an image; a Series is realigned by its index."""
        self._refuse_view()
        if isinstance(values, pd.Series):
            order = checks.positions(self.image_ids, values.index, what="image id", where=what)
            values = checks.take_axis(values.to_numpy(), order, 0)
        column = np.asarray(values)
        if column.shape != (self.n_images,):
            raise ValueError(
                f"{what} must have shape (n_images,) = ({self.n_images},); got {column.shape}"
            )
        return column

    def _align(
        self, values: Any, image_ids: ArrayLike | None, classes: ArrayLike | None, where: str
    ) -> Any:
        return _frames.align_matrix(
            values,
            image_ids=(self.image_ids, image_ids),
            classes=(self.classes, classes),
            where=where,
        )

    def _add_vectors(
        self,
        kind: str,
        name: str,
        values: Any,
        image_ids: ArrayLike | None,
        dim: str,
        attrs: Mapping[str, Any] | None,
    ) -> None:
        self._refuse_view()
        where = f"{kind} {name!r}"
        if f"{kind}/{_zarr.escape(name)}" in self._root and self.is_complete(f"{kind}/{name}"):
            raise ValueError(f"{where} is already in {self.path}; choose another name")
        aligned = checks.as_float(
            _frames.align_rows(values, self.image_ids, image_ids, where), where
        )
        if aligned.ndim != 2:
            raise ValueError(f"{where} must have shape (n_images, dim); got {aligned.shape}")
        # float16 ends at 65,504; what does not fit is refused as infinite by the row check.
        with np.errstate(over="ignore"):
            self._write_all(f"{kind}/{name}", aligned.astype(np.float16), ("image", dim), attrs)

    def _write_all(
        self,
        name: str,
        values: NDArray[Any],
        dims: tuple[str, ...],
        attrs: Mapping[str, Any] | None,
    ) -> None:
        """Write a whole array, replacing one of that name."""
        axis = _rows.image_axis(dims)
        path = _zarr.array_path(name)
        self.claim_rows(name, 0, self.n_images)
        with self._changing():
            _layout.create_rows(
                self._root, path, values.shape, values.dtype, dims, attrs, self.chunk_images
            )
        self._write_blocks(name, values, axis)
        self.release(name)

    def _write_blocks(
        self,
        name: str,
        values: NDArray[Any],
        axis: int,
        written: NDArray[np.bool_] | None = None,
    ) -> None:
        """Write all rows, some whole chunks at a time; of a chunk with gaps, none."""
        chunk = self.chunk_images
        per_image = max(1, values.size // max(1, values.shape[axis]))
        step = chunk * max(1, WRITE_BLOCK // (per_image * chunk)) if written is None else chunk
        gaps = np.zeros(self.n_images, dtype=bool) if written is None else ~(written | self.skipped)
        for start in range(0, self.n_images, step):
            span = slice(start, start + step)
            if not gaps[span].any():
                self.write_rows(name, start, values[(slice(None),) * axis + (span,)])

    def _refuse_model(self, model: str, overwrite: bool) -> None:
        """Refuse a complete model of that name; an incomplete one is written again."""
        if model not in self.models:
            return
        leaf = f"topk/{model}/value" if self._is_topk(model) else f"probabilities/{model}"
        if not overwrite and self.is_complete(leaf):
            raise ValueError(
                f"model {model!r} is already in {self.path}; choose another name or pass "
                "overwrite=True"
            )
        parts = (f"probabilities/{model}", f"topk/{model}/index", f"topk/{model}/value")
        for part in parts:
            self.claim_rows(part, 0, self.n_images)
        with self._changing():
            for kind in ("topk", "probabilities"):
                _layout.remove(self._root, f"{kind}/{_zarr.escape(model)}")
        for part in parts:
            self.release(part)
