"""No feature of a row may read the labels of the row's own fold."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from features.assemble import PairFeatures
from features.blocks import BLOCKS
from features.schema import Stack

FOLD = 2
READS_LABELS = ("class_similarity", "class_prior", "cooccurrence", "neighbours", "kernel_ridge")


def permuted(labels, own, rng):
    """Shuffle each class's labels among the images of the fold."""
    out = labels.copy()
    out[own] = rng.permuted(labels[own], axis=0)
    return out


def emptied(labels, own, rng):
    """Take every label of the fold away: classes that only it has never occur."""
    return np.where(own[:, None], 0, labels)


def filled(labels, own, rng):
    """Give every class to every image of the fold: each pair of classes occurs."""
    return np.where(own[:, None], 1, labels)


CHANGES = {"permuted": permuted, "emptied": emptied, "filled": filled}


@pytest.fixture(scope="module")
def build(small_stack, slice_fold, stream):
    """Fit every block on some labels, and stream all training images."""

    def run(labels):
        features = PairFeatures(blocks=tuple(BLOCKS), candidates=None)
        features.fit(small_stack, csr_array(labels.astype(np.int8)), slice_fold)
        return stream(features, small_stack, slice_fold), stream(features, small_stack[:20])

    return run


@pytest.fixture(scope="module")
def truth(slice_labels):
    """Real labels, dense."""
    return slice_labels.toarray().astype(int)


@pytest.fixture(scope="module")
def before(build, truth):
    """Rows of the true labels: (training rows, new rows)."""
    return build(truth)


@pytest.fixture(scope="module", params=list(CHANGES))
def after(request, build, truth, slice_fold):
    """Rows after the labels of one fold were changed: (training rows, new rows)."""
    changed = CHANGES[request.param](truth, slice_fold == FOLD, np.random.default_rng(0))
    assert (changed != truth).any()
    return build(changed)


@pytest.mark.parametrize("block", list(BLOCKS))
def test_labels_of_a_fold_change_no_feature_of_its_rows(before, after, slice_fold, block):
    """The booster would learn a row's answer from its features: scores too good to be true."""
    own = slice_fold[before[0].image] == FOLD
    np.testing.assert_array_equal(
        before[0].of_block(block)[own], after[0].of_block(block)[own], strict=True
    )


@pytest.mark.parametrize("block", list(BLOCKS))
def test_labels_of_a_fold_are_read_by_all_other_rows(before, after, slice_fold, block):
    """A test of leakage passes emptily where a block reads no labels at all."""
    others = slice_fold[before[0].image] != FOLD
    differs = (before[0].of_block(block)[others] != after[0].of_block(block)[others]).any()
    new_differs = (before[1].of_block(block) != after[1].of_block(block)).any()
    assert differs == new_differs == (block in READS_LABELS)


def test_the_columns_that_read_labels_say_so(before, after):
    """`fold_fitted` in the schema tells users which columns must be built inside folds."""
    changed = (before[0].values != after[0].values).any(axis=0)
    for column, differs in zip(before[0].features.columns_, changed, strict=True):
        assert column.fold_fitted or not differs, column.name
        assert column.fold_fitted == (column.block in READS_LABELS)


def test_a_pair_of_classes_seen_only_in_the_own_fold_leaves_no_trace(stream):
    """Even the place where a zero count is stored once told which labels the own fold has."""
    probs = np.random.default_rng(0).random((8, 5)).astype(np.float32)
    stack, fold = Stack({"a": probs}), np.arange(8) % 2
    labels = np.zeros((8, 5), dtype=np.int8)
    labels[1::2, :2] = 1  # fold 1: classes 0 and 1 together
    labels[0::2, 2:4] = 1  # fold 0: classes 2 and 3 together, 4 nowhere
    hidden = labels.copy()
    hidden[fold == 0] = [1, 0, 1, 0, 1]
    tables = []
    for given in (labels, hidden):
        features = PairFeatures(blocks=("cooccurrence",), candidates=None)
        tables.append(stream(features.fit(stack, csr_array(given), fold), stack, fold))
    own = fold[tables[0].image] == 0
    np.testing.assert_array_equal(tables[0].values[own], tables[1].values[own])
