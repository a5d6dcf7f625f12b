"""Label votes of the nearest training images (docs/recipes.md: A26).

For each space (every embedding, every set of ImageNet logits, the image statistics, the blend's
own predictions, and all of them together) and each k of 5, 15, 60: the share of the k nearest
images' votes that carry the row's class, each vote weighted by exp(15 * (similarity - best
similarity)). Then the similarity of the nearest image, one column a space. "All together" is the
mean similarity.

An image of fold k only ever sees neighbours of other folds. Up to EXACT_UP_TO training images
exact search by blocked matrix products, O(n_images * n_training * n_dimensions) a space; beyond,
only the nearest cells are looked through (`features/blocks/_cells.py`), O(n_images * 8,192 *
n_dimensions), and "all together" chooses among what the spaces found. Vectors are int8.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import get_num_threads, njit, prange
from numpy.typing import NDArray

from features.blocks._blas import blas_on_one_thread
from features.blocks._cells import (
    Found,
    add_cosines,
    best_of,
    chosen_cells,
    fit_cells,
    search_cells,
    union_of,
)
from features.blocks.spaces import Codes, space_names
from features.blocks.types import Batch, Block, Column, Float, State, Training
from features.schema import Stack

NEIGHBOURS = (5, 15, 60)
SHARPNESS = 15.0
REFERENCE_BLOCK = 4096
EXACT_UP_TO = 20_000  # training images; below, cells save nothing


def _fit(
    train: Training,
    *,
    k: tuple[int, ...] = NEIGHBOURS,
    sharpness: float = SHARPNESS,
    exact_up_to: int = EXACT_UP_TO,
) -> State:
    if not k or min(k) < 1 or list(k) != sorted(set(k)):
        raise ValueError(f"k must be rising numbers of neighbours, 1 or more. Got {k!r} instead.")
    state: State = {"spaces": space_names(train.stack), "k": list(k), "sharpness": sharpness}
    for name in state["spaces"]:
        codes = train.codes(name)
        state |= {f"{name}/values": codes.values, f"{name}/norms": codes.norms}
        if len(train.stack) > exact_up_to:
            state |= {f"{name}/{key}": value for key, value in fit_cells(codes).items()}
    state["labels"] = train.labels
    state["fold"] = train.fold.astype(np.int64)
    return state


def _columns(stack: Stack, state: State) -> list[Column]:
    names = [*state["spaces"], "all"]
    votes = [
        Column(f"neighbours_k{k}:{name}", "neighbours", f"vote share of {k}", (name,), True)
        for name in names
        for k in state["k"]
    ]
    nearest = [Column(f"nearest:{name}", "neighbours", "cosine", (name,), True) for name in names]
    return votes + nearest


def _fill(batch: Batch, state: State, out: Float) -> None:
    labels, ks = state["labels"], np.array(state["k"], dtype=np.int64)
    found = nearest_images(batch, state, int(ks[-1]))
    for s, (ids, similarity) in enumerate(found):
        _vote(
            ids,
            similarity,
            labels.indptr.astype(np.int64),
            labels.indices.astype(np.int64),
            len(batch.space),
            ks,
            np.float32(state["sharpness"]),
            batch.candidates.indptr,
            batch.row_class,
            out[:, s * len(ks) : (s + 1) * len(ks)],
        )
        out[:, len(found) * len(ks) + s] = similarity[batch.row_image, 0]


def nearest_images(batch: Batch, state: State, k: int) -> list[Found]:
    """Find the k most similar training images in every space, then in all together.

    Returns
    -------
    list of (ids, similarity), one a space and one for their mean
        Each of shape (n_images, k), most similar first; id -1 and similarity -1 where there
        are fewer than k images outside the query's fold.
    """
    queries = {name: batch.codes(name) for name in state["spaces"]}
    n_images = len(batch.stack)
    found = [
        (np.full((n_images, k), -1, dtype=np.int64), np.full((n_images, k), -1, dtype=np.float32))
        for _ in range(len(queries) + 1)
    ]
    if any(key.endswith("/centres") for key in state):
        for (name, query), best in zip(queries.items(), found[:-1], strict=True):
            _look_through_cells(name, query, batch.entry, state, best)
        found[-1] = _nearest_together(queries, found[:-1], state, k)
    else:
        _look_through_all(queries, batch.entry, state, found)
    return found


def _look_through_all(
    queries: dict[str, Codes], entry: NDArray[np.int64], state: State, found: list[Found]
) -> None:
    """Compare with every training image; every thread has queries of its own.

    BLAS runs on one thread inside each: its own threads would keep the others waiting.
    """
    n_threads = min(get_num_threads(), len(entry))
    parts = np.array_split(np.arange(len(entry)), max(n_threads, 1))
    with blas_on_one_thread(), ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(lambda some: _compare_some(some, queries, entry, state, found), parts))


def _compare_some(
    some: NDArray[np.int64],
    queries: dict[str, Codes],
    entry: NDArray[np.int64],
    state: State,
    found: list[Found],
) -> None:
    """Compare some queries with every training image, block by block."""
    own = {name: Codes(query.values[some], query.norms[some]) for name, query in queries.items()}
    n_training = len(state["fold"])
    for start in range(0, n_training, REFERENCE_BLOCK):
        block = np.arange(start, min(start + REFERENCE_BLOCK, n_training))
        fold = state["fold"][block]
        total = np.zeros((len(some), len(block)), dtype=np.float32)
        for (name, query), best in zip(own.items(), found[:-1], strict=True):
            similarity = cosine(query, _reference(state, name, block))
            _keep_best(similarity, some, block, entry, fold, *best)
            total += similarity
        _keep_best(total / np.float32(len(own)), some, block, entry, fold, *found[-1])


def _look_through_cells(
    name: str, query: Codes, entry: NDArray[np.int64], state: State, best: Found
) -> None:
    """Compare with the training images of each query's nearest cells."""
    members, starts = state[f"{name}/members"], state[f"{name}/starts"]
    centres = Codes(state[f"{name}/centres"], state[f"{name}/centre_norms"])

    def compare(some: NDArray[np.int64], block: NDArray[np.int64]) -> None:
        own = Codes(query.values[some], query.norms[some])
        similarity = cosine(own, _reference(state, name, block))
        _keep_best_together(similarity, some, block, entry, state["fold"][block], *best)

    search_cells(chosen_cells(query, centres, starts), members, starts, compare)


def _nearest_together(queries: dict[str, Codes], found: list[Found], state: State, k: int) -> Found:
    """Choose by the mean similarity among the images that any space found."""
    ids = union_of(found)
    total = np.zeros(ids.shape, dtype=np.float32)
    for name, query in queries.items():
        reference = state[f"{name}/values"], state[f"{name}/norms"]
        add_cosines(query.values, query.norms, *reference, ids, total)
    return best_of(ids, total / np.float32(len(queries)), k)


def _reference(state: State, name: str, block: NDArray[np.int64]) -> Codes:
    return Codes(state[f"{name}/values"][block], state[f"{name}/norms"][block])


def cosine(left: Codes, right: Codes) -> Float:
    """Cosine of every pair, float32 (n_left, n_right); the integer products are exact."""
    product = left.values.astype(np.float32) @ right.values.astype(np.float32).T
    product /= left.norms[:, None]
    product /= right.norms
    return product


@njit(cache=True, nogil=True)
def _keep_best(similarity, queries, references, entry, fold, ids, best):  # type: ignore[no-untyped-def]
    """Merge similarities of some queries and images into the queries' sorted lists of k."""
    for i in range(len(queries)):
        q = queries[i]
        _merge(similarity[i], references, entry[q], fold, ids[q], best[q])


@njit(parallel=True, cache=True)
def _keep_best_together(similarity, queries, references, entry, fold, ids, best):  # type: ignore[no-untyped-def]
    """Do what `_keep_best` does, on all threads."""
    for i in prange(len(queries)):
        q = queries[i]
        _merge(similarity[i], references, entry[q], fold, ids[q], best[q])


@njit(cache=True)
def _merge(similarity, references, own_fold, fold, ids, best):  # type: ignore[no-untyped-def]
    """Insert one query's similarities into its sorted list."""
    for r in range(len(references)):
        value = similarity[r]
        # Ties stay with the image seen first; those of the query's own fold are not seen.
        if value <= best[-1] or fold[r] == own_fold:
            continue
        place = len(best) - 1
        while place > 0 and best[place - 1] < value:
            best[place] = best[place - 1]
            ids[place] = ids[place - 1]
            place -= 1
        best[place] = value
        ids[place] = references[r]


@njit(parallel=True, cache=True)
def _vote(  # type: ignore[no-untyped-def]
    ids, similarity, label_indptr, label_indices, n_classes, ks, sharpness, indptr, classes, out
):
    """Fill (n_rows, n_ks) with each class's share of the weighted votes."""
    for image in prange(len(ids)):
        votes = np.zeros(n_classes, dtype=np.float32)
        total = np.float32(0)
        checkpoint = 0
        for j in range(ids.shape[1]):
            neighbour = ids[image, j]
            if neighbour >= 0:
                weight = np.exp(sharpness * (similarity[image, j] - similarity[image, 0]))
                total += weight
                for p in range(label_indptr[neighbour], label_indptr[neighbour + 1]):
                    votes[label_indices[p]] += weight
            if j + 1 == ks[checkpoint]:
                for row in range(indptr[image], indptr[image + 1]):
                    out[row, checkpoint] = votes[classes[row]] / max(total, np.float32(1e-12))
                checkpoint += 1


NEIGHBOURS_BLOCK = Block(
    "neighbours",
    _fit,
    _columns,
    _fill,
    compares_images=True,
    options={"k": NEIGHBOURS, "sharpness": SHARPNESS, "exact_up_to": EXACT_UP_TO},
)
