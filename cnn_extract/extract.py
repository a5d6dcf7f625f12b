"""One pass over the images for their statistics, and one for each backbone, into the store.

Both write whole chunks of the store and skip those that are complete, so a killed run resumes.
Batches start at chunk starts: which images share a batch, and so every bit of the result, does not
depend on where a run was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnn_extract._lanes import torch_lanes
from cnn_extract._ranks import Ranks
from cnn_extract._torchvision import import_torch
from cnn_extract.decode import DecodePool, Inputs, Scanned, decode_inputs, in_order, scan_images
from cnn_extract.images import ImageError, ImageSource
from cnn_extract.models import InputConfig, embed, fuse_norms, input_config
from cnn_extract.stats import stat_names
from cnn_extract.weights import Weights, load_model
from features._console import Reporter

if TYPE_CHECKING:
    from features.store import FeatureStore

__all__ = [
    "PRECISIONS",
    "Backbone",
    "Settings",
    "count_channels",
    "extract_backbone",
    "is_extracted",
    "open_chunks",
    "scan_into_store",
]

N_IMAGENET = 1000
PRECISIONS = ("float32", "bf16", "fp16")
# On a GPU one lane copies while the other computes.
GPU_LANES = 2
ONE = Ranks()
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Backbone:
    """A model to run: its key in the store, its timm name, its weights.

    Examples
    --------
    >>> Backbone("net@mine", "test_resnet", Weights("file", "mine.safetensors")).key
    'net@mine'
    """

    key: str
    name: str
    weights: Weights


@dataclass(frozen=True)
class Settings:
    """How a backbone runs.

    Parameters
    ----------
    size : int, optional
        Input side; None: the model's own.
    tta : {"none", "hflip"}
    batch_size : int
    precision : {"float32", "bf16", "fp16"}
        Of the forward pass (A25).
    device : {"cpu", "cuda"}
    compile : bool
        `torch.compile` the backbone.

    Examples
    --------
    >>> Settings(size=320, tta="hflip").precision
    'float32'
    """

    size: int | None = None
    tta: str = "none"
    batch_size: int = 16
    precision: str = "float32"
    device: str = "cpu"
    compile: bool = False


def count_channels(source: ImageSource) -> int:
    """Channels of the first readable image; the first image's error when there is none.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from cnn_extract.images import open_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 2)).save(folder + "/black.png")
    ...     count_channels(open_images(folder))
    3
    """
    first: ImageError | None = None
    for index in range(len(source)):
        try:
            return int(source.decode(index).shape[2])
        except ImageError as error:
            first = first or error
    raise ImageError(f"no image of {source.path} can be read: {first}")


def open_chunks(store: FeatureStore, names: Sequence[str]) -> list[range]:
    """Ranges of images, one a chunk, where any of these arrays is not complete.

    Examples
    --------
    >>> import tempfile
    >>> from features import FeatureStore
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = FeatureStore.create(
    ...         folder + "/store", image_ids=["a", "b", "c"], classes=["x"], chunk_images=2
    ...     )
    ...     store.require_array("embeddings/net", (4,), np.float16, ("dim",), {})
    ...     store.write_rows("embeddings/net", 0, np.zeros((2, 4), np.float16))
    ...     open_chunks(store, ["embeddings/net"])
    [range(2, 3)]
    """
    done = np.logical_and.reduce([store.written(name) for name in names]) | store.skipped
    starts = range(0, store.n_images, store.chunk_images)
    chunks = [range(s, min(s + store.chunk_images, store.n_images)) for s in starts]
    return [chunk for chunk in chunks if not done[chunk.start : chunk.stop].all()]


def _batches(chunks: Sequence[range], size: int) -> list[range]:
    return [chunk[k : k + size] for chunk in chunks for k in range(0, len(chunk), size)]


def scan_into_store(
    store: FeatureStore,
    pool: DecodePool,
    *,
    n_channels: int,
    on_error: str = "stop",
    batch_size: int = 16,
    report: Reporter,
) -> None:
    """Decode every image, write its statistics, and find those that cannot be read.

    Parameters
    ----------
    store : FeatureStore
        Open for writing; gets ``image_stats`` and ``errors``.
    pool : DecodePool
        Of the same images in the same order.
    n_channels : int
    on_error : {"stop", "skip"}
        Whether an unreadable image ends the run or is recorded in the store's ``errors``.
    batch_size : int
    report : Reporter

    Raises
    ------
    ImageError
        With "stop", naming the first unreadable image.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from cnn_extract.images import open_images
    >>> from features import FeatureStore
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 2), "red").save(folder + "/red.png")
    ...     source = open_images(folder)
    ...     store = FeatureStore.create(folder + "/store", image_ids=source.ids, classes=["x"])
    ...     with DecodePool(source, workers=0) as pool:
    ...         scan_into_store(store, pool, n_channels=3, report=Reporter(quiet=True))
    ...     store.image_stats["mean_r"].tolist()
    [255.0]
    """
    store.require_image_stats(stat_names(n_channels))
    chunks = open_chunks(store, ["image_stats"])
    task = partial(scan_images, n_channels=n_channels)
    parts = pool.map(task, _batches(chunks, batch_size))
    with report.progress("statistics", sum(map(len, chunks))) as advance:
        for chunk in chunks:
            stats, errors = _gather_scan(chunk, parts, on_error, advance)
            store.set_errors(list(errors), list(errors.values()))
            store.write_rows("image_stats", chunk.start, stats)


def _gather_scan(
    chunk: range, parts: Iterator[Scanned], on_error: str, advance: Any
) -> tuple[NDArray[np.float32], dict[int, str]]:
    stats: list[NDArray[np.float32]] = []
    errors: dict[int, str] = {}
    while sum(map(len, stats)) < len(chunk):
        part = next(parts)
        if part.errors and on_error == "stop":
            raise ImageError(
                f"{next(iter(part.errors.values()))}. Repair or remove it, or go on without it "
                f"with --on-error skip."
            )
        stats.append(part.stats)
        errors.update(part.errors)
        advance(len(part.stats))
    return np.concatenate(stats), errors


def is_extracted(store: FeatureStore, key: str) -> bool:
    """Whether a backbone's arrays are all complete.

    Examples
    --------
    >>> import tempfile
    >>> from features import FeatureStore
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = FeatureStore.create(folder + "/store", image_ids=["a"], classes=["x"])
    ...     is_extracted(store, "net")
    False
    """
    # Logits are required first, so embeddings imply that they are there if they ever will be.
    names = [n for n in _array_names(key) if n in store.array_names]
    return _array_names(key)[-1] in names and all(store.is_complete(n) for n in names)


def _array_names(key: str) -> tuple[str, str]:
    return f"imagenet_logits/{key}", f"embeddings/{key}"


def extract_backbone(
    store: FeatureStore,
    pool: DecodePool,
    backbone: Backbone,
    settings: Settings,
    *,
    n_channels: int,
    report: Reporter,
    ranks: Ranks = ONE,
) -> float | None:
    """Run one backbone over all images; write its embeddings and ImageNet logits.

    Logits are written where the classifier is the weights' own and has 1,000 classes. Parameters
    are as in `scan_into_store`, which must have run before. Of several processes each fills
    chunks of its own.

    Returns
    -------
    float or None
        Images a second, None when the store held everything already.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from cnn_extract.images import open_images
    >>> from features import FeatureStore
    >>> quiet = Reporter(quiet=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (40, 40), "red").save(folder + "/red.png")
    ...     source = open_images(folder)
    ...     store = FeatureStore.create(folder + "/store", image_ids=source.ids, classes=["x"])
    ...     backbone = Backbone("net", "test_resnet", Weights("none"))
    ...     with DecodePool(source, workers=0) as pool:
    ...         scan_into_store(store, pool, n_channels=3, report=quiet)
    ...         settings = Settings(size=32)
    ...         rate = extract_backbone(store, pool, backbone, settings, n_channels=3, report=quiet)
    ...     store.embeddings("net").shape
    (1, 96)
    """
    done = is_extracted(store, backbone.key)
    # All look before the first one writes, so that all go the same way.
    ranks.wait()
    if done:
        return None
    model = load_model(backbone.name, backbone.weights, n_channels=n_channels)
    config = input_config(model, size=settings.size, n_channels=n_channels)
    model = _prepare(model, config, n_channels, settings, ranks.local)
    if not ranks.is_main:
        ranks.wait()
    names = _require_arrays(store, backbone, model, config, settings)
    left = open_chunks(store, names)
    if ranks.is_main:
        ranks.wait()
    # None of them writes before all know what is left.
    ranks.wait()
    chunks = ranks.share(left)
    skipped = len(store.image_ids) - sum(map(len, left))
    if skipped:
        report.log(f"{backbone.key}: {skipped:,} images are complete and skipped")
    task = partial(decode_inputs, size=config.size, n_channels=n_channels)
    inputs = pool.map(task, _batches(chunks, settings.batch_size))
    work = partial(_compute, model, config, settings, frozenset(np.flatnonzero(store.skipped)))
    start = time.monotonic()
    n_images = sum(map(len, chunks))
    n_lanes = GPU_LANES if settings.device == "cuda" else None
    with torch_lanes(n_lanes) as lanes, report.progress(backbone.key, n_images) as advance:
        outputs = in_order(lanes, work, inputs, ahead=lanes.n_lanes + 1)
        for chunk in chunks:
            columns = _gather_chunk(chunk, outputs, advance)
            for name, values in zip(reversed(names), columns, strict=False):
                store.write_rows(name, chunk.start, values)
    ranks.wait()
    return n_images / max(time.monotonic() - start, 1e-9)


def _prepare(
    model: Any, config: InputConfig, n_channels: int, settings: Settings, local: int
) -> Any:
    """Fuse, lay out, move and compile the model."""
    torch = import_torch()
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is not available: torch sees no GPU; use --device cpu")
    fused: Any = fuse_norms(model, config.size, n_channels)
    device = f"cuda:{local}" if settings.device == "cuda" else "cpu"
    fused = fused.to(device, memory_format=torch.channels_last)
    if settings.compile:
        # The model's two halves are called apart, so they are compiled apart.
        fused.forward_features = torch.compile(fused.forward_features)
    return fused


def _require_arrays(
    store: FeatureStore, backbone: Backbone, model: Any, config: InputConfig, settings: Settings
) -> list[str]:
    """Make or resume the backbone's arrays; their names, embeddings last."""
    torch = import_torch()
    blank = torch.zeros(1, config.size, config.size, len(config.mean), dtype=torch.uint8)
    features, logits = embed(model, blank, config, precision=settings.precision)
    attrs = describe(backbone, config.size, settings)
    logits_name, embeddings_name = _array_names(backbone.key)
    names = [embeddings_name]
    # A random classifier's outputs are no ImageNet logits.
    if logits is not None and logits.shape[1] == N_IMAGENET and backbone.weights.kind != "none":
        names.insert(0, logits_name)
        store.require_array(logits_name, (N_IMAGENET,), np.float16, ("imagenet_class",), attrs)
    store.require_array(embeddings_name, (features.shape[1],), np.float16, ("dim",), attrs)
    return names


def describe(backbone: Backbone, size: int, settings: Settings) -> dict[str, Any]:
    """Say what made an array: model, weights, input, library versions."""
    import PIL
    import timm

    return {
        "timm_name": backbone.name,
        "weights": backbone.weights.kind,
        "sha256": backbone.weights.sha256(),
        "input_size": size,
        "tta": settings.tta,
        "batch_size": settings.batch_size,
        **({} if settings.precision == "float32" else {"precision": settings.precision}),
        "versions": {
            "torch": str(import_torch().__version__),
            "timm": timm.__version__,
            "pillow": PIL.__version__,
        },
    }


def _compute(
    model: Any, config: InputConfig, settings: Settings, skipped: frozenset[int], part: Inputs
) -> tuple[NDArray[np.float16], ...]:
    """Embeddings of one batch, and logits if the model has them."""
    torch = import_torch()
    changed = [text for index, text in part.errors.items() if index not in skipped]
    if changed:
        raise ImageError(f"{changed[0]}; it was readable when this run began")
    images = torch.from_numpy(part.images)
    both = embed(model, images, config, tta=settings.tta, precision=settings.precision)
    return tuple(_as_half(values) for values in both if values is not None)


def _gather_chunk(
    chunk: range, outputs: Iterator[tuple[NDArray[np.float16], ...]], advance: Any
) -> list[NDArray[np.float16]]:
    """Embeddings and logits of one chunk, in this order, as far as the model has them."""
    parts: list[tuple[NDArray[np.float16], ...]] = []
    while sum(len(part[0]) for part in parts) < len(chunk):
        parts.append(next(outputs))
        advance(len(parts[-1][0]))
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _as_half(values: Any) -> NDArray[np.float16]:
    return values.clamp(-LARGEST_HALF, LARGEST_HALF).half().cpu().numpy()
