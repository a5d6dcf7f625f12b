"""The few Zarr v3 operations the store is made of: names, arrays, durable writes, atomic birth."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import zarr
import zarr.errors
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import FsspecStore, LocalStore

from features._locks import leased_name, remove

__all__ = [
    "TEMPORARY",
    "array_path",
    "building",
    "clean_stale",
    "clear_errors",
    "consolidate",
    "create_array",
    "escape",
    "exists",
    "forget_consolidated",
    "local_root",
    "member_names",
    "node",
    "open_root",
    "read_strings",
    "reopen",
    "replacing",
    "same_settings",
    "tracked_names",
    "unescape",
    "write_block",
    "write_strings",
]

# Where a node of the store is built before it takes its place: no part of the Zarr hierarchy.
TEMPORARY = ".partial"
OLD = ".old"

# A write in flight is younger than this; a temporary file older than this lost its writer.
STALE_SECONDS = 60.0

# A checksum costs nothing beside the disk, and turns bit rot into an error.
COMPRESSORS = (ZstdCodec(level=1), Crc32cCodec())

# What Zarr, its codecs and numpy raise on damaged metadata and chunks.
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    zarr.errors.BaseZarrError,
)

# Ids are read together, so few large chunks serve them best.
STRING_CHUNK = 65_536
# Equal names shrink to next to nothing: this many are still taken for written, not for damage.
MOST_NAMES_PER_BYTE, MANY_NAMES = 10_000, 1_000_000

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
    with leased_name(final) as temporary:
        yield temporary
        if exists(final):
            raise FileExistsError(f"{final} appeared while it was being written; choose another")
        temporary.rename(final)
        _sync(final.parent)


@contextmanager
def replacing(root: zarr.Group, path: str) -> Iterator[str]:
    """Give a path to build a node at; it takes the place of the one at `path` when all went well.

    A killed process leaves the old node or the new one, never a part. The caller has locked the
    store's structure. Remote object stores have no rename: there the node is written in place.
    """
    local = local_root(root)
    if local is None:
        yield path
        return
    quoted = quote(path, safe="")
    temporary, old = local / TEMPORARY / quoted, local / TEMPORARY / (quoted + OLD)
    remove(temporary, old)
    try:
        yield f"{TEMPORARY}/{quoted}"
        sync_tree(temporary)
    except BaseException:
        remove(temporary)
        raise
    final = local / path
    if "/" in path:
        root.require_group(path.rpartition("/")[0])
    if final.exists():
        # Between the two renames readers find the old node where it is now: see `node`.
        final.rename(old)
    try:
        temporary.rename(final)
    except BaseException:
        _finish_replacing(local)
        raise
    _sync(final.parent)
    remove(old, local / TEMPORARY)


def node(root: zarr.Group, path: str) -> Any:
    """Array or group at a path, None where there is none; while it is replaced, the old one."""
    found = root.get(path)
    local = local_root(root)
    if found is not None or local is None or not (local / TEMPORARY).is_dir():
        return found
    parts = path.split("/")
    for n in range(1, len(parts) + 1):
        quoted = quote("/".join(parts[:n]), safe="")
        found = root.get("/".join((TEMPORARY, quoted + OLD, *parts[n:])))
        if found is not None:
            return found
    # It may have taken its place a moment ago.
    return root.get(path)


def _finish_replacing(local: Path) -> None:
    """Bring back a node whose replacement was killed between the two renames; drop the rest."""
    temporary = local / TEMPORARY
    # A link is none of ours: what it leads to stays where it is.
    for old in () if temporary.is_symlink() else temporary.glob("*" + OLD):
        final = local / unquote(old.name.removesuffix(OLD))
        if not final.exists():
            old.rename(final)
    remove(temporary)


def forget_consolidated(root: zarr.Group) -> None:
    """Drop the gathered metadata: it is about to say what is no longer true."""
    with _quiet():
        opened = reopen(root)
        # An update without attributes would write nothing.
        opened.attrs.put(dict(opened.attrs))


def reopen(root: zarr.Group) -> zarr.Group:
    """Read the group again: another process may have changed its attributes."""
    return zarr.open_group(root.store, mode="r+", zarr_format=3, use_consolidated=False)


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
    swapped = _swapped_names(root, group)
    if group not in root:
        return swapped
    with _quiet():
        names = {unescape(part) for part in root[group].keys()}  # noqa: SIM118
    return sorted({*names, *swapped})


def _swapped_names(root: zarr.Group, group: str) -> list[str]:
    """Names below a group that are out of their place, between the renames of `replacing`."""
    local = local_root(root)
    if local is None or not (local / TEMPORARY).is_dir():
        return []
    prefix = quote(f"{group}/", safe="")
    return sorted(
        unescape(unquote(old.name.removesuffix(OLD).removeprefix(prefix)))
        for old in (local / TEMPORARY).iterdir()
        if old.name.startswith(prefix) and old.name.endswith(OLD)
    )


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
    whole: bool = False,
) -> zarr.Array:
    """Create an array of fill values, replacing one of that name.

    With `whole`, chunks of nothing but fill values get a file too: one that is gone was lost.
    """
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
            compressors=COMPRESSORS,
            dimension_names=tuple(dims),
            attributes=dict(attrs or {}),
            overwrite=True,
            config={"write_empty_chunks": whole},
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
            compressors=COMPRESSORS,
            dimension_names=(dim,),
            attributes=dict(attrs or {}),
            overwrite=True,
            config={"write_empty_chunks": True},
        )
        if len(texts):
            array[...] = texts
    local = local_root(root)
    if local is not None:
        sync_tree(local / path)


def read_strings(root: zarr.Group, path: str) -> NDArray[np.object_]:
    """Read a string array as Python strings, shape (n,)."""
    found = node(root, path)
    if found is None:
        raise ValueError(f"the store {root.store} lacks {path!r}: it is damaged or no store")
    _refuse_oversized(found)
    return np.array(np.asarray(found[...]).tolist(), dtype=object)


def _refuse_oversized(array: zarr.Array) -> None:
    """Refuse names that no file can hold: metadata that was changed would fill the memory."""
    local = local_root(array)
    if local is None or len(array.shape) != 1 or array.shape[0] < MANY_NAMES:
        return
    held = sum(file.stat().st_size for file in (local / array.path).rglob("*") if file.is_file())
    if array.shape[0] > MOST_NAMES_PER_BYTE * held:
        raise ValueError(f"{array.shape[0]:,} names cannot stand in {held:,} bytes")


def write_block(array: zarr.Array, start: int, values: NDArray[Any], axis: int) -> None:
    """Write a chunk-aligned range along `axis`, and return when it is on the disk."""
    stop = start + values.shape[axis]
    where = (slice(None),) * axis + (slice(start, stop),)
    array[where] = values
    local = local_root(array)
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
    """Remove temporary files that a killed writer left behind; younger ones may be in use.

    The caller has locked the store's structure.
    """
    local = local_root(root)
    if local is None:
        return
    _finish_replacing(local)
    for leftover in local.rglob("?*.partial"):
        try:
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()
        except FileNotFoundError:
            continue  # Its writer finished, or another process cleaned up first.


def same_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ, compared as JSON stores them."""
    plain = json.loads(json.dumps(dict(new)))
    return sorted(k for k in plain.keys() | old.keys() if old.get(k) != plain.get(k))


def local_root(member: zarr.Array | zarr.Group) -> Path | None:
    """Folder of the store, None for a URL."""
    store = member.store
    return Path(store.root) if isinstance(store, LocalStore) else None


def _sync_metadata(root: zarr.Group, path: str) -> None:
    local = local_root(root)
    if local is not None:
        _sync(local / path / "zarr.json")


def sync_tree(folder: Path) -> None:
    """Flush a folder and all it holds to the disk."""
    for path in [folder, *folder.rglob("*")]:
        _sync(path)


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
def clear_errors(what: str, path: object) -> Iterator[None]:
    """Turn what Zarr raises on damaged files into an error that says what to do.

    Raises
    ------
    ValueError
        Naming what cannot be read.
    """
    try:
        yield
    except DAMAGE as error:
        told = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise ValueError(
            f"{what} in {path} cannot be read ({told}): a file is damaged. `stacker verify {path}` "
            "says which; copy it again, or write it anew."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Zarr's notes on string arrays and consolidated metadata: both are in our contract."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")
        yield
