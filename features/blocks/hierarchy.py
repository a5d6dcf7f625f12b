"""Probabilities of a class's parent, ancestors and children (docs/recipes.md: B1).

``parent:blend``, ``ancestor_min:blend`` (the least probable ancestor; 1 for a root),
``p_over_parent:blend`` and ``children:blend`` (sum of the children's p). Needs `class_parent`.
O(n_images * n_classes * depth) a batch.
"""

import numpy as np
from numba import njit, prange

from features.blocks.types import Batch, Block, Column, Float, State, nothing_to_fit
from features.schema import Stack

COLUMNS = (
    ("parent:blend", "p of the parent, 1 for a root"),
    ("ancestor_min:blend", "least p of the ancestors, 1 for a root"),
    ("p_over_parent:blend", "p / p of the parent"),
    ("children:blend", "sum of p of the children"),
)


def _columns(stack: Stack, state: State) -> list[Column]:
    models = tuple(stack.models)
    return [Column(name, "hierarchy", formula, models) for name, formula in COLUMNS]


def _fill(batch: Batch, state: State, out: Float) -> None:
    parents = batch.space.parents
    assert parents is not None
    images, classes = batch.row_image, batch.row_class
    ancestors = np.ones(len(classes), dtype=np.float32)
    above = parents[classes]
    for _ in range(len(parents)):
        inside = above >= 0
        if not inside.any():
            break
        ancestors[inside] = np.minimum(
            ancestors[inside], batch.blend[images[inside], above[inside]]
        )
        above = np.where(inside, parents[above], -1)
    parent = parents[classes]
    out[:, 0] = np.where(parent >= 0, batch.blend[images, parent], np.float32(1))
    out[:, 1] = ancestors
    out[:, 2] = batch.row_blend / (out[:, 0] + np.float32(1e-6))
    out[:, 3] = _children(batch.blend, parents)[images, classes]


@njit(parallel=True, cache=True)
def _children(blend, parents):  # type: ignore[no-untyped-def]
    """Sum of the children's probabilities of every class, (n_images, n_classes)."""
    total = np.zeros_like(blend)
    for image in prange(len(blend)):
        for child in range(len(parents)):
            if parents[child] >= 0:
                total[image, parents[child]] += blend[image, child]
    return total


def _available(stack: Stack) -> str:
    return "" if stack.label_space.parents is not None else "class_parent"


HIERARCHY = Block("hierarchy", nothing_to_fit, _columns, _fill, _available)
