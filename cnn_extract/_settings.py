"""Settings that several commands share: what each may be, refused before an image is read."""

from __future__ import annotations

from typing import Any

from cnn_extract.extract import PRECISIONS
from cnn_extract.transforms import VIEWS

__all__ = ["ALLOWED", "LEAST", "check_settings"]

LEAST = {"folds": 2, "batch_size": 1, "chunk_images": 1, "size": 1, "seed": 0, "workers": 0}
ALLOWED = {
    "tta": tuple(VIEWS),
    "precision": PRECISIONS,
    "device": ("cpu", "cuda"),
    "on_error": ("stop", "skip"),
}


def check_settings(**given: Any) -> None:
    """Refuse settings that no command can have; None stands for a default.

    Raises
    ------
    ValueError
        For a number below its least, and a word that is none of those allowed.
    """
    for name, value in given.items():
        if name in LEAST and value is not None and value < LEAST[name]:
            raise ValueError(f"{name} must be at least {LEAST[name]}; got {value}")
        if name in ALLOWED and value not in ALLOWED[name]:
            allowed = ", ".join(ALLOWED[name])
            raise ValueError(f"{name} must be one of {allowed}; got {value!r}")
