"""Load what a run trains on: images, labels, folds, domains, weights, into one store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from cnn_extract.decode import DecodePool, n_cores
from cnn_extract.extract import count_channels, scan_into_store
from cnn_extract.images import ImageSource, open_images
from cnn_extract.run import Request, create_store, match_ids, metadata_of
from cnn_extract.tables import Labels, first_few, read_labels
from cnn_extract.train.recipe import Recipe
from cnn_extract.train.samples import Samples
from cnn_extract.train.tables import (
    add_pseudo_labels,
    read_image_list,
    read_parents,
    read_teacher,
    sha256_of,
)
from features._console import Reporter

if TYPE_CHECKING:
    from cnn_extract.train.request import TrainRequest
    from features.store import FeatureStore

__all__ = ["TrainData", "collect_moments", "load_data"]


@dataclass(frozen=True)
class TrainData:
    """Everything a run trains on.

    Parameters
    ----------
    store : FeatureStore
        Images, labels, folds, statistics; gets the predictions.
    source : ImageSource
        The images in the store's order.
    samples : Samples
        To learn from, over all folds: labelled images that are not dropped, then pseudo-labels.
    labels : CSR of shape (n_images, n_classes)
    fold : int array of shape (n_images,)
        -1 where there are no labels.
    domain : object array of shape (n_images,), or None
    n_channels : int
    moments : (mean, std) of the channels on the scale 0 to 1, or None
        Collected, where the recipe wants it (B3).
    fingerprint : dict
        What identifies all this.
    """

    store: FeatureStore
    source: ImageSource
    samples: Samples
    labels: sparse.csr_array
    fold: NDArray[np.int16]
    domain: NDArray[np.object_] | None
    n_channels: int
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None
    fingerprint: dict[str, Any]

    @property
    def class_group(self) -> list[str]:
        """Group of each class."""
        return [str(group) for group in self.store.class_group]

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which images can be read."""
        return ~self.store.skipped

    def training(self, fold: int) -> Samples:
        """Return the samples to train on without a fold."""
        return self.samples.take(self.fold[self.samples.rows] != fold)

    def held_out(self, fold: int) -> Samples:
        """Return the labelled images of a fold, dropped ones too."""
        rows = np.flatnonzero((self.fold == fold) & self.readable)
        return _plain_samples(rows, self.labels)

    def to_predict(self, fold: int) -> NDArray[np.intp]:
        """Images that a fold's network predicts: its held-out ones and those without labels."""
        return np.flatnonzero(((self.fold == fold) | (self.fold < 0)) & self.readable)


def _plain_samples(rows: NDArray[np.intp], labels: sparse.csr_array) -> Samples:
    n_rows = len(rows)
    return Samples(rows, labels[rows], np.ones(n_rows, np.float32), np.zeros(n_rows, dtype=bool))


def load_data(
    request: TrainRequest, recipe: Recipe, report: Reporter, *, write: bool = True
) -> TrainData:
    """Open or make the store, read the images that are new to it, and gather the samples.

    Parameters
    ----------
    request : TrainRequest
    recipe : Recipe
    report : Reporter
    write : bool
        False in the processes that find the store made by another.

    Raises
    ------
    ValueError
        For tables that do not fit each other; the message names file and image.
    """
    labels = read_labels(
        request.labels, id_column=request.id_column, label_column=request.label_column
    )
    source = match_ids(open_images(request.images), labels, report)
    wanted = _store_request(request, recipe)
    metadata = metadata_of(wanted, source.ids)
    store = _open_store(request, wanted, source, labels, metadata, recipe)
    source = _in_order_of(store, source)
    n_channels = count_channels(source)
    if write:
        _scan(request, store, source, n_channels, report)
    domain = _domains(request, store, metadata)
    samples = _samples(request, recipe, store, labels, domain)
    moments = collect_moments(store) if recipe.input.normalise == "collected" else None
    return TrainData(
        store=store,
        source=source,
        samples=samples,
        labels=store.labels,
        fold=np.where(store.labels_known, store.fold, -1).astype(np.int16),
        domain=domain,
        n_channels=n_channels,
        moments=moments,
        fingerprint=_fingerprint(request, source, labels, metadata),
    )


def _store_request(request: TrainRequest, recipe: Recipe) -> Request:
    return Request(
        images=request.images,
        labels=request.labels,
        models=[],
        out=request.store or request.out / "store",
        metadata=request.metadata,
        folds=recipe.folds,
        seed=request.seed,
        id_column=request.id_column,
        label_column=request.label_column,
        chunk_images=request.chunk_images,
    )


def _open_store(
    request: TrainRequest,
    wanted: Request,
    source: ImageSource,
    labels: Labels,
    metadata: pd.DataFrame | None,
    recipe: Recipe,
) -> FeatureStore:
    from features.folds import check_folds
    from features.store import FeatureStore

    if not Path(wanted.out).exists():
        Path(wanted.out).parent.mkdir(parents=True, exist_ok=True)
        parents = None if request.parents is None else read_parents(request.parents, labels.classes)
        return create_store(wanted, source, labels, metadata, {}, parents)
    store = FeatureStore.open(wanted.out, "r+")
    _refuse_other_data(store, source, labels)
    fold = np.where(store.labels_known, store.fold, -1)
    check_folds(fold, store.split_group)
    if metadata is not None and "split_group" in metadata:
        check_folds(fold, metadata["split_group"].loc[store.image_ids.tolist()].to_numpy())
    if request.folds is not None and int(store.fold.max()) + 1 != request.folds:
        raise ValueError(
            f"{store.path} has {int(store.fold.max()) + 1} folds, and --folds asks for "
            f"{request.folds}; leave --folds out to use the store's, or name another store"
        )
    return store


def _refuse_other_data(store: FeatureStore, source: ImageSource, labels: Labels) -> None:
    """Refuse a store of other images, classes or labels."""
    differ = sorted(set(source.ids) ^ set(store.image_ids.tolist()))
    if differ:
        raise ValueError(
            f"{store.path} holds other images than {source.path}: {len(differ):,} are in one of "
            f"them only, first: {first_few(differ)}. Name another store."
        )
    if tuple(store.classes.tolist()) != labels.classes:
        other = sorted(set(store.classes.tolist()) ^ set(labels.classes))
        raise ValueError(
            f"{store.path} holds other classes than {labels.path}: {first_few(other) or 'order'}. "
            f"Name another store."
        )
    matrix, known = labels.aligned(store.image_ids.tolist())
    wrong = np.asarray((matrix != store.labels).sum(axis=1)).ravel() > 0
    wrong |= known != store.labels_known
    if wrong.any():
        raise ValueError(
            f"{store.path} holds other labels than {labels.path} for {wrong.sum():,} images, "
            f"first: {first_few(store.image_ids[wrong])}. Name another store."
        )


def _in_order_of(store: FeatureStore, source: ImageSource) -> ImageSource:
    place = {name: k for k, name in enumerate(source.ids)}
    return source.take(place[name] for name in store.image_ids.tolist())


def _scan(
    request: TrainRequest,
    store: FeatureStore,
    source: ImageSource,
    n_channels: int,
    report: Reporter,
) -> None:
    """Read every image once, for its statistics and to find those that cannot be read."""
    if "image_stats" in store.array_names and store.is_complete("image_stats"):
        return
    workers = n_cores() if request.workers is None else request.workers
    with DecodePool(source, workers) as pool:
        scan_into_store(
            store, pool, n_channels=n_channels, on_error=request.on_error, report=report
        )


def _domains(
    request: TrainRequest, store: FeatureStore, metadata: pd.DataFrame | None
) -> NDArray[np.object_] | None:
    """Domain of each image, from the metadata given or else the store's."""
    if request.domain is None:
        if request.domain_weights:
            raise ValueError("--domain-weight needs --domain, the column with the domains")
        return None
    frame = metadata if metadata is not None else store.metadata
    if frame is None or request.domain not in frame:
        there = "no metadata" if frame is None else first_few(frame.columns, 10)
        raise ValueError(f"--domain {request.domain!r} must be a column of --metadata; got {there}")
    column = frame.loc[store.image_ids.tolist(), request.domain].astype(str)
    domains = np.asarray(column, dtype=object)
    unknown = sorted(set(request.domain_weights) - set(domains))
    if unknown:
        raise ValueError(
            f"--domain-weight names {first_few(unknown)}, which column {request.domain!r} does "
            f"not hold; it holds {first_few(sorted(set(domains)))}"
        )
    return domains


def _samples(
    request: TrainRequest,
    recipe: Recipe,
    store: FeatureStore,
    labels: Labels,
    domain: NDArray[np.object_] | None,
) -> Samples:
    """Labelled images that are readable and not dropped, then the pseudo-labelled ones."""
    ids = store.image_ids.tolist()
    wanted = store.labels_known & ~store.skipped
    if request.drop is not None:
        wanted &= ~read_image_list(request.drop, ids, request.id_column)
    samples = _plain_samples(np.flatnonzero(wanted), store.labels)
    if request.hard is not None:
        hard = read_image_list(request.hard, ids, request.id_column)
        samples = replace(samples, listed_hard=hard[samples.rows])
    if recipe.distill.weight:
        samples = replace(samples, teacher=_teacher(request, recipe, store, samples))
    if request.pseudo is not None:
        samples = add_pseudo_labels(
            samples,
            request.pseudo,
            ids,
            labels,
            id_column=request.id_column,
            label_column=request.label_column,
        )
        samples = samples.take(~store.skipped[samples.rows])
    if domain is not None and request.domain_weights:
        factor = [request.domain_weights.get(d, 1.0) for d in domain[samples.rows]]
        samples = replace(samples, weights=samples.weights * np.asarray(factor, np.float32))
        samples = samples.take(samples.weights > 0)
    if not len(samples):
        raise ValueError("no image is left to train on: all are dropped, or have weight 0")
    return samples


def _teacher(
    request: TrainRequest, recipe: Recipe, store: FeatureStore, samples: Samples
) -> NDArray[np.float32]:
    if request.teacher is None:
        raise ValueError(
            f"recipe {recipe.name!r} learns from a teacher: name the store of its predictions with "
            f"--teacher STORE[:MODEL], or train without one with --set distill.weight=0"
        )
    return read_teacher(
        request.teacher, store.image_ids[samples.rows].tolist(), store.classes.tolist()
    )


def collect_moments(store: FeatureStore) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel over all pixels of all images, on the scale 0 to 1 (B3, C1).

    From the statistics in the store: every image counts by its pixels.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd
    >>> from features import FeatureStore
    >>> stats = {"mean_r": [0.0, 255.0], "std_r": [0.0, 0.0], "height": [2, 2], "width": [4, 4]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = FeatureStore.from_arrays(
    ...         folder + "/store", image_ids=["black", "white"], classes=["x"],
    ...         probabilities={}, image_stats=pd.DataFrame(stats, index=["black", "white"]),
    ...     )
    ...     collect_moments(store)
    ((0.5,), (0.5,))
    """
    stats = store.without_skipped().image_stats
    assert stats is not None
    names = [str(c).removeprefix("mean_") for c in stats.columns if str(c).startswith("mean_")]
    means = stats[[f"mean_{n}" for n in names]].to_numpy(np.float64) / 255
    stds = stats[[f"std_{n}" for n in names]].to_numpy(np.float64) / 255
    pixels = (stats["height"] * stats["width"]).to_numpy(np.float64)
    shares = pixels / pixels.sum()
    mean = shares @ means
    # The square of the std of everything: mean of squares minus square of the mean.
    variance = shares @ (stds**2 + means**2) - mean**2
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(variance, 1e-12)).tolist())


def _fingerprint(
    request: TrainRequest,
    source: ImageSource,
    labels: Labels,
    metadata: pd.DataFrame | None,
) -> dict[str, Any]:
    columns = "" if metadata is None else metadata.to_csv()
    files: Sequence[Any] = (source.ids, source.sizes)
    return {
        "images": hashlib.sha256(repr(files).encode()).hexdigest(),
        "labels": labels.sha256(),
        "metadata": hashlib.sha256(columns.encode()).hexdigest(),
        "drop": sha256_of(request.drop),
        "hard": sha256_of(request.hard),
        "pseudo": sha256_of(request.pseudo),
        "teacher": request.teacher,
        "domain": request.domain,
        "domain_weights": dict(sorted(request.domain_weights.items())),
    }
