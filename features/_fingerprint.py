"""A checksum of everything in a stack: the same values in the same order give the same digits."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from features.schema import Stack

__all__ = ["fingerprint"]

# Rows hashed at once: a copy is made of no more than these.
STEP = 4096


def fingerprint(stack: Stack, **arrays: Any) -> str:
    """Checksum of a stack and of further arrays, as hexadecimal digits.

    Parameters
    ----------
    stack : Stack
    **arrays : arrays or CSR arrays
        By name, for example labels and folds.

    Examples
    --------
    >>> one, other = Stack({"a": np.zeros((2, 3))}), Stack({"a": np.ones((2, 3))})
    >>> fingerprint(one) == fingerprint(one), fingerprint(one) == fingerprint(other)
    (True, False)
    """
    digest = hashlib.sha256()
    space = stack.label_space
    parts = {
        "image_id": stack.image_ids,
        "class": space.names,
        "class_group": space.groups,
        "class_parent": space.parents,
        "image_stats": stack.image_stats,
        "metadata": stack.metadata,
        **arrays,
    }
    for group in ("probabilities", "embeddings", "imagenet_logits"):
        parts |= {f"{group}/{name}": values for name, values in getattr(stack, group).items()}
    for name, values in parts.items():
        digest.update(f"\n{name}\n".encode())
        _add(digest, values)
    return digest.hexdigest()


def _add(digest: Any, values: Any) -> None:
    """Add one array, sparse matrix, frame or None."""
    if values is None:
        return
    if sparse.issparse(values):
        for part in (values.data, values.indices.astype(np.int64), values.indptr.astype(np.int64)):
            _add(digest, part)
    elif isinstance(values, pd.DataFrame):
        digest.update(repr([*map(str, values.columns)]).encode())
        _add(digest, pd.util.hash_pandas_object(values, index=True).to_numpy())
    else:
        _add_array(digest, values)


def _add_array(digest: Any, values: NDArray[Any]) -> None:
    # The width of a string array depends on what it was cut from: hash the text itself.
    if values.dtype.kind in "UOT":
        digest.update("\0".join(map(str, values)).encode())
        return
    digest.update(f"{values.dtype.str}{values.shape}".encode())
    for start in range(0, len(values), STEP):
        digest.update(np.ascontiguousarray(values[start : start + STEP]).tobytes())
