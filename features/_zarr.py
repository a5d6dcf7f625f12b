"""The few Zarr v3 operations the store is made of: names, arrays, durable writes, atomic birth."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import FsspecStore, LocalStore

__all__ = [
    "array_path",
    "building",
    "clean_stale",
    "consolidate",
    "create_array",
    "escape",
    "exists",
    "member_names",
    "open_root",
    "read_strings",
    "same_settings",
    "tracked_names",
    "unescape",
    "write_block",
    "write_strings",
]

# A write in flight is younger than this; a temporary file older than this lost its writer.
STALE_SECONDS = 60.0

# Ids are read together, so few large chunks serve them best.
STRING_CHUNK = 65_536

# What stands where nothing was written: no value, no fold, no class position, not complete.
FILL = {"f": np.nan, "i": -1, "b": False}


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a URL that fsspec opens."""
    return "://" in str(path)


def _zarr_store(path: str | os.PathLike[str], *, read_only: bool) -> Any:
    if is_remote(path):
        return FsspecStore.from_url(str(path), read_only=read_only)
    return LocalStore(Path(path), read_only=read_only)


def open_root(path: str | os.PathLike[str], mode: str) -> zarr.Group:
    """Open the root group; "w-" makes a new one. Never through consolidated metadata.

    Consolidated metadata is written for other readers; our own reader has to see arrays that were
    added a moment ago, by this process or another.
    """
    store = _zarr_store(path, read_only=mode == "r")
    with _quiet():
        if mode == "w-":
            return zarr.create_group(store, zarr_format=3)
        return zarr.open_group(store, mode=mode, zarr_format=3, use_consolidated=False)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether anything stands at the path: a local file or folder, or a remote Zarr group."""
    if not is_remote(path):
        return os.path.lexists(path)
    try:
        open_root(path, "r")
    except FileNotFoundError:
        return False
    return True


@contextmanager
def building(path: str | os.PathLike[str]) -> Iterator[str | Path]:
    """Give a temporary path to build at, and rename it to `path` when all went well.

    Remote object stores have no rename: there the caller writes the "format" attribute last, and
    a group without it is no store.
    """
    if is_remote(path):
        yield str(path)
        return
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield temporary
        if exists(final):
            raise FileExistsError(f"{final} appeared while it was being written; choose another")
        temporary.rename(final)
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def escape(name: str) -> str:
    """Turn a model or column name into one path part; `unescape` turns it back.

    Examples
    --------
    >>> escape("timm/lite0.linear"), unescape("timm%2Flite0.linear")
    ('timm%2Flite0.linear', 'timm/lite0.linear')
    """
    if not name:
        raise ValueError("a model or column name may not be empty")
    kept = "".join(c for c in name if c not in '/\\%:*?"<>|' and ord(c) >= 32)
    escaped = quote(name, safe=kept.encode()) if kept != name else name
    # Names that Zarr or the file system keep for themselves.
    if escaped in {".", "..", "zarr.json"} or escaped.startswith("__"):
        escaped = f"%{ord(escaped[0]):02X}{escaped[1:]}"
    return escaped


def unescape(part: str) -> str:
    """Turn a path part back into the name it was made of."""
    return unquote(part)


def array_path(name: str) -> str:
    """Path inside the group of an array named as in the contract, with the model's name escaped.

    Examples
    --------
    >>> array_path("probabilities/hub/lite0"), array_path("topk/hub/lite0/index")
    ('probabilities/hub%2Flite0', 'topk/hub%2Flite0/index')
    """
    kind, _, rest = name.partition("/")
    if not rest:
        return kind
    if kind == "topk":
        model, _, leaf = rest.rpartition("/")
        return f"topk/{escape(model)}/{leaf}"
    return f"{kind}/{escape(rest)}"


def member_names(root: zarr.Group, group: str) -> list[str]:
    """Unescaped names below a group, sorted; empty when there is no such group."""
    if group not in root:
        return []
    with _quiet():
        return sorted(unescape(part) for part in root[group].keys())  # noqa: SIM118


def tracked_names(root: zarr.Group) -> list[str]:
    """Names of the arrays that have completion marks, sorted."""
    if "written" not in root:
        return []
    with _quiet():
        found = root["written"].members(max_depth=None)
        return sorted(unescape(path) for path, node in found if isinstance(node, zarr.Array))


def create_array(
    root: zarr.Group,
    path: str,
    *,
    shape: Sequence[int],
    dtype: DTypeLike,
    chunks: Sequence[int],
    dims: Sequence[str],
    attrs: Mapping[str, Any] | None = None,
) -> zarr.Array:
    """Create an array of fill values, replacing one of that name."""
    kind = np.dtype(dtype)
    group, _, leaf = path.rpartition("/")
    with _quiet():
        parent = root.require_group(group) if group else root
        array = parent.create_array(
            leaf,
            shape=tuple(shape),
            dtype=kind,
            chunks=tuple(max(1, c) for c in chunks),
            fill_value=FILL.get(kind.kind, 0),
            # A checksum costs nothing beside the disk, and turns bit rot into an error.
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            dimension_names=tuple(dims),
            attributes=dict(attrs or {}),
            overwrite=True,
        )
    _sync_metadata(root, path)
    return array


def write_strings(
    root: zarr.Group,
    path: str,
    values: Sequence[str] | NDArray[Any],
    dim: str,
    *,
    chunk: int = STRING_CHUNK,
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Write one string array of Zarr's variable-length type."""
    group, _, leaf = path.rpartition("/")
    texts = np.array([str(v) for v in values], dtype=np.dtypes.StringDType())
    with _quiet():
        parent = root.require_group(group) if group else root
        array = parent.create_array(
            leaf,
            shape=texts.shape,
            dtype=np.dtypes.StringDType(),
            chunks=(max(1, min(chunk, len(texts))),),
            dimension_names=(dim,),
            attributes=dict(attrs or {}),
            overwrite=True,
        )
        if len(texts):
            array[...] = texts


def read_strings(root: zarr.Group, path: str) -> NDArray[np.object_]:
    """Read a string array as Python strings, shape (n,)."""
    return np.array(np.asarray(root[path][...]).tolist(), dtype=object)


def write_block(array: zarr.Array, start: int, values: NDArray[Any], axis: int) -> None:
    """Write a chunk-aligned range along `axis`, and return when it is on the disk."""
    stop = start + values.shape[axis]
    where = (slice(None),) * axis + (slice(start, stop),)
    array[where] = values
    local = _local_root(array)
    if local is None:
        return
    touched = [range(-(-n // c)) for n, c in zip(array.shape, array.chunks, strict=True)]
    touched[axis] = range(start // array.chunks[axis], -(-stop // array.chunks[axis]))
    folder = local / array.path
    for index in np.ndindex(*(len(r) for r in touched)):
        key = tuple(r[i] for r, i in zip(touched, index, strict=True))
        # A chunk that holds only the fill value has no file.
        _sync(folder / array.metadata.encode_chunk_key(key))


def consolidate(root: zarr.Group) -> None:
    """Gather all metadata in the root, so that other readers open the store in one request."""
    with _quiet():
        zarr.consolidate_metadata(root.store)


def clean_stale(root: zarr.Group) -> None:
    """Remove temporary files that a killed writer left behind; younger ones may be in use."""
    local = _local_root(root)
    if local is None:
        return
    for leftover in local.rglob("*.partial"):
        try:
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()
        except FileNotFoundError:
            continue  # Its writer finished, or another process cleaned up first.


def same_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ, compared as JSON stores them."""
    plain = json.loads(json.dumps(dict(new)))
    return sorted(k for k in plain.keys() | old.keys() if old.get(k) != plain.get(k))


def _local_root(node: zarr.Array | zarr.Group) -> Path | None:
    store = node.store
    return Path(store.root) if isinstance(store, LocalStore) else None


def _sync_metadata(root: zarr.Group, path: str) -> None:
    local = _local_root(root)
    if local is not None:
        _sync(local / path / "zarr.json")


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk; one that does not exist needs none."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return  # Windows opens no folders; a chunk of fill values has no file.
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Zarr's notes on string arrays and consolidated metadata: both are in our contract."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")
        warnings.filterwarnings("ignore", message="Object at .*partial is not recognized")
        yield
