"""Reading CSV and Parquet tables into what `FeatureStore.from_arrays` takes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from features import _checks as checks

__all__ = [
    "CsvReader",
    "ParquetReader",
    "columns_of",
    "file_named",
    "gather",
    "header",
    "hint_of_separator",
    "index_column",
    "numbers",
    "quoting",
    "read_metadata",
    "shown",
]

# What pandas calls an index without a name in Parquet.
UNNAMED_INDEX = "__index_level_0__"
MISSING = ["", "NA", "N/A", "nan", "NaN", "null", "None"]


class Reader(Protocol):
    """Reads one table into a DataFrame indexed by image id."""

    def __call__(self, path: str | os.PathLike[str], *, text: Iterable[str] = ()) -> pd.DataFrame:
        """Read; the columns named in `text` stay as they are written."""


class CsvReader:
    """Reads CSV files whose column `id_column` holds the image ids."""

    def __init__(self, id_column: str) -> None:
        self.id_column = id_column

    def __call__(self, path: str | os.PathLike[str], *, text: Iterable[str] = ()) -> pd.DataFrame:
        """Read a file; refuse a missing id column, repeated columns and repeated ids."""
        columns = header(path)
        _check_columns(columns, [self.id_column], path)
        repeated = sorted({c for c in columns if columns.count(c) > 1})
        if repeated:
            hint = " Its first line must name the columns." if _all_numbers(columns[1:]) else ""
            raise ValueError(f"{path}: columns stand twice: {checks.first_few(repeated)}.{hint}")
        # An image or label called "NA" is a name, not a gap.
        verbatim = {self.id_column, *text} & set(columns)
        with file_named(path):
            frame = pd.read_csv(
                path,
                encoding="utf-8-sig",
                # A frame's index without a name is a column without a name.
                names=columns,
                header=0,
                dtype=dict.fromkeys(verbatim, "str"),
                keep_default_na=False,
                na_values={c: MISSING for c in columns if c not in verbatim},
            )
        if not isinstance(frame.index, pd.RangeIndex):
            # pandas takes the first cell for an index where every line has one too many.
            raise ValueError(
                f"{path}: its lines have more cells than its first line. Quote cells that hold "
                "commas."
            )
        return _index_by(frame, self.id_column, path)


class ParquetReader:
    """Reads Parquet files with the image ids in column or index `id_column`; or CSV, by suffix."""

    def __init__(self, id_column: str) -> None:
        self.id_column = id_column

    def __call__(self, path: str | os.PathLike[str], *, text: Iterable[str] = ()) -> pd.DataFrame:
        """Read a file; refuse a missing id column and repeated ids."""
        if str(path).lower().endswith(".csv"):
            return CsvReader(self.id_column)(path, text=text)
        _check_file(path)
        with _named_parquet(path):
            frame = pd.read_parquet(path)
        index = frame.index.name or UNNAMED_INDEX
        if self.id_column not in frame.columns and index == self.id_column:
            frame = frame.rename_axis(self.id_column).reset_index()
        _check_columns(list(map(str, frame.columns)), [self.id_column], path)
        return _index_by(frame, self.id_column, path)


def gather(
    read: Reader,
    probabilities: Mapping[str, str | os.PathLike[str]],
    labels: str | os.PathLike[str] | None,
    metadata: str | os.PathLike[str] | None,
    label_column: str,
) -> dict[str, Any]:
    """Read all tables; the first model's file gives the order of images and classes."""
    if not probabilities:
        raise ValueError("name at least one model and its file, for example {'se101': 'a.csv'}")
    frames = {model: numbers(read(path), path) for model, path in probabilities.items()}
    first = next(iter(frames.values()))
    given: dict[str, Any] = {
        "image_ids": first.index,
        "classes": first.columns,
        "probabilities": frames,
    }
    if labels is not None:
        table = read(labels, text=[label_column])
        _check_columns(list(table.columns), [label_column], labels)
        given |= _labels(table[label_column], first, labels)
    if metadata is not None:
        given |= read_metadata(read(metadata, text=["split_group"]), first.index, metadata)
    return given


def _labels(column: pd.Series, first: pd.DataFrame, path: Any) -> dict[str, Any]:
    """Label lists in the order of the images; images without a line are not known."""
    unknown = column.index[~column.index.isin(first.index)]
    if len(unknown):
        raise ValueError(
            f"{path}: {len(unknown):,} images have labels but no probabilities, first: "
            f"{checks.first_few(unknown)}"
        )
    lists = column.map(lambda cell: cell.split() if isinstance(cell, str) else list(cell))
    names = set(map(str, first.columns))
    strange = lists[[not names.issuperset(labels) for labels in lists]]
    if len(strange):
        labels = [label for label in strange.iloc[0] if label not in names]
        raise ValueError(
            f"{path}: image {strange.index[0]!r} has labels that are no class column: "
            f"{checks.first_few(labels)}; {len(strange):,} images have such labels"
        )
    known = np.asarray(first.index.isin(lists.index))
    by_image = lists.to_dict()
    return {"labels": [by_image.get(i, []) for i in first.index], "labels_known": known}


def read_metadata(table: pd.DataFrame, image_ids: pd.Index, path: Any) -> dict[str, Any]:
    """User columns in the order of the images; ``split_group`` and ``fold`` apart."""
    ids = checks.as_names(image_ids, "image id")
    try:
        order = checks.positions(ids, table.index, what="image id", where=str(path))
    except ValueError as error:
        said = f"{error} It must have a line for every image, test images too, and no others."
        raise ValueError(said) from error
    table = table if order is None else table.iloc[order]
    given: dict[str, Any] = {}
    for name in ("split_group", "fold"):
        if name in table.columns:
            given[name] = table.pop(name)
    if len(table.columns):
        given["metadata"] = table
    return given


def numbers(frame: pd.DataFrame, path: Any, first_line: str = "") -> pd.DataFrame:
    """Make the columns float32; refuse one that is not numeric, naming the first cell."""
    if not len(frame.columns):
        hint = hint_of_separator([first_line])
        raise ValueError(f"{path}: there is no class column beside the image ids.{hint}")
    if not len(frame):
        raise ValueError(f"{path}: it holds no image, only a first line. Write a line an image.")
    for name in frame.columns[[not pd.api.types.is_numeric_dtype(t) for t in frame.dtypes]]:
        read = pd.to_numeric(frame[name], errors="coerce")
        wrong = frame.index[read.isna() & frame[name].notna()]
        raise ValueError(
            f"{path}: column {name!r} must hold numbers; image {wrong[0]!r} has "
            f"{shown(frame.loc[wrong[0], name])}"
        )
    return frame.astype(np.float32)


def shown(cell: Any) -> str:
    """Text of a cell for a message, its beginning where it is long."""
    text = str(cell)
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _all_numbers(columns: list[str]) -> bool:
    """Whether the first line holds values: class names may be whole numbers, but not 0.25."""
    read = pd.to_numeric(pd.Series(columns, dtype=object), errors="coerce")
    return bool(read.notna().all() and (read % 1 != 0).any())


def hint_of_separator(columns: list[str]) -> str:
    """Say so where a first line looks as if its cells were separated by something else."""
    first = "".join(columns)
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if separator in first:
            return f" Is it separated by {name}? Use commas."
    return ""


def quoting(frame: pd.DataFrame) -> dict[str, Any]:
    r"""Tell `to_csv` what it takes that every name is read again as it is.

    Python quotes a cell that holds the line end it writes, which is not every line end it reads.

    Examples
    --------
    >>> quoting(pd.DataFrame({"a": [1]}, index=["i"]))
    {'lineterminator': '\n'}
    """
    parts: list[Any] = [frame.index, frame.columns]
    parts += [frame.iloc[:, k] for k, kind in enumerate(frame.dtypes) if kind.kind not in "biuf"]
    odd = any("\r" in text for part in parts for text in part if isinstance(text, str))
    return {"lineterminator": "\n"} | ({"quoting": csv.QUOTE_NONNUMERIC} if odd else {})


def header(path: str | os.PathLike[str]) -> list[str]:
    """Names of a CSV file's columns, as its first line has them."""
    _check_file(path)
    with file_named(path), Path(path).open(encoding="utf-8-sig", newline="") as lines:
        columns = next(csv.reader(lines), None)
    if not columns:
        raise ValueError(f"{path} is empty; its first line must name the columns")
    return columns


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a CSV or Parquet file."""
    if path.suffix.lower() == ".csv":
        return header(path)
    import pyarrow.parquet

    with _named_parquet(path):
        return list(pyarrow.parquet.read_schema(path).names)


def index_column(path: Path) -> str | None:
    """Name of the column in which a Parquet file keeps a pandas index, if it does."""
    if path.suffix.lower() == ".csv":
        return None
    import pyarrow.parquet

    with _named_parquet(path):
        notes: Any = pyarrow.parquet.read_schema(path).pandas_metadata
    kept = notes.get("index_columns") if isinstance(notes, dict) else None
    name = kept[0] if isinstance(kept, list) and len(kept) == 1 else None
    return name if isinstance(name, str) else None


@contextmanager
def _named_parquet(path: Any) -> Iterator[None]:
    """Say of which file pyarrow speaks when it cannot read it."""
    from pyarrow import ArrowException

    try:
        yield
    # KeyError and TypeError: the notes that pandas adds to its files lack something.
    except (ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no Parquet file, or damaged: {error}") from error


@contextmanager
def file_named(path: Any) -> Iterator[None]:
    """Say of which text file pandas, csv and Python speak when they cannot read it."""
    try:
        yield
    except (csv.Error, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. Save it as UTF-8, and quote cells that hold commas."
        ) from error


def _check_file(path: str | os.PathLike[str]) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")


def _check_columns(columns: list[str], expected: list[str], path: Any) -> None:
    missing = [c for c in expected if c not in columns]
    if missing:
        hint = hint_of_separator(columns)
        raise ValueError(
            f"{path} must have the columns {expected}; {missing} are missing, it has "
            f"{checks.first_few(columns)}.{hint}"
        )


def _index_by(frame: pd.DataFrame, column: str, path: Any) -> pd.DataFrame:
    frame = frame.set_index(column)
    frame.columns = frame.columns.map(str)
    try:
        frame.index = pd.Index(checks.as_names(frame.index, "image id"), name="image_id")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return frame
