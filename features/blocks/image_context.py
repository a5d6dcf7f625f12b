"""What the blend says about the image as a whole, and about the row's class group.

Sum of p (the expected number of labels), maximum, entropy (nats, of the independent labels) and
the number of classes above 0.1 and 0.5: once over all classes (``:image``), once over the
classes of the row's group (``:group``). O(n_images * n_classes) a batch.
"""

import numpy as np

from features.blocks.types import Batch, Block, Column, Float, State, nothing_to_fit
from features.schema import Stack

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
    out[:, :5] = _summary(batch.blend)[batch.row_image]
    row_group = codes[batch.row_class]
    for code in range(len(batch.space.group_names)):
        rows = row_group == code
        out[rows, 5:] = _summary(batch.blend[:, codes == code])[batch.row_image[rows]]


def _summary(probs: Float) -> Float:
    """Compute the five statistics of each image, (n_images, 5)."""
    p = np.clip(probs, np.float32(1e-7), np.float32(1 - 1e-7))
    entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return np.stack(
        [
            probs.sum(axis=1),
            probs.max(axis=1, initial=0),
            entropy.sum(axis=1),
            (probs > np.float32(0.1)).sum(axis=1),
            (probs > np.float32(0.5)).sum(axis=1),
        ],
        axis=1,
    ).astype(np.float32)


IMAGE_CONTEXT = Block("image_context", nothing_to_fit, _columns, _fill)
