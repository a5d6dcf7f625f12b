"""Tiny inputs for every command, and what must be equal after a run that was killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from features.store import FeatureStore

SLICE = Path(__file__).parents[1] / "data" / "openclipart_slice.npz"
TINY = "test_resnet=none"
RECIPE = """
folds = 2
[batch]
size = 8
[input]
crop = "squash"
[[stage]]
epochs = 2
train = "head"
lr = 0.01
"""


def make_images(folder: Path, n_images: int = 16) -> Path:
    """Make a folder with images, labels.csv and a recipe."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = ["image_id,labels"]
    for k in range(n_images):
        pixels = rng.integers(0, 256, (36 + k % 3, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"i{k:02}.png")
        if k < n_images - 4:
            lines.append(f"i{k:02},tag::{'ab'[k % 2]} tag::all")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "mine.toml").write_text(RECIPE)
    return folder


def make_store(path: Path, n_images: int = 120, n_classes: int = 8) -> Path:
    """Make a store of two models, three quarters of its images labelled, in two folds."""
    with np.load(SLICE) as data:
        part = {key: data[key][..., :n_images, :] for key in ("probabilities",)}
        labels, group, ids = data["labels"], data["split_group"], data["image_id"]
        names, models, fold = data["classes"], data["model"], data["fold"]
    columns = np.sort(np.argsort(-labels.sum(axis=0))[:n_classes])
    known = np.arange(n_images) < 3 * n_images // 4
    FeatureStore.from_arrays(
        path,
        image_ids=ids[:n_images],
        classes=names[columns],
        probabilities={str(models[m]): part["probabilities"][m][:, columns] for m in (0, 3)},
        labels=labels[:n_images, columns] * known[:, None],
        labels_known=known,
        fold=np.where(known, fold[:n_images] % 2, -1),
        split_group=group[:n_images],
        chunk_images=32,
    )
    return path


def commands(folder: Path, out: Path) -> dict[str, list[str]]:
    """Arguments of every command, by name; what they read must be there."""
    images, labels = str(folder / "images"), str(folder / "labels.csv")
    store = str(folder / "store")
    given = ["--quiet"]
    return {
        "cnn-extract run": [
            *("run", images, "--labels", labels, "--model", TINY, "--out", str(out)),
            *("--heads", "linear", "--folds", "2", "--size", "32", "--workers", "0", *given),
        ],
        "cnn-extract train": [
            *("train", images, "--labels", labels, "--recipe", str(folder / "mine.toml")),
            *("--model", TINY, "--out", str(out), "--size", "32", "--workers", "0"),
            *("--device", "cpu", *given),
        ],
        "build-features": [
            store,
            "--out",
            str(out),
            "--rows-per-part",
            "100",
            "--jobs",
            "1",
            *given,
        ],
        "stacker fit": ["fit", store, "--out", str(out), *given],
        "stacker tune": [
            *("tune", store, "--out", str(out), "--trials", "2"),
            *("--storage", str(out.with_suffix(".journal")), *given),
        ],
        "stacker predict": ["predict", str(folder / "model"), store, "--out", str(out), *given],
    }


# Imports timm where torchvision's operators do not load, too.
TIMM = "cnn_extract._torchvision:import_timm"
MODULES = {
    "cnn-extract run": ("cnn_extract.cli", ["cnn_extract.run", TIMM]),
    "cnn-extract train": ("cnn_extract.cli", ["cnn_extract.train.run", TIMM]),
    "build-features": ("features.cli", ["features._build"]),
    "stacker fit": ("stacker.cli", ["stacker.estimator"]),
    "stacker tune": ("stacker.cli", ["stacker.estimator", "stacker.tuning", "optuna"]),
    "stacker predict": ("stacker.cli", ["stacker.estimator", "stacker.submission"]),
}


def content(name: str, out: Path) -> object:
    """What a command made, for comparison: it must not depend on kills."""
    if name == "stacker predict":
        return out.read_bytes()
    if name == "cnn-extract run":
        return arrays_of(out)
    if name == "stacker tune":
        return tuned(out)
    if name == "cnn-extract train":
        networks = sorted(out.glob("fold*/*"))
        kept = {str(f.relative_to(out)): f.read_bytes() for f in networks if f.suffix != ".csv"}
        notes = {name: kept.pop(name) for name in list(kept) if name.endswith("model.json")}
        return kept, {k: untimed(json.loads(v)) for k, v in notes.items()}, arrays_of(out / "store")
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*"))}


def untimed(note: object) -> object:
    """Leave out how long it took, and the checksum over that."""
    if isinstance(note, dict):
        return {k: untimed(v) for k, v in note.items() if k not in ("seconds", "checksum")}
    return [untimed(v) for v in note] if isinstance(note, list) else note


def arrays_of(path: Path) -> dict[str, object]:
    """Every array of a store, bit for bit."""
    import zarr

    root = zarr.open_group(str(path), mode="r", use_consolidated=False)
    found = {name: node[...] for name, node in root.members(max_depth=None) if _is_array(node)}
    return {n: v.tobytes() if v.dtype.kind in "fiub" else v.tolist() for n, v in found.items()}


def _is_array(node: object) -> bool:
    return hasattr(node, "shape")


def tuned(out: Path) -> object:
    """Trials without their numbers and times, and the boosters."""
    tree = json.loads((out / "model.json").read_text())["tree"]
    trials = {k: v for k, v in tree["tuning"]["trials"].items() if k not in ("trial", "seconds")}
    boosters = [file.read_text() for file in sorted(out.glob("booster-*.txt"))]
    return tree["tuning"]["best"], trials, boosters


def leftovers(folder: Path) -> list[str]:
    """Names of temporary files and folders that a killed run left."""
    marks = (".partial", ".tmp", ".lock")
    found = [file for file in folder.rglob("*") if any(mark in file.name for mark in marks)]
    # The lock file of a store stays: it is empty, and locked only while a process writes.
    return [str(file) for file in found if file.name != ".lock"]


def remove(path: Path) -> None:
    """Remove a file or folder that may not be there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
