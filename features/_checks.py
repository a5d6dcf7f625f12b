"""Checks and alignment shared by the in-memory `Stack` and the on-disk `FeatureStore`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

__all__ = [
    "CHECK_BLOCK",
    "MAX_NAME_LENGTH",
    "advice_of",
    "align_frame",
    "as_canonical_csr",
    "as_float",
    "as_names",
    "check_finite",
    "check_probabilities",
    "first_few",
    "from_polars",
    "positions",
    "take_axis",
]

# A fixed-width unicode array takes four bytes a character for every name, so one absurdly long
# name would multiply the memory of all of them.
MAX_NAME_LENGTH = 4096

# Values are checked in blocks, so the temporaries stay small beside the data itself.
CHECK_BLOCK = 1 << 22
ROUNDING = 1e-3  # values no further outside [0, 1] may be probabilities all the same
LARGEST = 1e15  # of what is squared and summed in float32


def first_few(values: Iterable[Any], n: int = 5) -> str:
    """List the first `n` values, and how many follow."""
    items = list(values)
    shown = ", ".join(repr(str(v)) for v in items[:n])
    return shown if len(items) <= n else f"{shown} and {len(items) - n:,} more"


def as_names(values: ArrayLike | pd.Index, what: str, *, unique: bool = True) -> NDArray[np.str_]:
    """Turn ids or class names into a 1-D str array; refuse missing, empty and repeated ones.

    Parameters
    ----------
    values : array-like of shape (n,)
        Strings or integers.
    what : str
        Singular noun for the messages, for example "image id".
    unique : bool, default=True
        Refuse repeated values.

    Raises
    ------
    ValueError
        With the first few offending values.
    """
    raw = np.asarray(values)
    if raw.ndim != 1:
        raise ValueError(f"{what}s must be one-dimensional; got shape {raw.shape}")
    if raw.dtype.kind == "U":
        _check_lengths(raw.tolist() if raw.dtype.itemsize > 4 * MAX_NAME_LENGTH else [], what)
        names = raw
    else:
        missing = np.flatnonzero(pd.isna(raw))
        if missing.size:
            raise ValueError(f"every {what} must be given; missing at positions {missing[:5]}")
        texts = [v.decode() if isinstance(v, bytes) else str(v) for v in raw.tolist()]
        _check_lengths(texts, what)
        names = np.array(texts, dtype=np.str_) if texts else np.empty(0, dtype="<U1")
    _check_encoding(names, what)
    _check_names(names, what, unique=unique)
    return names


def _check_lengths(texts: Sequence[str], what: str) -> None:
    """Refuse names so long that a fixed-width array of them would not fit."""
    long = [t for t in texts if len(t) > MAX_NAME_LENGTH]
    if long:
        raise ValueError(
            f"a {what} may have at most {MAX_NAME_LENGTH:,} characters; one has {len(long[0]):,} "
            f"and begins {long[0][:40]!r}. Shorten it."
        )
    # numpy drops trailing NULs, so two names that differ only there would become one.
    nul = [t for t in texts if "\0" in t]
    if nul:
        raise ValueError(f"a {what} may not hold a NUL character; found {first_few(nul)}")


def _check_encoding(names: NDArray[np.str_], what: str) -> None:
    """Refuse half characters, which no file can hold: file names that are no UTF-8 have them."""
    try:
        "".join(names.tolist()).encode()
    except UnicodeEncodeError:
        # Joined, two halves make no whole: each is looked at by itself.
        odd = [name for name in names.tolist() if any("\ud800" <= c <= "\udfff" for c in name)]
        raise ValueError(
            f"a {what} must be text that UTF-8 can hold; {odd[0]!a} is not. Rename it."
        ) from None


def _check_names(names: NDArray[np.str_], what: str, *, unique: bool) -> None:
    empty = np.flatnonzero(names == "")
    if empty.size and unique:
        raise ValueError(f"a {what} may not be empty; it is at positions {empty[:5].tolist()}")
    if unique:
        index = pd.Index(names)
        repeated = index[index.duplicated()].unique()
        if len(repeated):
            raise ValueError(
                f"{what}s must be unique; {len(repeated):,} occur more than once: "
                f"{first_few(repeated)}. Remove or rename the repeats."
            )


def positions(
    wanted: NDArray[np.str_], given: ArrayLike | pd.Index, *, what: str, where: str
) -> NDArray[np.intp] | None:
    """Where each wanted name stands in `given`: ``given[positions] == wanted``.

    Parameters
    ----------
    wanted : str array of shape (n,)
        Names in the order to realign to; unique.
    given : array-like of shape (n,)
        The same names in any order.
    what : str
        Singular noun for the messages, "image id" or "class name".
    where : str
        What is being aligned, for the messages, for example "probabilities of model 'a'".

    Returns
    -------
    int array of shape (n,), or None
        None when the order is already right, so the caller can skip a copy.

    Raises
    ------
    ValueError
        When a wanted name is missing, a given one is unknown or stands twice.
    """
    names = as_names(given, what)
    if np.array_equal(names, wanted):
        return None
    index = pd.Index(names)
    found = index.get_indexer(pd.Index(wanted))
    missing = wanted[found < 0]
    if missing.size:
        raise ValueError(
            f"{where}: {missing.size:,} of {wanted.size:,} expected {what}s are missing, first: "
            f"{first_few(missing)}. Given are {names.size:,}, first: {first_few(names, 3)}."
        )
    if names.size != wanted.size:
        unknown = names[~index.isin(pd.Index(wanted))]
        raise ValueError(
            f"{where}: {unknown.size:,} unknown {what}s, first: {first_few(unknown)}. Remove them."
        )
    return np.asarray(found, dtype=np.intp)


def take_axis(values: Any, order: NDArray[np.intp] | None, axis: int) -> Any:
    """Reorder a dense or CSR matrix along one axis; no copy when the order is already right."""
    if order is None:
        return values
    return values[order] if axis == 0 else values[:, order]


def align_frame(
    frame: pd.DataFrame, image_ids: NDArray[np.str_], classes: NDArray[np.str_], where: str
) -> NDArray[Any]:
    """Read a DataFrame's values in the order of the image ids and class names."""
    rows = positions(image_ids, frame.index, what="image id", where=where)
    columns = positions(classes, frame.columns, what="class name", where=where)
    return take_axis(take_axis(frame.to_numpy(), rows, 0), columns, 1)


def as_float(values: Any, what: str) -> NDArray[np.floating]:
    """Keep float16 and float32, turn other numbers into float32, refuse the rest."""
    array = np.asarray(values)
    if array.dtype in (np.float16, np.float32):
        return array
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{what} must be numbers; {error}") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{what} must be numbers; got dtype {array.dtype}")
    # float64 beyond float32's range turns into inf, which the finite check then names.
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def as_canonical_csr(values: Any, what: str) -> sparse.csr_array:
    """Read a sparse matrix as CSR of float32 with sorted indices; the caller's is not changed."""
    matrix = sparse.csr_array(values)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
    # scipy's sparse routines know no float16.
    matrix.data = as_float(matrix.data, what).astype(np.float32, copy=False)
    matrix.sum_duplicates()
    return matrix


def from_polars(frame: Any, image_ids: ArrayLike | None) -> Any:
    """Turn a polars DataFrame into a pandas one, ids in the index; leave anything else as it is.

    The ids are the column ``image_id`` where there is one, else those given, else 0, 1, 2, ...
    """
    if not hasattr(frame, "get_columns") or isinstance(frame, pd.DataFrame):
        return frame
    columns = [str(name) for name in frame.columns]
    if "image_id" not in columns and image_ids is not None and len(frame) != np.size(image_ids):
        raise ValueError(
            f"a polars frame of {len(frame):,} rows has no column image_id, and there are "
            f"{np.size(image_ids):,} images. Give it one, so that rows are matched by name."
        )
    values = {name: frame[name].to_numpy() for name in columns if name != "image_id"}
    ids = frame["image_id"].to_list() if "image_id" in columns else image_ids
    return pd.DataFrame(values, index=None if ids is None else pd.Index(np.asarray(ids)))


def check_probabilities(
    values: NDArray[np.floating] | sparse.csr_array,
    *,
    model: str,
    image_ids: NDArray[np.str_],
    classes: NDArray[np.str_],
) -> None:
    """Refuse values that are not finite or not in [0, 1], naming the first one.

    Parameters
    ----------
    values : float array or CSR of shape (n_images, n_classes)
        Of a CSR only the stored values are looked at.
    model : str
        The model's name, for the message.
    image_ids : str array of shape (n_images,)
    classes : str array of shape (n_classes,)
    """
    flat: NDArray[np.floating] = (
        np.asarray(values.data) if sparse.issparse(values) else np.asarray(values).reshape(-1)
    )
    bad, first = _count_bad(flat)
    if not bad:
        return
    row, column = _cell(values, first)
    value = float(flat[first])
    place = f"first: model {model!r}, image {str(image_ids[row])!r}, "
    place += f"class {str(classes[column])!r}, value {value:.9g}"
    if not np.isfinite(value):
        raise ValueError(
            f"probabilities must be finite; {bad:,} values are not or lie outside [0, 1], {place}. "
            "Find the rows the model failed on and predict them again."
        )
    raise ValueError(
        f"probabilities must lie in [0, 1]; {bad:,} values do not, {place}. {advice_of(value)}"
    )


def advice_of(value: float) -> str:
    """Say what to do about a value outside [0, 1]; a little outside, it may be no logit."""
    advice = "Apply a sigmoid if these are logits."
    near = -ROUNDING <= value <= 1 + ROUNDING
    return f"Clip them if this is rounding (np.clip(values, 0, 1)). {advice}" if near else advice


def _count_bad(flat: NDArray[np.floating]) -> tuple[int, int]:
    """How many values are not in [0, 1] (or NaN), and the position of the first."""
    bad, first = 0, -1
    for start in range(0, flat.size, CHECK_BLOCK):
        block = flat[start : start + CHECK_BLOCK]
        # min and max propagate NaN, and are three times as fast as a comparison of every value.
        if block.min() >= 0 and block.max() <= 1:
            continue
        wrong = np.flatnonzero(~((block >= 0) & (block <= 1)))
        bad += wrong.size
        first = start + int(wrong[0]) if first < 0 else first
    return bad, first


def _cell(values: Any, flat: int) -> tuple[int, int]:
    """Row and column of a position in the flat values."""
    if sparse.issparse(values):
        row = int(np.searchsorted(values.indptr, flat, side="right")) - 1
        return row, int(values.indices[flat])
    row, column = divmod(flat, values.shape[1])
    return row, column


def check_finite(values: NDArray[np.floating], *, what: str, image_ids: NDArray[np.str_]) -> None:
    """Refuse NaN and infinity in an (n_images, dim) array, naming the first image."""
    rows = max(1, CHECK_BLOCK // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        block = values[start : start + rows]
        ok = np.isfinite(block).all(axis=1)
        if not ok.all():
            image = str(image_ids[start + int(np.flatnonzero(~ok)[0])])
            raise ValueError(
                f"{what} must be finite; image {image!r} has NaN or infinity. "
                "Compute it again, or keep float32 if float16 overflowed."
            )
        # float16 reaches 65,504 and is not compared with what it cannot hold.
        if block.dtype != np.float16 and max(block.max(), -block.min()) > LARGEST:
            at = start + int(np.flatnonzero((np.abs(block) > LARGEST).any(axis=1))[0])
            raise ValueError(
                f"{what} must lie within {LARGEST:g} of 0; image {str(image_ids[at])!r} has more, "
                "and squares would overflow. Scale the values."
            )
