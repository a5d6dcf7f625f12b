"""Write a run's predictions into the store, chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnn_extract.extract import open_chunks
from cnn_extract.heads import combine_folds
from cnn_extract.train.data import TrainData
from cnn_extract.train.recipe import Recipe
from cnn_extract.train.units import list_units, read_predictions

if TYPE_CHECKING:
    from features.store import FeatureStore

__all__ = ["write_predictions"]


def write_predictions(
    store: FeatureStore,
    name: str,
    out: Path,
    recipe: Recipe,
    data: TrainData,
    accelerator: Any,
    *,
    attrs: Mapping[str, Any],
) -> bool:
    """Write model `name`: labelled images out of fold, the others by the mean of all folds.

    Each process writes chunks of its own. The fold networks' predictions of unlabelled images are
    kept in ``fold_probabilities`` too.

    Returns
    -------
    bool
        False when folds are missing: nothing is written then.
    """
    parts = [(unit, read_predictions(out, unit)) for unit in list_units(recipe, data)]
    if any(values is None for _, values in parts):
        return False
    arrays = _require_arrays(store, name, data, attrs, accelerator)
    chunks = open_chunks(store, arrays)[accelerator.process_index :: accelerator.num_processes]
    place = {f: _places(data, f) for f in range(int(data.fold.max()) + 1)}
    for chunk in chunks:
        rows = np.arange(chunk.start, chunk.stop)
        every = np.full((len(place), len(rows), store.n_classes), np.nan, dtype=np.float32)
        for unit, values in parts:
            assert values is not None
            index = place[unit.fold][rows]
            here = np.flatnonzero(index >= 0)
            every[unit.fold, here[:, None], unit.columns] = values[index[here]]
        own, unlabelled = combine_folds(every, data.fold[rows])
        for array in arrays:
            values = own if array.startswith("probabilities") else unlabelled
            store.write_rows(array, chunk.start, values)
    accelerator.wait_for_everyone()
    return True


def _places(data: TrainData, fold: int) -> NDArray[np.intp]:
    """Where each image stands in a fold's predictions, -1 where it is not among them."""
    place = np.full(len(data.fold), -1, dtype=np.intp)
    rows = data.to_predict(fold)
    place[rows] = np.arange(len(rows))
    return place


def _require_arrays(
    store: FeatureStore, name: str, data: TrainData, attrs: Mapping[str, Any], accelerator: Any
) -> list[str]:
    names = [f"probabilities/{name}"]
    if (data.fold < 0).any():
        names.insert(0, f"fold_probabilities/{name}")
    if accelerator.is_main_process:
        n_folds = int(data.fold.max()) + 1
        if len(names) > 1:
            dims = ("fold", "image", "class")
            store.require_array(names[0], (n_folds, store.n_classes), np.float32, dims, attrs)
        store.require_array(names[-1], (store.n_classes,), np.float32, ("image", "class"), attrs)
    accelerator.wait_for_everyone()
    return names
