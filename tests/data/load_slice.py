"""Read the test slice of real out-of-fold predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SLICE = Path(__file__).parent / "openclipart_slice.npz"


def load_slice() -> dict[str, NDArray[np.generic]]:
    """Read the arrays of ``openclipart_slice.npz`` by key (see the README beside it)."""
    with np.load(SLICE, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
