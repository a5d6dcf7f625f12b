"""`LabelSpace` (the class vocabulary) and `Stack` (several models' predictions, in memory)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from features import _checks as checks
from features._label_space import LabelSpace
from features._labels import as_label_matrix

__all__ = ["LabelSpace", "Stack", "as_label_matrix", "as_stack"]


class Stack:
    """Several models' probabilities for the same images and classes, with their context.

    A stack is indexed by image like an array of shape (n_images, n_models, n_classes), so it goes
    through scikit-learn's splitters, `cross_val_score` and `GridSearchCV`.

    Parameters
    ----------
    probabilities : mapping, or array of shape (n_images, n_models, n_classes)
        Per model an array, a DataFrame (realigned by index and columns; of polars by the column
        ``image_id``) or a scipy sparse matrix that holds each image's top classes. Values in
        [0, 1]. float16 and float32 are kept, other numbers become float32. The models of a 3-D
        array are named "model0", "model1", ...
    image_ids : array-like of shape (n_images,), optional
        Default: the first DataFrame's index, else "0", "1", ...
    classes : array-like of shape (n_classes,), optional
        Default: the first DataFrame's columns, else "0", "1", ...
    class_group, class_parent : array-like of shape (n_classes,), optional
        As in `LabelSpace`.
    embeddings, imagenet_logits : mapping of str to (n_images, dim), optional
    image_stats, metadata : DataFrame or array with n_images rows, optional
        DataFrames are realigned by index, those of polars by ``image_id``.

    Raises
    ------
    ValueError
        For values outside [0, 1] ("apply a sigmoid"), shapes that differ, and names that are
        missing, unknown or repeated.

    Examples
    --------
    >>> import numpy as np
    >>> stack = Stack({"a": np.full((4, 3), 0.5), "b": np.zeros((4, 3))})
    >>> stack.shape, stack[[0, 2]].image_ids.tolist()
    ((4, 2, 3), ['0', '2'])
    """

    ndim = 3

    def __init__(
        self,
        probabilities: Mapping[str, Any] | ArrayLike,
        image_ids: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        class_group: ArrayLike | None = None,
        class_parent: Sequence[Any] | None = None,
        embeddings: Mapping[str, Any] | None = None,
        imagenet_logits: Mapping[str, Any] | None = None,
        image_stats: pd.DataFrame | ArrayLike | None = None,
        metadata: pd.DataFrame | ArrayLike | None = None,
    ) -> None:
        given = {
            model: checks.from_polars(values, image_ids)
            for model, values in _as_mapping(probabilities).items()
        }
        frame = next((v for v in given.values() if isinstance(v, pd.DataFrame)), None)
        shape = _common_shape(given)
        if image_ids is None:
            image_ids = _default_names(None if frame is None else frame.index, shape[0])
        if classes is None:
            classes = _default_names(None if frame is None else frame.columns, shape[1])
        self.image_ids = checks.as_names(image_ids, "image id")
        self.label_space = LabelSpace(classes, class_group, class_parent)
        self.probabilities: dict[str, NDArray[np.floating] | sparse.csr_array] = {
            model: self._read_model(model, values) for model, values in given.items()
        }
        _refuse_mixed(self.probabilities)
        self.embeddings = self._read_arrays(embeddings, "embeddings")
        self.imagenet_logits = self._read_arrays(imagenet_logits, "imagenet_logits")
        self.image_stats = self._read_frame(image_stats, "image_stats", "stat")
        self.metadata = self._read_frame(metadata, "metadata", "metadata")

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order given."""
        return list(self.probabilities)

    @property
    def classes(self) -> NDArray[np.str_]:
        """Class names, shape (n_classes,)."""
        return self.label_space.names

    @property
    def class_group(self) -> NDArray[np.str_]:
        """Group of each class, shape (n_classes,)."""
        return self.label_space.groups

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n_images, n_models, n_classes)."""
        return len(self.image_ids), len(self.probabilities), len(self.label_space)

    @property
    def is_sparse(self) -> bool:
        """Whether the models hold only each image's top classes, as CSR."""
        return any(sparse.issparse(values) for values in self.probabilities.values())

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        n_images, _, n_classes = self.shape
        kind = "top-k of " if self.is_sparse else ""
        return f"Stack({n_images:,} images, {kind}{n_classes:,} classes, models {self.models})"

    def __getitem__(self, index: Any) -> Stack:
        """Take images: an integer array, a mask, a slice, or a tuple of one and full slices."""
        rows = _as_rows(index, len(self))
        taken = object.__new__(Stack)
        taken.image_ids = self.image_ids[rows]
        taken.label_space = self.label_space
        taken.probabilities = {m: v[rows] for m, v in self.probabilities.items()}
        taken.embeddings = {m: v[rows] for m, v in self.embeddings.items()}
        taken.imagenet_logits = {m: v[rows] for m, v in self.imagenet_logits.items()}
        taken.image_stats = None if self.image_stats is None else self.image_stats.iloc[rows]
        taken.metadata = None if self.metadata is None else self.metadata.iloc[rows]
        return taken

    def only_probabilities(self) -> Stack:
        """Give the same images without vectors, statistics and metadata; nothing is copied."""
        bare = self[:]
        bare.embeddings, bare.imagenet_logits = {}, {}
        bare.image_stats = bare.metadata = None
        return bare

    def _read_model(self, model: str, values: Any) -> NDArray[np.floating] | sparse.csr_array:
        where = f"probabilities of model {model!r}"
        if isinstance(values, pd.DataFrame):
            values = checks.align_frame(values, self.image_ids, self.classes, where)
        if sparse.issparse(values):
            values = checks.as_canonical_csr(values, where)
        else:
            values = checks.as_float(values, where)
        expected = (len(self.image_ids), len(self.label_space))
        if values.shape != expected:
            raise ValueError(
                f"{where} must have shape (n_images, n_classes) = {expected}; got {values.shape}"
            )
        checks.check_probabilities(
            values, model=model, image_ids=self.image_ids, classes=self.classes
        )
        return values

    def _read_arrays(
        self, given: Mapping[str, Any] | None, what: str
    ) -> dict[str, NDArray[np.floating]]:
        read = {}
        for name, values in (given or {}).items():
            where = f"{what} {name!r}"
            values = checks.from_polars(values, self.image_ids)
            if isinstance(values, pd.DataFrame):
                order = checks.positions(self.image_ids, values.index, what="image id", where=where)
                values = checks.take_axis(values.to_numpy(), order, 0)
            array = checks.as_float(values, where)
            if array.ndim != 2 or len(array) != len(self):
                raise ValueError(
                    f"{where} must have shape (n_images, dim) with {len(self):,} images; "
                    f"got {array.shape}"
                )
            checks.check_finite(array, what=where, image_ids=self.image_ids)
            read[str(name)] = array
        return read

    def _read_frame(
        self, given: pd.DataFrame | ArrayLike | None, what: str, prefix: str
    ) -> pd.DataFrame | None:
        if given is None:
            return None
        given = checks.from_polars(given, self.image_ids)
        if isinstance(given, pd.DataFrame):
            order = checks.positions(self.image_ids, given.index, what="image id", where=what)
            frame = given if order is None else given.iloc[order]
            return frame.set_axis(pd.Index(self.image_ids, name="image_id"), axis=0)
        array = np.asarray(given)
        if array.ndim != 2 or len(array) != len(self):
            raise ValueError(
                f"{what} must have {len(self):,} rows and two dimensions; got {array.shape}"
            )
        columns = [f"{prefix}{j}" for j in range(array.shape[1])]
        return pd.DataFrame(array, index=pd.Index(self.image_ids, name="image_id"), columns=columns)


def _as_mapping(probabilities: Mapping[str, Any] | ArrayLike) -> dict[str, Any]:
    """Per-model matrices of a mapping, or of a 3-D array."""
    if isinstance(probabilities, Mapping):
        if not probabilities:
            raise ValueError("probabilities must hold at least one model; the mapping is empty")
        return {str(model): values for model, values in probabilities.items()}
    array = np.asarray(probabilities)
    if array.ndim != 3:
        raise ValueError(
            "probabilities must be a mapping of model to (n_images, n_classes) or an array of "
            f"shape (n_images, n_models, n_classes); got shape {array.shape}"
        )
    if array.shape[1] == 0:
        raise ValueError(f"probabilities must hold at least one model; got shape {array.shape}")
    return {f"model{m}": array[:, m] for m in range(array.shape[1])}


def _common_shape(given: Mapping[str, Any]) -> tuple[int, int]:
    """Read (n_images, n_classes) off the first model, after checking it has two dimensions."""
    model, values = next(iter(given.items()))
    shape = values.shape if hasattr(values, "shape") else np.shape(values)
    if len(shape) != 2:
        raise ValueError(
            f"probabilities of model {model!r} must have shape (n_images, n_classes); got {shape}"
        )
    return int(shape[0]), int(shape[1])


def _default_names(index: pd.Index | None, n: int) -> NDArray[np.str_]:
    return np.arange(n).astype(np.str_) if index is None else np.asarray(index)


def _refuse_mixed(probabilities: Mapping[str, Any]) -> None:
    kinds = {model: sparse.issparse(values) for model, values in probabilities.items()}
    if len(set(kinds.values())) > 1:
        dense = [model for model, is_sparse in kinds.items() if not is_sparse]
        raise ValueError(
            "probabilities must be all dense or all sparse (top-k); dense here are models "
            f"{checks.first_few(dense)}. Keep their top classes with scipy.sparse.csr_array."
        )


def _as_rows(index: Any, n_images: int) -> slice | NDArray[np.intp]:
    """Row selection of a `Stack` index; only full slices may follow in a tuple."""
    if isinstance(index, tuple):
        first, rest = (index[0], index[1:]) if index else (slice(None), ())
        full = all(r is Ellipsis or (isinstance(r, slice) and r == slice(None)) for r in rest)
        if not full:
            raise IndexError(
                f"a Stack is indexed by image only: index {index!r} also selects models or "
                "classes. Take those from stack.probabilities."
            )
        index = first
    if index is Ellipsis:
        return slice(None)
    if isinstance(index, slice):
        return index
    rows = np.asarray(index)
    if rows.ndim == 1 and rows.dtype.kind == "b":
        if len(rows) != n_images:
            raise IndexError(f"the mask has {len(rows):,} entries for {n_images:,} images")
        return np.flatnonzero(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise IndexError(
            f"a Stack is indexed by an integer array, a mask or a slice; got {index!r}. "
            "For one image write stack[[i]]."
        )
    return rows.astype(np.intp)


def as_stack(X: Any) -> Stack:
    """Make a `Stack` from a `Stack`, a `FeatureStore`, a mapping of models or a 3-D array.

    Examples
    --------
    >>> import numpy as np
    >>> as_stack(np.zeros((5, 2, 3))).models
    ['model0', 'model1']
    """
    if isinstance(X, Stack):
        return X
    # Duck-typed: the store imports this module, so this one cannot import the store.
    if hasattr(X, "to_stack"):
        return X.to_stack()
    return Stack(X)
