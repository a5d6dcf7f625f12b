"""Read labels.csv and meta.csv, write result tables."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

__all__ = [
    "Labels",
    "first_few",
    "leaves_folder",
    "lines_of",
    "read_labels",
    "read_metadata",
    "split_groups",
    "write_csv",
]

MISSING = ["", "NA", "N/A", "nan", "NaN", "null", "None"]


@dataclass(frozen=True)
class Labels:
    """The labels of the images in one file, in its order; classes sorted by name.

    Examples
    --------
    >>> labels = Labels("labels.csv", ("a", "b"), (("cat", "dog"), ()), ("cat", "dog"))
    >>> matrix, known = labels.aligned(["b", "a", "new"])
    >>> matrix.toarray().tolist(), known.tolist()
    ([[0, 0], [1, 1], [0, 0]], [True, True, False])
    """

    path: str
    image_ids: tuple[str, ...]
    lists: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...]

    def aligned(self, image_ids: Sequence[str]) -> tuple[sparse.csr_array, NDArray[np.bool_]]:
        """Labels (n_images, n_classes) int8 in the order of `image_ids`, and which are known."""
        own = dict(zip(self.image_ids, self.lists, strict=True))
        code = {name: k for k, name in enumerate(self.classes)}
        rows = [sorted(code[name] for name in own.get(i, ())) for i in image_ids]
        indptr = np.cumsum([0, *map(len, rows)])
        indices = np.array([k for row in rows for k in row], dtype=np.int64)
        shape = (len(rows), len(self.classes))
        matrix = sparse.csr_array((np.ones(len(indices), np.int8), indices, indptr), shape=shape)
        return matrix, np.array([i in own for i in image_ids], dtype=bool)

    def refuse_unknown(self, image_ids: Iterable[str], place: str) -> None:
        """Refuse labels of images that are not there."""
        absent = sorted(set(self.image_ids) - set(image_ids))
        if absent:
            raise ValueError(
                f"every image in {self.path} must be among the images; {len(absent):,} are not in "
                f"{place}, first: {first_few(absent)}. An image's id is its path inside {place} "
                f"without the extension."
            )

    def sha256(self) -> str:
        """Checksum of the content, whatever the order of the lines."""
        lines = sorted(zip(self.image_ids, self.lists, strict=True))
        return hashlib.sha256(repr(lines).encode()).hexdigest()


def read_labels(
    path: str | Path, *, id_column: str = "image_id", label_column: str = "labels"
) -> Labels:
    r"""Read a label file: one line an image, its labels separated by spaces.

    Parameters
    ----------
    path : str or Path
        A CSV file.
    id_column, label_column : str
        The columns with the image's id and its labels, each label optionally ``group::name``.

    Raises
    ------
    FileNotFoundError, ValueError
        When the file is not there, lacks a column, names an image twice, or has no labels.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "labels.csv")
    ...     _ = file.write_text("image_id,labels\na,tag::cat tag::dog\nb,\n")
    ...     read_labels(file).lists
    (('tag::cat', 'tag::dog'), ())
    """
    frame = _read_csv(path, [id_column, label_column], text=[id_column, label_column])
    ids = _unique_ids(frame[id_column], path)
    lists = tuple(tuple(sorted(set(cell.split()))) for cell in frame[label_column])
    classes = tuple(sorted({name for names in lists for name in names}))
    if not classes:
        raise ValueError(f"{path} gives no image a label: column {label_column!r} is empty")
    return Labels(str(path), ids, lists, classes)


def read_metadata(path: str | Path, *, id_column: str = "image_id") -> pd.DataFrame:
    r"""Read user columns, indexed by image id; ``split_group`` stays text.

    Raises
    ------
    FileNotFoundError, ValueError
        When the file is not there, lacks the id column, or names an image twice.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "meta.csv")
    ...     _ = file.write_text("image_id,split_group,year\na,007,1900\n")
    ...     read_metadata(file)["split_group"].tolist()
    ['007']
    """
    frame = _read_csv(path, [id_column], text=[id_column, "split_group"])
    _unique_ids(frame[id_column], path)
    return frame.set_index(id_column).rename_axis("image_id")


def split_groups(frame: pd.DataFrame, path: str | Path) -> NDArray[np.object_]:
    """Give the groups of images that must not part, from a metadata table.

    Raises
    ------
    ValueError
        When there is no such column, or an image has none: all of these would be one group.

    Examples
    --------
    >>> frame = pd.DataFrame({"split_group": ["x", "y", "x"]}, index=["a", "b", "c"])
    >>> split_groups(frame, "meta.csv").tolist()
    ['x', 'y', 'x']
    """
    if "split_group" not in frame:
        raise ValueError(
            f"{path} must have a column split_group; it has {first_few(frame.columns, 10)}"
        )
    column = frame["split_group"]
    empty = column.index[column.str.strip() == ""]
    if len(empty):
        raise ValueError(
            f"{path} must give every image a split_group; {len(empty):,} have none, first: "
            f"{first_few(empty)}. Give an image that stands alone a group of its own."
        )
    return np.asarray(column, dtype=object)


def lines_of(frame: pd.DataFrame, image_ids: Sequence[str], path: str | Path) -> pd.DataFrame:
    """Lines of these images in this order; those of other images are left out.

    Raises
    ------
    ValueError
        Naming the first few images without a line.

    Examples
    --------
    >>> frame = pd.DataFrame({"year": [1900, 1950]}, index=["a", "b"])
    >>> lines_of(frame, ["b"], "meta.csv")["year"].tolist()
    [1950]
    """
    absent = [i for i in image_ids if i not in frame.index]
    if absent:
        raise ValueError(
            f"{path} must have a line for every image; {len(absent):,} have none, first: "
            f"{first_few(absent)}"
        )
    return frame.loc[list(image_ids)]


def _read_csv(path: str | Path, wanted: Sequence[str], text: Sequence[str]) -> pd.DataFrame:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        columns = list(pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns)
        missing = [c for c in wanted if c not in columns]
        if missing:
            raise ValueError(
                f"{path} must have the columns {first_few(wanted)}; {first_few(missing)} is "
                f"missing, it has {first_few(columns, 10)}. {_advice(columns)}"
            )
        # An image or a label called "NA" is a name, not a gap.
        verbatim = [c for c in columns if c in text]
        frame = pd.read_csv(
            path,
            encoding="utf-8-sig",
            dtype=dict.fromkeys(verbatim, "str"),
            keep_default_na=False,
            na_values={c: MISSING for c in columns if c not in verbatim},
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no CSV file: {error}. Quote cells that hold commas."
        ) from error
    if not isinstance(frame.index, pd.RangeIndex):
        # pandas takes the first cell for an index where every line has one too many.
        raise ValueError(
            f"{path} is no CSV file: its lines have more cells than its first line. Quote cells "
            "that hold commas."
        )
    return frame


def _advice(columns: Sequence[str]) -> str:
    """Say what to do about columns that are missing."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and separator in columns[0]:
            return f"Its cells are separated by {name}: write it with commas."
    return "Name other columns with --id-column and --label-column."


def _unique_ids(column: pd.Series, path: str | Path) -> tuple[str, ...]:
    """Image ids of a table: each once, none empty, none a path out of the images' folder."""
    ids = tuple(column)
    empty = [k for k, name in enumerate(ids) if not name.strip()]
    if empty:
        raise ValueError(
            f"{path} must name an image in every line; {len(empty):,} lines have no id, first: "
            f"line {empty[0] + 2}. Remove these lines."
        )
    outside = [name for name in ids if leaves_folder(name)]
    if outside:
        raise ValueError(
            f"an image's id is its path inside the images' folder; {path} has {len(outside):,} "
            f"that leaves it, first: {first_few(outside)}. Correct or remove these lines."
        )
    twice = column[column.duplicated()].unique()
    if len(twice):
        raise ValueError(
            f"{path} must name each image once; {len(twice):,} stand twice, first: "
            f"{first_few(twice)}"
        )
    return ids


def leaves_folder(name: str) -> bool:
    """Whether a file name leaves the folder it is taken in.

    Examples
    --------
    >>> [leaves_folder(name) for name in ("a/b", "a..b", "../a", "a/../../b", "/a", "C:/a")]
    [False, False, True, True, True, True]
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    drive = bool(parts) and len(parts[0]) == 2 and parts[0][1] == ":"
    return ".." in parts or name.startswith(("/", "\\")) or drive


def first_few(names: Iterable[str], n: int = 5) -> str:
    """Quote the first few names for a message.

    Examples
    --------
    >>> first_few(["a", "b", "c"], 2)
    "'a', 'b', ..."
    """
    listed = list(names)
    more = ", ..." if len(listed) > n else ""
    return ", ".join(repr(str(name)) for name in listed[:n]) + more


def write_csv(frame: pd.DataFrame, path: str | Path) -> None:
    r"""Write a table under a temporary name, then rename it: a reader never sees half of it.

    Examples
    --------
    >>> import tempfile
    >>> frame = pd.DataFrame({"fold": [0]}, index=pd.Index(["a"], name="image_id"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_csv(frame, folder + "/folds.csv")
    ...     Path(folder, "folds.csv").read_text()
    'image_id,fold\na,0\n'
    """
    from features._locks import leased_name
    from features._tables import quoting

    with leased_name(Path(path)) as temporary:
        frame.to_csv(temporary, **quoting(frame))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
