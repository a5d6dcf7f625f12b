"""`cnn-extract train`: a recipe's networks, fold by fold, and their predictions in the store."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnn_extract._settings import check_settings
from cnn_extract.decode import DecodePool, n_cores
from cnn_extract.extract import Backbone, Settings, extract_backbone
from cnn_extract.run import RefusedError
from cnn_extract.train.checkpoint import write_text
from cnn_extract.train.data import TrainData, load_data
from cnn_extract.train.machine import main_first, make_accelerator
from cnn_extract.train.recipe import Recipe
from cnn_extract.train.request import TrainRequest, TrainSummary, resolve_recipe
from cnn_extract.train.store import write_predictions
from cnn_extract.train.toml import to_toml
from cnn_extract.train.units import Trainer, list_units
from cnn_extract.weights import Weights, find_weights
from features._console import Reporter
from features._seal import file_sha256, is_intact, read_document, seal

__all__ = ["train"]

NOTE = "run.json"


def train(request: TrainRequest, report: Reporter | None = None) -> TrainSummary:
    r"""Make or resume the run that `request` describes.

    Raises
    ------
    RefusedError
        When the output is complete, or was begun with other settings.
    ValueError, OSError
        For bad input; the message names the file, image, class or setting.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     images, labels = Path(folder, "images"), Path(folder, "labels.csv")
    ...     images.mkdir()
    ...     for k in range(8):
    ...         Image.new("RGB", (40, 40), (25 * k, 0, 0)).save(images / f"{k}.png")
    ...     _ = labels.write_text("image_id,labels\n" + "".join(f"{k},dark\n" for k in range(8)))
    ...     recipe = Path(folder, "mine.toml")
    ...     _ = recipe.write_text("folds = 2\n[[stage]]\ntrain = 'head'")
    ...     request = TrainRequest(
    ...         images, labels, str(recipe), Path(folder, "run"), model="test_resnet=none", size=32,
    ...         workers=0, device="cpu", embeddings=False,
    ...     )
    ...     summary = train(request, Reporter(quiet=True))
    >>> summary.complete
    True
    """
    start = time.monotonic()
    report = report or Reporter()
    check_settings(
        seed=request.seed,
        workers=request.workers,
        chunk_images=request.chunk_images,
        on_error=request.on_error,
    )
    recipe, given = resolve_recipe(request)
    weights = find_weights(recipe.model.name, given)
    accelerator = make_accelerator(request.device, recipe.batch.precision)
    if not accelerator.is_main_process:
        report = Reporter(quiet=True)
    with main_first(accelerator):
        data = load_data(request, recipe, report, write=accelerator.is_main_process)
        settings = _fingerprint(request, recipe, weights, data)
        if accelerator.is_main_process:
            _refuse_other_model(request, recipe, weights, data)
            _prepare_folder(request, recipe, settings, str(data.store.path), report)
    # Opening a store removes what killed writers left: all are open before one writes.
    accelerator.wait_for_everyone()
    summary = _train_all(request, recipe, weights, data, accelerator, report)
    if accelerator.is_main_process:
        _write_note(request.out, settings, summary.store, complete=summary.complete)
    summary.seconds = time.monotonic() - start
    return summary


def _fingerprint(
    request: TrainRequest, recipe: Recipe, weights: Weights, data: TrainData
) -> dict[str, Any]:
    """Everything that the predictions depend on, as JSON."""
    told = recipe.as_dict()
    told.pop("about")
    return json.loads(
        json.dumps(
            {
                "recipe": told,
                "weights": [weights.kind, weights.sha256()],
                "data": data.fingerprint,
                "init": None if request.init is None else str(request.init),
                "seed": request.seed,
            }
        )
    )


def _prepare_folder(
    request: TrainRequest,
    recipe: Recipe,
    settings: Mapping[str, Any],
    store: str,
    report: Reporter,
) -> None:
    """Make the run's folder, or resume the unfinished one with the same settings."""
    note = request.out / NOTE
    if request.out.exists() and not note.is_file() and any(_foreign(request.out)):
        raise RefusedError(
            f"{request.out} is there and was not made by cnn-extract train; choose another --out"
        )
    if note.is_file() and not request.force:
        made = read_document(note)
        if not is_intact(made):
            raise ValueError(
                f"{note} is damaged: it does not have its checksum. Copy the run again, choose "
                "another --out, or --force to begin anew"
            )
        differ = [k for k in settings if made["settings"].get(k) != settings[k]]
        if made["complete"]:
            other = f", with other settings ({', '.join(differ)})" if differ else ""
            raise RefusedError(
                f"{request.out} is complete{other}; choose another --out, or --force to write it "
                f"anew"
            )
        if differ:
            raise RefusedError(
                f"{request.out} is an unfinished run with other settings ({', '.join(differ)}); "
                f"use the same to resume, another --out, or --force to begin anew"
            )
        report.log(f"resuming {request.out}")
    if request.force:
        _remove_networks(request.out)
    request.out.mkdir(parents=True, exist_ok=True)
    write_text(request.out / "recipe.toml", to_toml(recipe))
    _write_note(request.out, settings, store, complete=False)


def _refuse_other_model(
    request: TrainRequest, recipe: Recipe, weights: Weights, data: TrainData
) -> None:
    """Refuse a name that another run's model has in the store, before days of training."""
    name = request.name or recipe.name
    array = f"probabilities/{name}"
    if name not in data.store.models or array not in data.store.array_names:
        return
    made, asked = data.store.array_attrs(array), _attrs(recipe, weights, request)
    if any(made.get(key) != asked[key] for key in ("recipe", "weights", "sha256", "seed")):
        raise RefusedError(
            f"{data.store.path} has a model {name!r} of another recipe; choose another name with "
            f"--name, or another --store"
        )


def _foreign(out: Path) -> list[Path]:
    """List what lies in the folder beside the store, which is made before the note."""
    return [entry for entry in out.iterdir() if entry.name != "store"]


def _remove_networks(out: Path) -> None:
    """Remove what a run wrote: checkpoints, curves, predictions. Nothing else."""
    names = (
        "model.safetensors",
        "model.json",
        "last.safetensors",
        "log.csv",
        "predictions.npy",
        "predictions.json",
    )
    for name in names:
        for path in out.glob(f"fold*/**/{name}"):
            path.unlink()
    for path in out.glob("trunk-*.npy"):
        path.unlink()


def _write_note(out: Path, settings: Mapping[str, Any], store: str, *, complete: bool) -> None:
    note = {
        "settings": settings,
        "store": store,
        "complete": complete,
        "recipe_sha256": file_sha256(out / "recipe.toml"),
    }
    write_text(out / NOTE, json.dumps(seal(note), indent=2) + "\n")


def _train_all(
    request: TrainRequest,
    recipe: Recipe,
    weights: Weights,
    data: TrainData,
    accelerator: Any,
    report: Reporter,
) -> TrainSummary:
    """Train every unit, predict with it, and write the model into the store."""
    name = request.name or recipe.name
    store = data.store
    summary = TrainSummary(str(request.out), str(store.path), name)
    summary.n_images, summary.n_classes = store.n_images, store.n_classes
    summary.n_trained_on = len(data.samples)
    workers = n_cores() if request.workers is None else request.workers
    with DecodePool(data.source, workers) as pool:
        trainer = Trainer(request, recipe, weights, data, pool, accelerator, report)
        for unit in list_units(recipe, data, request.only_folds):
            summary.folds.append(trainer.run(unit))
        if request.embeddings and weights.kind != "none" and accelerator.is_main_process:
            key = recipe.model.name
            backbone, settings = Backbone(key, key, weights), Settings(size=recipe.size)
            extract_backbone(
                store, pool, backbone, settings, n_channels=data.n_channels, report=report
            )
    accelerator.wait_for_everyone()
    summary.complete = write_predictions(
        store, name, request.out, recipe, data, accelerator, attrs=_attrs(recipe, weights, request)
    )
    return summary


def _attrs(recipe: Recipe, weights: Weights, request: TrainRequest) -> dict[str, Any]:
    """Say what made the predictions, for the store."""
    import timm

    from cnn_extract._torchvision import import_torch

    return {
        "recipe": json.loads(json.dumps(recipe.as_dict())),
        "timm_name": recipe.model.name,
        "weights": weights.kind,
        "sha256": weights.sha256(),
        "seed": request.seed,
        "versions": {"torch": str(import_torch().__version__), "timm": timm.__version__},
    }
