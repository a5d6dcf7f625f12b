"""Reading predictions out of the files people have: CSV, Parquet, npy, npz, HDF5."""

from __future__ import annotations

import lzma
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features._tables import CsvReader, ParquetReader, columns_of, index_column, numbers

__all__ = [
    "Predictions",
    "id_column_of",
    "is_named",
    "is_test_file",
    "load_array",
    "model_name",
    "read_predictions",
    "read_vectors",
]

# A DataFrame where the file names images or classes; else an array in the order of the file.
Predictions: TypeAlias = "pd.DataFrame | NDArray[Any]"

TABLES = (".csv", ".parquet", ".pq")
ARRAYS = (".npy", ".npz", ".h5", ".hdf5")
ID_NAMES = ("image_id", "image_ids", "id", "ids")
CLASS_NAMES = ("class", "classes", "class_name", "class_names")
# What NumPy and zipfile say of files that were changed or cut.
DAMAGES = (
    *(ValueError, EOFError, OSError, KeyError, RuntimeError, OverflowError, TypeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, SyntaxError, TokenError),
)
POSITION = "position"  # the name of an index that only counts
NOISE = {"oof", "test", "train", "val", "valid", "pred", "preds", "predictions", "probs"}


def read_predictions(path: str | Path, id_column: str | None = None) -> dict[str, Predictions]:
    """Read every model's predictions that a file holds.

    Parameters
    ----------
    path : path
        ``.csv`` or ``.parquet``: an id column and one column for each class. ``.npy``: one array.
        ``.npz``, ``.h5``, ``.hdf5``: one array (image, class) for each model; one-dimensional
        arrays named ``image_id`` and ``class``, both or one of them, name its rows and columns.
        ``FILE:KEY`` takes one array of a file.
    id_column : str, optional
        Default: ``image_id`` if there, else the first column.

    Returns
    -------
    dict of model name to DataFrame or array of shape (n_images, n_classes)
        A file's only array has the name of the file, without ``oof``, ``test`` and the like.

    Raises
    ------
    ValueError
        For another kind of file, a key that is not there, arrays of other dimensions, and names
        that are not as many as the rows or columns.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "se101_oof.npy"
    >>> np.save(path, np.zeros((3, 2)))
    >>> {name: values.shape for name, values in read_predictions(path).items()}
    {'se101': (3, 2)}
    """
    file, key, found = _read(path, id_column)
    return _models_of(found, file, key) if isinstance(found, dict) else {model_name(file): found}


def read_vectors(path: str | Path, id_column: str | None = None) -> Predictions:
    """Read the one array (image, dimension) of a file, as `read_predictions` reads probabilities.

    Names of classes in the file are those of other arrays; names of rows are those of this one.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "se101.npz"
    >>> np.savez(path, vectors=np.zeros((2, 3)), image_id=["i", "j"])
    >>> read_vectors(path).index.tolist()
    ['i', 'j']
    """
    file, key, found = _read(path, id_column)
    if not isinstance(found, dict):
        return found
    chosen = _chosen(found, file, key)
    if len(chosen) > 1:
        raise ValueError(f"{file} holds the arrays {chosen}: take one of them, FILE:KEY.")
    where = f"{file}: array {chosen[0]!r}"
    return _named(_checked(found[chosen[0]], file), _first(found, ID_NAMES), None, where)


def _read(
    path: str | Path, id_column: str | None
) -> tuple[Path, str | None, Predictions | dict[str, NDArray[Any]]]:
    """Give the file, the key behind it, and a table, an array or the file's arrays."""
    file, key = _split_key(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    suffix = file.suffix.lower()
    if suffix in TABLES:
        read: Any = CsvReader if suffix == ".csv" else ParquetReader
        column = id_column or id_column_of(file)
        return file, key, numbers(read(column)(file), file, column)
    if suffix == ".npy":
        return file, key, _checked(load_array(file), file)
    if suffix not in ARRAYS:
        raise ValueError(f"{file}: predictions are read from {[*TABLES, *ARRAYS]} files.")
    return file, key, _read_npz(file) if suffix == ".npz" else _read_hdf5(file)


def id_column_of(path: Path) -> str:
    """Name of a table's id column: ``image_id``, the index of a pandas frame, or the first."""
    columns = columns_of(path)
    if not columns:
        raise ValueError(f"{path} has no column: the first must hold the image ids")
    if "image_id" in columns:
        return "image_id"
    return index_column(path) or columns[0]


def is_named(index: pd.Index) -> bool:
    """Whether a file names what stands along an axis, or counts it."""
    return index.name != POSITION


def model_name(path: str | Path) -> str:
    """Name of a file without its suffix and the words that say which images it holds.

    Examples
    --------
    >>> model_name("preds/se101_oof.npy"), model_name("test-pnas.csv"), model_name("oof.npy")
    ('se101', 'pnas', 'oof')
    """
    stem = Path(path).stem
    kept = [part for part in re.split(r"[_\-. ]+", stem) if part.lower() not in NOISE]
    return "_".join(kept) or stem


def is_test_file(path: str | Path) -> bool:
    """Whether a file's name says that it holds test images.

    Examples
    --------
    >>> is_test_file("se101_test.npy"), is_test_file("latest.npy")
    (True, False)
    """
    return "test" in re.split(r"[_\-. ]+", Path(path).stem.lower())


def _split_key(path: str | Path) -> tuple[Path, str | None]:
    if Path(path).is_file():
        return Path(path), None
    file, colon, key = str(path).rpartition(":")
    return (Path(file), key) if colon and Path(file).is_file() else (Path(path), None)


def load_array(path: Path) -> NDArray[Any]:
    """Read the array of a ``.npy`` file."""
    array = _load(path)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is a bundle of arrays, not one: name it .npz.")
    return array


@contextmanager
def _memory_named(path: Path) -> Iterator[None]:
    """Say which file asks for more memory than there is: most likely its header lies."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(
            f"{path} does not fit into memory, or is damaged: {error or 'out of memory'}"
        ) from error


def _load(path: Path) -> Any:
    try:
        with _memory_named(path):
            return np.load(path, allow_pickle=False)
    except DAMAGES as error:
        raise ValueError(
            f"{path} holds Python objects, or is no NumPy file ({error}). Save plain numbers or "
            "strings: np.save(path, values.astype(np.float32))."
        ) from error


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    bundle = _load(path)
    if isinstance(bundle, np.ndarray):
        raise ValueError(f"{path} is one array, not several: name it .npy.")
    with bundle:
        try:
            with _memory_named(path):
                return {key: bundle[key] for key in bundle.files}
        except DAMAGES as error:
            raise ValueError(
                f"{path} holds Python objects, or is damaged ({error}); save plain arrays."
            ) from error


def _read_hdf5(path: Path) -> dict[str, NDArray[Any]]:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading HDF5 needs h5py: pip install 'pairstack[hdf5]'"
        ) from error
    found: dict[str, NDArray[Any]] = {}
    elsewhere: list[str] = []

    def take(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            if node.external or node.is_virtual:
                elsewhere.append(name)
                return
            text = h5py.check_string_dtype(node.dtype) is not None
            found[name] = np.asarray(node.asstr()[...] if text else node[...])

    try:
        with h5py.File(path, "r") as file, _memory_named(path):
            file.visititems(take)
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is no HDF5 file, or damaged: {error}") from error
    if elsewhere:
        # It may name any file of the user, /etc/passwd too.
        raise ValueError(
            f"{path}: the values of array {elsewhere[0]!r} lie in other files, which are not "
            "read. Copy them into this one."
        )
    return found


def _models_of(
    arrays: Mapping[str, NDArray[Any]], path: Path, key: str | None
) -> dict[str, Predictions]:
    ids, classes = _first(arrays, ID_NAMES), _first(arrays, CLASS_NAMES)
    chosen = _chosen(arrays, path, key)
    alone = key is None and len(chosen) == 1
    names = [model_name(path)] if alone else _names_of_keys(chosen)
    found: dict[str, Predictions] = {}
    for name, array in zip(names, chosen, strict=True):
        values = _checked(arrays[array], path)
        if key is not None and not _fits(values, ids, classes):
            found[name] = values  # the names are those of the other arrays
        else:
            found[name] = _named(values, ids, classes, f"{path}: array {array!r}")
    return found


def _chosen(arrays: Mapping[str, NDArray[Any]], path: Path, key: str | None) -> list[str]:
    """Keys of the arrays to read: the one asked for, or all with two dimensions."""
    if key is not None and key not in arrays:
        raise ValueError(f"{path} has no array {key!r}; it has {sorted(arrays)}.")
    if key is not None:
        return [key]
    chosen = [k for k, v in arrays.items() if np.ndim(v) == 2]
    if not chosen:
        shapes = {k: v.shape for k, v in arrays.items()}
        raise ValueError(f"{path} holds no two-dimensional array; it has {shapes}.")
    return chosen


def _names_of_keys(keys: list[str]) -> list[str]:
    """Last parts of the keys; of "se101/oof" and "pnas/oof", which share it, the first parts."""
    whole = [model_name(key.replace("/", "_")) for key in keys]
    tried = ([Path(key).name for key in keys], whole, keys)
    return next(names for names in tried if len(set(names)) == len(names))


def _fits(values: NDArray[Any], ids: Any, classes: Any) -> bool:
    pairs = zip(values.shape, (ids, classes), strict=True)
    return all(names is None or len(names) == n for n, names in pairs)


def _first(arrays: Mapping[str, NDArray[Any]], names: Iterable[str]) -> NDArray[Any] | None:
    found = [v for k, v in arrays.items() if Path(k).name in names and np.ndim(v) == 1]
    return found[0] if found else None


def _named(values: NDArray[Any], ids: Any, classes: Any, where: str) -> Predictions:
    """Put names beside the values, where the file has them."""
    if ids is None and classes is None:
        return values
    index = _index(ids, "image_id", values.shape[0], f"{where} has {values.shape[0]:,} rows")
    columns = _index(classes, "class", values.shape[1], f"{where} has {values.shape[1]:,} columns")
    return pd.DataFrame(values, index=index, columns=columns)


def _index(names: Any, name: str, n: int, found: str) -> pd.Index:
    if names is None:
        return pd.RangeIndex(n, name=POSITION)
    if len(names) != n:
        raise ValueError(
            f"shapes: {found}, but the file names {len(names):,} in {name!r}. Save one name for "
            "each, or leave the names out."
        )
    return pd.Index(names, name=name)


def _checked(values: Any, path: Path) -> NDArray[Any]:
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise ValueError(
            f"{path} must hold numbers of shape (n_images, n_classes); got dtype {values.dtype}, "
            f"shape {values.shape}."
        )
    return np.asarray(values)
