"""What boosting runs on Dask workers: plain functions of arrays and models' texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._dask_tasks import KERNELS, Tree, read_images, restore, same, worker_threads
from stacker.blend import log_losses
from stacker.boosters import BOOSTERS, SNAPSHOT_EVERY

__all__ = ["corrections", "curve", "margin", "same", "take"]

Float = NDArray[np.float32]


def take(values: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Rows of an array."""
    return values[mask]


def load(name: str, text: str) -> Any:
    """Booster from its text, for the threads of this worker."""
    return BOOSTERS[name]({}, worker_threads(), 0).from_text(text)


def margin(features: Float, mask: NDArray[np.bool_], name: str, text: str, rounds: int) -> Float:
    """Sum of a booster's first trees on some rows of a partition, float32 (n_chosen,)."""
    return load(name, text).margin(features[mask], 0, rounds)


def curve(
    features: Float, mask: NDArray[np.bool_], known: Tree, name: str, text: str, rounds: int
) -> NDArray[np.float64]:
    """Sum of the weighted log loss of some rows after every SNAPSHOT_EVERY rounds.

    Parameters
    ----------
    known : dict
        ``label``, ``start`` and ``weight`` of the chosen rows.
    """
    booster, chosen, raw = load(name, text), features[mask], known["start"].copy()
    sums = []
    for first in range(0, rounds, SNAPSHOT_EVERY):
        raw += booster.margin(chosen, first, first + SNAPSHOT_EVERY)
        sums.append(np.dot(log_losses(raw, known["label"]).astype(np.float64), known["weight"]))
    return np.array(sums)


def corrections(
    state: Tree, source: Tree, texts: dict[str, str]
) -> tuple[NDArray[np.int32], NDArray[np.int32], Float]:
    """Image in the range, class and mean correction of every row of new images."""
    features, stack = restore(state), read_images(source)
    boosters = [load(name, text) for name, text in texts.items()]
    images, classes, raw = [], [], []
    with KERNELS:
        for batch in features.batches(stack):
            images.append(batch.row_image.astype(np.int32))
            classes.append(batch.row_class)
            raw.append(np.mean([b.correction(batch.features) for b in boosters], axis=0))
    return _join(images, np.int32), _join(classes, np.int32), _join(raw, np.float32)


def _join(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype=dtype), *parts]).astype(dtype)
