"""Approximate search: training images lie in cells, a query looks through the nearest ones.

Cells come from spherical k-means (Dhillon and Modha, 2001) on the int8 codes; all sums are of
integers, so neither threads nor batches nor machines change a cell. A query looks through its
nearest cells until they hold `SCANNED` images: the cost an image stays what it is however many
training images there are. Inside the cells the similarities are the exact ones, by
matrix products; docs/features.md compares with a graph index.
"""

from collections.abc import Callable

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from features.blocks._blas import blas_on_one_thread
from features.blocks.spaces import Codes, quantise

Float = NDArray[np.float32]
Found = tuple[NDArray[np.int64], Float]

SCANNED = 8_192  # training images that a query is compared with in a space
ROUNDS = 8  # of k-means
SAMPLE_PER_CELL = 64  # images a cell that k-means learns from
ASSIGNED_AT_ONCE = 4096


def fit_cells(codes: Codes) -> dict[str, NDArray[np.generic]]:
    """Divide images into about 1.5 sqrt(n) cells.

    Parameters
    ----------
    codes : Codes of n_images

    Returns
    -------
    dict
        ``centres`` int8 (n_cells, n_dimensions) and ``centre_norms`` float32 (n_cells,);
        ``members`` int64 (n_images,), images sorted by cell; ``starts`` int64 (n_cells + 1,).
    """
    n_images = len(codes.values)
    n_cells = max(1, int(1.5 * np.sqrt(n_images)))
    step = max(1, n_images // (SAMPLE_PER_CELL * n_cells))
    sample = Codes(codes.values[::step], codes.norms[::step])
    first = np.linspace(0, len(sample.values) - 1, n_cells).astype(np.int64)
    centres = Codes(sample.values[first], sample.norms[first])
    for _ in range(ROUNDS):
        centres = _means(sample, nearest_cell(sample, centres), centres)
    cell = nearest_cell(codes, centres)
    return {
        "centres": centres.values,
        "centre_norms": centres.norms,
        "members": np.argsort(cell, kind="stable"),
        "starts": np.searchsorted(np.sort(cell), np.arange(n_cells + 1)),
    }


def nearest_cell(codes: Codes, centres: Codes) -> NDArray[np.int64]:
    """Cell of each image, int64 (n_images,); a tie goes to the first."""
    parts = []
    for start in range(0, len(codes.values), ASSIGNED_AT_ONCE):
        some = codes.values[start : start + ASSIGNED_AT_ONCE].astype(np.float32)
        parts.append(np.argmax(some @ centres.values.astype(np.float32).T / centres.norms, axis=1))
    return np.concatenate(parts)


def _means(codes: Codes, cell: NDArray[np.int64], before: Codes) -> Codes:
    """Direction of each cell's members; an empty cell stays where it was."""
    # Each vector's largest entry is 127: unscaled, their lengths are alike, and the sums exact.
    sums = np.zeros(before.values.shape, dtype=np.int64)
    np.add.at(sums, cell, codes.values.astype(np.int64))
    moved = quantise(sums.astype(np.float32))
    empty = np.bincount(cell, minlength=len(sums)) == 0
    return Codes(
        np.where(empty[:, None], before.values, moved.values),
        np.where(empty, before.norms, moved.norms),
    )


def chosen_cells(query: Codes, centres: Codes, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark the nearest cells of each query, enough to hold SCANNED images, bool (n, n_cells)."""
    product = query.values.astype(np.float32) @ centres.values.astype(np.float32).T
    order = np.argsort(-(product / centres.norms), axis=1, kind="stable")
    sizes = np.diff(starts)[order]
    chosen = np.zeros(order.shape, dtype=np.bool_)
    np.put_along_axis(chosen, order, np.cumsum(sizes, axis=1) - sizes < SCANNED, axis=1)
    return chosen


def search_cells(
    chosen: NDArray[np.bool_],
    members: NDArray[np.int64],
    starts: NDArray[np.int64],
    compare: Callable[[NDArray[np.int64], NDArray[np.int64]], None],
) -> None:
    """Call `compare(queries, references)` for each cell that some query chose, cell by cell.

    In the order of the cells, whatever the batch: so ties between equally similar images fall
    the same way in every batch.
    """
    # Products this small gain nothing from BLAS threads, and those would keep numba's waiting.
    with blas_on_one_thread():
        for cell in np.flatnonzero(chosen.any(axis=0)):
            compare(np.flatnonzero(chosen[:, cell]), members[starts[cell] : starts[cell + 1]])


def union_of(found: list[Found]) -> NDArray[np.int64]:
    """Images that any space found, int64 (n_queries, n_spaces * k): rising; -1 for repeats."""
    ids = np.sort(np.concatenate([ids for ids, _ in found], axis=1), axis=1)
    ids[:, 1:][ids[:, 1:] == ids[:, :-1]] = -1
    return ids


def best_of(ids: NDArray[np.int64], similarity: Float, k: int) -> Found:
    """Take the k most similar of each row; -1 and similarity -1 where `ids` is -1."""
    similarity = np.where(ids < 0, np.float32(-1), similarity)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(similarity, order, axis=1)


@njit(parallel=True, cache=True)
def add_cosines(query, query_norms, reference, reference_norms, ids, total):  # type: ignore[no-untyped-def]
    """Add the cosine of each query and each of its images to `total`, float32 like `ids`."""
    for q in prange(len(ids)):
        for j in range(ids.shape[1]):
            r = ids[q, j]
            if r < 0:
                continue
            dot = np.int32(0)
            for d in range(query.shape[1]):
                dot += np.int32(query[q, d]) * np.int32(reference[r, d])
            total[q, j] += np.float32(dot) / query_norms[q] / reference_norms[r]
