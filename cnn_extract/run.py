"""`cnn-extract run`: from images and labels to a store, resumable after a kill."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cnn_extract._fill import fit_heads, has_statistics, read_images
from cnn_extract._ranks import Ranks, this_rank
from cnn_extract._settings import ALLOWED, LEAST, check_settings
from cnn_extract.extract import Backbone
from cnn_extract.heads import check_heads
from cnn_extract.images import ImageSource, open_images
from cnn_extract.tables import Labels, lines_of, read_labels, read_metadata, split_groups
from cnn_extract.weights import find_weights
from features._console import Reporter, clock

if TYPE_CHECKING:
    from features.store import FeatureStore

__all__ = [
    "RefusedError",
    "Request",
    "Summary",
    "create_store",
    "match_ids",
    "metadata_of",
    "parse_models",
    "run",
]

# Small enough that a killed run loses seconds, large enough that few files are written.
CHUNK_IMAGES = 256
# The store attribute that holds the settings and whether the run came to its end.
ATTRIBUTE = "cnn_extract"


class RefusedError(FileExistsError):
    """The output may not be written: it is complete, or was made with other settings.

    Examples
    --------
    >>> str(RefusedError("store is complete"))
    'store is complete'
    """


@dataclass(frozen=True)
class Request:
    """What `run` shall do; the command line's arguments.

    Parameters
    ----------
    images, labels : Path
        A folder or zip of images; a CSV file with their labels.
    models : sequence of str
        Each ``NAME`` or ``NAME=WEIGHTS``.
    out : Path, or str for a URL
        The store to write.
    metadata : Path, optional
        A CSV file of user columns; ``split_group`` keeps images together.
    heads : sequence of str
        "linear", "mlp".
    folds, seed : int
        Number of folds; the seed of folds and heads.
    size : int, optional
        Input side of every model; default: each model's own.
    tta : {"none", "hflip"}
    precision : {"float32", "bf16", "fp16"}
        Of the backbones' forward pass (A25).
    device : {"cpu", "cuda"}
    compile : bool
        `torch.compile` the backbones.
    batch_size : int
    workers : int, optional
        Processes that decode; default: one a core; 0: none but this one.
    on_error : {"stop", "skip"}
    force : bool
        Write anew what is there.

    Examples
    --------
    >>> Request(Path("images"), Path("labels.csv"), ["tf_efficientnet_lite0"], Path("store")).heads
    ('linear', 'mlp')
    """

    images: Path
    labels: Path
    models: Sequence[str]
    out: Path | str
    metadata: Path | None = None
    heads: Sequence[str] = ("linear", "mlp")
    folds: int = 5
    seed: int = 0
    size: int | None = None
    tta: str = "none"
    precision: str = "float32"
    device: str = "cpu"
    compile: bool = False
    batch_size: int = 16
    workers: int | None = None
    on_error: str = "stop"
    id_column: str = "image_id"
    label_column: str = "labels"
    chunk_images: int = CHUNK_IMAGES
    force: bool = False


@dataclass
class Summary:
    """What a run did: counts, models, images a second of each backbone, what it skipped.

    Examples
    --------
    >>> Summary("store/", n_images=30, n_labelled=20).lines()[1]
    'images   30: 20 labelled, 10 unlabelled, 0 skipped with an error'
    """

    out: str
    n_images: int = 0
    n_labelled: int = 0
    n_classes: int = 0
    models: list[str] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    already: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """Write it as lines of text."""
        unlabelled = self.n_images - self.n_labelled
        text = [
            f"store    {self.out}",
            f"images   {self.n_images:,}: {self.n_labelled:,} labelled, {unlabelled:,} unlabelled, "
            f"{len(self.errors):,} skipped with an error",
            f"classes  {self.n_classes:,}",
            f"models   {', '.join(self.models)}",
        ]
        text += [f"rate     {key}: {rate:,.1f} images/s" for key, rate in self.rates.items()]
        if self.already:
            text.append(f"resumed  complete already: {', '.join(self.already)}")
        text += [f"skipped  {image}: {why}" for image, why in list(self.errors.items())[:10]]
        if len(self.errors) > 10:
            text.append(f"skipped  and {len(self.errors) - 10:,} more: see the store's errors")
        return [*text, f"time     {clock(self.seconds)}"]


def run(request: Request, report: Reporter | None = None) -> Summary:
    r"""Make or resume the store that `request` describes.

    Raises
    ------
    RefusedError
        When the output is complete, is no store, or was begun with other settings.
    ValueError, OSError
        For bad input; the message names the file, image, class or model.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     images, labels = Path(folder), Path(folder, "labels.csv")
    ...     for k in range(4):
    ...         Image.new("RGB", (40, 40), (60 * k, 0, 0)).save(images / f"{k}.png")
    ...     _ = labels.write_text("image_id,labels\n0,dark\n1,\n2,\n3,red\n")
    ...     models, out = ["test_resnet=none"], images / "store"
    ...     request = Request(images, labels, models, out, folds=2, workers=0)
    ...     run(request, Reporter(quiet=True)).models
    ['test_resnet.linear', 'test_resnet.mlp']
    """
    from features.store import FeatureStore

    start = time.monotonic()
    _check(request)
    ranks = this_rank(request.device)
    report = report or Reporter()
    if not ranks.is_main:
        report = Reporter(quiet=True)
    _refuse_foreign(request)
    source = open_images(request.images)
    labels = read_labels(
        request.labels, id_column=request.id_column, label_column=request.label_column
    )
    source = match_ids(source, labels, report)
    metadata = metadata_of(request, source.ids)
    backbones = parse_models(request.models)
    settings = _fingerprint(request, source, labels, metadata, backbones)
    if ranks.is_main:
        store = _prepare_store(request, source, labels, metadata, settings, report)
    ranks.wait()
    if not ranks.is_main:
        store = FeatureStore.open(request.out, "r+")
    # Opening removes what killed writers left: all are open before one writes.
    ranks.wait()
    summary = _fill(request, store, source, backbones, report, ranks)
    if ranks.is_main:
        store.update_attrs({ATTRIBUTE: {"settings": settings, "complete": True}})
    ranks.wait()
    summary.seconds = time.monotonic() - start
    return summary


def _check(request: Request) -> None:
    """Refuse settings that no run can have, before anything is read."""
    check_heads(request.heads)
    # A run has every setting that the commands share.
    check_settings(**{name: getattr(request, name) for name in (*LEAST, *ALLOWED)})


def parse_models(models: Sequence[str]) -> list[Backbone]:
    """Resolve each ``NAME`` or ``NAME=WEIGHTS``; the same name again is told apart by its weights.

    Raises
    ------
    ValueError
        For an unknown name, missing weights, or the same model twice.

    Examples
    --------
    >>> [backbone.key for backbone in parse_models(["test_resnet=none", "test_vit=none"])]
    ['test_resnet', 'test_vit']
    """
    if not models:
        raise ValueError("name at least one model with --model, for example tf_efficientnet_lite0")
    found: dict[str, Backbone] = {}
    for text in models:
        name, _, given = text.partition("=")
        weights = find_weights(name, given or None)
        key = f"{name}@{Path(given).stem}" if name in found else name
        if key in found:
            raise ValueError(f"model {text!r} is named twice; give each checkpoint once")
        found[key] = Backbone(key, name, weights)
    return list(found.values())


def match_ids(source: ImageSource, labels: Labels, report: Reporter) -> ImageSource:
    """Bring image ids and labels together; all images in one folder may be named without it.

    Examples
    --------
    >>> source = ImageSource("drawings", ("sea/1.png", "sea/2.png"), ("sea/1", "sea/2"), (10, 20))
    >>> labels = Labels("labels.csv", ("1", "2"), (("fish",), ()), ("fish",))
    >>> match_ids(source, labels, Reporter(quiet=True)).ids
    ('1', '2')
    """
    folder = source.common_folder
    if folder and not set(labels.image_ids) & set(source.ids):
        inside = source.without_folder(folder)
        if set(labels.image_ids) & set(inside.ids):
            report.log(f"{labels.path} names images without their common folder {folder}/")
            source = inside
    labels.refuse_unknown(source.ids, source.path)
    return source


def metadata_of(request: Request, ids: Sequence[str]) -> pd.DataFrame | None:
    """Metadata in the order of the images, its split groups checked."""
    if request.metadata is None:
        return None
    table = read_metadata(request.metadata, id_column=request.id_column)
    frame = lines_of(table, ids, request.metadata)
    if "split_group" in frame:
        split_groups(frame, request.metadata)
    return frame


def _fingerprint(
    request: Request,
    source: ImageSource,
    labels: Labels,
    metadata: pd.DataFrame | None,
    backbones: Sequence[Backbone],
) -> dict[str, Any]:
    """Everything that the arrays depend on, as JSON."""
    files = hashlib.sha256(repr((source.ids, source.sizes)).encode()).hexdigest()
    columns = "" if metadata is None else metadata.to_csv()
    return {
        "images": files,
        "labels": labels.sha256(),
        "metadata": hashlib.sha256(columns.encode()).hexdigest(),
        "models": {b.key: [b.name, b.weights.kind, b.weights.sha256()] for b in backbones},
        "heads": list(request.heads),
        "folds": request.folds,
        "seed": request.seed,
        "size": request.size,
        "tta": request.tta,
        "batch_size": request.batch_size,
        "chunk_images": request.chunk_images,
        # Left out where it is the usual one: stores begun before there was a choice stay valid.
        **({} if request.precision == "float32" else {"precision": request.precision}),
    }


def _refuse_foreign(request: Request) -> None:
    """Refuse what is no store of ours, with --force too: it would be deleted."""
    from features._zarr import exists

    if not exists(request.out):
        return
    if _open_own(request.out) is None:
        raise RefusedError(
            f"{request.out} is there and was not made by cnn-extract run; choose another --out"
        )


def _open_own(out: Path | str) -> FeatureStore | None:
    from features.store import FeatureStore

    try:
        store = FeatureStore.open(out, "r+")
    except (ValueError, FileNotFoundError):
        return None
    return store if ATTRIBUTE in store.attrs else None


def _prepare_store(
    request: Request,
    source: ImageSource,
    labels: Labels,
    metadata: pd.DataFrame | None,
    settings: Mapping[str, Any],
    report: Reporter,
) -> FeatureStore:
    """Open the unfinished store of the same settings, or create a new one."""
    store = _open_own(request.out)
    if store is not None and not request.force and _resumes(request, store, settings, report):
        return store
    if store is not None:
        _remove(request.out)
    return create_store(request, source, labels, metadata, settings)


def _resumes(
    request: Request, store: FeatureStore, settings: Mapping[str, Any], report: Reporter
) -> bool:
    """Whether the run goes on in a store that is there; a store not to be touched is refused."""
    made: Mapping[str, Any] = store.attrs[ATTRIBUTE]
    differ = [k for k in settings if made["settings"].get(k) != settings[k]]
    if made["complete"]:
        raise RefusedError(_complete_message(request.out, differ))
    if differ == ["images"] and not has_statistics(store):
        # Somebody repaired an unreadable image, and nothing dear was computed yet.
        report.log(f"image files changed before all were read: beginning {request.out} anew")
        return False
    if differ:
        raise RefusedError(
            f"{request.out} is an unfinished run with other settings ({', '.join(differ)}); use "
            f"the same to resume, another --out, or --force to begin anew"
        )
    report.log(f"resuming {request.out}")
    return True


def _remove(out: Path | str) -> None:
    if isinstance(out, Path):
        shutil.rmtree(out)
        return
    import fsspec

    files, inside = fsspec.core.url_to_fs(out)
    files.rm(inside, recursive=True)


def _complete_message(out: Path | str, differ: Sequence[str]) -> str:
    other = f", with other settings ({', '.join(differ)})" if differ else ""
    return f"{out} is complete{other}; choose another --out, or --force to write it anew"


def create_store(
    request: Request,
    source: ImageSource,
    labels: Labels,
    metadata: pd.DataFrame | None,
    settings: Mapping[str, Any],
    class_parent: Sequence[str | None] | None = None,
) -> FeatureStore:
    """Make the store of a request: images, labels, folds; no predictions yet.

    Examples
    --------
    >>> import tempfile
    >>> source = ImageSource("drawings", ("1.png", "2.png"), ("1", "2"), (10, 20))
    >>> labels = Labels("labels.csv", ("1", "2"), (("fish",), ()), ("fish",))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     request = Request(Path(), Path(), ["test_resnet=none"], Path(folder, "store"), folds=2)
    ...     sorted(create_store(request, source, labels, None, {}).fold.tolist())
    [0, 1]
    """
    from features.folds import make_folds
    from features.store import FeatureStore

    matrix, known = labels.aligned(source.ids)
    group, columns = None, metadata
    if metadata is not None and "split_group" in metadata:
        group = metadata["split_group"].to_numpy()
        columns = metadata.drop(columns="split_group")
    fold = np.full(len(source), -1, dtype=np.int16)
    fold[known] = make_folds(
        matrix[np.flatnonzero(known)],
        n_folds=request.folds,
        split_group=None if group is None else group[known],
        random_state=request.seed,
    )
    return FeatureStore.create(
        request.out,
        image_ids=list(source.ids),
        classes=list(labels.classes),
        class_parent=class_parent,
        labels=matrix,
        labels_known=known,
        fold=fold,
        split_group=group,
        metadata=columns if columns is not None and len(columns.columns) else None,
        attrs={ATTRIBUTE: {"settings": dict(settings), "complete": False}},
        chunk_images=request.chunk_images,
    )


def _fill(
    request: Request,
    store: FeatureStore,
    source: ImageSource,
    backbones: Sequence[Backbone],
    report: Reporter,
    ranks: Ranks,
) -> Summary:
    """Statistics, backbones, heads; whatever is complete is skipped."""
    summary = Summary(str(request.out), store.n_images, int(store.labels_known.sum()))
    read_images(request, store, source, backbones, report, ranks, summary)
    if ranks.is_main:
        fit_heads(request, store, backbones, report, summary)
    summary.n_classes = store.n_classes
    skipped = np.flatnonzero(store.skipped)
    summary.errors = {str(store.image_ids[k]): str(store.errors[k]) for k in skipped}
    if summary.already:
        report.log(f"complete already and skipped: {', '.join(summary.already)}")
    return summary
