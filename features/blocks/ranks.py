"""Where a class stands among the classes of its image.

Ranks count the classes with a higher probability (0 = the most probable, ties share a rank):
``rank:blend``, ``rank_group:blend`` inside the class group, ``rank:<model>``. Then the gap and
the ratio of the blended probability to the image's and the group's maximum and the gap to the
next lower class. With ``per_model="both"`` also ``rank_group:<model>``, each model's rank inside
the class group. O(n_rows * n_classes) comparisons a model, on whole vectors.
"""

import numpy as np
from numba import njit, prange

from features.blocks.types import Batch, Block, Column, Float, State, Training
from features.schema import Stack

PER_MODEL = ("image", "both")
BLEND_COLUMNS = (
    ("rank:blend", "classes above"),
    ("rank_group:blend", "classes of the group above"),
    ("gap_max:blend", "image maximum - p"),
    ("ratio_max:blend", "p / image maximum"),
    ("gap_group_max:blend", "group maximum - p"),
    ("ratio_group_max:blend", "p / group maximum"),
    ("gap_next:blend", "p - next lower p"),
)


def _fit(train: Training, *, per_model: str = "image") -> State:
    if per_model not in PER_MODEL:
        raise ValueError(f"per_model must be one of {PER_MODEL}. Got {per_model!r} instead.")
    return {"per_model": per_model}


def _columns(stack: Stack, state: State) -> list[Column]:
    models = tuple(stack.models)
    blend = [Column(name, "ranks", formula, models) for name, formula in BLEND_COLUMNS]
    overall = [Column(f"rank:{m}", "ranks", "classes above", (m,)) for m in models]
    if state["per_model"] == "image":
        return blend + overall
    group = [Column(f"rank_group:{m}", "ranks", "classes of the group above", (m,)) for m in models]
    return blend + overall + group


def _fill(batch: Batch, state: State, out: Float) -> None:
    n_blend, n_models = len(BLEND_COLUMNS), len(batch.stack.models)
    codes = batch.space.group_codes
    _blend_ranks(batch.blend, codes, batch.candidates.indptr, batch.row_class, out[:, :n_blend])
    out[:, n_blend : n_blend + n_models] = batch.row_ranks
    if state["per_model"] == "both":
        _group_ranks(
            batch.probs, codes, batch.row_image, batch.row_class, out[:, n_blend + n_models :]
        )


@njit(parallel=True, cache=True)
def _group_ranks(probs, codes, images, classes, out):  # type: ignore[no-untyped-def]
    """Count the classes of the row's group that each model puts above it, (n_rows, n_models)."""
    for row in prange(len(classes)):
        own = classes[row]
        for m in range(len(probs)):
            values = probs[m, images[row]]
            above = np.int32(0)
            for c in range(len(values)):
                above += np.int32((values[c] > values[own]) & (codes[c] == codes[own]))
            out[row, m] = above


@njit(parallel=True, cache=True, error_model="numpy")
def _blend_ranks(blend, codes, indptr, classes, out):  # type: ignore[no-untyped-def]
    """Fill the seven columns of BLEND_COLUMNS, in their order."""
    n_groups = codes.max() + 1
    tiny = np.float32(1e-12)
    for image in prange(len(indptr) - 1):
        values = blend[image]
        top, lowest = values.max(), values.min()
        group_top = np.zeros(n_groups, dtype=np.float32)
        # The lowest value stands above nothing: of a top-k stack that is nearly every class.
        kept = np.empty(len(values), dtype=np.float32)
        kept_codes = np.empty(len(values), dtype=np.int32)
        n_kept = 0
        for c in range(len(values)):  # written, then kept or written over: no branch
            group_top[codes[c]] = max(group_top[codes[c]], values[c])
            kept[n_kept], kept_codes[n_kept] = values[c], codes[c]
            n_kept += values[c] > lowest
        for row in range(indptr[image], indptr[image + 1]):
            own = values[classes[row]]
            code = codes[classes[row]]
            above = np.int32(0)
            above_in_group = np.int32(0)
            lower = lowest if lowest < own else np.float32(0)
            for j in range(n_kept):
                other = kept[j]
                above += np.int32(other > own)
                above_in_group += np.int32((other > own) & (kept_codes[j] == code))
                lower = max(lower, other if other < own else np.float32(0))
            out[row, 0] = above
            out[row, 1] = above_in_group
            out[row, 2] = top - own
            out[row, 3] = own / (top + tiny)
            out[row, 4] = group_top[code] - own
            out[row, 5] = own / (group_top[code] + tiny)
            out[row, 6] = own - lower


RANKS = Block("ranks", _fit, _columns, _fill, options={"per_model": "image"})
