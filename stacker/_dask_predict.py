"""Predictions of a large store, written by Dask workers as Parquet parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features import dask as features_dask
from features._dask_tasks import KERNELS, Tree, read_images, same, worker_threads
from features.dask import Images, submit
from features.store import FeatureStore
from stacker._output import temporary_beside
from stacker._saving import ARRAYS, model_tree, restore_model

__all__ = ["write_predictions"]

IMAGES_PER_PART = 16_384


def write_predictions(
    model: Any, store: FeatureStore, out: Path, dask: str, *, images_per_part: int = IMAGES_PER_PART
) -> int:
    """Write label sets as a folder of Parquet parts; nothing but names passes the client.

    Columns: ``image_id``, ``labels`` (list of class names) and ``probabilities`` (theirs). A part
    appears whole or not at all; parts that are there already are not made again.

    Parameters
    ----------
    model : fitted PairStacker
    store : FeatureStore
        Its classes in the order of the model's.
    out : Path
        Folder that every worker sees under this name.
    dask : str
        Scheduler address or "current".

    Returns
    -------
    int
        Number of parts.
    """
    if store.classes.tolist() != model.classes_.tolist():
        raise ValueError(
            "on Dask the store must have the model's classes in the model's order; predict "
            "without --dask, or build the store with classes= in that order."
        )
    out.mkdir(parents=True, exist_ok=True)
    client, images = features_dask.connect(dask), Images.of_store(store)
    images = Images(None, images.store, list(model.seen_["models"]), images.rows)
    tree, texts = model_tree(model)
    sent = submit(client, same, ({**tree, **dict.fromkeys(ARRAYS)}, texts))
    starts = range(0, images.n_images, images_per_part)
    paths = [out.resolve() / f"part-{number:05d}.parquet" for number in range(len(starts))]
    client.gather(
        [
            submit(client, _write, sent, images.source(a, a + images_per_part), str(path))
            for a, path in zip(starts, paths, strict=True)
            if not path.exists()
        ]
    )
    return len(paths)


def _write(sent: tuple[Tree, dict[str, str]], source: Tree, path: str) -> None:
    """Predict a range of images and write its part, on a worker."""
    from stacker.estimator import PairStacker

    model = restore_model(PairStacker, *sent)
    model.features_.n_jobs = worker_threads()
    stack = read_images(source)
    with KERNELS:
        proba = model.predict_proba(stack)
        sets = model.decision_.predict(proba)
    rows, columns = sets.nonzero()
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    ends = np.cumsum(np.bincount(rows, minlength=len(stack)))
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    names = pa.array(model.classes_[columns].astype(object), pa.string())
    chosen = np.asarray(proba[rows, columns], dtype=np.float32).ravel()
    table = {
        "image_id": pa.array(stack.image_ids.astype(object), pa.string()),
        "labels": pa.ListArray.from_arrays(offsets, names),
        "probabilities": pa.ListArray.from_arrays(offsets, pa.array(chosen)),
    }
    with temporary_beside(Path(path), force=True) as name:
        pq.write_table(pa.table(table), name)
