"""Embeddings, ImageNet logits and statistics in files, for the images of imported predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features import _checks as checks
from features._predictions import Predictions, is_named, read_vectors

__all__ = ["Images", "read_statistics", "read_vectors_of"]


@dataclass(frozen=True)
class Images:
    """The images that get a row each.

    Attributes
    ----------
    ids : str array of shape (n_images,)
        Labelled images, then test images.
    n_known : int
        How many are labelled.
    have_order : bool
        Whether rows without ids can only be in the order of `ids`.
    id_column : str or None
        Column of ids in tables; None finds it.
    say : callable
        Is told what was assumed or left out.
    """

    ids: NDArray[np.str_]
    n_known: int
    have_order: bool
    id_column: str | None
    say: Callable[[str], None]


def read_vectors_of(source: Any, images: Images, where: str) -> NDArray[Any]:
    """Read a vector for each image.

    Parameters
    ----------
    source : path, array or DataFrame, or a list of them
        Files as in `read_vectors`. Rows with ids are matched by them; rows without are those of
        the labelled images, then those of the test images.
    images : Images
    where : str
        What is read, for the messages.

    Returns
    -------
    array of shape (n_images, dim)

    Raises
    ------
    ValueError
        For missing or repeated images, another number of rows, parts of different widths.
    """
    parts = _read_parts(source, images)
    shapes = [np.shape(part) for part in parts]
    if any(len(shape) != 2 for shape in shapes) or len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(f"shapes: {where} must be (n_images, dim); got {shapes}.")
    frames = [pd.DataFrame(np.asarray(p), index=p.index) for p in parts if _has_ids(p)]
    if len(frames) == len(parts):
        return np.asarray(_picked(pd.concat(frames), images, where))
    if frames:
        raise ValueError(
            f"ids: one file of {where} names its images and another does not. Save ids in both."
        )
    return _in_given_order([np.asarray(part) for part in parts], images, where)


def read_statistics(source: Any, images: Images) -> pd.DataFrame:
    """Read statistics of each image from tables like those of ``cnn-extract stats``.

    Parameters
    ----------
    source : path or DataFrame, or a list of them
        Ids, and a named column for each statistic.
    images : Images

    Returns
    -------
    DataFrame of n_images rows, indexed by id

    Raises
    ------
    ValueError
        For files without names, other columns in one than in another, missing or repeated images.
    """
    parts = _read_parts(source, images)
    frames = [part for part in parts if _has_ids(part) and is_named(part.columns)]
    for part in frames:
        other = set(part.columns) ^ set(frames[0].columns)
        if other:
            raise ValueError(
                f"image_stats: one table has columns that another lacks, {sorted(other)[:5]}."
            )
    if len(frames) < len(parts):
        raise ValueError(
            "image_stats must be a CSV or Parquet file with ids and a named column for each "
            "statistic, as `cnn-extract stats` writes it."
        )
    return _picked(pd.concat(frames), images, "image_stats")


def _read_parts(source: Any, images: Images) -> list[Predictions]:
    return [_read(one, images) for one in (source if isinstance(source, list) else [source])]


def _read(source: Any, images: Images) -> Predictions:
    if isinstance(source, str | Path):
        return read_vectors(source, images.id_column)
    source = checks.from_polars(source, None)
    return source if isinstance(source, pd.DataFrame) else np.asarray(source)


def _has_ids(part: Predictions) -> TypeGuard[pd.DataFrame]:
    """Whether rows have names; an index of 0, 1, 2, ... is none."""
    if not isinstance(part, pd.DataFrame) or isinstance(part.index, pd.RangeIndex):
        return False
    return is_named(part.index)


def _picked(rows: pd.DataFrame, images: Images, where: str) -> pd.DataFrame:
    """Rows of the images, in their order; those of other images are left out."""
    names = checks.as_names(rows.index, "image id")
    wanted = np.isin(names, images.ids)
    order = checks.positions(images.ids, names[wanted], what="image id", where=where)
    left = int((~wanted).sum())
    if left:
        images.say(f"{where}: {left:,} images without predictions are left out")
    kept = rows[wanted]
    return kept if order is None else kept.iloc[order]


def _in_given_order(parts: list[NDArray[Any]], images: Images, where: str) -> NDArray[Any]:
    """Rows without ids: all images in one part, or labelled ones in one, test ones in the next."""
    n_all, n_known = len(images.ids), images.n_known
    sizes = [len(part) for part in parts]
    if sizes not in ([n_all], [n_known, n_all - n_known]):
        test = f" and {n_all - n_known:,} test" if n_all > n_known else ""
        raise ValueError(
            f"shapes: {where} has {' + '.join(f'{n:,}' for n in sizes)} rows; there are "
            f"{n_known:,} labelled{test} images. Give a row for each, or save ids with the rows."
        )
    if not images.have_order:
        raise ValueError(
            f"ids: rows of {where} have no ids, and the images stand in one order in the labels, "
            "in another in the predictions. Save ids with the rows (a CSV, or image_id in an "
            ".npz), or give their order (image_ids, --ids)."
        )
    images.say(f"{where}: row k is the k-th image, test images last")
    return np.concatenate(parts)
