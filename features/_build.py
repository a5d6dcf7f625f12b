"""`build-features`: from a store to a folder of pair rows, or to what they would cost."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from features._checks import first_few
from features._console import Reporter, clock
from features._fingerprint import fingerprint
from features._pair_folder import check_output
from features._places import as_place
from features.assemble import BlockSpec, PairFeatures, find_block, parse_bytes, resolve_blocks
from features.candidates import CandidateSpec, resolve_candidates
from features.folds import check_folds
from features.parquet import ROWS_PER_GROUP, ROWS_PER_PART, PairRows, Writer, Written, write_pairs
from features.schema import Stack
from features.store import FeatureStore

__all__ = ["BlockCost", "Request", "Summary", "build"]


@dataclass(frozen=True)
class Request:
    """What `build` shall do; the command line's arguments.

    Parameters
    ----------
    store : str
        Path or fsspec URL of a feature store.
    out : Path, URL or None
        Folder to write; None only measures.
    blocks : as in `PairFeatures`, or None
        None: the default blocks, and the sums, products and ratios where there are two models.
    candidates, max_memory : as in `PairFeatures`
    n_jobs : int or None
        Threads; default: one a core.
    rows_per_part : int
        Rows of a Parquet file.
    force : bool
        Write anew what is there.
    negatives : float
        Share of the negative rows of labelled images that is kept.
    dask : str or None
        Scheduler address or "current": workers fit, and write the parts.
    """

    store: str
    out: Path | str | None
    blocks: BlockSpec | None = None
    candidates: CandidateSpec = "auto"
    max_memory: int | str = "4GB"
    n_jobs: int | None = None
    rows_per_part: int = ROWS_PER_PART
    force: bool = False
    negatives: float = 1.0
    dask: str | None = None


@dataclass(frozen=True)
class BlockCost:
    """What a block costs: columns, seconds of fitting and of filling all rows, bytes of these.

    "other" is the work that no block can be blamed for.
    """

    name: str
    n_columns: int
    fit_seconds: float
    fill_seconds: float
    n_bytes: int


@dataclass
class Summary:
    """What was built, and what it cost.

    Attributes
    ----------
    candidates : {class group: candidates an image}
    recall : {class group: share of the true labels that have a row}
    overall_recall : float
        Share of the true labels of all groups.
    measured_images : int
        Images that the seconds of filling were measured on; `costs` scales them to all.
    fit_seconds, fill_seconds : float
        Of everything that was fitted, and of every row that was built.
    written : Written or None
        None when nothing was to be written.
    """

    out: Path | str | None
    n_images: int
    n_labelled: int
    n_rows: int
    n_columns: int
    candidates: dict[str, int]
    recall: dict[str, float]
    overall_recall: float
    costs: list[BlockCost] = field(default_factory=list)
    measured_images: int = 0
    fit_seconds: float = 0.0
    fill_seconds: float = 0.0
    written: Written | None = None
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """Write it as lines of text."""
        unlabelled = self.n_images - self.n_labelled
        lines = [
            f"images   {self.n_images:,}: {self.n_labelled:,} labelled, {unlabelled:,} unlabelled",
            f"rows     {self.n_rows:,}, {self.n_rows / max(self.n_images, 1):,.4g} an image",
            f"columns  {self.n_columns:,} features of {len(self.costs) - 1} blocks",
            f"recall   {self.overall_recall:.4f} of the true labels have a row",
        ]
        if self.written is not None:
            lines = [f"pairs    {self.out}", *lines, *_written_lines(self.written)]
        return [*lines, f"time     {clock(self.seconds)}"]

    def explanation(self) -> list[str]:
        """Write what each block costs and each class group's candidates, as lines of text."""
        names = [*(cost.name for cost in self.costs), *self.candidates]
        width = max(map(len, [*names, "class group"]))
        lines = [f"{'block':{width}}  columns     fit s    rows s        bytes"]
        lines += [
            f"{c.name:{width}}  {c.n_columns:7,}  {c.fit_seconds:8.2f}  {c.fill_seconds:8.2f}"
            f"  {format_bytes(c.n_bytes):>11}"
            for c in [*self.costs, _total(self.costs)]
        ]
        lines += ["", f"{'class group':{width}}  candidates   recall"]
        for group, k in self.candidates.items():
            lines.append(f"{group or '(none)':{width}}  {k:10,}   {self.recall[group]:6.4f}")
        total = sum(self.candidates.values())
        lines.append(f"{'all':{width}}  {total:10,}   {self.overall_recall:6.4f}")
        return [*lines, "", self._how_measured()]

    def _how_measured(self) -> str:
        bytes_are = (
            "bytes: float32 in memory, all rows; "
            "other: candidates, spaces that images are compared in, writing"
        )
        if self.measured_images == 0:
            return f"rows s: not measured, every part was there already; {bytes_are}"
        measured = f"measured on {self.measured_images:,} of {self.n_images:,} images"
        scaled = "" if self.measured_images == self.n_images else ", scaled to all"
        return f"rows s: {measured}{scaled}; {bytes_are}"


def build(request: Request, report: Reporter | None = None) -> Summary:
    """Fit the blocks on a store's labelled images and write the rows of all its images.

    Raises
    ------
    FileNotFoundError
        When there is no store.
    FileExistsError
        When the output is complete, was begun with other settings, or is something else.
    ValueError
        For a store without labels or folds, and for unknown blocks, options or class groups.
    """
    start = time.monotonic()
    report = report or Reporter()
    parse_bytes(request.max_memory)
    if not 0 < request.negatives <= 1:
        raise ValueError(f"negatives must be a share, above 0 up to 1. Got {request.negatives}.")
    if request.out is not None:
        check_output(as_place(request.out), force=request.force)
    rows = _read_rows(request)
    report.log(f"read {request.store}: {len(rows.stack):,} images, {len(rows.stack.models)} models")
    settings = _settings(request, rows)
    if request.out is not None:
        check_output(as_place(request.out), settings, force=request.force)
    fit_start = time.monotonic()
    writer = None
    if request.dask is None:
        _fit(rows, report)
    else:
        rows, writer = _fit_on_workers(request, rows, report)
    summary = _summary(request, rows)
    fill_start = time.monotonic()
    if request.out is None:
        summary.measured_images = _measure(rows, report)
    else:
        with report.progress("rows", len(rows.stack)) as advance:
            summary.written = write_pairs(
                request.out,
                rows,
                settings=settings,
                rows_per_part=request.rows_per_part,
                force=request.force,
                advance=advance,
                writer=writer,
            )
        summary.measured_images = summary.written.n_built
    summary.fit_seconds, summary.fill_seconds = (
        fill_start - fit_start,
        time.monotonic() - fill_start,
    )
    summary.costs = _costs(summary, rows.features)
    summary.seconds = time.monotonic() - start
    return summary


def _read_rows(request: Request) -> PairRows:
    """Read the store and check everything that can be checked before fitting."""
    store = FeatureStore.open(request.store).without_skipped()
    _check_labelled(store)
    stack = store.to_stack()
    blocks = _written_blocks(stack) if request.blocks is None else request.blocks
    if blocks != "default":
        # Fitting refuses a missing input too, but after minutes.
        blocks = tuple((block.name, options) for block, options in resolve_blocks(blocks, stack))
    features = PairFeatures(
        blocks=blocks,
        candidates=request.candidates,
        max_memory=request.max_memory,
        n_jobs=request.n_jobs,
    )
    known = store.labels_known
    rows = PairRows(features, stack, store.labels, known, store.fold, request.negatives)
    if request.candidates != "auto":
        # Only "auto" looks at probabilities and labels: this refuses unknown class groups.
        n_classes = len(rows.stack.classes)
        empty = np.empty((0, n_classes), dtype=np.float32)
        resolve_candidates(request.candidates, empty, rows.labels[:0], rows.stack.label_space)
    return rows


def _check_labelled(store: FeatureStore) -> None:
    known, fold = store.labels_known, store.fold
    if not known.any():
        raise ValueError(f"no image of {store.path} has labels. Add them with store.set_labels.")
    homeless = store.image_ids[known & (fold < 0)]
    advice = (
        "Give them in Python: store.set_fold(features.folds.make_folds(store.labels, 5, "
        "store.split_group))."
    )
    if len(homeless):
        raise ValueError(
            f"every labelled image needs a fold; {len(homeless):,} of {int(known.sum()):,} in "
            f"{store.path} have none, first: {first_few(homeless)}. {advice}"
        )
    if len(np.unique(fold[known])) < 2:
        raise ValueError(
            f"the labelled images must lie in at least two folds; those of {store.path} all lie "
            f"in fold {int(fold[known][0])}. {advice}"
        )
    check_folds(np.where(known, fold, -1), store.split_group)


def _written_blocks(stack: Stack) -> BlockSpec:
    """Blocks of a pair folder that nobody chose: whoever trains on it may want A10's columns."""
    missing = find_block("combinations").available(stack)
    return "default" if missing else ("default", "combinations")


def _settings(request: Request, rows: PairRows) -> dict[str, Any]:
    """Everything that the bytes of the parts depend on, as JSON values."""
    chosen: Mapping[str, Any] = {
        "store": fingerprint(
            rows.stack, labels=rows.labels, labels_known=rows.labels_known, fold=rows.fold
        ),
        "blocks": request.blocks,
        "candidates": request.candidates,
        "rows_per_part": request.rows_per_part,
        "negatives": request.negatives,
        "versions": {"pairstack": version("pairstack"), "pyarrow": pa.__version__},
    }
    # Through JSON and back: tuples become lists here as they do in the folder's record.
    return dict(json.loads(json.dumps(chosen)))


def _fit(rows: PairRows, report: Reporter) -> None:
    known = rows.labels_known
    stack: Stack = rows.stack if known.all() else rows.stack[known]
    labels: sparse.csr_array = rows.labels[known]
    report.log(f"fitting the blocks on {len(stack):,} labelled images")
    rows.features.fit(stack, labels, rows.fold[known])


def _fit_on_workers(
    request: Request, rows: PairRows, report: Reporter
) -> tuple[PairRows, Writer | None]:
    """Fit on a Dask worker; the rows with their numbers known, and what writes their parts."""
    from features import dask

    client = dask.connect(str(request.dask))
    store = FeatureStore.open(request.store).without_skipped()
    images = dask.Images.of_store(store)
    known = np.flatnonzero(rows.labels_known)
    report.log(f"fitting the blocks on {len(known):,} labelled images, on a worker")
    settings = {
        name: getattr(rows.features, name)
        for name in ("blocks", "candidates", "max_memory", "random_state")
    }
    state, features = dask.fit_features(
        client, dask.Images.of_store(store, known), rows.labels[known], rows.fold[known], settings
    )
    rows = replace(rows, features=features)
    rows = replace(rows, counted=dask.count_rows(client, state, images, rows))
    if request.out is None:
        return rows, None
    out = request.out
    return rows, lambda pending: dask.write_parts(client, state, images, rows, pending, out)


def _summary(request: Request, rows: PairRows) -> Summary:
    features, n_images = rows.features, len(rows.stack)
    groups = [str(name) for name in features.space_.group_names]
    return Summary(
        out=request.out,
        n_images=n_images,
        n_labelled=int(rows.labels_known.sum()),
        n_rows=int(rows.indptr[-1]),
        n_columns=len(features.columns_),
        candidates=dict(zip(groups, features.per_group_.tolist(), strict=True)),
        recall=features.candidate_recall_,
        overall_recall=features.overall_recall_,
    )


def _measure(rows: PairRows, report: Reporter) -> int:
    """Build the rows of some images for their cost alone; give how many."""
    most = max(ROWS_PER_GROUP // rows.features.rows_per_image_, 1)
    some = rows.stack[:most]
    fold = np.where(rows.labels_known, rows.fold, -1)[:most]
    with report.progress("measuring", len(some)) as advance:
        for batch in rows.features.batches(some, fold):
            advance(len(batch.blend))
    return len(some)


def _costs(summary: Summary, features: PairFeatures) -> list[BlockCost]:
    scale = summary.n_images / max(summary.measured_images, 1)
    costs = [
        BlockCost(
            name,
            n_columns,
            features.seconds_.get(f"{name}/fit", 0.0),
            features.seconds_.get(f"{name}/fill", 0.0) * scale,
            4 * n_columns * summary.n_rows,
        )
        for name, n_columns in features.n_columns_.items()
    ]
    known = _total(costs)
    fit = max(summary.fit_seconds - known.fit_seconds, 0.0)
    fill = max(summary.fill_seconds * scale - known.fill_seconds, 0.0)
    return [*costs, BlockCost("other", 0, fit, fill, 0)]


def _total(costs: list[BlockCost]) -> BlockCost:
    return BlockCost(
        "total",
        sum(cost.n_columns for cost in costs),
        sum(cost.fit_seconds for cost in costs),
        sum(cost.fill_seconds for cost in costs),
        sum(cost.n_bytes for cost in costs),
    )


def _written_lines(written: Written) -> list[str]:
    lines = [f"parts    {written.n_parts:,}, {format_bytes(written.n_bytes)}"]
    if written.resumed:
        lines.append(f"resumed  skipped {len(written.resumed):,} parts that were there already")
    if written.rewritten:
        names = first_few(written.rewritten)
        lines.append(f"repaired {len(written.rewritten):,} parts with a wrong checksum: {names}")
    return lines


def format_bytes(n_bytes: float) -> str:
    """Write a size in decimal units.

    Examples
    --------
    >>> format_bytes(12), format_bytes(6_240_000_000)
    ('12 B', '6.2 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.1f} {unit}" if unit != "B" else f"{n_bytes:.0f} B"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
