"""Checks of probability and label matrices, done once at the public boundary.

Inside the package a matrix is either a C-ordered array or a canonical ``csr_array``; the kernels
read both through `Rows`, three flat arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from features._checks import advice_of
from stacker._frame_order import as_pandas, in_one_order

__all__ = [
    "Matrix",
    "Rows",
    "as_rows",
    "check_beta",
    "check_empty_score",
    "check_labels",
    "check_pairs",
    "check_probs",
    "check_same_shape",
    "check_scored",
    "entry_columns",
    "group_names_and_codes",
    "over_rows",
    "refuse_names",
]

# A C-ordered ndarray or a canonical csr_array; scipy is untyped here.
Matrix: TypeAlias = Any


# Rows that one task of a threaded kernel takes at a time.
CHUNK = 128
SERIAL_ENTRIES = 4_000_000


class Rows(NamedTuple):
    """A dense or sparse matrix as flat arrays, the form that the numba kernels take.

    ``values[indptr[i]:indptr[i + 1]]`` are the entries of row i. ``indices`` names their columns;
    it is empty for a dense matrix, where entry j of a row stands in column j.
    """

    values: NDArray[Any]
    indices: NDArray[np.int32]
    indptr: NDArray[np.int64]
    n_columns: int

    @property
    def n_rows(self) -> int:
        """Number of images."""
        return len(self.indptr) - 1

    @property
    def is_dense(self) -> bool:
        """Whether every entry is there; a matrix without entries counts as sparse."""
        return len(self.values) > 0 and not len(self.indices)


def as_rows(matrix: Matrix) -> Rows:
    """View a checked matrix as `Rows`; copies nothing but the row pointers."""
    n_rows, n_columns = matrix.shape
    if sp.issparse(matrix):
        indices = _writable(matrix.indices.astype(np.int32, copy=False))
        return Rows(_writable(matrix.data), indices, matrix.indptr.astype(np.int64), n_columns)
    indptr = np.arange(n_rows + 1, dtype=np.int64) * n_columns
    flat = _writable(np.ascontiguousarray(matrix).ravel())
    return Rows(flat, np.empty(0, np.int32), indptr, n_columns)


def _writable(values: NDArray[Any]) -> NDArray[Any]:
    """Copy a read-only array: numba would compile every kernel again for it."""
    return values if values.flags.writeable else values.copy()


def over_rows(
    rows: Rows, one_thread: Callable[..., None], threads: Callable[..., None], *args: Any
) -> None:
    """Run a kernel over all rows: ``one_thread(*args, 0, n_rows)``, or in threads if it pays.

    On a small matrix, or a busy machine, waking threads takes longer than the work.
    """
    if len(rows.values) < SERIAL_ENTRIES:
        one_thread(*args, 0, rows.n_rows)
    else:
        threads(*args, (rows.n_rows + CHUNK - 1) // CHUNK)


def entry_columns(rows: Rows) -> NDArray[np.int32]:
    """Class of every entry."""
    if not rows.is_dense:
        return rows.indices
    return np.tile(np.arange(rows.n_columns, dtype=np.int32), rows.n_rows)


def group_names_and_codes(
    class_groups: ArrayLike | None, n_classes: int
) -> tuple[list[str], NDArray[np.int32]]:
    """Sorted group names and the code of each class; one group when None."""
    if class_groups is None:
        return [""], np.zeros(n_classes, np.int32)
    groups = np.asarray(class_groups)
    if groups.shape != (n_classes,):
        raise ValueError(
            f"class_groups must name a group for each class: shape ({n_classes},), "
            f"however: class_groups.shape={groups.shape}."
        )
    names, codes = np.unique(groups.astype(str), return_inverse=True)
    return names.tolist(), codes.astype(np.int32)


def check_probs(proba: ArrayLike, *, dtype: Any = np.float32, name: str = "proba") -> Matrix:
    """Probabilities as a C-ordered array or canonical CSR of `dtype`; never the caller's memory.

    Parameters
    ----------
    proba : array-like or sparse matrix of shape (n_images, n_classes)
        Finite values in [0, 1]; float16, integers, Fortran order and read-only arrays are fine.
    dtype : dtype or None
        Float type wanted; None keeps float32 and float64 and turns the rest into float32.
    name : str
        How error messages call the matrix.

    Raises
    ------
    ValueError
        For another number of dimensions, complex, NaN, infinite or out-of-range values.
    """
    matrix = _two_dimensional(proba, name)
    values = matrix.data if sp.issparse(matrix) else matrix
    if values.dtype == object:
        values = values.astype(np.float64)
    if np.iscomplexobj(values):
        raise ValueError(f"{name} must be real probabilities. Complex data not supported.")
    _check_range(values, matrix, name)
    if dtype is None:
        dtype = np.float64 if values.dtype == np.float64 else np.float32
    if sp.issparse(matrix):
        return _canonical(matrix, dtype)
    return np.ascontiguousarray(values, dtype=dtype)


def check_labels(
    labels: ArrayLike, *, name: str = "Y", n_classes: int | None = None
) -> sp.csr_array:
    """Labels, dense or sparse 0/1, as a canonical CSR int8 array without stored zeros.

    With `n_classes`, a vector or column of class positions (one label an image) is taken too.

    Raises
    ------
    ValueError
        If the matrix is not two-dimensional or holds anything but 0 and 1.
    """
    refuse_names(labels, name)
    if n_classes is not None and not sp.issparse(labels):
        labels = as_pandas(labels)
        vector = np.asarray(labels)
        if vector.ndim == 1 or (vector.shape[1:] == (1,) and n_classes > 1):
            return _one_label_each(vector.ravel(), n_classes, name)
    matrix = _two_dimensional(labels, name)
    values = matrix.data if sp.issparse(matrix) else matrix
    if values.dtype == object:
        values = values.astype(np.float64)
    if sp.issparse(matrix) and bool((values == 1).all()) and matrix.has_canonical_format:
        ones = np.ones(len(values), np.int8)
        return sp.csr_array((ones, matrix.indices, matrix.indptr), shape=matrix.shape)
    if values.dtype != bool:
        _check_binary(values, name)
    if not sp.issparse(matrix):
        return sp.csr_array(values.astype(np.int8))
    found = _canonical(matrix, np.int8)
    if found.nnz and found.data.max() > 1:
        raise ValueError(f"{name} must be 0 or 1; an entry is stored twice. Sum duplicates.")
    if found.nnz and not found.data.all():
        found = found.copy()
        found.eliminate_zeros()
    return found


def check_beta(beta: float) -> float:
    """Return beta, a real number above 0."""
    if not (np.isreal(beta) and np.isfinite(beta) and beta > 0):
        raise ValueError(f"The 'beta' parameter must be a finite number above 0. Got {beta!r}.")
    return float(beta)


def check_empty_score(empty_score: float, *, allow_nan: bool = False) -> float:
    """Return the score, in [0, 1], of units with no true and no predicted label."""
    if allow_nan and np.isnan(empty_score):
        return float("nan")
    if not 0.0 <= empty_score <= 1.0:
        extra = " or NaN (leave such units out)" if allow_nan else ""
        raise ValueError(
            f"The 'empty_score' parameter must lie in [0, 1]{extra}. Got {empty_score!r}."
        )
    return float(empty_score)


def check_pairs(proba: Any, labels: Any, *, owner: str) -> tuple[Matrix, sp.csr_array]:
    """Probabilities and labels of the same images and classes, at least one of each.

    Raises
    ------
    ValueError
        As `check_probs` and `check_labels`; for missing labels, shapes that differ, no images or
        no classes.
    """
    if labels is None:
        raise ValueError(
            f"This {owner} estimator requires y to be passed, but the target y is None."
        )
    refuse_names(labels, "Y")
    proba, labels = in_one_order(proba, labels)
    labels = labels if sp.issparse(labels) else np.asarray(labels)
    if labels.ndim == 1 and labels.dtype.kind in "fc":
        _check_whole(labels, "Y")
    proba = proba if sp.issparse(proba) else np.asarray(proba)
    shape = proba.shape
    if len(shape) == 2 and 0 in shape:
        counted = f"{shape[0]} sample(s)" if shape[0] == 0 else f"{shape[1]} feature(s)"
        raise ValueError(
            f"Found array with {counted} (shape={shape}) while a minimum of 1 is required."
        )
    probs = check_probs(proba)
    found = check_labels(labels, n_classes=probs.shape[1])
    check_same_shape(probs, found, ("proba", "Y"))
    return probs, found


def check_scored(Y: Any, proba: Any) -> tuple[sp.csr_array, Matrix]:
    """Labels and the probabilities that are scored by them, frames matched by name."""
    Y, proba = in_one_order(Y, proba, names=("Y", "proba"))
    labels, probs = check_labels(Y), check_probs(proba)
    check_same_shape(labels, probs, ("Y", "proba"))
    return labels, probs


def check_same_shape(first: Matrix, second: Matrix, names: tuple[str, str]) -> None:
    """Both matrices have the same images and classes."""
    if first.shape != second.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same shape (n_images, n_classes), dense or "
            f"sparse, however: {names[0]}.shape={first.shape}, {names[1]}.shape={second.shape}."
        )


def refuse_names(labels: Any, name: str) -> None:
    """Refuse lists of label names: which column is whose, they do not say."""
    is_list = isinstance(labels, list | tuple) and len(labels) > 0
    if is_list and all(isinstance(own, list | tuple | set) for own in labels):
        found = next((entry for own in labels for entry in own), None)
        if isinstance(found, str):
            raise ValueError(
                f"{name} holds label names ({found!r} first), but must be a 0/1 matrix of shape "
                "(n_images, n_classes): features.schema.as_label_matrix(labels, classes=..., "
                "n_images=...) makes one."
            )


def _check_whole(positions: NDArray[Any], name: str) -> None:
    if positions.dtype.kind == "c":
        raise ValueError(f"{name} must be real. Complex data not supported.")
    if positions.dtype.kind not in "iufb" or (positions != np.floor(positions)).any():
        raise ValueError(
            f"{name} must be a 0/1 matrix (n_images, n_classes) or a vector of class positions. "
            f"Got a vector of dtype {positions.dtype}. Unknown label type: continuous or text."
        )


def _one_label_each(positions: NDArray[Any], n_classes: int, name: str) -> sp.csr_array:
    _check_whole(positions, name)
    columns = positions.astype(np.int64)
    if len(columns) and not 0 <= columns.min() <= columns.max() < n_classes:
        raise ValueError(
            f"{name} must be a 0/1 matrix, dense or sparse, of shape (n_images, n_classes), or a "
            f"vector of class positions from 0 to {n_classes - 1}. Got a vector of values from "
            f"{columns.min()} to {columns.max()}."
        )
    if len(columns) and columns.min() == columns.max():
        raise ValueError(
            f"{name} is a vector of class positions and holds one class only ({columns[0]}): there "
            "is nothing to decide. Pass a 0/1 matrix if these are labels of one class."
        )
    ones = np.ones(len(columns), np.int8)
    indptr = np.arange(len(columns) + 1)
    return sp.csr_array((ones, columns, indptr), shape=(len(columns), n_classes))


def _two_dimensional(data: ArrayLike, name: str) -> Any:
    matrix: Any = data if sp.issparse(data) else np.asarray(as_pandas(data))
    if matrix.ndim != 2:
        raise ValueError(
            f"{name} must be two-dimensional (n_images, n_classes). Got {matrix.ndim} "
            f"dimension(s), shape {matrix.shape}. Reshape your data: one row per image."
        )
    return matrix.tocsr() if sp.issparse(matrix) else matrix


def _canonical(matrix: Any, dtype: Any) -> sp.csr_array:
    csr = sp.csr_array(matrix, dtype=dtype)
    if csr.has_canonical_format:
        return csr
    csr = csr.copy()
    csr.sum_duplicates()
    return csr


def _check_range(values: NDArray[Any], matrix: Any, name: str) -> None:
    if values.size == 0:
        return
    low, high = values.min(), values.max()
    if low >= 0 and high <= 1:
        return
    bad = ~((values >= 0) & (values <= 1))
    first = int(np.flatnonzero(bad.ravel())[0])
    image, klass = _locate(first, matrix)
    value = float(values.ravel()[first])
    if not np.isfinite(value):
        found = "NaN" if np.isnan(value) else "infinity"
        raise ValueError(
            f"{name} must be finite: it contains {found} at image {image}, class {klass} "
            f"({int(bad.sum()):,} bad values in all)."
        )
    negative = f"Negative values in data: {name}" if low < 0 else name
    raise ValueError(
        f"{negative} must lie in [0, 1]; {int(bad.sum()):,} values do not, first: image {image}, "
        f"class {klass}, value {value:.9g} (n_samples={matrix.shape[0]}, "
        f"n_features={matrix.shape[1]}). {advice_of(value)}"
    )


def _locate(flat: int, matrix: Any) -> tuple[int, int]:
    if sp.issparse(matrix):
        row = int(np.searchsorted(matrix.indptr, flat, side="right")) - 1
        return row, int(matrix.indices[flat])
    return flat // matrix.shape[1], flat % matrix.shape[1]


def _check_binary(values: NDArray[Any], name: str) -> None:
    bad = (values != 0) & (values != 1)
    if bad.any():
        raise ValueError(
            f"{name} must hold 0 and 1 only; {int(bad.sum()):,} values do not, first: "
            f"{values[bad][0]!r}. Pass a 0/1 indicator matrix of shape (n_images, n_classes)."
        )
