"""`LabelSpace`: the class vocabulary with its groups and hierarchy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from features import _checks as checks

__all__ = ["LabelSpace"]

ROOT = -1


class LabelSpace:
    """The classes: their names, groups and, where there is a hierarchy, parents. Frozen.

    Parameters
    ----------
    names : array-like of str of shape (n_classes,)
        Unique class names, kept verbatim.
    groups : array-like of str of shape (n_classes,), optional
        Group of each class. Default: the part of the name before ``"::"``, or ``""``.
    parents : array-like of shape (n_classes,), optional
        Parent of each class: a class name (None or "" for a root) or a position (-1 for a root).

    Raises
    ------
    ValueError
        For repeated names, a length that does not fit, an unknown parent or a cycle.

    Examples
    --------
    >>> space = LabelSpace(["culture::french", "tag::dog", "tag::cat"])
    >>> space.group_names.tolist(), space.group_codes.tolist()
    (['culture', 'tag'], [0, 1, 1])
    >>> space.index(["tag::cat"]).tolist()
    [2]
    """

    __slots__ = ("_group_codes", "_group_names", "_groups", "_lookup", "_names", "_parents")

    def __init__(
        self,
        names: ArrayLike,
        groups: ArrayLike | None = None,
        parents: Sequence[Any] | NDArray[Any] | None = None,
    ) -> None:
        self._names = _frozen(checks.as_names(names, "class name"))
        self._lookup = pd.Index(self._names)
        given = _prefixes(self._names) if groups is None else groups
        self._groups = _frozen(checks.as_names(given, "class group", unique=False))
        if len(self._groups) != len(self._names):
            raise ValueError(
                f"class_group must name one group a class: {len(self._groups):,} groups for "
                f"{len(self._names):,} classes"
            )
        codes, found = pd.factorize(pd.Index(self._groups))
        self._group_codes = _frozen(codes.astype(np.int32))
        self._group_names = _frozen(np.asarray(found, dtype=np.str_))
        self._parents = None if parents is None else _frozen(self._read_parents(parents))

    @property
    def names(self) -> NDArray[np.str_]:
        """Class names, shape (n_classes,)."""
        return self._names

    @property
    def groups(self) -> NDArray[np.str_]:
        """Group of each class, shape (n_classes,)."""
        return self._groups

    @property
    def parents(self) -> NDArray[np.int64] | None:
        """Position of each class's parent, -1 for a root; None without a hierarchy."""
        return self._parents

    @property
    def parent_names(self) -> list[str | None] | None:
        """Name of each class's parent, None for a root; None without a hierarchy."""
        if self._parents is None:
            return None
        return [None if p == ROOT else str(self._names[p]) for p in self._parents]

    @property
    def group_names(self) -> NDArray[np.str_]:
        """The groups, each once, in order of first appearance."""
        return self._group_names

    @property
    def group_codes(self) -> NDArray[np.int32]:
        """Position of each class's group in `group_names`, shape (n_classes,)."""
        return self._group_codes

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"LabelSpace({len(self):,} classes in {len(self._group_names):,} groups)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelSpace):
            return NotImplemented
        return (
            np.array_equal(self._names, other._names)
            and np.array_equal(self._groups, other._groups)
            and self.parent_names == other.parent_names
        )

    __hash__ = None  # type: ignore[assignment]

    def index(self, names: ArrayLike) -> NDArray[np.intp]:
        """Positions of class names.

        Raises
        ------
        ValueError
            Naming the first few that are no class here.
        """
        wanted = checks.as_names(names, "class name", unique=False)
        found = self._lookup.get_indexer(pd.Index(wanted))
        unknown = pd.unique(pd.Series(wanted[found < 0]))
        if len(unknown):
            raise ValueError(
                f"{len(unknown):,} unknown class names, first: {checks.first_few(unknown)}. "
                f"Known are {len(self):,}, first: {checks.first_few(self._names, 3)}."
            )
        return np.asarray(found, dtype=np.intp)

    def _read_parents(self, parents: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
        if len(parents) != len(self):
            raise ValueError(
                f"class_parent must give one parent a class: {len(parents):,} for {len(self):,}"
            )
        raw = np.asarray(parents)
        if raw.dtype.kind in "iu":
            found = raw.astype(np.int64)
            wrong = found[(found < ROOT) | (found >= len(self))]
            if wrong.size:
                raise ValueError(
                    f"class_parent positions must lie in -1..{len(self) - 1}; got {wrong[0]}"
                )
        else:
            named = [None if pd.isna(p) or p == "" else str(p) for p in parents]
            found = np.full(len(self), ROOT, dtype=np.int64)
            has_parent = np.array([p is not None for p in named], dtype=bool)
            if has_parent.any():
                found[has_parent] = self.index([p for p in named if p is not None])
        _refuse_cycles(found, self._names)
        return found


def _frozen(values: NDArray[Any]) -> Any:
    """Make a read-only view, so that a label space cannot change under its users."""
    view = values.view()
    view.flags.writeable = False
    return view


def _prefixes(names: NDArray[np.str_]) -> list[str]:
    """Split off what stands before the first "::", or "" when there is none."""
    return [name.partition("::")[0] if "::" in name else "" for name in names.tolist()]


def _refuse_cycles(parents: NDArray[np.int64], names: NDArray[np.str_]) -> None:
    """Refuse parents that never reach a root."""
    current = parents.copy()
    # Pointer doubling: after k rounds every class has climbed 2**k levels.
    for _ in range(int(np.ceil(np.log2(max(len(parents), 2)))) + 1):
        moving = current != ROOT
        current[moving] = np.where(current[current[moving]] == ROOT, ROOT, current[current[moving]])
    stuck = names[current != ROOT]
    if stuck.size:
        raise ValueError(f"class_parent has a cycle; it holds class {str(stuck[0])!r}")
