"""Folds of the training images: coarse ones for boosting, finer ones for features."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from stacker import _training_folds
from stacker._training_folds import boosting_folds, feature_folds


@pytest.fixture
def images(rng):
    """Labels, groups of two images and five folds that keep them together: 200 images."""
    labels = csr_array((rng.random((200, 6)) < 0.3).astype(np.int8))
    groups = np.repeat(np.arange(100), 2)
    return labels, groups, boosting_folds(5, labels, groups, None, 0)


def test_feature_folds_lie_inside_boosting_folds_and_keep_groups(images):
    """A part across two folds, or a group across two parts, would let a row see its own label."""
    labels, groups, fold = images
    fine = feature_folds(fold, labels, groups, whole=False, random_state=0)
    assert len(np.unique(fine)) == 20
    for part in range(20):
        assert len(np.unique(fold[fine == part])) == 1
    for group in range(100):
        assert len(np.unique(fine[groups == group])) == 1


def test_folds_of_somebody_else_stay_whole(images, monkeypatch):
    """Their groups are not known here, and large sets need no finer folds."""
    labels, groups, fold = images
    whole = feature_folds(fold, labels, None, whole=True, random_state=0)
    np.testing.assert_array_equal(whole, fold)
    monkeypatch.setattr(_training_folds, "MOST_IMAGES", 100)
    large = feature_folds(fold, labels, groups, whole=False, random_state=0)
    np.testing.assert_array_equal(large, fold)


def test_a_fold_with_few_groups_is_not_split(images):
    """Parts without images would leave empty folds behind."""
    labels, _, fold = images
    few = np.repeat(np.arange(10), 20)
    fold = few % 5
    np.testing.assert_array_equal(
        feature_folds(fold, labels, few, whole=False, random_state=0), fold
    )


def test_folds_that_hold_nobody_out_are_refused(images):
    """An image that is never held out has no honest prediction."""
    labels, groups, fold = images

    class Half:
        def split(self, X, y, groups):
            yield np.arange(100), np.arange(100, 200)

    with pytest.raises(ValueError, match="some are never held out"):
        boosting_folds(Half(), labels, None, None, 0)
    with pytest.raises(ValueError, match="some labelled images have no fold in the store"):
        boosting_folds("store", labels, None, fold - 1, 0)
    with pytest.raises(ValueError, match=r"Got 'stratified' instead"):
        boosting_folds("stratified", labels, groups, None, 0)
