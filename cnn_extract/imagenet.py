"""`cnn-extract imagenet`: what an ImageNet classifier says of every image (docs/recipes.md: A14).

The first place of iMet 2019 gave its second level all 1,000 class predictions of a pretrained
network beside those of its own classes.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cnn_extract._settings import check_settings
from cnn_extract._torchvision import import_timm
from cnn_extract.decode import DecodePool, n_cores
from cnn_extract.extract import (
    N_IMAGENET,
    Backbone,
    Settings,
    count_channels,
    extract_backbone,
    scan_into_store,
)
from cnn_extract.images import ImageSource, open_images
from cnn_extract.run import RefusedError, parse_models
from cnn_extract.tables import first_few, write_csv
from features._console import Reporter

if TYPE_CHECKING:
    from features.store import FeatureStore

__all__ = ["ImagenetRequest", "imagenet_names", "softmax", "write_imagenet"]


@dataclass(frozen=True)
class ImagenetRequest:
    """What `write_imagenet` shall do; the command line's arguments.

    Parameters
    ----------
    images : Path
        A folder or zip of images.
    model : str
        ``NAME`` or ``NAME=WEIGHTS`` of a model with its ImageNet classifier.
    store : Path, optional
        A store of the same images that gets the logits (and the embeddings).
    out : Path, optional
        A CSV file that gets the probabilities, a column a class.

    Examples
    --------
    >>> ImagenetRequest(Path("images"), "tf_efficientnet_lite0", out=Path("imagenet.csv")).tta
    'none'
    """

    images: Path
    model: str
    store: Path | None = None
    out: Path | None = None
    size: int | None = None
    tta: str = "none"
    batch_size: int = 16
    workers: int | None = None
    on_error: str = "stop"
    force: bool = False


def write_imagenet(request: ImagenetRequest, report: Reporter | None = None) -> str:
    """Write an ImageNet classifier's predictions into a store or a CSV file; a line about it.

    Raises
    ------
    RefusedError
        When the CSV file is there and `force` is not given.
    ValueError
        Without exactly one of `store` and `out`, for settings that no command can have, for a
        model without its 1,000 classes, and for a store of other images.

    Examples
    --------
    >>> from PIL import Image
    >>> quiet = Reporter(quiet=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     images, out = Path(folder, "images"), Path(folder, "imagenet.csv")
    ...     images.mkdir()
    ...     Image.new("RGB", (40, 40), "red").save(images / "red.png")
    ...     request = ImagenetRequest(images, "tf_efficientnet_lite0", out=out, size=64, workers=0)
    ...     _ = write_imagenet(request, quiet)
    ...     pd.read_csv(out, index_col="image_id").shape
    (1, 1000)
    """
    report = report or Reporter()
    if (request.store is None) == (request.out is None):
        raise ValueError("name either a store with --store or a CSV file with --out")
    check_settings(
        size=request.size,
        tta=request.tta,
        batch_size=request.batch_size,
        workers=request.workers,
        on_error=request.on_error,
    )
    source = open_images(request.images)
    backbone = parse_models([request.model])[0]
    if request.store is not None:
        store, source = _open_store(request.store, source)
        _extract(request, store, source, backbone, report)
        return f"{request.store}: imagenet_logits/{backbone.key} of {len(source):,} images"
    assert request.out is not None
    if request.out.is_dir() or (request.out.exists() and not request.force):
        raise RefusedError(f"{request.out} is there; choose another --out, or --force")
    request.out.resolve().parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f".{request.out.name}.", dir=request.out.resolve().parent)
    try:
        store = _new_store(Path(folder) / "store", source)
        _extract(request, store, source, backbone, report)
        logits = store.imagenet_logits(backbone.key)
        write_csv(_frame(logits, source), request.out)
    finally:
        shutil.rmtree(folder)
    return f"{request.out}: {len(source):,} images, {N_IMAGENET:,} ImageNet classes"


def _open_store(path: Path, source: ImageSource) -> tuple[FeatureStore, ImageSource]:
    """Open the store, and bring the images into its order."""
    from features.store import FeatureStore

    store = FeatureStore.open(path, "r+")
    place = {name: k for k, name in enumerate(source.ids)}
    absent = [name for name in store.image_ids.tolist() if name not in place]
    if absent:
        raise ValueError(
            f"{source.path} must hold every image of {path}; {len(absent):,} are missing, first: "
            f"{first_few(absent)}"
        )
    return store, source.take(place[name] for name in store.image_ids.tolist())


def _new_store(path: Path, source: ImageSource) -> FeatureStore:
    """Make a store of images without labels, to be thrown away."""
    from features.store import FeatureStore

    return FeatureStore.create(path, image_ids=list(source.ids), classes=["none"])


def _extract(
    request: ImagenetRequest,
    store: FeatureStore,
    source: ImageSource,
    backbone: Backbone,
    report: Reporter,
) -> None:
    n_channels = count_channels(source)
    settings = Settings(request.size, request.tta, request.batch_size)
    workers = n_cores() if request.workers is None else request.workers
    with DecodePool(source, workers) as pool:
        if "image_stats" not in store.array_names or not store.is_complete("image_stats"):
            scan_into_store(
                store, pool, n_channels=n_channels, on_error=request.on_error, report=report
            )
        extract_backbone(store, pool, backbone, settings, n_channels=n_channels, report=report)
    if backbone.key not in store.imagenet_names:
        raise ValueError(
            f"model {backbone.name!r} with weights {backbone.weights.kind!r} has no classifier of "
            f"the {N_IMAGENET:,} ImageNet classes; name a pretrained model"
        )


def _frame(logits: NDArray[Any], source: ImageSource) -> pd.DataFrame:
    index = pd.Index(source.ids, name="image_id")
    return pd.DataFrame(softmax(logits), index=index, columns=imagenet_names())


def softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Probabilities of (n_images, n_classes) logits, rows summing to 1.

    Examples
    --------
    >>> softmax(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    shifted = logits.astype(np.float32)
    shifted -= shifted.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def imagenet_names() -> list[str]:
    """WordNet ids of the 1,000 classes, in the order of the logits.

    Examples
    --------
    >>> imagenet_names()[:2]
    ['n01440764', 'n01443537']
    """
    import_timm()
    from timm.data import ImageNetInfo

    names: list[str] = ImageNetInfo().label_names()
    return names
