"""Is every byte still what was written? Checks of a store and of a pair folder.

Chunks of a store carry a CRC-32C of their own; of the metadata there are two copies, in each node
and gathered at the root, and a SHA-256 of the root's attributes. Parts of a pair folder have their
SHA-256 in its record, and the record has its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from features import _layout, _rows, _zarr
from features._pair_folder import RECORD, Record, part_name, read_record
from features._seal import file_sha256, is_intact
from features.store import FeatureStore

__all__ = ["Verified", "verify_pairs", "verify_store"]

GATHERED = "consolidated_metadata"
ROOT_KEYS = {"attributes", "zarr_format", "node_type", GATHERED}
# Rows of these kinds that are marked complete hold values, never gaps.
FULL_KINDS = ("probabilities", "embeddings", "imagenet_logits")


@dataclass
class Verified:
    """What a check found.

    Attributes
    ----------
    path : str
    kind : str
        "store", "pair folder", "model" or "training run".
    n_checked : int
        Files (of a store: chunks and metadata files) that were read whole.
    problems : list of str
        Each names what is damaged.
    notes : list of str
        What is no damage: unfinished rows, left-over temporary files.

    Examples
    --------
    >>> Verified("store/", "store", 3, ["c/0: it is missing"]).problems
    ['c/0: it is missing']
    """

    path: str
    kind: str
    n_checked: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Write it as lines of text."""
        verdict = f"{len(self.problems):,} problems" if self.problems else "intact"
        first = f"{self.path}: {self.kind}, {self.n_checked:,} files checked, {verdict}"
        damaged = [f"damaged  {text}" for text in self.problems]
        return [first, *damaged, *(f"note     {text}" for text in self.notes)]


def verify_store(path: str | os.PathLike[str]) -> Verified:
    """Read every chunk and every metadata file of a store, and compare checksums.

    Parameters
    ----------
    path : path or fsspec URL

    Returns
    -------
    Verified

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = FeatureStore.from_arrays(folder + "/store", image_ids=["i"], classes=["cat"],
    ...                                      probabilities={"a": np.array([[0.5]])})
    ...     verify_store(store.path).problems
    []
    """
    found = Verified(os.fspath(path), "store")
    metadata = _check_metadata(found, path)
    if found.problems or metadata is None:
        return found
    try:
        store = FeatureStore.open(path)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        found.problems.append(f"cannot be opened: {error}")
        return found
    for name, document in metadata.items():
        if document.get("node_type") == "array":
            _check_array(found, store, name)
    if not found.problems:
        _check_content(found, store)
    return found


def _check_metadata(found: Verified, path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Compare the two copies of the metadata; every node's document by its path."""
    root = _read_json(found, path, "zarr.json")
    if root is None:
        return None
    if not is_intact(root.get("attributes")):
        found.problems.append("zarr.json: the attributes do not have their checksum")
    if (root.get("zarr_format"), root.get("node_type")) != (3, "group") or set(root) - ROOT_KEYS:
        found.problems.append("zarr.json: it describes no Zarr v3 group")
    gathered = root.get(GATHERED)
    if gathered is None:
        found.notes.append("metadata is not gathered: a run is unfinished, run it again")
        return _documents(found, path)
    listed = gathered.get("metadata") if isinstance(gathered, dict) else None
    if not (
        isinstance(listed, dict)
        and gathered == _as_gathered(listed)
        and all(isinstance(document, dict) for document in listed.values())
    ):
        found.problems.append("zarr.json: the gathered metadata is damaged")
        return None
    for name, document in listed.items():
        own = _read_json(found, path, f"{name}/zarr.json")
        if own is not None and _plain(own) != _plain(document):
            found.problems.append(f"{name}/zarr.json: it differs from its copy in zarr.json")
    return listed


def _as_gathered(listed: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": listed}


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a group says of the groups below it: they stand by themselves."""
    if document.get("node_type") == "group" and document.get(GATHERED) in (None, _as_gathered({})):
        return {key: value for key, value in document.items() if key != GATHERED}
    return document


def _read_json(found: Verified, path: str | os.PathLike[str], key: str) -> dict[str, Any] | None:
    """Read one metadata file; None, and a problem, where it cannot be read."""
    found.n_checked += 1
    try:
        document = json.loads(_read_bytes(path, key))
    except FileNotFoundError:
        found.problems.append(f"{key}: it is missing")
        return None
    except ValueError as error:
        found.problems.append(f"{key}: it is no JSON ({error})")
        return None
    if not isinstance(document, dict):
        found.problems.append(f"{key}: it is no JSON object")
        return None
    return document


def _read_bytes(path: str | os.PathLike[str], key: str) -> bytes:
    if not _zarr.is_remote(path):
        return (Path(path) / key).read_bytes()
    import fsspec

    with fsspec.open(f"{os.fspath(path).rstrip('/')}/{key}") as file:
        return bytes(file.read())


def _documents(found: Verified, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Every node's own document, of a local store whose metadata is not gathered."""
    if _zarr.is_remote(path):
        return {}
    folder = Path(path)
    files = [file for file in folder.rglob("zarr.json") if file.parent != folder]
    names = [file.parent.relative_to(folder).as_posix() for file in files]
    read = {n: _read_json(found, path, f"{n}/zarr.json") for n in names if n[0] != "."}
    return {name: document for name, document in read.items() if document is not None}


def _check_array(found: Verified, store: FeatureStore, name: str) -> None:
    """Read an array chunk by chunk: each checks its own checksum."""
    try:
        array = store._root[name]
        for key, where in _chunks(array):
            _check_chunk(found, store, array, key, where)
    except Exception as error:  # damaged metadata can make Zarr raise anything
        found.problems.append(f"{name}: cannot be read ({_first_line(error)})")


def _check_chunk(
    found: Verified, store: FeatureStore, array: zarr.Array, key: str, where: tuple[slice, ...]
) -> None:
    found.n_checked += 1
    file = None if _zarr.is_remote(store.path) else Path(store.path) / array.path / key
    if file is not None and not file.exists():
        if array.size and (_is_whole(array.path) or _is_lost(store, array.path, where)):
            found.problems.append(f"{array.path}/{key}: the chunk is missing")
        return
    try:
        array[where]
    except Exception as error:  # damaged bytes can make a codec raise anything
        found.problems.append(f"{array.path}/{key}: the chunk is damaged ({_first_line(error)})")


def _chunks(array: zarr.Array) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """Key and place of every chunk."""
    counts = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
    for index in np.ndindex(*counts):
        where = tuple(slice(k * c, (k + 1) * c) for k, c in zip(index, array.chunks, strict=True))
        yield array.metadata.encode_chunk_key(index), where


def _is_whole(path: str) -> bool:
    """Whether an array is written at once, so that every chunk has a file."""
    return path.partition("/")[0] not in {"written", "topk", "fold_probabilities", *_by_rows()}


def _is_lost(store: FeatureStore, path: str, where: tuple[slice, ...]) -> bool:
    """Whether rows that are marked complete should stand in a chunk that has no file.

    A chunk of nothing but fill values has none, which no complete row of statistics or of the
    values of a top-k model is; where these have a value above 0, there is a class to it.
    """
    group, _, leaf = path.rpartition("/")
    if path == "image_stats" or (group.startswith("topk/") and leaf == "value"):
        return bool(np.any(store._root[f"written/{path}"][where[0]]))
    if group.startswith("topk/") and leaf == "index":
        return bool(np.any(np.asarray(store._root[f"{group}/value"][where]) > 0))
    return False


def _by_rows() -> tuple[str, ...]:
    return (*FULL_KINDS, "image_stats")


def _check_content(found: Verified, store: FeatureStore) -> None:
    """Look for what no checksum sees: lost chunks, names that stand twice, labels of no class."""
    for name in store.array_names:
        written = store.written(name)
        if not store.is_complete(name):
            n_open = int((~(written | store.skipped)).sum())
            found.notes.append(f"{name}: unfinished, {n_open:,} of {store.n_images:,} images")
        if name.partition("/")[0] in FULL_KINDS:
            values = store._read(name)[written]
            _try(found, name, lambda n=name, v=values, w=written: _check_rows(store, n, v, w))
    _try(found, "labels", lambda: _check_labels(store))
    if not _zarr.is_remote(store.path):
        _note_leftovers(found, Path(store.path))


def _check_rows(
    store: FeatureStore, name: str, values: NDArray[Any], written: NDArray[np.bool_]
) -> None:
    _rows.check_rows(name, values, image_ids=store.image_ids[written], classes=store.classes)


def _check_labels(store: FeatureStore) -> None:
    labels, known = store.labels, store.labels_known
    if labels.nnz and not 0 <= labels.indices.min() <= labels.indices.max() < store.n_classes:
        raise ValueError(f"a label is of no class: there are {store.n_classes}")
    _layout.check_known(known, labels, store.image_ids)


def _try(found: Verified, name: str, check: Any) -> None:
    try:
        check()
    except (ValueError, IndexError) as error:
        found.problems.append(f"{name}: {error}")


def _note_leftovers(found: Verified, folder: Path) -> None:
    n_left = sum(1 for _ in folder.rglob("*.partial"))
    if n_left:
        found.notes.append(f"{n_left} temporary files of a killed or running writer")


def verify_pairs(path: str | os.PathLike[str]) -> Verified:
    """Compare every part of a pair folder with its checksum, and the record with its own.

    Parameters
    ----------
    path : path

    Returns
    -------
    Verified

    Examples
    --------
    >>> import tempfile
    >>> verify_pairs(tempfile.mkdtemp()).problems
    ['_pairs.parquet: it is no record of a pair folder']
    """
    folder, found = Path(path), Verified(os.fspath(path), "pair folder", 1)
    try:
        record = read_record(folder)
    except ValueError as error:
        found.problems.append(str(error))
        return found
    if record is None:
        found.problems.append(f"{RECORD}: it is no record of a pair folder")
        return found
    _check_record(found, folder, record)
    expected = {part_name(k) for k in range(record.n_parts)}
    for name in sorted(expected & set(record.parts)):
        found.n_checked += 1
        if not (folder / name).is_file():
            found.problems.append(f"{name}: it is missing")
        elif file_sha256(folder / name) != record.parts[name]:
            found.problems.append(f"{name}: it does not have its checksum")
    if not record.complete:
        found.notes.append(
            f"unfinished: {len(record.parts)} of {record.n_parts} parts; run build-features again"
        )
    elif expected != set(record.parts):
        found.problems.append(f"{RECORD}: it names other parts than {record.n_parts}")
    strange = {file.name for file in folder.iterdir()} - set(record.parts) - {RECORD}
    if strange:
        found.notes.append(f"not of this folder: {', '.join(sorted(strange)[:5])}")
    return found


def _check_record(found: Verified, folder: Path, record: Record) -> None:
    """Compare the record's file with what this version of pyarrow makes of its content."""
    schema = pq.read_schema(folder / RECORD)
    there, again = (folder / RECORD).read_bytes(), record.to_bytes(schema)
    if there[:4] != b"PAR1" or (record.writer == pa.__version__ and there != again):
        found.problems.append(f"{RECORD}: it is damaged")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
