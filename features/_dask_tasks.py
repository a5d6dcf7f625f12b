"""What runs on Dask workers: plain functions of arrays and plain data, importable everywhere.

A worker may be another machine with another working folder. A task therefore gets all it needs as
arguments: fitted features as a tree of arrays, and images either as arrays or as the absolute
place of a store.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from distributed import get_worker
from numpy.typing import NDArray
from scipy.sparse import csr_array

from features._places import as_place
from features._seal import file_sha256
from features._state import features_from_tree, features_tree
from features.assemble import PairFeatures, parse_bytes
from features.parquet import PairRows, pair_schema, write_part
from features.schema import LabelSpace, Stack
from features.store import FeatureStore

__all__ = ["Tree", "count_rows", "fit_features", "read_images", "rows_of", "stack_tree", "write"]

Tree = dict[str, Any]  # numbers, strings, arrays, CSR arrays, frames, and dicts and lists of them

# numba's kernels must not be entered by two threads of one process at a time.
KERNELS = threading.Lock()


def space_tree(space: LabelSpace) -> Tree:
    """Class names, groups and parents."""
    return {"names": space.names, "groups": space.groups, "parents": space.parent_names}


def space_from_tree(tree: Tree) -> LabelSpace:
    """Undo `space_tree`."""
    return LabelSpace(tree["names"], tree["groups"], tree["parents"])


def stack_tree(stack: Stack) -> Tree:
    """Take a stack apart into plain data."""
    return {
        "probabilities": dict(stack.probabilities),
        "image_ids": stack.image_ids,
        "space": space_tree(stack.label_space),
        "embeddings": dict(stack.embeddings),
        "imagenet_logits": dict(stack.imagenet_logits),
        "image_stats": stack.image_stats,
        "metadata": stack.metadata,
    }


def stack_from_tree(tree: Tree) -> Stack:
    """Undo `stack_tree`."""
    space = tree["space"]
    return Stack(
        tree["probabilities"],
        tree["image_ids"],
        space["names"],
        space["groups"],
        space["parents"],
        tree["embeddings"],
        tree["imagenet_logits"],
        tree["image_stats"],
        tree["metadata"],
    )


def read_images(source: Tree) -> Stack:
    """Read the images that a task works on.

    Parameters
    ----------
    source : dict
        ``{"stack": tree}``, or ``{"store": place, "models": names, "rows": positions, "run": id}``
        with rising positions among all images of the store.

    Raises
    ------
    FileNotFoundError
        When this worker does not see the store.
    """
    if "stack" in source:
        return stack_from_tree(source["stack"])
    place = source["store"]
    if "://" not in place and not Path(place).exists():
        raise FileNotFoundError(
            f"the worker {get_worker().address} sees no store at {place}. Put the store where "
            "every worker sees it under this name, or give a URL such as s3://."
        )
    store = _open(place, source["run"])
    mask = np.zeros(store.n_images, dtype=bool)
    mask[source["rows"]] = True
    return store.subset(mask).to_stack(source["models"])


@lru_cache(maxsize=2)
def _open(place: str, run: str) -> FeatureStore:
    """Open a store once a run and worker: the ids of all its images are read then."""
    return FeatureStore.open(place)


def fit_features(source: Tree, labels: csr_array, fold: NDArray[Any], settings: Tree) -> Tree:
    """Fit `PairFeatures(**settings)` on the images; its tree, with the classes."""
    stack = read_images(source)
    with KERNELS:
        features = PairFeatures(**settings, n_jobs=worker_threads())
        features.max_memory = worker_memory(features.max_memory)
        features.fit(stack, labels, fold)
    return {
        **features_tree(features),
        "space": space_tree(stack.label_space),
        "seconds": features.seconds_,
    }


def same(value: Any) -> Any:
    """Put something on a worker in such a way that the scheduler can do so again."""
    return value


def restore(tree: Tree) -> PairFeatures:
    """Fitted features, for the threads of this worker."""
    features = features_from_tree(tree, space_from_tree(tree["space"]))
    features.n_jobs = worker_threads()
    features.max_memory = worker_memory(features.max_memory)
    return features


def count_rows(tree: Tree, source: Tree, images: Tree) -> NDArray[np.int64]:
    """Rows of each image, int64 (n_images,)."""
    with KERNELS:
        return np.diff(_pair_rows(tree, source, images).indptr)


def rows_of(tree: Tree, source: Tree, fold: NDArray[Any]) -> NDArray[np.float32]:
    """Features of the rows of some images, float32 (n_rows, n_columns).

    Parameters
    ----------
    tree : from `fit_features`
    source : as in `read_images`
    fold : int array of shape (n_images,), -1 for new images
    """
    features, stack = restore(tree), read_images(source)
    with KERNELS:
        parts = [batch.features.copy() for batch in features.batches(stack, fold)]
    empty = np.empty((0, len(features.columns_)), dtype=np.float32)
    return np.concatenate([empty, *parts])


def write(tree: Tree, source: Tree, images: Tree, path: str) -> str:
    """Write one part of a pair folder; its checksum."""
    rows = _pair_rows(tree, source, images)
    with KERNELS:
        write_part(as_place(path), rows, 0, len(rows.stack), pair_schema(rows))
    return file_sha256(as_place(path))


def _pair_rows(tree: Tree, source: Tree, images: Tree) -> PairRows:
    """Rows of a range; `images` holds the labels, folds and position of its images."""
    return PairRows(restore(tree), read_images(source), **images)


def worker_threads() -> int:
    """Threads that this worker was started with."""
    return int(get_worker().state.nthreads)


def worker_memory(asked: int | str) -> int:
    """Working memory of a batch: as asked, but at most a quarter of this worker's limit."""
    limit = get_worker().memory_manager.memory_limit
    return min(parse_bytes(asked), limit // 4) if limit else parse_bytes(asked)
