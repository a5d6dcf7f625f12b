"""Nested dicts of plain values to flat ones and back, for saving without pickle."""

from typing import Any

__all__ = ["flatten", "unflatten"]


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join the keys of nested dicts with "/".

    >>> flatten({"a": {"b": 1}, "c": 2})
    {'a/b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Undo `flatten`.

    >>> unflatten({"a/b": 1, "c": 2})
    {'a': {'b': 1}, 'c': 2}
    """
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split("/")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return nested
