"""Pair rows as a folder of Parquet files: any Parquet reader opens it, a killed run resumes.

One part per image range, its rows sorted by image then candidate. The ranges come from a fixed
number of rows, never from memory or threads, so the same settings always give the same bytes.
The layout is "Pair folder" of `docs/design.md`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_array

from features._pair_folder import (
    Record,
    check_output,
    clear_output,
    part_name,
    read_record,
    write_atomically,
)
from features._places import Place, as_place, size_of
from features._seal import file_sha256
from features.assemble import PairFeatures
from features.blocks.types import Column
from features.schema import Stack

__all__ = ["PairRows", "Written", "feature_matrix", "pair_columns", "read_pairs", "write_pairs"]

KEYS = ("image_id", "class", "class_group", "label", "fold")
WEIGHT = "weight"  # after the keys, where negatives were thinned out
# A row group is what a reader holds at once, and what the writer holds whatever max_memory says.
ROWS_PER_GROUP = 65_536
ROWS_PER_PART = 4 * ROWS_PER_GROUP

Writer = Callable[[Mapping[str, tuple[int, int]]], Iterator[tuple[str, str]]]


@dataclass(frozen=True)
class PairRows:
    """Fitted features and the images to write: all of them, in order.

    Attributes
    ----------
    features : PairFeatures, fitted
    stack : Stack of n_images
    labels : CSR array of shape (n_images, n_classes), 0/1
    labels_known : bool array of shape (n_images,)
        Where False, labels are null and features are those of a new image.
    fold : int array of shape (n_images,)
        Folds that `features` was fitted with; -1 where not assigned.
    negatives : float, default=1
        Share of the labelled images' negative rows that is kept; a column "weight" makes up for
        the rest, so that weighted sums over rows keep their expectation.
    first : int, default=0
        Position of the first image, where these are a range of more.
    counted : int64 array of shape (n_images + 1,), optional
        The rows' boundaries, where they are known already.

    Examples
    --------
    >>> labels, known = csr_array(np.eye(2, dtype=np.int8)), np.ones(2, dtype=bool)
    >>> stack, fold = Stack({"a": [[0.9, 0.1], [0.2, 0.8]]}), np.array([0, 1])
    >>> features = PairFeatures(blocks=("logits",)).fit(stack, labels, fold)
    >>> PairRows(features, stack, labels, known, fold).negatives
    1.0
    """

    features: PairFeatures
    stack: Stack
    labels: csr_array
    labels_known: NDArray[np.bool_]
    fold: NDArray[np.integer[Any]]
    negatives: float = 1.0
    first: int = 0
    counted: NDArray[np.int64] | None = None

    @cached_property
    def indptr(self) -> NDArray[np.int64]:
        """Rows ``indptr[i]:indptr[i + 1]`` belong to image i, int64 (n_images + 1,)."""
        if self.counted is not None:
            return self.counted
        found = self.features.all_candidates(self.stack)
        if self.negatives == 1:
            return found.indptr
        kept = self._weights(found.row_image.astype(np.int64), found.classes) > 0
        return np.concatenate([[0], np.cumsum(kept)])[found.indptr]

    def _weights(
        self, row_image: NDArray[np.int64], row_class: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Weight of each row, 0 where it is left out, float32 (n_rows,)."""
        negative = label_at(self.labels, row_image, row_class) == 0
        thinned = negative & self.labels_known[row_image]
        keys = (self.first + row_image) * len(self.stack.classes) + row_class
        lucky = uniform(keys) < self.negatives
        return np.where(thinned, lucky / np.float32(self.negatives), 1).astype(np.float32)

    def table(self, start: int, stop: int, schema: pa.Schema) -> pa.Table:
        """Build the rows of some images, batch by batch.

        Returns
        -------
        pyarrow.Table with contiguous columns, whatever the size of the batches
        """
        # An image without labels took no part in fitting: it is new, whatever its fold.
        fold = np.where(self.labels_known, self.fold, -1)[start:stop]
        step = min(self.features.batch_images(), stop - start)
        images, classes, weights, values = [], [], [], []
        for batch in self.features.batches(self.stack[start:stop], fold, batch_images=step):
            weight = self._weights(start + batch.row_image, batch.row_class)
            kept = np.flatnonzero(weight)
            images.append(start + batch.row_image[kept])
            classes.append(batch.row_class[kept])
            weights.append(weight[kept])
            rows = batch.features if len(kept) == len(weight) else batch.features[kept]
            values.append(np.ascontiguousarray(rows.T))
        keys = self._keys(_join(images), _join(classes))
        if self.negatives < 1:
            keys.append(pa.array(_join(weights)))
        columns = [pa.array(column) for column in _join(values)]
        return pa.Table.from_arrays([*keys, *columns], schema=schema)

    def _keys(self, row_image: NDArray[np.int64], row_class: NDArray[np.int32]) -> list[pa.Array]:
        space, unknown = self.stack.label_space, ~self.labels_known[row_image]
        label = label_at(self.labels, row_image, row_class)
        return [
            pa.array(self.stack.image_ids[row_image].astype(object), pa.string()),
            _dictionary(row_class, space.names),
            _dictionary(space.group_codes[row_class], space.group_names),
            pa.array(label, pa.int8(), mask=unknown),
            pa.array(np.asarray(self.fold, dtype=np.int16)[row_image]),
        ]


@dataclass(frozen=True)
class Written:
    """What `write_pairs` did.

    Attributes
    ----------
    n_images, n_rows, n_columns, n_parts : int
        Of the whole folder.
    resumed : list of str
        Parts that an earlier run had written.
    rewritten : list of str
        Parts that were there but did not have their recorded checksum.
    n_bytes : int
        Size of the parts on disk.
    n_built : int
        Images whose rows were built now.

    Examples
    --------
    >>> Written(20, 40, 2, 1, [], [], 1000, 20).n_rows
    40
    """

    n_images: int
    n_rows: int
    n_columns: int
    n_parts: int
    resumed: list[str]
    rewritten: list[str]
    n_bytes: int
    n_built: int


def write_pairs(
    path: str | os.PathLike[str],
    rows: PairRows,
    *,
    settings: Mapping[str, Any],
    rows_per_part: int = ROWS_PER_PART,
    force: bool = False,
    advance: Callable[[int], None] = lambda n_images: None,
    writer: Writer | None = None,
) -> Written:
    """Write pair rows as a folder of Parquet files, or write what a killed run left out.

    Parameters
    ----------
    path : path or fsspec URL
        The folder; made with its parents.
    rows : PairRows
    settings : mapping of JSON values
        What the features depend on. A begun folder is resumed only with equal settings.
    rows_per_part : int, default=262,144
        A part takes as many whole images as fit, at least one.
    force : bool, default=False
        Write anew what is there.
    advance : function of a number of images, optional
        Called after each part.
    writer : function of {name: (start, stop)}, optional
        Writes these parts of the folder, and yields each one's name and checksum when it is done.
        Default: in this process, in their order.

    Raises
    ------
    FileExistsError
        When the folder is complete, was begun with other settings, or is something else.

    Examples
    --------
    >>> import tempfile
    >>> rng = np.random.default_rng(0)
    >>> stack = Stack({"a": rng.random((20, 3)), "b": rng.random((20, 3))})
    >>> labels = csr_array((rng.random((20, 3)) < 0.3).astype(np.int8))
    >>> fold = np.arange(20) % 5
    >>> features = PairFeatures(blocks=("probabilities",), candidates=2).fit(stack, labels, fold)
    >>> rows = PairRows(features, stack, labels, np.ones(20, dtype=bool), fold)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = write_pairs(folder + "/pairs", rows, settings={})
    ...     table = next(read_pairs(folder + "/pairs"))
    >>> done.n_rows, table.column_names[-2:]
    (40, ['p:a', 'p:b'])
    """
    folder, settings = as_place(path), {**settings, "rows_per_part": rows_per_part}
    check_output(folder, settings, force=force)
    folder.mkdir(parents=True, exist_ok=True)
    schema, ranges = pair_schema(rows), image_ranges(rows.indptr, rows_per_part)
    record = None if force else read_record(folder)
    if record is None:
        clear_output(folder)
        record = _new_record(rows, settings, n_parts=len(ranges))
        record.write(folder, schema)
    intact = record.intact(folder)
    damaged = sorted(set(record.parts) - set(intact))
    parts = {part_name(number): span for number, span in enumerate(ranges)}
    pending = {name: span for name, span in parts.items() if name not in intact}
    advance(sum(b - a for name, (a, b) in parts.items() if name in intact))
    for name, digest in (writer or _write_here(folder, rows, schema))(pending):
        record.parts[name] = digest
        record.write(folder, schema)
        advance(pending[name][1] - pending[name][0])
    n_built = sum(b - a for a, b in pending.values())
    record.complete = True
    record.write(folder, schema)
    for left in folder.glob("_*.tmp"):
        left.unlink()
    n_bytes = sum(size_of(folder / name) for name in record.parts)
    return Written(
        record.n_images,
        record.n_rows,
        len(rows.features.columns_),
        record.n_parts,
        intact,
        damaged,
        n_bytes,
        n_built,
    )


def read_pairs(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Walk over a complete pair folder, one row group at a time, in the order of the images.

    Parameters
    ----------
    path : path or fsspec URL
    columns : sequence of str, optional
        Names of the columns to read. Default: all.

    Yields
    ------
    pyarrow.Table
        ``table.to_pandas()`` and ``polars.from_arrow(table)`` turn it into a data frame,
        `feature_matrix` its features into an array.

    Raises
    ------
    FileNotFoundError
        When `path` is no pair folder.
    ValueError
        When it is not complete.

    Examples
    --------
    >>> import tempfile
    >>> rng = np.random.default_rng(0)
    >>> Y = csr_array((rng.random((20, 3)) < 0.4).astype(np.int8))
    >>> stack = Stack({"a": rng.random((20, 3))})
    >>> fold = np.arange(20) % 2
    >>> features = PairFeatures(blocks=("logits",), candidates=2).fit(stack, Y, fold)
    >>> rows = PairRows(features, stack, Y, np.ones(20, dtype=bool), fold)
    >>> folder = tempfile.mkdtemp() + "/pairs"
    >>> done = write_pairs(folder, rows, settings={})
    >>> sum(len(table) for table in read_pairs(folder))
    40
    """
    folder = as_place(path)
    record = read_record(folder)
    if record is None:
        raise FileNotFoundError(f"{folder} is no pair folder; build-features writes one.")
    if not record.complete:
        raise ValueError(
            f"{folder} is not complete: it has {len(record.parts)} of {record.n_parts} parts. "
            "Run the same build-features command again."
        )
    for name in sorted(record.parts):
        try:
            with (
                (folder / name).open("rb") as part,
                pq.ParquetFile(part, page_checksum_verification=True) as file,
            ):
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{folder / name} is damaged ({error}). Copy it again, or write the folder anew "
                "with build-features --force."
            ) from error


def pair_columns(schema: pa.Schema) -> list[Column]:
    """Read where each feature of a pair folder comes from, out of the field metadata.

    Examples
    --------
    >>> origin = {"block": "logits", "formula": "l", "models": '["a"]', "fold_fitted": "false"}
    >>> schema = pa.schema([pa.field("l:a", pa.float32(), metadata=origin)])
    >>> pair_columns(schema)[0].models
    ('a',)
    """
    return [
        Column(
            item.name,
            item.metadata[b"block"].decode(),
            item.metadata[b"formula"].decode(),
            tuple(json.loads(item.metadata[b"models"])),
            item.metadata[b"fold_fitted"] == b"true",
        )
        for item in schema
        if b"block" in (item.metadata or {})
    ]


def feature_matrix(table: pa.Table) -> NDArray[np.float32]:
    """Stack the features of a table from `read_pairs`, float32 (n_rows, n_columns).

    Examples
    --------
    >>> origin = {"block": "logits", "formula": "l", "models": '["a"]', "fold_fitted": "false"}
    >>> schema = pa.schema([pa.field("l:a", pa.float32(), metadata=origin)])
    >>> feature_matrix(pa.table({"l:a": pa.array([0.5, 2.0], pa.float32())}, schema)).tolist()
    [[0.5], [2.0]]
    """
    names = [column.name for column in pair_columns(table.schema)]
    out = np.empty((len(table), len(names)), dtype=np.float32)
    for position, name in enumerate(names):
        out[:, position] = table.column(name).to_numpy()
    return out


def pair_schema(rows: PairRows) -> pa.Schema:
    """Make the parts' schema: keys, then features with their origin in the field metadata."""
    features = rows.features
    text = pa.dictionary(pa.int32(), pa.string())
    types = (pa.string(), text, text, pa.int8(), pa.int16())
    keys = [pa.field(name, kind) for name, kind in zip(KEYS, types, strict=True)]
    if rows.negatives < 1:
        keys.append(pa.field(WEIGHT, pa.float32()))
    names = [*(key.name for key in keys), *features.feature_names_]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"columns must have different names; {twice[0]!r} stands twice. Rename a model, a "
            "statistic or a metadata column."
        )
    return pa.schema([*keys, *(_field(column) for column in features.columns_)])


def _field(column: Column) -> pa.Field:
    origin = {
        "block": column.block,
        "formula": column.formula,
        "models": json.dumps(column.models),
        "fold_fitted": str(column.fold_fitted).lower(),
    }
    return pa.field(column.name, pa.float32(), metadata=origin)


def label_at(
    labels: csr_array, row_image: NDArray[np.int64], row_class: NDArray[np.int32]
) -> NDArray[np.int8]:
    """Labels of some rows, int8 (n_rows,), without a dense images x classes matrix.

    Examples
    --------
    >>> label_at(csr_array([[0, 1], [1, 0]]), np.array([0, 0, 1]), np.array([1, 0, 1])).tolist()
    [1, 0, 0]
    """
    if not len(row_image):
        return np.empty(0, dtype=np.int8)
    first = int(row_image.min())
    part = labels[first : int(row_image.max()) + 1].tocoo()
    n_classes = labels.shape[1]
    true = part.row.astype(np.int64) * n_classes + part.col
    asked = (row_image - first) * n_classes + row_class
    return np.isin(asked, true[part.data != 0]).astype(np.int8)


def _write_here(folder: Place, rows: PairRows, schema: pa.Schema) -> Writer:
    def write(pending: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, str]]:
        for name, (start, stop) in pending.items():
            write_part(folder / name, rows, start, stop, schema)
            yield name, file_sha256(folder / name)

    return write


def write_part(path: Place, rows: PairRows, start: int, stop: int, schema: pa.Schema) -> None:
    """Write the part of one image range, row group by row group."""

    def write(file: Any) -> None:
        # Features hardly repeat: a dictionary of them costs time and no byte less.
        with pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=list(KEYS),
            write_page_checksum=True,
        ) as out:
            for first, last in image_ranges(rows.indptr[start : stop + 1], ROWS_PER_GROUP):
                table = rows.table(start + first, start + last, schema)
                out.write_table(table, row_group_size=max(len(table), 1))

    write_atomically(path, write)


def _new_record(rows: PairRows, settings: dict[str, Any], n_parts: int) -> Record:
    features, n_rows = rows.features, int(rows.indptr[-1])
    return Record(
        settings,
        dict(features.candidate_recall_),
        len(rows.stack),
        n_rows,
        n_parts,
        overall_recall=features.overall_recall_,
    )


def image_ranges(indptr: NDArray[np.int64], most_rows: int) -> list[tuple[int, int]]:
    """Cut images into ranges of at most `most_rows` rows, of one image at least.

    Examples
    --------
    >>> image_ranges(np.array([0, 2, 4, 9, 9, 10]), 4)
    [(0, 2), (2, 3), (3, 5)]
    """
    ranges, start, n_images = [], 0, len(indptr) - 1
    while start < n_images:
        full = int(np.searchsorted(indptr, indptr[start] + most_rows, side="right")) - 1
        stop = min(max(full, start + 1), n_images)
        ranges.append((start, stop))
        start = stop
    return ranges


def uniform(keys: NDArray[np.int64], seed: int = 0) -> NDArray[np.float64]:
    """Give each key a number in [0, 1) of its own, the same in every batch (SplitMix64).

    Source: Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators".

    Examples
    --------
    >>> bool((uniform(np.arange(9))[4:] == uniform(np.arange(4, 9))).all())
    True
    """
    step = np.uint64(0x9E3779B97F4A7C15)
    x = (keys.astype(np.uint64) + np.uint64(seed + 1)) * step
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _join(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Join along the last axis; one part is taken as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _dictionary(codes: NDArray[np.integer[Any]], names: NDArray[np.str_]) -> pa.Array:
    texts = pa.array(names.astype(object), pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), texts)
