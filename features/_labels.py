"""Reading labels, in whatever form they come, into one sparse matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from features import _checks as checks
from features._label_space import LabelSpace

__all__ = ["as_label_matrix"]


def as_label_matrix(
    Y: Any, *, classes: ArrayLike, n_images: int, image_ids: ArrayLike | None = None
) -> sparse.csr_array:
    """Labels as a canonical CSR matrix of ones, int8, shape (n_images, n_classes).

    Parameters
    ----------
    Y : array or sparse matrix of 0 and 1, DataFrame of such, or list of label-name lists
        DataFrame columns are realigned to `classes` by name. polars frames may have the ids in a
        column ``image_id``.
    classes : array-like of shape (n_classes,)
        Class names.
    n_images : int
        Number of images expected.
    image_ids : array-like of shape (n_images,), optional
        When given, a DataFrame's rows are realigned to these by its index.

    Raises
    ------
    ValueError
        For another shape, values other than 0 and 1, and unknown names.

    Examples
    --------
    >>> as_label_matrix([["a"], [], ["b", "a"]], classes=["a", "b"], n_images=3).toarray().tolist()
    [[1, 0], [0, 0], [1, 1]]
    """
    names = checks.as_names(classes, "class name")
    Y = checks.from_polars(Y, image_ids)
    if isinstance(Y, pd.DataFrame):
        Y = _align_label_frame(Y, names, image_ids)
    if not sparse.issparse(Y) and _is_label_lists(Y):
        matrix = _matrix_of_lists(Y, names)
    else:
        matrix = _binary_csr(Y, names, image_ids)
    if matrix.shape != (n_images, len(names)):
        raise ValueError(
            f"Y must have shape (n_images, n_classes) = {(n_images, len(names))}; "
            f"got {matrix.shape}"
        )
    return matrix


def _align_label_frame(
    frame: pd.DataFrame, names: NDArray[np.str_], image_ids: ArrayLike | None
) -> NDArray[Any]:
    if image_ids is None:
        columns = checks.positions(names, frame.columns, what="class name", where="Y")
        return checks.take_axis(frame.to_numpy(), columns, 1)
    return checks.align_frame(frame, checks.as_names(image_ids, "image id"), names, "Y")


def _is_label_lists(Y: Any) -> bool:
    """Whether Y holds one collection of label names an image, and not numbers."""
    if isinstance(Y, np.ndarray) and Y.dtype.kind != "O":
        if Y.ndim == 1 and Y.dtype.kind in "US":
            raise ValueError("Y must hold a list of labels an image; got one string each: wrap it")
        return False
    if isinstance(Y, np.ndarray) and Y.ndim != 1:
        return False
    strings = [labels for labels in Y if isinstance(labels, str)]
    if strings:
        raise ValueError(
            f"Y must hold a list of labels an image; got the string {strings[0]!r}: wrap it"
        )
    return all(_is_collection_of_names(labels) for labels in Y)


def _is_collection_of_names(labels: Any) -> bool:
    return isinstance(labels, Iterable) and all(isinstance(name, str) for name in labels)


def _matrix_of_lists(Y: Iterable[Iterable[str]], names: NDArray[np.str_]) -> sparse.csr_array:
    lists = [list(labels) for labels in Y]
    flat = [name for labels in lists for name in labels]
    columns = LabelSpace(names).index(flat) if flat else np.empty(0, dtype=np.intp)
    indptr = np.concatenate([[0], np.cumsum([len(labels) for labels in lists], dtype=np.int64)])
    matrix = sparse.csr_array(
        (np.ones(len(flat), dtype=np.int8), columns, indptr), shape=(len(lists), len(names))
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1  # A label listed twice is still one label.
    return matrix


def _binary_csr(Y: Any, names: NDArray[np.str_], image_ids: ArrayLike | None) -> sparse.csr_array:
    values: Any = sparse.coo_array(Y) if sparse.issparse(Y) else np.asarray(Y)
    if values.ndim != 2:
        raise ValueError(f"Y must have shape (n_images, n_classes); got {values.shape}")
    data = np.asarray(values.data if sparse.issparse(values) else values)
    if data.dtype.kind not in "biuf":
        raise ValueError(f"Y must hold 0 and 1 only; found {data.reshape(-1)[:3].tolist()}")
    if not ((data == 0) | (data == 1)).all():
        _refuse_other_values(values, names, image_ids)
    matrix = sparse.csr_array(values, dtype=np.int8)
    matrix.eliminate_zeros()
    matrix.sum_duplicates()
    if matrix.nnz and matrix.data.max() > 1:
        raise ValueError("Y must hold 0 and 1 only; an entry is stored twice. Sum duplicates.")
    matrix.sort_indices()
    return matrix


def _refuse_other_values(values: Any, names: NDArray[np.str_], image_ids: ArrayLike | None) -> None:
    """Name the first cell that is neither 0 nor 1."""
    if sparse.issparse(values):
        cells = sparse.coo_array(values)
        at = int(np.flatnonzero((cells.data != 0) & (cells.data != 1))[0])
        value, (row, column) = cells.data[at], (int(axis[at]) for axis in cells.coords)
    else:
        row, column = (int(axis[0]) for axis in np.nonzero((values != 0) & (values != 1)))
        value = values[row, column]
    ids = np.empty(0) if image_ids is None else np.asarray(image_ids).ravel()
    image = str(ids[row] if row < len(ids) else row)
    known = str(names[column] if column < len(names) else column)
    raise ValueError(
        f"Y must hold 0 and 1 only; found {value}, first: image {image!r}, class {known!r}. Give "
        "1 where an image has the class, else 0."
    )
