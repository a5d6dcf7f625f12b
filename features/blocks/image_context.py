"""What the blend says about the image as a whole, and about the row's class group.

Sum of p (the expected number of labels), maximum, entropy (nats, of the independent labels) and
the number of classes above 0.1 and 0.5: once over all classes (``:image``), once over the
classes of the row's group (``:group``). O(n_images * n_classes) a batch.
"""

import numpy as np
from numba import njit, prange

from features.blocks.types import Batch, Block, Column, Float, State, nothing_to_fit
from features.schema import Stack

LOWEST, HIGHEST = np.float32(1e-7), np.float32(1 - 1e-7)
TENTH, HALF = np.float32(0.1), np.float32(0.5)
STATISTICS = ("sum", "max", "entropy", "above_0.1", "above_0.5")


def _columns(stack: Stack, state: State) -> list[Column]:
    models = tuple(stack.models)
    return [
        Column(f"{name}:{of}", "image_context", f"{name} of blended p over the {of}", models)
        for of in ("image", "group")
        for name in STATISTICS
    ]


def _fill(batch: Batch, state: State, out: Float) -> None:
    codes = batch.space.group_codes
    table = np.empty((len(batch.stack), len(batch.space.group_names) + 1, 5), dtype=np.float32)
    _summarise(batch.blend, codes, table)
    out[:, :5] = table[batch.row_image, -1]
    out[:, 5:] = table[batch.row_image, codes[batch.row_class]]


@njit(parallel=True, cache=True)
def _summarise(blend, codes, table):  # type: ignore[no-untyped-def]
    """Fill (n_images, n_groups + 1, 5): each group's five statistics, the whole image's last."""
    n_groups = table.shape[1] - 1
    for image in prange(len(blend)):
        total = np.zeros((n_groups, 5))
        last, entropy = np.float32(-1), np.float32(0)
        for c in range(blend.shape[1]):
            p = blend[image, c]
            # Two logarithms a class, but most classes of a top-k stack share one value.
            if p != last:
                last, entropy = p, _entropy(p)
            own = total[codes[c]]
            own[0] += p
            own[1] = max(own[1], p)
            own[2] += entropy
            own[3] += p > TENTH
            own[4] += p > HALF
        # Loops, not slices: those take long to compile.
        for s in range(5):
            whole = 0.0
            for g in range(n_groups):
                table[image, g, s] = total[g, s]
                whole = max(whole, total[g, s]) if s == 1 else whole + total[g, s]
            table[image, n_groups, s] = whole


@njit(cache=True)
def _entropy(p):  # type: ignore[no-untyped-def]
    """Entropy in nats of one label."""
    clipped = min(max(p, LOWEST), HIGHEST)
    return -clipped * np.log(clipped) - (1 - clipped) * np.log1p(-clipped)


IMAGE_CONTEXT = Block("image_context", nothing_to_fit, _columns, _fill)
