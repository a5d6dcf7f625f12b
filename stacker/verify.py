"""Checks of what a store, pair folder, model or training run holds: is it as it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from features._seal import file_intact, file_sha256, is_intact
from features.verify import Verified, verify_pairs, verify_store
from stacker.persistence import check_folder

__all__ = ["verify", "verify_model", "verify_run"]


def verify(path: str | Path) -> list[Verified]:
    """Check what lies at a path; what lies inside a training run, its store, is checked too.

    Parameters
    ----------
    path : path or fsspec URL
        A store, a pair folder, a model folder or the folder of a training run.

    Returns
    -------
    list of Verified

    Raises
    ------
    FileNotFoundError
        When nothing is there.
    ValueError
        When what is there is none of these.

    Examples
    --------
    >>> import tempfile
    >>> from features import FeatureStore
    >>> path = tempfile.mkdtemp() + "/store"
    >>> store = FeatureStore.create(path, image_ids=["i"], classes=["cat"])
    >>> [(found.kind, found.problems) for found in verify(path)]
    [('store', [])]
    """
    if "://" in str(path):
        return [verify_store(path)]
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"there is nothing at {folder}")
    marks = {
        "zarr.json": verify_store,
        "_pairs.parquet": verify_pairs,
        "checksums.json": verify_model,
        "run.json": verify_run,
    }
    for name, check in marks.items():
        if (folder / name).is_file():
            found = [check(folder)]
            inside = folder / "store"
            if check is verify_run and (inside / "zarr.json").is_file():
                found.append(verify_store(inside))
            return found
    raise ValueError(
        f"{folder} is no store, pair folder, model or training run: it holds none of "
        f"{', '.join(marks)}."
    )


def verify_model(path: str | Path) -> Verified:
    """Compare every file of a model folder with its checksum.

    Parameters
    ----------
    path : path

    Returns
    -------
    Verified

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from stacker import PairStacker
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> model = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1).fit(X, Y)
    >>> folder = tempfile.mkdtemp() + "/model"
    >>> model.save(folder)
    >>> verify_model(folder).problems
    []
    """
    folder = Path(path)
    found = Verified(str(path), "model", sum(1 for _ in folder.iterdir()))
    try:
        check_folder(folder)
    except (ValueError, OSError) as error:
        found.problems.append(str(error))
    return found


def verify_run(path: str | Path) -> Verified:
    """Compare a training run's checkpoints, notes and predictions with their checksums.

    ``log.csv`` (curves for people to look at) and kept activations, which are computed again where
    they are missing, have none.

    Parameters
    ----------
    path : path

    Returns
    -------
    Verified

    Examples
    --------
    >>> import tempfile
    >>> verify_run(tempfile.mkdtemp()).kind
    'training run'
    """
    folder = Path(path)
    found = Verified(str(path), "training run")
    note = _check_json(found, folder, folder / "run.json")
    recipe = folder / "recipe.toml"
    found.n_checked += 1
    if not recipe.is_file() or note.get("recipe_sha256") != file_sha256(recipe):
        found.problems.append("recipe.toml: it does not have its checksum")
    if note.get("complete") is False:
        found.notes.append("unfinished: run the same command again")
    for file in sorted(folder.glob("fold*/**/*")):
        if file.suffix == ".safetensors":
            _check(found, folder, file, file_intact(file))
        elif file.name == "model.json":
            _check_json(found, folder, file)
        elif file.name == "predictions.npy":
            told = _check_json(found, folder, file.with_suffix(".json"))
            _check(found, folder, file, told.get("sha256") == file_sha256(file))
    return found


def _check_json(found: Verified, folder: Path, file: Path) -> dict[str, Any]:
    """Read a note that has its own checksum; empty when it is damaged."""
    try:
        told = json.loads(file.read_bytes())
    except (OSError, ValueError):
        told = None
    intact = is_intact(told)
    _check(found, folder, file, intact)
    return told if intact else {}


def _check(found: Verified, folder: Path, file: Path, intact: bool) -> None:
    found.n_checked += 1
    if not intact:
        name = file.relative_to(folder).as_posix()
        found.problems.append(f"{name}: it does not have its checksum")
