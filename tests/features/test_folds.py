"""Folds: stratified by every label, never through a group, and never different twice."""

import time

import numpy as np
import pytest
from scipy import sparse
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.tree import DecisionTreeClassifier

from features.folds import MultilabelGroupKFold, check_folds, make_folds


def make_data(n_images=1500, n_classes=80, n_groups=900, seed=0):
    """Long-tailed labels in groups that share most of their labels."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, n_groups, n_images)
    frequency = 0.4 / np.arange(1, n_classes + 1)
    labels = rng.random((n_groups, n_classes))[group] < frequency
    labels ^= (rng.random(labels.shape) < 0.1) & labels
    return labels.astype(np.int8), group


def unevenness(labels, fold, n_folds):
    """Mean relative deviation of label counts from the ideal, above what single images allow."""
    present = labels[:, labels.sum(axis=0) > 0]
    total = present.sum(axis=0)
    ideal = total / n_folds
    counts = np.stack([present[fold == k].sum(axis=0) for k in range(n_folds)])
    best = np.stack([(total + k) // n_folds for k in range(n_folds)])
    return float(((np.abs(counts - ideal) - np.abs(best - ideal)) / ideal).mean())


def grouped_only(labels, group, n_folds):
    fold = np.empty(len(labels), dtype=int)
    for k, (_, test) in enumerate(GroupKFold(n_folds).split(labels, groups=group)):
        fold[test] = k
    return fold


@pytest.mark.parametrize("n_folds", [2, 5, 9])
def test_labels_are_spread_far_better_than_by_groups_alone(n_folds):
    """Rare labels would be missing from whole folds."""
    labels, group = make_data()
    fold = make_folds(labels, n_folds, group)
    plain = unevenness(labels, grouped_only(labels, group, n_folds), n_folds)
    assert unevenness(labels, fold, n_folds) < 0.6 * plain
    sizes = np.bincount(fold, minlength=n_folds)
    assert sizes.max() - sizes.min() < 0.1 * sizes.mean()


@pytest.mark.parametrize("count", range(1, 12))
def test_a_single_label_is_spread_as_evenly_as_possible(count):
    """A label with n images would miss a fold although n >= n_folds."""
    labels = np.zeros((100, 1), dtype=np.int8)
    labels[:count] = 1
    fold = make_folds(labels, 5)
    found = np.bincount(fold[:count], minlength=5)
    assert found.max() - found.min() <= 1
    assert np.bincount(fold).tolist() == [20] * 5


def test_groups_never_part():
    """Near-duplicates on both sides of a split make every score a lie."""
    labels, group = make_data()
    fold = make_folds(labels, 5, group)
    for members in range(group.max() + 1):
        assert len(set(fold[group == members])) <= 1
    check_folds(fold, group)
    assert fold.dtype == np.int16
    assert set(fold) == set(range(5))


def test_folds_are_the_same_twice_and_differ_by_seed():
    """Folds that change between runs make stored OOF predictions leak."""
    labels, group = make_data()
    first = make_folds(labels, 5, group, random_state=3)
    np.testing.assert_array_equal(first, make_folds(labels, 5, group, random_state=3))
    assert (first != make_folds(labels, 5, group, random_state=4)).any()


def test_form_of_labels_and_names_of_groups_do_not_matter():
    """Sparse labels or renamed groups would give other folds than the same data dense."""
    labels, group = make_data(300, 20, 200)
    expected = make_folds(labels, 5, group)
    names = np.array([f"g{g}" for g in group])
    np.testing.assert_array_equal(make_folds(sparse.csr_array(labels), 5, names), expected)
    np.testing.assert_array_equal(make_folds(labels.astype(bool), 5, group), expected)


def test_polars_labels_with_a_column_of_ids_give_the_same_folds():
    """The ids were read as labels, and ended in a message of scipy about dtypes."""
    polars = pytest.importorskip("polars")
    labels, group = make_data(300, 20, 200)
    frame = polars.DataFrame({"image_id": [f"im{i}" for i in range(300)]})
    frame = frame.with_columns(**{f"c{k}": labels[:, k] for k in range(20)})
    np.testing.assert_array_equal(make_folds(frame, 5, group), make_folds(labels, 5, group))
    found = [test for _, test in MultilabelGroupKFold(5).split(frame, frame, group)]
    for test, (_, expected) in zip(
        found, MultilabelGroupKFold(5).split(labels, labels, group), strict=True
    ):
        np.testing.assert_array_equal(test, expected)


def test_images_without_labels_fill_the_folds_evenly():
    """Unlabelled images would all land in one fold."""
    fold = make_folds(np.zeros((103, 4)), 5)
    assert sorted(np.bincount(fold)) == [20, 20, 21, 21, 21]


def test_twenty_thousand_images_take_seconds():
    """The usual package takes two minutes here, and knows no groups."""
    rng = np.random.default_rng(0)
    labels = sparse.random_array((20_000, 3_500), density=0.002, random_state=rng, format="csr")
    labels.data[:] = 1
    make_folds(labels[:50], 2)  # compiles
    start = time.perf_counter()
    make_folds(labels, 5, rng.integers(0, 12_000, 20_000))
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.zeros(4)}, "must have shape"),
        ({"labels": np.full((4, 2), 0.5)}, "0 and 1 only"),
        ({"labels": np.zeros((4, 2)), "n_folds": 1}, "at least 2; got 1"),
        ({"labels": np.zeros((4, 2)), "n_folds": 2.5}, "at least 2; got 2.5"),
        ({"labels": np.zeros((4, 2)), "n_folds": 5}, "there are 4"),
        ({"labels": np.zeros((4, 2)), "n_folds": 2, "split_group": [1, 1, 1, 1]}, "there are 1"),
        ({"labels": np.zeros((4, 2)), "split_group": [1, 2]}, r"= \(4,\); got \(2,\)"),
        ({"labels": np.zeros((4, 2)), "split_group": ["a", None, "b", "c"]}, r"positions \[1\]"),
    ],
)
def test_impossible_folds_are_refused(arguments, message):
    """Empty folds would fail much later, inside a booster."""
    with pytest.raises(ValueError, match=message):
        make_folds(**arguments)


def test_parted_groups_are_named():
    """Folds from elsewhere that leak would be used."""
    with pytest.raises(ValueError, match=r"1 groups do not: 'b'\. Group 'b' is in folds \[0, 2\]"):
        check_folds([0, 0, 2, 1], ["a", "b", "b", "c"])
    with pytest.raises(ValueError, match="both have shape"):
        check_folds([0, 1], ["a"])


def test_unassigned_images_part_no_group():
    """A group with labelled and unlabelled images would be refused."""
    check_folds([0, -1, 1, -1], ["a", "a", "b", "a"])


def test_splitter_covers_every_image_once_and_keeps_groups():
    """cross_val_score would score some images twice and others never."""
    labels, group = make_data(400, 30, 250)
    splitter = MultilabelGroupKFold(4, shuffle=True, random_state=0)
    seen = np.zeros(400, dtype=int)
    for train, test in splitter.split(np.zeros((400, 1)), labels, group):
        seen[test] += 1
        assert not set(group[train]) & set(group[test])
        assert len(train) + len(test) == 400
    assert (seen == 1).all()
    assert splitter.get_n_splits() == 4


def test_splitter_works_inside_scikit_learn_for_class_vectors_too():
    """The splitter would only serve label matrices."""
    rng = np.random.default_rng(0)
    X, y = rng.random((60, 3)), np.repeat(["a", "b", "c"], 20)
    for _, test in MultilabelGroupKFold(5).split(X, y):
        assert sorted(np.unique(y[test], return_counts=True)[1]) == [4, 4, 4]
    scores = cross_val_score(DecisionTreeClassifier(), X, y, cv=MultilabelGroupKFold(3))
    assert len(scores) == 3


def test_splitter_says_what_is_missing():
    """A seed without shuffling would be ignored in silence."""
    X = np.zeros((10, 1))
    with pytest.raises(ValueError, match="y must be given"):
        next(MultilabelGroupKFold(2).split(X))
    with pytest.raises(ValueError, match="set shuffle=True"):
        next(MultilabelGroupKFold(2, random_state=0).split(X, np.zeros((10, 1))))
    assert repr(MultilabelGroupKFold(2)).startswith("MultilabelGroupKFold(n_splits=2")
