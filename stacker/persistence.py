"""Models on disk: JSON, .npy arrays and the boosters' own text, every file with its checksum.

No pickle: opening a model runs nothing. A folder is written beside its place and renamed, so it
is there whole or not at all.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse

from features._locks import leased_name
from features._seal import file_sha256, save_array
from stacker._output import refuse_url

FORMAT = "pairstack-model"
VERSION = 1
ADVICE = "Copy the model again, or fit it anew."


def write_folder(path: str | os.PathLike[str], tree: dict[str, Any], texts: dict[str, str]) -> None:
    """Write a tree of JSON values, arrays and CSR arrays, and some text files.

    Parameters
    ----------
    path : path
        Must not exist.
    tree : dict
        Nested dicts and lists of str, numbers, bool, None, numpy arrays and CSR arrays.
    texts : {file name: text}

    Raises
    ------
    FileExistsError
        When the path is taken.
    ValueError
        When it is a URL.
    """
    refuse_url(path)
    target = Path(path)
    if target.exists():
        raise FileExistsError(f"{target} exists already; choose another path or remove it.")
    with leased_name(target) as folder:
        folder.mkdir()
        arrays: list[np.ndarray] = []
        written = {"format": FORMAT, "version": VERSION, "tree": _pack(tree, arrays)}
        for number, array in enumerate(arrays):
            with (folder / _array_name(number)).open("wb") as file:
                save_array(file, array)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "model.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
        sums = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
        (folder / "checksums.json").write_text(json.dumps(sums, indent=1), encoding="utf-8")
        _sync(folder)
        folder.rename(target)


def read_folder(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read what :func:`write_folder` wrote, after checking every file.

    Raises
    ------
    FileNotFoundError
        When there is no model at the path.
    ValueError
        When a file is missing, unknown or changed, or the version is another one.
    """
    folder = Path(path)
    check_folder(folder)
    try:
        written = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder / 'model.json'} is damaged: {error}. {ADVICE}") from error
    if not isinstance(written, dict):
        raise ValueError(f"{folder / 'model.json'} is damaged: it is no JSON object. {ADVICE}")
    if written.get("format") != FORMAT or written.get("version") != VERSION:
        raise ValueError(
            f"{folder} must hold a {FORMAT} of version {VERSION}. Got format "
            f"{written.get('format')!r}, version {written.get('version')!r}."
        )
    texts = {f.name: f.read_text(encoding="utf-8") for f in folder.iterdir() if f.suffix == ".txt"}
    try:
        return _unpack(written["tree"], folder), texts
    except (KeyError, TypeError, IndexError, EOFError, OSError, RecursionError) as error:
        raise ValueError(
            f"{folder} is damaged: {type(error).__name__} {error}. {ADVICE}"
        ) from error


def check_folder(folder: Path) -> None:
    """Compare every file of a model folder with its checksum."""
    if not (folder / "checksums.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no pairstack model: checksums.json is missing. "
            f"Give the folder that PairStacker.save wrote."
        )
    try:
        sums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
        names = set(sums.keys())
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / 'checksums.json'} is damaged: {error}. {ADVICE}") from error
    found = {file.name for file in folder.iterdir()} - {"checksums.json"}
    if found != names:
        odd = sorted(found ^ names)[:3]
        raise ValueError(f"{folder} is not as saved: missing or unknown files {odd}.")
    links = [name for name in sorted(names) if (folder / name).is_symlink()]
    if links:
        raise ValueError(f"{folder} must hold its files itself; {links[0]!r} is a link. {ADVICE}")
    for name in sorted(names):
        if file_sha256(folder / name) != sums[name]:
            raise ValueError(
                f"{folder / name} was changed after it was saved (its checksum differs). "
                f"Copy the model again, or fit it anew."
            )


def _pack(value: Any, arrays: list[np.ndarray]) -> Any:
    """Replace arrays by their file's name."""
    if isinstance(value, dict):
        return {str(key): _pack(item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(item, arrays) for item in value]
    if issparse(value):
        parts = {name: getattr(value, name) for name in ("data", "indices", "indptr")}
        return {"__csr__": _pack(parts, arrays), "shape": list(value.shape)}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError(f"a model's arrays must not hold objects. Got dtype {value.dtype}.")
        arrays.append(value)
        return {"__array__": _array_name(len(arrays) - 1)}
    return value.item() if isinstance(value, np.generic) else value


def _unpack(value: Any, folder: Path) -> Any:
    """Read the arrays back."""
    if isinstance(value, list):
        return [_unpack(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    if "__array__" in value:
        name = str(value["__array__"])
        # A crafted model must not reach outside of its folder.
        if not re.fullmatch(r"array-\d{4,}\.npy", name) or not (folder / name).is_file():
            raise ValueError(f"{folder / 'model.json'} names no file of the model: {name!r}")
        with (folder / name).open("rb") as file:
            return np.load(file, allow_pickle=False)
    if "__csr__" in value:
        parts = _unpack(value["__csr__"], folder)
        content = (parts["data"], parts["indices"], parts["indptr"])
        return csr_array(content, shape=tuple(value["shape"]))
    return {key: _unpack(item, folder) for key, item in value.items()}


def _array_name(number: int) -> str:
    return f"array-{number:04d}.npy"


def _sync(folder: Path) -> None:
    """Force the files to disk before the folder gets its name."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
