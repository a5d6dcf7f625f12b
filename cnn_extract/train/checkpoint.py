"""Checkpoints: tensors as safetensors, the rest as JSON; written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_extract._torchvision import import_torch
from features._seal import (
    BLANK,
    CHECKSUM,
    file_intact,
    is_intact,
    read_document,
    seal,
    seal_file,
)

if TYPE_CHECKING:
    import torch

__all__ = ["Progress", "load_progress", "read_model", "save_model", "save_progress", "write_text"]

MODEL = "model.safetensors"
LAST = "last.safetensors"


@dataclass
class Progress:
    """Where a training stands: the next stage and epoch, and everything they need.

    `weights`, `ema` and `optimiser` are state dicts; `losses` the samples' of the last epoch;
    `log` the rows of the curves so far.

    Examples
    --------
    >>> Progress(stage=1, epoch=3).log
    []
    """

    stage: int = 0
    epoch: int = 0
    weights: Mapping[str, Any] = field(default_factory=dict)
    ema: Mapping[str, Any] = field(default_factory=dict)
    ema_steps: int = 0
    optimiser: Mapping[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    losses: Any = None
    log: list[dict[str, Any]] = field(default_factory=list)


def save_model(folder: Path, state: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Write ``model.safetensors`` and, last, ``model.json``, which says that both are there.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(Path(folder), {"weight": torch.ones(2)}, {"fold": 0})
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['model.json', 'model.safetensors']
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save_tensors(folder / MODEL, state, {CHECKSUM: BLANK})
    write_text(folder / "model.json", json.dumps(seal(about), indent=2) + "\n")
    (folder / LAST).unlink(missing_ok=True)


def read_model(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Read what `save_model` wrote; None when it is not complete.

    Raises
    ------
    ValueError
        When it was changed since.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(Path(folder), {"weight": torch.ones(2)}, {"fold": 0})
    ...     state, about = read_model(Path(folder))
    >>> state["weight"].tolist(), about
    ([1.0, 1.0], {'fold': 0})
    """
    from safetensors.torch import load_file

    note, tensors = folder / "model.json", folder / MODEL
    if not note.is_file():
        return None
    told = read_document(note)
    _refuse_damaged(note, intact=is_intact(told))
    _refuse_damaged(tensors, intact=file_intact(tensors))
    about = {key: value for key, value in told.items() if key != CHECKSUM}
    with _as_saved(tensors):
        return load_file(tensors), about


def save_progress(folder: Path, progress: Progress) -> None:
    """Write ``last.safetensors``: the JSON part stands in its header, so one rename saves both.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_progress(Path(folder), Progress(epoch=2, weights={"weight": torch.ones(2)}))
    ...     [path.name for path in Path(folder).iterdir()]
    ['last.safetensors']
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weights.{k}": v for k, v in progress.weights.items()}
    tensors |= {f"ema.{k}": v for k, v in progress.ema.items()}
    structure = _flatten(progress.optimiser, "optimiser", tensors)
    if progress.losses is not None:
        tensors["losses"] = import_torch().from_numpy(np.asarray(progress.losses))
    note = {
        "stage": progress.stage,
        "epoch": progress.epoch,
        "ema_steps": progress.ema_steps,
        "optimiser": structure,
        "schedule": progress.schedule,
        "log": progress.log,
        CHECKSUM: BLANK,
    }
    _save_tensors(folder / LAST, tensors, {"progress": json.dumps(note)})


def load_progress(folder: Path) -> Progress | None:
    """Read what `save_progress` wrote, None when there is nothing.

    Raises
    ------
    ValueError
        When it was changed since.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_progress(Path(folder), Progress(epoch=2, weights={"weight": torch.ones(2)}))
    ...     load_progress(Path(folder)).epoch
    2
    """
    from safetensors import safe_open

    path = folder / LAST
    if not path.is_file():
        return None
    _refuse_damaged(path, intact=file_intact(path))
    with _as_saved(path):
        with safe_open(path, framework="pt") as file:
            note = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        losses = tensors.pop("losses", None)
        return Progress(
            stage=note["stage"],
            epoch=note["epoch"],
            weights=_under("weights.", tensors),
            ema=_under("ema.", tensors),
            ema_steps=note["ema_steps"],
            optimiser=_unflatten(note["optimiser"], tensors),
            schedule=note["schedule"],
            losses=None if losses is None else losses.numpy(),
            log=note["log"],
        )


@contextmanager
def _as_saved(path: Path) -> Iterator[None]:
    """Refuse a file that has its checksum, and is not what we write: somebody made it so."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not what `cnn-extract train` writes ({type(error).__name__}: {error}). "
            f"Remove {path.parent} and run the same command again to train this network anew."
        ) from error


def _refuse_damaged(path: Path, *, intact: bool) -> None:
    if not intact:
        raise ValueError(
            f"{path} is damaged: it does not have its checksum. Remove {path.parent} and run the "
            "same command again to train this network anew."
        )


def _under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


# How a tensor, and a dict whose keys are no text, stand in JSON.
_TENSOR, _PAIRS = "__tensor__", "__pairs__"


def _flatten(value: Any, path: str, tensors: dict[str, Any]) -> Any:
    """Move every tensor of a nested structure into `tensors`; what is left is JSON."""
    if import_torch().is_tensor(value):
        tensors[path] = value
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        return {_PAIRS: [[k, _flatten(v, f"{path}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_flatten(v, f"{path}.{k}", tensors) for k, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"an optimiser's state must hold tensors, numbers and text; {path} is {value!r}"
    )


def _unflatten(value: Any, tensors: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_unflatten(v, tensors) for v in value]
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {k: _unflatten(v, tensors) for k, v in value[_PAIRS]}
    return value


def _save_tensors(path: Path, tensors: Mapping[str, Any], header: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Contiguous copies: safetensors refuses views that share memory.
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    temporary = path.with_name(f".{path.name}.partial")
    try:
        try:
            save_file(plain, temporary, metadata=header)
        except SafetensorError as error:
            raise _system_error(error, path) from error
        seal_file(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _system_error(error: Exception, path: Path) -> OSError:
    """Give the system's error, a full disk above all, that safetensors turns into its own."""
    found = re.search(r"os error (\d+)", str(error))
    if found is None:
        return OSError(f"{path} cannot be written: {error}")
    number = int(found.group(1))
    return OSError(number, os.strerror(number), str(path))


def write_text(path: Path, text: str) -> None:
    """Write a text under a temporary name, then rename it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_text(Path(folder, "note.json"), "{}")
    ...     Path(folder, "note.json").read_text()
    '{}'
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
