"""Checksums inside files: a document says what the rest of it must hash to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from features._places import Place

__all__ = [
    "BLANK",
    "CHECKSUM",
    "digest",
    "file_intact",
    "file_sha256",
    "is_intact",
    "read_document",
    "save_array",
    "seal",
    "seal_file",
]

CHECKSUM = "checksum"
# Stands where the checksum of a file goes while that is computed.
BLANK = "0" * 64
# Inside a JSON string the quotes are escaped.
_IN_FILE = re.compile(rb'checksum[\\":\s]{3,8}([0-9a-f]{64})')
_LENGTH_BYTES = 8  # of a safetensors file, before its JSON header
_STEP = 1 << 22


def digest(document: Mapping[str, Any]) -> str:
    """Checksum of a JSON document without its own checksum, as hexadecimal digits.

    What JSON reads as the same value has the same checksum: spaces and the order of keys do not
    count.
    """
    rest = {key: value for key, value in document.items() if key != CHECKSUM}
    plain = json.loads(json.dumps(rest))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """Give a document its checksum; an older one is replaced.

    Examples
    --------
    >>> sealed = seal({"a": 1})
    >>> is_intact(sealed), is_intact({**sealed, "a": 2}), is_intact({"a": 1})
    (True, False, False)
    """
    return {**document, CHECKSUM: digest(document)}


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one, which no checksum fits, when the file holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_intact(document: Any) -> bool:
    """Whether a document has a checksum, and the right one."""
    return isinstance(document, Mapping) and document.get(CHECKSUM) == digest(document)


def seal_file(path: Path) -> None:
    """Put a safetensors file's checksum where its header says `BLANK`, as its own checksum.

    The checksum is that of the whole file with `BLANK` in its place.

    Raises
    ------
    ValueError
        When the header has no such place.
    """
    place = _place(path)
    if place is None:
        raise ValueError(f"{path} has no place for a checksum in its header")
    checksum = _digest_blank(path, place)
    with path.open("rb+") as file:
        file.seek(place)
        file.write(checksum.encode())


def file_intact(path: Path) -> bool:
    """Whether a safetensors file has a checksum, and the right one."""
    place = _place(path)
    if place is None:
        return False
    with path.open("rb") as file:
        file.seek(place)
        told = file.read(len(BLANK))
    return told.decode() == _digest_blank(path, place)


def file_sha256(path: Place) -> str:
    """Checksum of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(path: Path) -> int | None:
    """Where the checksum stands in a safetensors file."""
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        # A damaged length must not read gigabytes.
        header = file.read(min(n_header, path.stat().st_size))
    found = _IN_FILE.search(header)
    return None if found is None else found.start(1) + _LENGTH_BYTES


def _digest_blank(path: Path, place: int) -> str:
    """Checksum of a file as it was before its checksum was put in."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        total.update(file.read(place))
        total.update(BLANK.encode())
        file.seek(len(BLANK), 1)
        while block := file.read(_STEP):
            total.update(block)
    return total.hexdigest()


def save_array(file: BinaryIO, array: NDArray[Any]) -> None:
    """Write an array as ``np.save`` does, but say what the system says when it cannot.

    Into a file of its own NumPy writes past Python: of a full disk it says "100000 requested and
    23536 written", and no reason.
    """
    writer: Any = _Plain(file)
    np.save(writer, array, allow_pickle=False)


class _Plain:
    """A file that has but `write`."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write
