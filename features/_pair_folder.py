"""The pair folder's own record: how it was made, which parts are done, whether it is complete.

Polars refuses a folder that holds files of different kinds, so the record is no JSON file: it
stands in the schema metadata of `_pairs.parquet`, a Parquet file without rows. Readers that
skip names with ``_`` never see it, and the others add no row.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from features._places import Place, Remote
from features._seal import CHECKSUM, file_sha256, is_intact, seal

__all__ = [
    "RECORD",
    "Record",
    "check_output",
    "clear_output",
    "part_name",
    "read_record",
    "write_atomically",
]

RECORD = "_pairs.parquet"
KEY = b"pairstack"
FORMAT = "pairstack-pairs"
VERSION = 1
ADVICE = "Remove the folder and run build-features again."
# What a killed run leaves behind ends like this, and starts with "_".
UNFINISHED = ".tmp"


@dataclass
class Record:
    """What a pair folder knows about itself.

    Attributes
    ----------
    settings : dict
        Everything the bytes of the parts depend on: a run resumes only with equal settings.
    candidate_recall : {class group: share of the true labels that have a row}
    n_images, n_rows, n_parts : int
        Of the complete folder.
    parts : {file name: sha256} of the parts written so far
    complete : bool
    overall_recall : float
        Share of the true labels of all groups.
    writer : str
        Version of pyarrow that wrote the record.
    """

    settings: dict[str, Any]
    candidate_recall: dict[str, float]
    n_images: int
    n_rows: int
    n_parts: int
    parts: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    overall_recall: float = 1.0
    writer: str = pa.__version__

    def write(self, folder: Place, schema: pa.Schema) -> None:
        """Put the record into the folder; it replaces the one before whole."""
        self.writer = pa.__version__
        content = self.to_bytes(schema)

        def write(file: BinaryIO) -> None:
            file.write(content)

        write_atomically(folder / RECORD, write)

    def to_bytes(self, schema: pa.Schema) -> bytes:
        """Make the record's file: the same record and schema give the same bytes."""
        told = {"format": FORMAT, "version": VERSION, "schema": schema_digest(schema)}
        note = json.dumps(seal({**told, **asdict(self)}), sort_keys=True)
        file = io.BytesIO()
        pq.write_table(schema.with_metadata({KEY: note}).empty_table(), file)
        return file.getvalue()

    def intact(self, folder: Place) -> list[str]:
        """Name the recorded parts whose files are there and have the recorded checksum."""
        return [
            name
            for name, digest in self.parts.items()
            if (folder / name).is_file() and file_sha256(folder / name) == digest
        ]


def part_name(number: int) -> str:
    """Name a part's file; names sort like the parts."""
    return f"part-{number:05d}.parquet"


def read_record(folder: Place) -> Record | None:
    """Read the record of a pair folder; None where there is none.

    Raises
    ------
    ValueError
        For a record of a newer version, or one that was changed since it was written.
    """
    if not (folder / RECORD).is_file():
        return None
    try:
        with (folder / RECORD).open("rb") as file:
            schema = pq.read_schema(file)
        told = json.loads((schema.metadata or {}).get(KEY, b"{}"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{folder / RECORD} is damaged: {error}. {ADVICE}") from error
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        return None
    if told.get("version") != VERSION:
        raise ValueError(
            f"{folder} has version {told.get('version')} of the pair folder; known: {VERSION}. "
            "Upgrade pairstack."
        )
    if not is_intact(told) or told.pop("schema", None) != schema_digest(schema):
        raise ValueError(f"{folder / RECORD} is damaged: it does not have its checksum. {ADVICE}")
    return Record(**{k: v for k, v in told.items() if k not in ("format", "version", CHECKSUM)})


def schema_digest(schema: pa.Schema) -> str:
    """Checksum of what a reader sees of the columns: names, types, where they come from."""
    seen = [
        [item.name, str(item.type), sorted((item.metadata or {}).items())]
        for item in schema.remove_metadata()
    ]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def check_output(
    folder: Place, settings: Mapping[str, Any] | None = None, *, force: bool = False
) -> None:
    """Refuse an output folder that must not be written; without settings, check the rest.

    Raises
    ------
    FileExistsError
        When it holds something else, is complete, or was begun with other settings; the last
        two not with `force`.
    """
    if not folder.exists():
        return
    record = read_record(folder) if folder.is_dir() else None
    if record is None:
        if not folder.is_dir() or any(not _is_left_over(path) for path in folder.iterdir()):
            raise FileExistsError(f"{folder} exists and is no pair folder. Give another name.")
        return
    if force:
        return
    if record.complete:
        raise FileExistsError(
            f"{folder} is complete: {record.n_rows:,} rows of {record.n_images:,} images. "
            "Give another name, or --force to write it anew."
        )
    other = [] if settings is None else _differences(record.settings, settings)
    if other:
        raise FileExistsError(
            f"{folder} was begun with other settings: {'; '.join(other)}. Run it with those to "
            "resume, give another name, or --force to write it anew."
        )


def clear_output(folder: Place) -> None:
    """Remove what `build-features` writes; the record first, so that nothing looks complete."""
    (folder / RECORD).unlink(missing_ok=True)
    for path in [*folder.glob("part-*.parquet"), *folder.glob(f"_*{UNFINISHED}")]:
        path.unlink()


def write_atomically(path: Place, write: Callable[[BinaryIO], None]) -> None:
    """Write a file under a temporary name; it takes its own once its bytes are on disk."""
    if isinstance(path, Remote):
        path.write_whole(write)
        return
    unfinished = path.with_name(f"_{path.name}{UNFINISHED}")
    with unfinished.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _is_left_over(path: Place) -> bool:
    """Whether a killed run left this file before it wrote its record."""
    return path.name.startswith("_") and path.name.endswith(UNFINISHED)


def _differences(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which settings differ, and how."""
    names = [name for name in sorted({*begun, *now}) if begun.get(name) != now.get(name)]
    return [f"{name} was {begun.get(name)!r}, is {now.get(name)!r}" for name in names]
