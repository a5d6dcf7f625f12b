"""Parents, ancestors and children, against a walk up the tree."""

import numpy as np
import pytest

from features.assemble import PairFeatures
from features.schema import Stack


def ancestors(parents, c):
    """Parent, grandparent, ... of a class."""
    while parents[c] >= 0:
        c = parents[c]
        yield c


def reference(p, parents):
    """Four columns of one image by name, each (n_classes,)."""
    above = [list(ancestors(parents, c)) for c in range(len(p))]
    parent = np.array([p[a[0]] if a else 1.0 for a in above])
    return {
        "parent": parent,
        "ancestor_min": np.array([min((p[a] for a in line), default=1.0) for line in above]),
        "p_over_parent": p / (parent + 1e-6),
        "children": np.array([p[parents == c].sum() for c in range(len(p))]),
    }


def test_columns_equal_a_walk_up_the_tree(example):
    """A level too few, or children of another class, would go unseen."""
    parents = example.query.label_space.parents
    assert max(len(list(ancestors(parents, c))) for c in range(60)) >= 3
    for i, p in enumerate(example.blend.astype(np.float64)):
        for name, expected in reference(p, parents).items():
            got = example.matrix_of[f"{name}:blend"][i]
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7, err_msg=name)


def test_without_parents_the_block_is_refused(small_stack, slice_labels, slice_fold):
    """Without a hierarchy the user would get four columns of nothing."""
    flat = Stack(small_stack.probabilities, classes=small_stack.classes)
    with pytest.raises(ValueError, match="'hierarchy' needs class_parent, which this stack"):
        PairFeatures(blocks=("hierarchy",)).fit(flat, slice_labels, slice_fold)
