"""The store's layout on disk: its root arrays, its attributes, and what an array may become."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from scipy import sparse

from features import _checks as checks
from features import _seal, _zarr
from features._label_space import LabelSpace

__all__ = [
    "OWN_ATTRS",
    "check_known",
    "check_range",
    "check_settings",
    "create_root",
    "create_rows",
    "is_sealed",
    "open_checked",
    "put_attrs",
    "refuse_existing",
    "refuse_other",
    "refuse_own",
    "remove",
    "seal",
    "write_labels",
]

FORMAT = "pairstack-store"
VERSION = 1
OWN_ATTRS = ("format", "version", "class_parent", "chunk_images", "coordinates", _seal.CHECKSUM)
SETTINGS = ("class_group", "class_parent", "attrs", "chunk_images", "labels_known")

# Classes are cut into chunks too, so that one chunk stays small at tens of thousands of classes.
CHUNK_CLASSES = 4096


def refuse_existing(path: str | os.PathLike[str]) -> None:
    """Refuse to build where there is anything already."""
    if _zarr.exists(path):
        raise FileExistsError(
            f"{os.fspath(path)} exists; choose another path, or open it with "
            "FeatureStore.open(path, 'r+') to add to it"
        )


def open_checked(path: str | os.PathLike[str], mode: str) -> zarr.Group:
    """Open a group, refusing what is no store of a version we know."""
    if not _zarr.exists(path):
        raise FileNotFoundError(f"there is no store at {os.fspath(path)}")
    try:
        root = _zarr.open_root(path, mode)
    except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
        raise ValueError(  # FileExistsError: Zarr found a file where it wanted to write a folder
            f"{os.fspath(path)} is no store: it holds no Zarr v3 group. `cnn-extract run` makes a "
            "store of images, `stacker import` of predictions."
        ) from error
    except _zarr.DAMAGE as error:
        raise ValueError(
            f"{os.fspath(path)} is no store, or its zarr.json is damaged ({error}). Copy it again."
        ) from error
    found = root.attrs.get("format")
    if found != FORMAT:
        raise ValueError(
            f"{os.fspath(path)} is no store: its attribute 'format' is {found!r}, not {FORMAT!r}"
        )
    version = root.attrs.get("version")
    if version != VERSION:
        raise ValueError(
            f"{os.fspath(path)} has store version {version!r}, this package reads {VERSION}. "
            "Upgrade pairstack."
        )
    return root


def create_root(
    path: str | os.PathLike[str], image_ids: NDArray[np.str_], space: LabelSpace, chunk_images: int
) -> zarr.Group:
    """Make the group and the arrays that name everything else."""
    if not isinstance(chunk_images, (int, np.integer)) or chunk_images < 1:
        raise ValueError(f"chunk_images must be a positive integer; got {chunk_images!r}")
    root = _zarr.open_root(path, "w-")
    root.attrs.update({"chunk_images": int(chunk_images), "class_parent": space.parent_names})
    _zarr.write_strings(root, "class", space.names, "class")
    _zarr.write_strings(root, "class_group", space.groups, "class")
    _zarr.write_strings(root, "image_id", image_ids, "image")
    _zarr.write_strings(root, "errors", [""] * len(image_ids), "image", chunk=int(chunk_images))
    return root


def seal(root: zarr.Group, space: LabelSpace, attrs: Mapping[str, Any] | None, chunk: int) -> None:
    """Write the attributes that make the group a store: the last thing, but for consolidation."""
    refuse_own(attrs or {})
    own = {"format": FORMAT, "version": VERSION, "class_parent": space.parent_names}
    # "coordinates" makes image_id a coordinate for xarray, as CF has it.
    own |= {"chunk_images": int(chunk), "coordinates": "image_id"}
    put_attrs(root, {**own, **dict(attrs or {})})
    _zarr.consolidate(root)


def put_attrs(root: zarr.Group, attrs: Mapping[str, Any]) -> None:
    """Write all attributes of the store and their checksum: one file, whole or not at all."""
    root.attrs.put(_seal.seal(attrs))


def is_sealed(root: zarr.Group) -> bool:
    """Whether the store is whole, not under construction."""
    return root.attrs.get("format") == FORMAT


def refuse_own(attrs: Mapping[str, Any]) -> None:
    """Refuse attributes that the format keeps for itself."""
    taken = sorted(set(attrs) & set(OWN_ATTRS))
    if taken:
        raise ValueError(f"attributes {taken} belong to the store format; use other names")


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse unknown settings of `from_csv` and `from_parquet`."""
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise TypeError(f"unknown settings {unknown}; known are {list(SETTINGS)}")
    return dict(settings)


def create_rows(
    root: zarr.Group,
    path: str,
    shape: Sequence[int],
    dtype: DTypeLike,
    dims: Sequence[str],
    attrs: Mapping[str, Any] | None,
    chunk_images: int,
) -> None:
    """Make an array and its completion marks, all false."""
    chunks = [
        min(n, chunk_images) if dim == "image" else 1 if dim == "fold" else min(n, CHUNK_CLASSES)
        for n, dim in zip(shape, dims, strict=True)
    ]
    n_images = shape[list(dims).index("image")]
    # Marks go first and come last: without its marks an array counts as not there.
    remove(root, f"written/{path}")
    _zarr.create_array(root, path, shape=shape, dtype=dtype, chunks=chunks, dims=dims, attrs=attrs)
    _zarr.create_array(
        root,
        f"written/{path}",
        shape=(n_images,),
        dtype=bool,
        chunks=(min(n_images, chunk_images),),
        dims=("image",),
    )


def remove(root: zarr.Group, path: str) -> None:
    """Delete an array or group, with the marks that belong to it."""
    for node in (f"written/{path}", path):
        if node in root:
            del root[node]


def refuse_other(
    array: zarr.Array,
    name: str,
    shape: Sequence[int],
    dtype: DTypeLike,
    attrs: Mapping[str, Any] | None,
) -> None:
    """Refuse to resume an array of another shape, type or settings."""
    asked = {"shape": list(shape), "dtype": str(np.dtype(dtype))}
    there = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if attrs is not None:
        asked, there = {**attrs, **asked}, {**array.attrs, **there}
    differ = _zarr.same_settings(there, asked)
    if differ:
        what = "; ".join(f"{k}: there {there.get(k)!r}, asked {asked.get(k)!r}" for k in differ)
        raise ValueError(
            f"{name} is in the store with other settings ({what}). Use the same settings to "
            "resume, or another name or store."
        )


def check_range(
    name: str, array: zarr.Array, start: int, block: NDArray[Any], axis: int, chunk: int
) -> None:
    """Refuse rows of another shape, and ranges that cut a chunk."""
    expected = array.shape[:axis] + array.shape[axis + 1 :]
    given = block.shape[:axis] + block.shape[axis + 1 :]
    if block.ndim != array.ndim or given != expected:
        raise ValueError(
            f"rows of {name} must have shape {expected} without the image axis; got {block.shape}"
        )
    n_images, stop = array.shape[axis], start + block.shape[axis]
    if start < 0 or stop > n_images:
        raise ValueError(f"rows {start}..{stop - 1} of {name} are outside 0..{n_images - 1}")
    if start % chunk or (stop % chunk and stop != n_images):
        raise ValueError(
            f"rows of {name} are written in whole chunks of {chunk:,} images; "
            f"{start:,}..{stop - 1:,} cuts one. Start and end at multiples of {chunk:,}."
        )


def check_known(
    known: NDArray[np.bool_], labels: sparse.csr_array, image_ids: NDArray[np.str_]
) -> None:
    """Refuse labels on images whose labels are said to be unknown."""
    if known.shape != (labels.shape[0],):
        raise ValueError(
            f"labels_known must have shape (n_images,) = ({labels.shape[0]},); got {known.shape}"
        )
    wrong = image_ids[~known & (np.diff(labels.indptr) > 0)]
    if wrong.size:
        raise ValueError(
            f"{wrong.size:,} images have labels but labels_known is False, first: "
            f"{checks.first_few(wrong)}"
        )


def write_labels(
    root: zarr.Group, labels: sparse.csr_array, known: NDArray[np.bool_], chunk: int
) -> None:
    """Write the label matrix as CSR, and which images have labels; all of it or nothing."""
    with _zarr.replacing(root, "labels") as path:
        if path == "labels":
            # Without its boundaries the matrix cannot be read: better none than half of it.
            remove(root, "labels/indptr")
        _write_csr(root, path, labels, known, chunk)


def _write_csr(
    root: zarr.Group, path: str, labels: sparse.csr_array, known: NDArray[np.bool_], chunk: int
) -> None:
    arrays = {
        "indices": (labels.indices.astype(np.int32), "label", _zarr.STRING_CHUNK),
        "known": (known, "image", chunk),
        "indptr": (labels.indptr.astype(np.int64), "boundary", _zarr.STRING_CHUNK),
    }
    for name, (values, dim, size) in arrays.items():
        array = _zarr.create_array(
            root,
            f"{path}/{name}",
            shape=values.shape,
            dtype=values.dtype,
            chunks=(min(len(values), size),),
            dims=(dim,),
            whole=True,
        )
        if len(values):
            _zarr.write_block(array, 0, values, 0)
