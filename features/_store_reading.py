"""`StoreReader`: the reading half of `FeatureStore`, for a whole store or some of its images."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import zarr
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from features import _checks as checks
from features import _frames, _rows, _seal, _zarr
from features._locks import RowLocks
from features.schema import LabelSpace, Stack

__all__ = ["StoreReader"]


class StoreReader:
    """Reads a store, or the images of it that `subset` chose."""

    def __init__(self, root: zarr.Group, path: str | Path) -> None:
        self.path = path
        self._root = root
        self._rows: NDArray[np.intp] | None = None
        self._locks = RowLocks(_zarr.local_root(root))
        with _zarr.clear_errors("the names of images and classes", path):
            self._all_ids = checks.as_names(_zarr.read_strings(root, "image_id"), "image id")
            self.label_space = LabelSpace(
                _zarr.read_strings(root, "class"),
                _zarr.read_strings(root, "class_group"),
                root.attrs.get("class_parent"),
            )

    @property
    def image_ids(self) -> NDArray[np.str_]:
        """Image ids, shape (n_images,)."""
        return self._take(self._all_ids)

    @property
    def classes(self) -> NDArray[np.str_]:
        """Class names, shape (n_classes,)."""
        return self.label_space.names

    @property
    def class_group(self) -> NDArray[np.str_]:
        """Group of each class, shape (n_classes,)."""
        return self.label_space.groups

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self._all_ids) if self._rows is None else len(self._rows)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.label_space)

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the store, a copy."""
        return {k: v for k, v in self._root.attrs.items() if k != _seal.CHECKSUM}

    @property
    def chunk_images(self) -> int:
        """Images in a chunk: the unit of writing and of resuming."""
        return int(self._root.attrs["chunk_images"])

    @property
    def array_names(self) -> list[str]:
        """Names of all arrays that `written` knows, sorted: "image_stats", "probabilities/x"."""
        return _zarr.tracked_names(self._root)

    @property
    def models(self) -> list[str]:
        """Models with probabilities or top-k probabilities, sorted."""
        return sorted({*self._names("probabilities"), *self._names("topk")})

    @property
    def embedding_names(self) -> list[str]:
        """Names of the embeddings, sorted."""
        return self._names("embeddings")

    @property
    def imagenet_names(self) -> list[str]:
        """Names of the ImageNet logits, sorted."""
        return self._names("imagenet_logits")

    @property
    def labels(self) -> sparse.csr_array:
        """Labels, CSR of int8 ones of shape (n_images, n_classes); empty where not known."""
        indptr, indices = self._read_csr()
        ones = np.ones(len(indices), dtype=np.int8)
        with _zarr.clear_errors("labels", self.path):
            matrix = sparse.csr_array(
                (ones, indices, indptr), shape=(len(self._all_ids), self.n_classes)
            )
            matrix.check_format(full_check=True)
        return self._take(matrix)

    @property
    def labels_known(self) -> NDArray[np.bool_]:
        """Which images have labels, shape (n_images,)."""
        return self._read("labels/known")

    @property
    def fold(self) -> NDArray[np.int16]:
        """Fold of each image, -1 where not assigned, shape (n_images,)."""
        return self._read("fold")

    @property
    def split_group(self) -> NDArray[np.str_]:
        """Group of images that must not part, shape (n_images,)."""
        with _zarr.clear_errors("split_group", self.path):
            texts = _zarr.read_strings(self._root, "split_group")
        return self._take(checks.as_names(texts, "split group", unique=False))

    @property
    def errors(self) -> NDArray[np.object_]:
        """Why each image was skipped, "" where it was not, shape (n_images,)."""
        with _zarr.clear_errors("errors", self.path):
            return self._take(_zarr.read_strings(self._root, "errors"))

    @property
    def metadata(self) -> pd.DataFrame | None:
        """User columns indexed by image id; None when there are none."""
        names = self._names("metadata")
        if not names:
            return None
        with _zarr.clear_errors("metadata", self.path):
            columns = {
                n: _frames.read_column(self._root, _zarr.array_path(f"metadata/{n}")) for n in names
            }
            frame = pd.DataFrame(columns, index=pd.Index(self._all_ids, name="image_id"))
        return frame if self._rows is None else frame.iloc[self._rows]

    @property
    def image_stats(self) -> pd.DataFrame | None:
        """Image statistics indexed by image id; None when there are none."""
        if "image_stats" not in self._root:
            return None
        names = _zarr.read_strings(self._root, "stat")
        return _frames.as_frame(self._read_complete("image_stats"), self.image_ids, names)

    def probabilities(self, model: str) -> pd.DataFrame:
        """Probabilities of a model, indexed by image id, with a column for each class."""
        values = self.probability_array(model)
        if sparse.issparse(values):
            index = pd.Index(self.image_ids, name="image_id")
            sparse_frame: Any = pd.DataFrame.sparse
            return sparse_frame.from_spmatrix(values, index=index, columns=self.classes)
        return _frames.as_frame(values, self.image_ids, self.classes)

    def probability_array(self, model: str) -> NDArray[np.floating] | sparse.csr_array:
        """Probabilities of a model, (n_images, n_classes): an array, or CSR for top-k."""
        self._check_known(model, self.models, "model")
        if model in _zarr.member_names(self._root, "probabilities"):
            return self._read_complete(f"probabilities/{model}")
        names = f"topk/{model}/index", f"topk/{model}/value"
        done = self.written(names[0]) & self.written(names[1])
        index, value = self._read(names[0]), self._read(names[1])
        done &= self.written(names[0]) & self.written(names[1])
        index = np.where(done[:, None], index, -1)
        # scipy's sparse routines know no float16.
        value = value.astype(np.float32)
        return _rows.topk_to_csr(index, value, self.n_classes)

    def fold_probabilities(self, model: str) -> NDArray[np.floating]:
        """Each fold model's predictions, (n_folds, n_images, n_classes), NaN where it made none."""
        self._check_known(
            model, _zarr.member_names(self._root, "fold_probabilities"), "fold probabilities of"
        )
        return self._read_complete(f"fold_probabilities/{model}")

    def embeddings(self, name: str) -> NDArray[np.floating]:
        """Embeddings, (n_images, dim)."""
        self._check_known(name, self.embedding_names, "embeddings")
        return self._read_complete(f"embeddings/{name}")

    def imagenet_logits(self, name: str) -> NDArray[np.floating]:
        """Logits of the 1,000 ImageNet classes, (n_images, 1000)."""
        self._check_known(name, self.imagenet_names, "ImageNet logits")
        return self._read_complete(f"imagenet_logits/{name}")

    def array_attrs(self, name: str) -> dict[str, Any]:
        """Attributes of an array, for example "probabilities/lite0.linear"."""
        return dict(self._array(name).attrs)

    def written(self, name: str) -> NDArray[np.bool_]:
        """Which rows of an array are complete, shape (n_images,)."""
        return self._read(f"written/{_zarr.array_path(name)}", escaped=True)

    def is_complete(self, name: str) -> bool:
        """Whether every row is written, but for images that were skipped with an error."""
        return bool((self.written(name) | self.skipped).all())

    @property
    def skipped(self) -> NDArray[np.bool_]:
        """Which images were skipped with an error, shape (n_images,)."""
        return np.asarray(self.errors != "", dtype=bool)

    def without_skipped(self) -> Self:
        """View the images that were not skipped; the store itself when none was."""
        return self.subset(~self.skipped) if self.skipped.any() else self

    def subset(self, image_ids: ArrayLike) -> Self:
        """View some images, in the order given, with the same reading methods.

        Parameters
        ----------
        image_ids : array-like of str, or bool mask of shape (n_images,)

        Raises
        ------
        ValueError
            Naming the first few ids that are not in the store, or that stand twice.
        """
        mask = np.asarray(image_ids)
        if mask.dtype.kind == "b":
            if mask.shape != (self.n_images,):
                raise ValueError(f"the mask has shape {mask.shape}; expected ({self.n_images},)")
            found = np.flatnonzero(mask)
        else:
            wanted = checks.as_names(image_ids, "image id")
            found = pd.Index(self.image_ids).get_indexer(pd.Index(wanted))
            missing = wanted[found < 0]
            if missing.size:
                raise ValueError(
                    f"{missing.size:,} image ids are not in {self.path}, first: "
                    f"{checks.first_few(missing)}. It has {self.n_images:,}, first: "
                    f"{checks.first_few(self.image_ids, 3)}."
                )
        rows = found if self._rows is None else self._rows[found]
        view = copy.copy(self)
        view._rows = np.asarray(rows, dtype=np.intp)
        return view

    def to_stack(self, models: Iterable[str] | None = None) -> Stack:
        """Read everything into a `Stack`.

        Parameters
        ----------
        models : iterable of str, optional
            Default: all models, sorted.

        Raises
        ------
        ValueError
            When rows are missing, because a run is unfinished or images were skipped.
        """
        names = self.models if models is None else list(models)
        if not names:
            raise ValueError(f"the store {self.path} holds no probabilities yet; add a model first")
        for name in names:
            self._check_known(name, self.models, "model")
            leaf = f"topk/{name}/value" if self._is_topk(name) else f"probabilities/{name}"
            self._refuse_gaps(leaf)
        for group, listed in self._optional().items():
            for name in listed:
                self._refuse_gaps(f"{group}/{name}")
        return Stack(
            {name: self.probability_array(name) for name in names},
            image_ids=self.image_ids,
            classes=self.classes,
            class_group=self.class_group,
            class_parent=self.label_space.parent_names,
            embeddings={n: self.embeddings(n) for n in self.embedding_names},
            imagenet_logits={n: self.imagenet_logits(n) for n in self.imagenet_names},
            image_stats=self.image_stats,
            metadata=self.metadata,
        )

    def _optional(self) -> dict[str, list[str]]:
        return {"embeddings": self.embedding_names, "imagenet_logits": self.imagenet_names}

    def _refuse_gaps(self, name: str) -> None:
        gaps = ~self.written(name)
        if not gaps.any():
            return
        skipped = gaps & self.skipped
        if skipped.sum() == gaps.sum():
            raise ValueError(
                f"{int(skipped.sum()):,} images were skipped with an error, first: "
                f"{checks.first_few(self.image_ids[skipped])}. "
                "Use store.without_skipped() to leave them out."
            )
        raise ValueError(
            f"{name} is unfinished: {int(gaps.sum()):,} of {self.n_images:,} images have none, "
            f"first: {checks.first_few(self.image_ids[gaps])}. Run again what writes it."
        )

    def _is_topk(self, model: str) -> bool:
        return model not in _zarr.member_names(self._root, "probabilities")

    def _array(self, name: str, *, escaped: bool = False) -> zarr.Array:
        path = name if escaped else _zarr.array_path(name)
        with _zarr.clear_errors(name, self.path):
            found = _zarr.node(self._root, path)
        if found is None:
            raise ValueError(f"there is no array {name!r} in the store {self.path}")
        self._refuse_other_shape(name, found)
        return found

    def _refuse_other_shape(self, name: str, array: Any) -> None:
        """Refuse an array whose metadata says other sizes than the store's: it was changed."""
        n_images = len(self._all_ids)
        sizes = {"image": n_images, "boundary": n_images + 1, "class": self.n_classes}
        shape, dims = getattr(array, "shape", None), None
        if shape is not None:
            dims = array.metadata.dimension_names
        if shape is None or not dims or len(dims) != len(shape):
            raise ValueError(f"{name} in {self.path} is damaged: it is no array with named axes")
        wrong = [d for d, n in zip(dims, shape, strict=True) if sizes.get(d, n) != n]
        if wrong:
            raise ValueError(
                f"{name} in {self.path} is damaged: its axis {wrong[0]!r} has another length than "
                f"the store, {sizes[wrong[0]]:,}"
            )

    def _names(self, group: str) -> list[str]:
        with _zarr.clear_errors(group, self.path):
            return _zarr.member_names(self._root, group)

    def _read_csr(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Boundaries and class positions of one and the same label matrix."""
        while True:
            first, stored = (self._array(f"labels/{name}") for name in ("indptr", "indices"))
            with _zarr.clear_errors("labels", self.path):
                indptr = first[...]
                fits = stored.shape == (indptr[-1],)
                # What claims another size may claim more than any memory holds.
                indices = stored[...] if fits else np.empty(0, np.int32)
            again = self._array("labels/indptr")
            with _zarr.clear_errors("labels", self.path):
                # Another process may set other labels between the reads above.
                same = np.array_equal(indptr, again[...])
            if same and fits:
                return indptr, indices
            if same:
                raise ValueError(
                    f"labels in {self.path} are damaged: {indptr[-1]:,} are counted, "
                    f"{stored.shape[0]:,} stored. Set them again (set_labels), or copy the store."
                )

    def _read(self, name: str, *, escaped: bool = False) -> Any:
        """Read an array's values for the images of this view."""
        array = self._array(name, escaped=escaped)
        axis = _rows.image_axis(array.metadata.dimension_names)
        span = _span(self._rows)
        # Reading everything and picking is faster, unless the view is a small part.
        with _zarr.clear_errors(name, self.path):
            if span is not None:
                return array[(slice(None),) * axis + (span,)]
            if self._rows is None or len(self._rows) * 4 > len(self._all_ids):
                return self._take(array[...], axis)
            return array.oindex[(slice(None),) * axis + (self._rows,)]

    def _read_complete(self, name: str) -> Any:
        """Float values, NaN where a row is not marked complete: it may be half written."""
        # Marked before and after: between the two nobody began to write the row.
        marked = self.written(name)
        values = self._read(name)
        gaps = ~(marked & self.written(name))
        if gaps.any():
            axis = _rows.image_axis(self._array(name).metadata.dimension_names)
            values[(slice(None),) * axis + (gaps,)] = np.nan
        return values

    def _take(self, values: Any, axis: int = 0) -> Any:
        return checks.take_axis(values, self._rows, axis)

    def _check_known(self, name: str, known: Sequence[str], what: str) -> None:
        if name in known:
            return
        near = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {checks.first_few(near)}?" if near else ""
        listed = checks.first_few(known, 10) if known else "none"
        raise ValueError(f"no {what} {name!r} in the store {self.path}; it has {listed}.{hint}")


def _span(rows: NDArray[np.intp] | None) -> slice | None:
    """Range of images that a view shows, None where it is not one range."""
    if rows is None or not len(rows) or rows[-1] - rows[0] + 1 != len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1) if (np.diff(rows) == 1).all() else None
