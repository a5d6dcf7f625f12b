"""Pair rows on a Dask cluster: image ranges are the partitions, workers build their rows.

Fitting is one task: candidates, label statistics and the codes of the training images are small
beside the rows, and fitted in one place they are the same on every worker to the bit. The fitted
state is plain arrays; the scheduler keeps the recipe of every partition, so what a lost worker
held is built again on another one. Features are those of the local path bit for bit.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from features._places import as_place
from features._state import features_from_tree
from features.assemble import PairFeatures
from features.parquet import ROWS_PER_PART, PairRows, image_ranges
from features.schema import Stack
from features.store import FeatureStore

__all__ = ["Images", "Partition", "connect", "fit_features", "row_partitions"]

# Images counted by one task: what a task costs to start is nothing beside so many.
COUNTED_AT_ONCE = 8_192

# One client an address for the life of the process: fit and predict share it.
_CLIENTS: dict[str, Any] = {}


def connect(address: str) -> Any:
    """Client of a running cluster.

    Parameters
    ----------
    address : str
        Scheduler address, such as "tcp://10.0.0.1:8786", or "current" for the active client.

    Returns
    -------
    distributed.Client

    Raises
    ------
    ValueError
        When there is no active client, or the cluster has no worker.
    OSError
        When no scheduler answers.
    ImportError
        Naming the extra to install.

    Examples
    --------
    >>> connect("current")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
        ...
    ValueError: there is no active client
    """
    try:
        import distributed
    except ImportError as error:
        if error.name not in ("distributed", "dask"):
            raise
        raise ImportError("Dask is not installed: pip install 'pairstack[dask]'") from error
    if address == "current":
        try:
            client = distributed.get_client()
        except ValueError as error:
            raise ValueError(
                "dask='current' needs an active client: make one with distributed.Client(...), "
                "or give the scheduler's address."
            ) from error
    else:
        client = _CLIENTS.get(address)
        if client is None or client.status != "running":
            client = _CLIENTS[address] = distributed.Client(address, set_as_default=False)
    if not client.scheduler_info(n_workers=-1)["workers"]:
        raise ValueError(f"the cluster {client.scheduler.address} has no worker. Start some.")
    return client


@dataclass(frozen=True)
class Images:
    """Where the images of a run come from.

    Attributes
    ----------
    stack : Stack or None
        In memory; it travels through the scheduler in pieces.
    store : str
        Absolute path or URL of a store that every worker sees.
    models : list of str
    rows : int array of shape (n_images,)
        Positions in the store, rising.
    run : str
        Of these images alone: workers open the store once for it.

    Examples
    --------
    >>> Images(Stack({"a": [[0.5], [0.2]]})).n_images
    2
    """

    stack: Stack | None = None
    store: str = ""
    models: list[str] = field(default_factory=list)
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of_store(cls, store: FeatureStore, picked: NDArray[Any] | None = None) -> Images:
        """Name some images of a store, by position among those that its view shows."""
        shown = np.arange(store.n_images) if store._rows is None else store._rows
        rows = shown if picked is None else shown[picked]
        if (np.diff(rows) <= 0).any():
            raise ValueError("on Dask a store's images must be in the order of the store.")
        place = str(store.path)
        if "://" not in place:
            place = str(Path(place).resolve())
        return cls(None, place, list(store.models), rows.astype(np.int64))

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.rows) if self.stack is None else len(self.stack)

    def source(self, start: int, stop: int) -> dict[str, Any]:
        """Say how a worker gets a range of the images: see `_dask_tasks.read_images`."""
        from features._dask_tasks import stack_tree

        if self.stack is not None:
            return {"stack": stack_tree(self.stack[start:stop])}
        rows = self.rows[start:stop]
        return {"store": self.store, "models": self.models, "rows": rows, "run": self.run}


@dataclass(frozen=True)
class Partition:
    """The rows of one image range, on a worker.

    Attributes
    ----------
    start, stop : int
        The range.
    features : distributed.Future of float32 array of shape (n_rows, n_columns)

    Examples
    --------
    >>> Partition(0, 4, None).stop
    4
    """

    start: int
    stop: int
    features: Any


def submit(client: Any, task: Any, *args: Any) -> Any:
    """Run a task on a worker; the scheduler keeps its arguments, so that it can run again."""
    import dask

    # Arguments are ranges of arrays, a few MB each: no accident that Dask should warn of.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "100GB"}):
        key = f"pairstack-{task.__name__}-{uuid.uuid4().hex}"
        return client.submit(task, *args, key=key, pure=False)


def fit_features(
    client: Any,
    images: Images,
    labels: csr_array,
    fold: NDArray[Any],
    settings: Mapping[str, Any],
) -> tuple[Any, PairFeatures]:
    """Fit `PairFeatures` on a worker.

    Parameters
    ----------
    client : distributed.Client
    images : Images
    labels : CSR array of shape (n_images, n_classes)
    fold : int array of shape (n_images,)
    settings : mapping
        Parameters of `PairFeatures`.

    Returns
    -------
    distributed.Future of the fitted state, PairFeatures

    Examples
    --------
    >>> from distributed import Client
    >>> client = Client(processes=False, dashboard_address=None)
    >>> rng = np.random.default_rng(0)
    >>> labels = csr_array((rng.random((20, 3)) < 0.4).astype(np.int8))
    >>> images, fold = Images(Stack({"a": rng.random((20, 3))})), np.arange(20) % 2
    >>> settings = {"blocks": ("logits",), "candidates": 2}
    >>> state, features = fit_features(client, images, labels, fold, settings)
    >>> len(features.feature_names_)
    2
    >>> client.close()
    """
    from features import _dask_tasks as tasks

    source = images.source(0, images.n_images)
    state = submit(client, tasks.fit_features, source, labels, fold, dict(settings))
    tree = state.result()
    features = features_from_tree(tree, tasks.space_from_tree(tree["space"]))
    for name, value in settings.items():
        setattr(features, name, value)
    features.seconds_ = tree["seconds"]
    return state, features


def send_features(client: Any, features: PairFeatures) -> Any:
    """Future of a fitted state that lies here."""
    from features import _dask_tasks as tasks
    from features._state import features_tree

    tree = {**features_tree(features), "space": tasks.space_tree(features.space_)}
    return submit(client, tasks.same, tree)


def row_partitions(
    client: Any,
    state: Any,
    images: Images,
    fold: NDArray[Any],
    indptr: NDArray[np.int64],
    *,
    rows_per_part: int = ROWS_PER_PART,
) -> list[Partition]:
    """Build the rows of image ranges on workers, and leave them there.

    Parameters
    ----------
    client : distributed.Client
    state : future from `fit_features`
    images : Images
    fold : int array of shape (n_images,), -1 for new images
    indptr : int64 array of shape (n_images + 1,)
        Rows of each image.
    rows_per_part : int

    Examples
    --------
    >>> from distributed import Client
    >>> client = Client(processes=False, dashboard_address=None)
    >>> rng = np.random.default_rng(0)
    >>> labels = csr_array((rng.random((20, 3)) < 0.4).astype(np.int8))
    >>> images, fold = Images(Stack({"a": rng.random((20, 3))})), np.arange(20) % 2
    >>> settings = {"blocks": ("logits",), "candidates": 2}
    >>> state, features = fit_features(client, images, labels, fold, settings)
    >>> indptr = np.arange(0, 41, 2)
    >>> parts = row_partitions(client, state, images, fold, indptr, rows_per_part=20)
    >>> [part.features.result().shape for part in parts]
    [(20, 2), (20, 2)]
    >>> client.close()
    """
    from features import _dask_tasks as tasks

    return [
        Partition(a, b, submit(client, tasks.rows_of, state, images.source(a, b), fold[a:b]))
        for a, b in image_ranges(indptr, rows_per_part)
    ]


def count_rows(client: Any, state: Any, images: Images, rows: PairRows) -> NDArray[np.int64]:
    """Boundaries of the rows of each image, int64 (n_images + 1,), counted on workers."""
    from features import _dask_tasks as tasks

    starts = range(0, images.n_images, COUNTED_AT_ONCE)
    spans = [(start, min(start + COUNTED_AT_ONCE, images.n_images)) for start in starts]
    futures = [
        submit(client, tasks.count_rows, state, images.source(a, b), part_of(rows, a, b))
        for a, b in spans
    ]
    return np.concatenate([[0], np.cumsum(np.concatenate(client.gather(futures)))])


def write_parts(
    client: Any,
    state: Any,
    images: Images,
    rows: PairRows,
    pending: Mapping[str, tuple[int, int]],
    folder: str | os.PathLike[str],
) -> Iterator[tuple[str, str]]:
    """Write parts of a pair folder on workers; yield each one's name and checksum when done.

    The folder must be where every worker sees it under this name.
    """
    import distributed

    from features import _dask_tasks as tasks

    place = as_place(folder)
    where = place.resolve() if isinstance(place, Path) else place
    futures = {
        submit(
            client,
            tasks.write,
            state,
            images.source(a, b),
            part_of(rows, a, b),
            str(where / name),
        ): name
        for name, (a, b) in pending.items()
    }
    for future, digest in distributed.as_completed(futures, with_results=True, loop=client.loop):
        yield futures[future], digest


def part_of(rows: PairRows, start: int, stop: int) -> dict[str, Any]:
    """Give what a task has to know of a range beside the predictions."""
    return {
        "labels": rows.labels[start:stop],
        "labels_known": rows.labels_known[start:stop],
        "fold": np.asarray(rows.fold)[start:stop],
        "negatives": rows.negatives,
        "first": start,
    }
