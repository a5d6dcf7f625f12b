"""Competition submissions: label sets as a CSV, in the two usual forms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from features._tables import file_named, quoting
from stacker._output import refuse_other_than_csv, temporary_beside

__all__ = ["FORMS", "read_sample", "write_submission"]

FORMS = ("joined", "wide")


def write_submission(
    path: str | Path,
    labels: Any,
    *,
    image_ids: ArrayLike | None = None,
    classes: ArrayLike | None = None,
    form: str | None = None,
    like: str | Path | None = None,
    id_column: str = "image_id",
    label_column: str = "labels",
    separator: str = " ",
    force: bool = False,
) -> Path:
    r"""Write label sets as a CSV that a competition takes.

    Parameters
    ----------
    path : path
        The CSV; must not exist, unless `force`.
    labels : list of label lists, 0/1 array or sparse matrix (n_images, n_classes), or DataFrame
        pandas or polars; a polars frame's first column, or the one named `id_column`, holds the
        ids. In the wide form any finite numbers, probabilities for example.
    image_ids : array-like of shape (n_images,), optional
        Not needed where `labels` is a DataFrame, or its rows are in the order of `like`.
    classes : array-like of shape (n_classes,), optional
        Names of the columns of an array.
    form : {"joined", "wide"}, optional
        "joined": an id and its labels joined by `separator`. "wide": an id and one column for
        each class. Default: that of `like`, else joined.
    like : path, optional
        The sample submission: its ids and their order, and its columns by name, are taken.
    id_column, label_column : str
        Names of the columns, where there is no `like`.
    separator : str
    force : bool, default False
        Replace a file that exists.

    Returns
    -------
    path of the file

    Raises
    ------
    ValueError
        For ids or classes that do not match the sample, a missing name, names that hold the
        separator, and a path that ends like another kind of file.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> sets = [["cat", "dog"], []]
    >>> write_submission(folder / "a.csv", sets, image_ids=["i", "j"]).read_text()
    'image_id,labels\ni,cat dog\nj,\n'
    >>> wide = np.array([[1, 1], [0, 0]])
    >>> write_submission(
    ...     folder / "b.csv", wide, image_ids=["i", "j"], classes=["cat", "dog"], form="wide"
    ... ).read_text()
    'image_id,cat,dog\ni,1,1\nj,0,0\n'
    """
    refuse_other_than_csv(Path(path))
    header, wanted = ([id_column, label_column], None) if like is None else read_sample(like)
    form = form or ("joined" if len(header) == 2 else "wide")
    if form not in FORMS:
        raise ValueError(f"form must be of {FORMS}. Got {form!r} instead.")
    ids = wanted if image_ids is None else np.asarray(image_ids).astype(np.str_)
    rows = _read_rows(labels, ids, classes, header[0] if like is not None else id_column)
    if wanted is not None:
        rows = rows.of_images(wanted, like)
    if form == "joined":
        frame = pd.DataFrame({"id": rows.ids, "texts": rows.texts(separator)})
        frame.columns = pd.Index(header[:2])
        return _write(Path(path), frame, force=force, index=False)
    names = header[1:] if like is not None and len(header) > 2 else None
    columns, values = rows.columns(names)
    return _write_wide(Path(path), header[0], rows.ids, columns, values, force=force)


class _LabelRows:
    """Label sets with their ids: either lists of names or a matrix with named columns."""

    def __init__(
        self,
        ids: NDArray[np.str_],
        lists: list[list[str]] | None,
        matrix: Any,
        classes: NDArray[np.str_] | None,
    ) -> None:
        n_rows = len(lists) if lists is not None else matrix.shape[0]
        if len(ids) != n_rows:
            raise ValueError(f"there are {len(ids):,} image ids for {n_rows:,} label sets.")
        if classes is not None and matrix is not None and matrix.shape[1] != len(classes):
            raise ValueError(
                f"there are {len(classes):,} class names for {matrix.shape[1]:,} columns."
            )
        place = pd.Index(ids)
        if place.has_duplicates:
            raise ValueError(
                f"image id {place[place.duplicated()][0]!r} stands twice. Give one set an image."
            )
        self.ids, self.lists, self.matrix, self.classes = ids, lists, matrix, classes

    def of_images(self, wanted: NDArray[np.str_], like: Any) -> _LabelRows:
        """Take the images of a sample submission, in its order."""
        place = pd.Index(self.ids)
        order = place.get_indexer(pd.Index(wanted))
        missing, more = wanted[order < 0], self.ids[~place.isin(wanted)]
        if len(missing) or len(more):
            what, odd = ("are missing", missing) if len(missing) else ("it does not have", more)
            raise ValueError(
                f"{like} asks for {len(wanted):,} images, there are label sets of "
                f"{len(self.ids):,}; {len(odd):,} {what}, first: {odd[:3].tolist()}."
            )
        lists = None if self.lists is None else [self.lists[i] for i in order]
        matrix = None if self.matrix is None else self.matrix[order]
        return _LabelRows(wanted, lists, matrix, self.classes)

    def texts(self, separator: str) -> list[str]:
        """Labels of each image, joined."""
        lists = self._as_lists() if self.lists is None else self.lists
        # Readers part at any space: a line end in a name makes two labels of it, too.
        spaces = separator.isspace()
        bad = [
            name
            for name in sorted({n for names in lists for n in names})
            if separator in name or (spaces and name.split() != [name])
        ]
        if bad:
            raise ValueError(
                f"class {bad[0]!r} holds the separator {separator!r} that joins labels: give "
                "another separator=."
            )
        return [separator.join(names) for names in lists]

    def _as_lists(self) -> list[list[str]]:
        if self.classes is None:
            raise ValueError("classes= must name the columns of the label matrix.")
        matrix = sparse.csr_array(self.matrix)
        if matrix.nnz and not (matrix.data == 1).all():
            raise ValueError("labels must be 0 or 1 in the joined form; decide on sets first.")
        parts = np.split(self.classes[matrix.indices], matrix.indptr[1:-1])
        return [part.tolist() for part in parts]

    def columns(self, names: Sequence[str] | None) -> tuple[NDArray[np.str_], Any]:
        """Class names and values (n_images, n_classes), in the order of `names` if given."""
        classes, matrix = self.classes, self.matrix
        if self.lists is not None:
            if classes is None:
                found = sorted({name for labels in self.lists for name in labels})
                classes = np.array(names if names is not None else found)
            index = pd.Index(classes)
            matrix = _matrix_of(self.lists, index)
        if classes is None:
            raise ValueError("classes= must name the columns of the label matrix.")
        if names is None or list(names) == classes.tolist():
            return classes, matrix
        if set(names) != set(classes):
            odd = sorted(set(names) ^ set(classes.tolist()))
            raise ValueError(
                f"the sample has {len(names):,} class columns, the label sets {len(classes):,}; "
                f"{len(odd)} are in one only, first: {odd[:3]}."
            )
        return np.array(names), matrix[:, pd.Index(classes).get_indexer(pd.Index(names))]


def _read_rows(
    labels: Any, ids: NDArray[np.str_] | None, classes: ArrayLike | None, id_column: str
) -> _LabelRows:
    names = None if classes is None else np.asarray(classes).astype(np.str_)
    if hasattr(labels, "get_columns"):  # polars has no index: the ids are a column
        frame = pd.DataFrame(labels.to_dict(as_series=False))
        own = next((c for c in (id_column, "image_id") if c in frame.columns), frame.columns[0])
        # Without ids beside it the first column must be they; with them it may be a class.
        named = ids is None or own in (id_column, "image_id") or frame[own].dtype.kind not in "biuf"
        labels = frame.set_index(own) if named else frame
    if isinstance(labels, pd.DataFrame):
        given = np.asarray(labels.index).astype(np.str_)
        if ids is not None and isinstance(labels.index, pd.RangeIndex):
            given = ids
        columns_of = np.asarray(labels.columns).astype(np.str_)
        return _LabelRows(given, None, labels.to_numpy(), columns_of)
    if ids is None:
        raise ValueError("image_ids= must name the images (or like= a sample submission).")
    if sparse.issparse(labels):
        return _LabelRows(ids, None, sparse.csr_array(labels), names)
    if isinstance(labels, np.ndarray):
        return _LabelRows(ids, None, labels, names)
    return _LabelRows(ids, [list(map(str, row)) for row in labels], None, names)


def _matrix_of(lists: list[list[str]], index: pd.Index) -> NDArray[np.int8]:
    flat = [name for labels in lists for name in labels]
    columns = index.get_indexer(pd.Index(flat)) if flat else np.empty(0, dtype=np.intp)
    if (columns < 0).any():
        raise ValueError(f"{flat[int(np.argmax(columns < 0))]!r} is no class of the submission.")
    values = np.zeros((len(lists), len(index)), dtype=np.int8)
    values[np.repeat(np.arange(len(lists)), [len(labels) for labels in lists]), columns] = 1
    return values


def read_sample(path: str | Path) -> tuple[list[str], NDArray[np.str_]]:
    r"""Columns of a sample submission, and its image ids.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "sample.csv"
    >>> _ = path.write_text("id,attribute_ids\ni,0 1\nj,0 1\n")
    >>> columns, ids = read_sample(path)
    >>> columns, ids.tolist()
    (['id', 'attribute_ids'], ['i', 'j'])
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with file_named(path):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    if frame.shape[1] < 2:
        raise ValueError(f"{path} must have an id column and more; it has {list(frame.columns)}.")
    return [str(c) for c in frame.columns], frame.iloc[:, 0].to_numpy(dtype=np.str_)


def _write(path: Path, frame: pd.DataFrame, *, force: bool, **how: Any) -> Path:
    with temporary_beside(path, force=force) as name:
        frame.to_csv(name, **how, **quoting(frame))
    return path


def _write_wide(
    path: Path,
    id_column: str,
    ids: NDArray[np.str_],
    columns: NDArray[np.str_],
    values: Any,
    *,
    force: bool,
) -> Path:
    values = values.toarray() if sparse.issparse(values) else np.asarray(values)
    if values.dtype.kind == "b":
        values = values.astype(np.int8)
    frame = pd.DataFrame(values, index=pd.Index(ids, name=id_column), columns=columns)
    return _write(path, frame, force=force, float_format="%.6g")
