"""DataFrames beside each other: rows and columns are matched by name, never by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features import _checks as checks

__all__ = [
    "as_pandas",
    "in_fitted_order",
    "in_image_order",
    "in_one_order",
    "in_order_of",
    "index_of",
    "is_counted",
    "names_from_state",
    "names_to_state",
    "remember_names",
]


def as_pandas(values: Any) -> Any:
    """Turn a polars frame into a pandas one, ids from ``image_id``; leave the rest as it is."""
    return checks.from_polars(values, None)


def in_one_order(*given: Any, names: Sequence[str] = ("proba", "Y")) -> tuple[Any, ...]:
    """Matrices of the same images and classes, DataFrames in the order of the first of them.

    An index (or columns) of 0, 1, 2, ... is no name: such a frame is taken by position, as arrays
    and sparse matrices are, which come back as they are.

    Raises
    ------
    ValueError
        For frames of other images or classes.

    Examples
    --------
    >>> first = pd.DataFrame([[1, 2], [3, 4]], index=["i", "j"], columns=["a", "b"])
    >>> in_one_order(first, first.iloc[::-1, ::-1])[1].tolist()
    [[1, 2], [3, 4]]
    """
    read = [as_pandas(values) for values in given]
    first = next((v for v in read if isinstance(v, pd.DataFrame)), None)
    if first is None:
        return tuple(read)
    return tuple(_like(v, first, name) for v, name in zip(read, names, strict=True))


def _like(values: Any, first: pd.DataFrame, name: str) -> Any:
    if not isinstance(values, pd.DataFrame | pd.Series):
        return values
    found = checks.take_axis(values.to_numpy(), _order(values.index, first.index, name, "image"), 0)
    if isinstance(values, pd.Series):
        return found
    return checks.take_axis(found, _order(values.columns, first.columns, name, "class"), 1)


def _order(given: pd.Index, wanted: pd.Index, name: str, axis: str) -> NDArray[np.intp] | None:
    """Where each wanted name stands, or None where the order is right or there are no names."""
    if _is_plain(given) or _is_plain(wanted) or given.equals(wanted):
        return None
    if _is_part_of_plain(given, wanted) or _is_part_of_plain(wanted, given):
        return None
    what = {"image": "image id", "class": "class name"}[axis]
    try:
        return checks.positions(checks.as_names(wanted, what), given, what=what, where=name)
    except ValueError as error:
        raise ValueError(
            f"{error} DataFrames are matched by name; to match by position give frame.to_numpy()."
        ) from error


def _is_part_of_plain(index: pd.Index, other: pd.Index) -> bool:
    """Whether an index is some of 0, 1, 2, ..., as a fold of a frame without names has it."""
    whole = [pd.api.types.is_integer_dtype(i.dtype) for i in (index, other)]
    return whole == [True, False] and not index.astype(str).isin(other.astype(str)).any()


def in_image_order(values: Any, image_ids: Any, name: str) -> Any:
    """One value an image, a Series in the order of the ids; anything else as it is.

    Ids of 0, 1, 2, ... are no names, nor is no index at all (``image_ids=None``).

    Raises
    ------
    ValueError
        For a Series of other images.

    Examples
    --------
    >>> in_image_order(pd.Series([7, 8], index=["j", "i"]), np.array(["i", "j"]), "groups").tolist()
    [8, 7]
    """
    if not isinstance(values, pd.Series) or image_ids is None:
        return values
    index = image_ids if isinstance(image_ids, pd.Index) else pd.Index(np.asarray(image_ids))
    order = None if is_counted(index) else _order(values.index, index, name, "image")
    return checks.take_axis(values.to_numpy(), order, 0)


def in_order_of(values: Any, index: Any, classes: Any = None, name: str = "y") -> Any:
    """Rows of a frame or Series in the order of an index, columns in that of classes.

    Anything else comes back as it is; so does a frame beside no index, or no classes (None).

    Raises
    ------
    ValueError
        For other images or classes.

    Examples
    --------
    >>> frame = pd.DataFrame({"a": [1, 2], "b": [3, 4]}, index=["j", "i"])
    >>> in_order_of(frame, pd.Index(["i", "j"]), pd.Index(["b", "a"])).to_numpy().tolist()
    [[4, 2], [3, 1]]
    """
    if not isinstance(values, pd.DataFrame | pd.Series):
        return values
    rows = None if index is None else _order(values.index, index, name, "image")
    values = values if rows is None else values.iloc[rows]
    if classes is None or isinstance(values, pd.Series):
        return values
    columns = _order(values.columns, pd.Index(classes), name, "class")
    return values if columns is None else values.iloc[:, columns]


def is_counted(ids: Any) -> bool:
    """Whether ids are 0, 1, 2, ... as `Stack` makes them where none were given."""
    return np.array_equal(np.asarray(ids, dtype=str), np.arange(len(ids)).astype(str))


def index_of(*given: Any) -> Any:
    """Index of the first frame or Series among those given, or None."""
    read = map(as_pandas, given)
    return next((v.index for v in read if isinstance(v, pd.DataFrame | pd.Series)), None)


def _is_plain(index: pd.Index) -> bool:
    """Whether an index is 0, 1, 2, ..., which pandas makes where none was given."""
    return isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1


def remember_names(estimator: Any, proba: Any) -> None:
    """Keep a frame's columns as ``feature_names_in_``; forget those of an earlier `fit`."""
    if hasattr(estimator, "feature_names_in_"):
        del estimator.feature_names_in_
    frame = as_pandas(proba)
    if isinstance(frame, pd.DataFrame) and all(isinstance(c, str) for c in frame.columns):
        estimator.feature_names_in_ = np.asarray(frame.columns, dtype=object)


def names_to_state(estimator: Any) -> dict[str, Any]:
    """Give the class names that `fit` saw, for a state; nothing where it saw none."""
    names = getattr(estimator, "feature_names_in_", None)
    return {} if names is None else {"class_names": names.astype(str)}


def names_from_state(estimator: Any, state: dict[str, Any]) -> None:
    """Undo `names_to_state`: a loaded estimator matches frames by name as the fitted one did."""
    if "class_names" in state:
        estimator.feature_names_in_ = np.asarray(state["class_names"], dtype=object)


def in_fitted_order(estimator: Any, proba: Any) -> Any:
    """Give a frame its columns in the order that `fit` saw; anything else as it is.

    Raises
    ------
    ValueError
        For other classes than those of `fit`.
    """
    frame = as_pandas(proba)
    names = getattr(estimator, "feature_names_in_", None)
    if names is None or not isinstance(frame, pd.DataFrame):
        return frame
    order = _order(frame.columns, pd.Index(names), "proba", "class")
    return frame if order is None else frame.iloc[:, order]
