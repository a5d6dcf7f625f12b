"""Labels in a CSV, in either usual form: names in one column, or a 0/1 column for each class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features import _checks as checks
from features._labels import as_label_matrix
from features._predictions import load_array
from features._tables import CsvReader, file_named, header, hint_of_separator, shown

__all__ = ["LabelFile", "read_label_file", "read_names"]


@dataclass(frozen=True)
class LabelFile:
    """Labels by image id, as a list of names an image or as a 0/1 table.

    Attributes
    ----------
    path : path of the file
    image_ids : str array of shape (n_images,)
    lists : list of str lists, or None
    table : DataFrame of 0 and 1, or None
    """

    path: Path
    image_ids: NDArray[np.str_]
    lists: list[list[str]] | None
    table: pd.DataFrame | None

    @property
    def names(self) -> list[str]:
        """Label names: the table's columns, or those that occur, sorted."""
        if self.table is not None:
            return [str(c) for c in self.table.columns]
        return sorted({name for labels in self.lists or [] for name in labels})

    def guess_classes(self, n_columns: int) -> tuple[NDArray[np.str_], str]:
        """Names of the columns of predictions without names, and why these.

        Raises
        ------
        ValueError
            When the labels do not tell.
        """
        names = self.names
        whole = all(name.isdecimal() and str(int(name)) == name for name in names)
        if self.table is None and names and whole and max(map(int, names)) < n_columns:
            return np.arange(n_columns).astype(np.str_), f"labels are numbers: 0 to {n_columns - 1}"
        if len(names) == n_columns:
            how = "columns of" if self.table is not None else "names in, sorted,"
            return np.array(names), f"the {n_columns:,} {how} {self.path}"
        raise ValueError(
            f"classes: {self.path} names {len(names):,} labels, the predictions have "
            f"{n_columns:,} columns. Give the columns' names in a file, one a line (classes=, "
            "--classes)."
        )

    def _order(self, ids: NDArray[np.str_]) -> NDArray[np.intp] | None:
        try:
            return checks.positions(ids, self.image_ids, what="image id", where=f"ids: {self.path}")
        except ValueError as error:
            said = f"{error}{_hint_of_ids(ids, self.image_ids)}"
            raise ValueError(said) from error

    def matrix(self, ids: NDArray[np.str_], classes: NDArray[np.str_]) -> NDArray[np.int8]:
        """Labels as a 0/1 array in the order of ids and classes, (n_images, n_classes)."""
        order = self._order(ids)
        strange = sorted(set(self.names) - set(classes.tolist()))
        if strange:
            raise ValueError(
                f"classes: {self.path} has {len(strange):,} labels that are no class of the "
                f"predictions, first: {checks.first_few(strange)}; these are "
                f"{checks.first_few(classes, 3)}.{_hint_of_label_separator(strange, classes)}"
            )
        labels: Any = self.table
        if self.table is None:
            labels = self.lists
        else:
            labels = self.table.reindex(columns=classes, fill_value=0).to_numpy()
        found = as_label_matrix(labels, classes=classes, n_images=len(self.image_ids)).toarray()
        return found if order is None else found[order]


def _hint_of_ids(wanted: NDArray[np.str_], given: NDArray[np.str_]) -> str:
    """Say what would make ids agree: one side has folders or file endings."""

    def bare(names: NDArray[np.str_]) -> set[str]:
        return {PurePath(name).stem for name in names.tolist()}

    if bare(wanted) != bare(given):
        return ""
    return " Without folders and file endings they agree: leave these out on both sides."


def _hint_of_label_separator(strange: list[str], classes: NDArray[np.str_]) -> str:
    known = set(classes.tolist())
    for separator in ",;|":
        if any(separator in name and known.issuperset(name.split(separator)) for name in strange):
            return f" Labels are separated by spaces: replace {separator!r} by a space."
    return ""


def read_label_file(
    path: str | Path, id_column: str | None = None, label_column: str | None = None
) -> LabelFile:
    """Read a CSV of labels.

    Parameters
    ----------
    path : path
        Two columns: ids and labels separated by spaces. More, without `label_column`: ids and a
        0/1 column for each class.
    id_column, label_column : str, optional
        Default: ``image_id`` and ``labels`` where there, else the first and the second column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    names = header(path)
    if len(names) < 2:
        raise ValueError(
            f"{path} must have a column of image ids and one of labels; got {names}."
            f"{hint_of_separator(names)}"
        )
    ids = id_column or ("image_id" if "image_id" in names else names[0])
    rest = [name for name in names if name != ids]
    column = label_column or ("labels" if "labels" in rest else rest[0] if len(rest) == 1 else None)
    if column is None:
        table = CsvReader(ids)(path)
        _check_table(table, path)
        return LabelFile(path, np.asarray(table.index, dtype=np.str_), None, table)
    frame = CsvReader(ids)(path, text=[column])
    if column not in frame.columns:
        raise ValueError(f"{path} has no column {column!r}; it has {names}.")
    lists = [cell.split() for cell in frame[column]]
    return LabelFile(path, np.asarray(frame.index, dtype=np.str_), lists, None)


def _check_table(table: pd.DataFrame, path: Path) -> None:
    """Refuse a cell that is neither 0 nor 1, naming it: most likely the column is no class."""
    for name in table.columns:
        wrong = np.flatnonzero(~pd.to_numeric(table[name], errors="coerce").isin((0, 1)))
        if len(wrong):
            raise ValueError(
                f"classes: {path}: column {name!r} must hold 0 and 1; image "
                f"{str(table.index[wrong[0]])!r} has {shown(table[name].iloc[wrong[0]])}. Leave "
                "columns out that are no class; of labels in one column give its name "
                "(label_column=, --label-column)."
            )


def read_names(given: Any) -> NDArray[np.str_] | None:
    """Names as given, of a text file one a line, or of a CSV's first (or ``image_id``) column."""
    if given is None:
        return None
    if not isinstance(given, str | Path):
        return np.asarray(given, dtype=np.str_)
    path = Path(given)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix.lower() == ".npy":
        return np.asarray(load_array(path)).astype(np.str_)
    if path.suffix.lower() == ".csv":
        with file_named(path):
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        column = "image_id" if "image_id" in frame.columns else frame.columns[0]
        return frame[column].to_numpy(dtype=np.str_)
    with file_named(path):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    return np.array([line.strip() for line in lines if line.strip()], dtype=np.str_)
