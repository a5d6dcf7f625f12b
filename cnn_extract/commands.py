"""The small commands: statistics and folds as CSV files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from cnn_extract._settings import check_settings
from cnn_extract.decode import DecodePool, Scanned, n_cores, scan_images
from cnn_extract.extract import count_channels
from cnn_extract.images import ImageError, ImageSource, open_images
from cnn_extract.run import RefusedError
from cnn_extract.stats import stat_names
from cnn_extract.tables import lines_of, read_labels, read_metadata, split_groups, write_csv
from features._console import Reporter

__all__ = ["write_folds", "write_stats"]

BATCH = 32


def write_stats(
    images: Path,
    out: Path,
    *,
    workers: int | None = None,
    on_error: str = "stop",
    force: bool = False,
    report: Reporter | None = None,
) -> str:
    """Write the statistics of every image to a CSV file; a line about it.

    Raises
    ------
    RefusedError
        When `out` is there and `force` is not given.
    ImageError
        For an unreadable image, with ``on_error="stop"``; with "skip" its line is empty.
    ValueError
        For another `on_error`, and fewer than no workers.
    """
    check_settings(workers=workers, on_error=on_error)
    _refuse_existing(out, force)
    report = report or Reporter()
    source = open_images(images)
    n_channels = count_channels(source)
    task = partial(scan_images, n_channels=n_channels)
    batches = [range(k, min(k + BATCH, len(source))) for k in range(0, len(source), BATCH)]
    parts: list[Scanned] = []
    with (
        DecodePool(source, n_cores() if workers is None else workers) as pool,
        report.progress("statistics", len(source)) as advance,
    ):
        for part in pool.map(task, batches):
            if part.errors and on_error == "stop":
                raise ImageError(next(iter(part.errors.values())))
            parts.append(part)
            advance(len(part.stats))
    write_csv(_stats_frame(source, parts, n_channels), out)
    errors = [text for part in parts for text in part.errors.values()]
    for text in errors:
        report.log(f"skipped: {text}")
    return f"{out}: {len(source):,} images, {len(errors):,} skipped with an error"


def _stats_frame(source: ImageSource, parts: list[Scanned], n_channels: int) -> pd.DataFrame:
    values = np.concatenate([part.stats for part in parts])
    index = pd.Index(source.ids, name="image_id")
    return pd.DataFrame(values, index=index, columns=list(stat_names(n_channels)))


def write_folds(
    labels: Path,
    out: Path,
    *,
    metadata: Path | None = None,
    n_folds: int = 5,
    seed: int = 0,
    id_column: str = "image_id",
    label_column: str = "labels",
    force: bool = False,
) -> str:
    """Write the fold of every labelled image to a CSV file; a line about it.

    Raises
    ------
    RefusedError
        When `out` is there and `force` is not given.
    ValueError
        For bad tables, and fewer split groups than folds.
    """
    from features.folds import make_folds

    _refuse_existing(out, force)
    table = read_labels(labels, id_column=id_column, label_column=label_column)
    matrix, _ = table.aligned(table.image_ids)
    group = None
    if metadata is not None:
        frame = read_metadata(metadata, id_column=id_column)
        group = split_groups(lines_of(frame, table.image_ids, metadata), metadata)
    fold = make_folds(matrix, n_folds=n_folds, split_group=group, random_state=seed)
    index = pd.Index(table.image_ids, name=id_column)
    write_csv(pd.DataFrame({"fold": fold}, index=index), out)
    sizes = ", ".join(f"{n:,}" for n in np.bincount(fold, minlength=n_folds))
    return f"{out}: {len(fold):,} images in {n_folds} folds of {sizes}"


def _refuse_existing(out: Path, force: bool) -> None:
    if out.is_dir() or (out.exists() and not force):
        raise RefusedError(f"{out} is there; choose another --out, or --force to write it anew")
