"""Boosters' texts from a file, checked before LightGBM's or XGBoost's C++ reads them.

Their readers trust the numbers in the text: a child that lies outside of its tree is read from
someone else's memory, one that is its own parent is walked for ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["END", "check_lightgbm", "check_xgboost"]

CATEGORICAL = 1  # bit of LightGBM's decision_type
MOST_NESTED = 32
END = "end of trees"

Ints = NDArray[np.int64]


def check_lightgbm(text: str) -> str:
    """Check the trees of LightGBM's text; head and trees, as its reader may have them.

    Without the sizes that it would trust, and without the parameters at the end: it ends the
    process when one of them is missing, and a prediction needs none.

    Raises
    ------
    ValueError
        When it is no text of LightGBM, or one of its trees cannot be walked.
    """
    lines = text.splitlines()
    if not lines or lines[0].strip() != "tree":
        raise ValueError(
            "the model's booster is no text of LightGBM: it does not begin with 'tree'"
        )
    blocks = list(_blocks(lines))
    head = blocks[0]
    n_features = _number(head, "max_feature_idx") + 1
    if not 0 < n_features == len(head.get("feature_names", "").split()):
        raise ValueError(f"the model's booster names other columns than the {n_features} it reads")
    if _number(head, "num_class") != 1 or _number(head, "num_tree_per_iteration") != 1:
        raise ValueError("the model's booster is of several classes; ours are of one")
    for number, tree in enumerate(blocks[1:]):
        try:
            _check_tree(tree, n_features)
        except ValueError as error:
            raise ValueError(f"the model's booster is damaged: tree {number}: {error}") from error
    # Without them the trees are read one after the other, each up to its end.
    end = next(k for k, line in enumerate(lines) if line.startswith(END))
    return "\n".join(x for x in [*lines[:end], END] if not x.startswith("tree_sizes=")) + "\n"


def _blocks(lines: list[str]) -> Iterator[dict[str, str]]:
    """Key and value of the head's lines, then of each tree's."""
    block: dict[str, str] = {}
    for line in lines:
        if line.startswith("Tree=") or line.startswith(END):
            yield block
            block = {}
            if line.startswith(END):
                return
        key, _, value = line.partition("=")
        block[key.strip()] = value.strip()
    raise ValueError(f"the model's booster is cut off: it has no {END!r}")


def _check_tree(tree: dict[str, str], n_features: int) -> None:
    n_leaves = _number(tree, "num_leaves")
    if n_leaves < 1:
        raise ValueError(f"a tree must have a leaf; it has {n_leaves}")
    if _number(tree, "is_linear", 0):
        raise ValueError("its leaves are linear; ours are constant")
    _floats(tree, "leaf_value", n_leaves)
    n_inner = n_leaves - 1
    if not n_inner:
        return
    _floats(tree, "threshold", n_inner)
    features = _ints(tree, "split_feature", n_inner)
    if features.min() < 0 or features.max() >= n_features:
        raise ValueError(f"it splits column {features.max()} of {n_features}")
    _check_children(
        _ints(tree, "left_child", n_inner), _ints(tree, "right_child", n_inner), n_leaves
    )
    kind = _ints(tree, "decision_type", n_inner)
    if (kind & CATEGORICAL).any():
        _check_categories(tree, kind)


def _check_children(left: Ints, right: Ints, n_leaves: int) -> None:
    """Refuse nodes and leaves that are not the child of one node before them; ~k is leaf k."""
    both = np.concatenate([left, right])
    parent = np.tile(np.arange(len(left)), 2)
    inner, leaf = both >= 0, ~both[both < 0]
    if (both[inner] <= parent[inner]).any():
        raise ValueError("a node comes before its parent")
    nodes = np.sort(both[inner])
    if nodes.tolist() != list(range(1, len(left))):
        raise ValueError("a node is the child of none, or of two")
    if np.sort(leaf).tolist() != list(range(n_leaves)):
        raise ValueError("a leaf is the child of none, or of two")


def _check_categories(tree: dict[str, str], kind: Ints) -> None:
    """Refuse sets of categories that do not lie one after the other inside of their words."""
    n_sets = _number(tree, "num_cat")
    bounds = _ints(tree, "cat_boundaries", n_sets + 1)
    if n_sets < 1 or bounds[0] != 0 or (np.diff(bounds) < 1).any():
        raise ValueError("its sets of categories are none")
    _ints(tree, "cat_threshold", int(bounds[-1]))
    which = _floats(tree, "threshold", len(kind))[(kind & CATEGORICAL) > 0]
    if not ((which >= 0) & (which < n_sets)).all():
        raise ValueError("it splits by a set of categories that is not there")


def _number(block: dict[str, str], key: str, default: int | None = None) -> int:
    value = block.get(key, default)
    if value is None:
        raise ValueError(f"the model's booster lacks {key!r}")
    return int(value)


def _ints(tree: dict[str, str], key: str, n: int) -> Ints:
    return _floats(tree, key, n).astype(np.int64)


def _floats(tree: dict[str, str], key: str, n: int) -> NDArray[np.float64]:
    words = tree.get(key, "").split()
    if len(words) != n:
        raise ValueError(f"{key!r} holds {len(words)} numbers, not {n}")
    return np.array(words, dtype=np.float64)


def check_xgboost(text: str) -> str:
    """Check the trees of XGBoost's JSON; the text itself.

    Raises
    ------
    ValueError
        When it is no JSON of XGBoost, or one of its trees cannot be walked.
    """
    if text[:MOST_NESTED].count("[") >= MOST_NESTED:
        raise ValueError("the model's booster is no JSON of XGBoost: it is nested too deeply")
    try:
        learner = json.loads(text)["learner"]
        n_features = int(learner["learner_model_param"]["num_feature"])
        trees = learner["gradient_booster"]["model"]["trees"]
        for tree in trees:
            _check_json_tree(tree, n_features)
    except (KeyError, TypeError, IndexError, RecursionError, OverflowError, ValueError) as error:
        raise ValueError(
            f"the model's booster is no JSON of XGBoost, or damaged: {type(error).__name__} {error}"
        ) from error
    return text


def _check_json_tree(tree: dict[str, Any], n_features: int) -> None:
    left, right = (np.asarray(tree[key], dtype=np.int64) for key in LEFT_RIGHT)
    n_nodes = int(tree["tree_param"]["num_nodes"])
    lengths = {len(tree[key]) for key in PER_NODE}
    if lengths != {n_nodes} or n_nodes < 1:
        raise ValueError(f"a tree of {n_nodes} nodes holds {sorted(lengths)} numbers a node")
    inner = left >= 0
    if not np.array_equal(inner, right >= 0) or min(left.min(), right.min()) < -1:
        raise ValueError("a node has one child")
    both = np.concatenate([left[inner], right[inner]])
    if np.sort(both).tolist() != list(range(1, n_nodes)):
        raise ValueError("a node is the child of none, or of two")
    if (both <= np.tile(np.flatnonzero(inner), 2)).any():
        raise ValueError("a node comes before its parent")
    features = np.asarray(tree["split_indices"], dtype=np.int64)
    if features.min() < 0 or features.max() >= n_features:
        raise ValueError(f"it splits column {features.max()} of {n_features}")
    if len(tree.get("categories", [])) or np.any(tree.get("split_type", [0])):
        raise ValueError("a tree splits by categories; ours do not")


LEFT_RIGHT = ("left_children", "right_children")
PER_NODE = (
    *LEFT_RIGHT,
    "split_indices",
    "split_conditions",
    "default_left",
    "base_weights",
    "parents",
)
