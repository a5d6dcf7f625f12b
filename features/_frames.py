"""User columns between pandas and Zarr, and the alignment of whatever is added to a store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from features import _checks as checks
from features import _zarr

__all__ = ["align_matrix", "align_rows", "as_frame", "read_column", "write_column"]


def write_column(root: zarr.Group, path: str, column: pd.Series, chunk: int) -> None:
    """Write one user column of shape (n_images,).

    Numbers and booleans keep their type; missing numbers are NaN. Everything else is stored as
    text, a missing text as "". Categories come back as categories.
    """
    with _zarr.replacing(root, path) as place:
        _write_values(root, place, column, chunk)


def _write_values(root: zarr.Group, path: str, column: pd.Series, chunk: int) -> None:
    categorical = isinstance(column.dtype, pd.CategoricalDtype)
    if not categorical and pd.api.types.is_numeric_dtype(column.dtype):
        values = _plain_numbers(column)
        array = _zarr.create_array(
            root,
            path,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(chunk,),
            dims=("image",),
            whole=True,
        )
        _zarr.write_block(array, 0, values, 0)
        return
    texts = column.astype(object).where(column.notna(), "")
    _zarr.write_strings(root, path, texts.tolist(), "image", attrs={"categorical": categorical})


def _plain_numbers(column: pd.Series) -> NDArray[Any]:
    """Make a numeric column a numpy array; nullable types become float where they miss."""
    dtype = column.dtype
    if isinstance(dtype, np.dtype):
        return column.to_numpy()
    if column.isna().any():
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column.to_numpy(dtype=bool if pd.api.types.is_bool_dtype(dtype) else None).astype(
        getattr(dtype, "numpy_dtype", np.float64)
    )


def read_column(root: zarr.Group, path: str) -> Any:
    """Read a user column back, shape (n_images,)."""
    array = _zarr.node(root, path)
    if array.dtype.kind in "TO":
        texts = _zarr.read_strings(root, path)
        return pd.Categorical(texts) if array.attrs.get("categorical") else texts
    return array[...]


def align_rows(
    values: Any, wanted: NDArray[np.str_], image_ids: ArrayLike | None, where: str
) -> Any:
    """Realign an array or DataFrame of n_images rows to the wanted image ids.

    A DataFrame brings its own ids in its index (of polars in ``image_id``); an array without
    `image_ids` is taken to be in the store's order.
    """
    values = checks.from_polars(values, wanted if image_ids is None else image_ids)
    if isinstance(values, pd.DataFrame):
        image_ids = values.index if image_ids is None else image_ids
        values = values.to_numpy()
    elif not sparse.issparse(values):
        values = np.asarray(values)
    if image_ids is None:
        _check_length(values.shape[0], len(wanted), "images", where)
        return values
    order = checks.positions(wanted, image_ids, what="image id", where=where)
    _check_length(values.shape[0], len(wanted), "images", where)
    return checks.take_axis(values, order, 0)


def align_matrix(
    values: Any,
    *,
    image_ids: tuple[NDArray[np.str_], ArrayLike | None],
    classes: tuple[NDArray[np.str_], ArrayLike | None],
    where: str,
) -> Any:
    """Realign an (n_images, n_classes) array, DataFrame or CSR by image id and class name.

    `image_ids` and `classes` are (wanted, given) pairs; given may be None as in `align_rows`.
    """
    given = classes[1]
    values = checks.from_polars(values, image_ids[0] if image_ids[1] is None else image_ids[1])
    if isinstance(values, pd.DataFrame) and given is None:
        given = values.columns
    values = align_rows(values, image_ids[0], image_ids[1], where)
    if values.ndim != 2:
        raise ValueError(f"{where} must have shape (n_images, n_classes); got {values.shape}")
    if given is not None:
        order = checks.positions(classes[0], given, what="class name", where=where)
        _check_length(values.shape[1], len(classes[0]), "classes", where)
        return checks.take_axis(values, order, 1)
    _check_length(values.shape[1], len(classes[0]), "classes", where)
    return values


def _check_length(found: int, expected: int, what: str, where: str) -> None:
    if found != expected:
        raise ValueError(
            f"{where}: {found:,} {what} given, the store has {expected:,}. Pass image_ids= and "
            f"classes=, or a DataFrame, so that they can be matched by name."
        )


def as_frame(
    values: NDArray[Any], image_ids: NDArray[np.str_], columns: NDArray[Any]
) -> pd.DataFrame:
    """Make a DataFrame indexed by image id."""
    return pd.DataFrame(
        values, index=pd.Index(image_ids, name="image_id"), columns=pd.Index(columns)
    )
