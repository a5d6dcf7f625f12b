"""Which pairs become rows, and what that costs."""

import logging

import numpy as np
import pytest
from scipy.sparse import csr_array

from features.assemble import PairFeatures, stack_blend
from features.candidates import (
    Candidates,
    candidate_recall,
    label_ranks,
    resolve_candidates,
    select_candidates,
)
from features.schema import LabelSpace


@pytest.fixture(scope="module")
def blend(slice_stack):
    return stack_blend(slice_stack)


@pytest.fixture(scope="module")
def space(slice_stack):
    return slice_stack.label_space


def by_sorting(row, space, per_group, above=-1.0):
    """Candidates of one image by plain sorting."""
    chosen = []
    for code, k in enumerate(per_group):
        own = [c for c in range(len(row)) if space.group_codes[c] == code and row[c] > above]
        chosen += sorted(own, key=lambda c: (-row[c], c))[:k]
    return chosen


@pytest.mark.parametrize("per_group", [(5, 2, 4), (27, 8, 25), (1, 1, 1), (6, 8, 25)])
@pytest.mark.parametrize("above", [-1.0, 0.05, 0.999])
def test_candidates_equal_plain_sorting(blend, space, per_group, above):
    """A row missing, doubled or out of order would shift every feature behind it."""
    found = select_candidates(blend[:60], np.array(per_group), space, above=above)
    assert found.classes.dtype == np.int32
    for i in range(60):
        own = found.classes[found.indptr[i] : found.indptr[i + 1]].tolist()
        assert own == by_sorting(blend[i], space, per_group, above)
    np.testing.assert_array_equal(found.row_image, np.repeat(np.arange(60), np.diff(found.indptr)))


@pytest.mark.parametrize("k", [3, 11])
def test_ties_go_to_the_class_that_comes_first(k, rng):
    """float16 probabilities tie often: another winner on each machine would change the rows."""
    space = LabelSpace([f"c{j}" for j in range(30)])
    values = rng.integers(0, 3, (50, 30)).astype(np.float32)
    found = select_candidates(values, np.array([k]), space).classes.reshape(50, k)
    for i in range(50):
        assert found[i].tolist() == by_sorting(values[i], space, [k])


def test_ranks_of_the_labels_equal_their_place_among_the_candidates(blend, space, slice_labels):
    """`auto` would choose k by ranks that the rows do not have."""
    everything = select_candidates(blend, np.bincount(space.group_codes), space)
    ranks, groups = label_ranks(blend, slice_labels, space)
    pairs = slice_labels.tocoo()
    for i, c, rank, group in list(zip(pairs.row, pairs.col, ranks, groups, strict=True))[::9]:
        classes = everything.classes[everything.indptr[i] : everything.indptr[i + 1]]
        own = [d for d in classes if space.group_codes[d] == group]
        assert own[rank] == c


def test_auto_takes_the_smallest_k_with_recall_098(blend, space, slice_labels):
    """One candidate less must fall short: else rows are wasted on hopeless classes."""
    chosen = resolve_candidates("auto", blend, slice_labels, space)
    reached = recall_of(blend, space, slice_labels, chosen)
    fewer = recall_of(blend, space, slice_labels, chosen - 1)
    for name in space.group_names:
        assert reached[str(name)] >= 0.98 > fewer[str(name)]


def recall_of(blend, space, labels, per_group):
    return candidate_recall(select_candidates(blend, per_group, space), labels, space)[0]


def test_auto_stops_at_64_and_keeps_a_group_without_labels(rng):
    """A thousand hopeless candidates an image would cost memory; none at all would lose a group."""
    space = LabelSpace([f"big::{j}" for j in range(200)] + ["empty::a", "empty::b"])
    blend = rng.random((30, 202)).astype(np.float32)
    labels = np.zeros((30, 202), dtype=np.int8)
    labels[:, :200] = rng.random((30, 200)) < 0.05
    chosen = resolve_candidates("auto", blend, csr_array(labels), space)
    assert chosen.tolist() == [64, 1]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, [27, 8, 25]),
        (10, [10, 8, 10]),
        (np.int64(3), [3, 3, 3]),
        (1000, [27, 8, 25]),
        ({"tag": 30, "creator": 1, "category": 20}, [20, 1, 25]),
    ],
)
def test_settings_become_numbers_per_group(blend, space, slice_labels, spec, expected):
    """More candidates than classes, or numbers in the wrong group, would go unseen (A9, A18)."""
    assert resolve_candidates(spec, blend, slice_labels, space).tolist() == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("most", "must be 'auto', None, int, float, 'threshold=0.01' or dict. Got 'most'"),
        (0, "must be a whole number, at least 1. Got 0"),
        (True, "must be a whole number, at least 1. Got True"),
        (2.5, "0 <= threshold < 1; a number of them is a whole number. Got 2.5"),
        ("threshold=x", "is a probability, 0 <= threshold < 1.*Got 'threshold=x'"),
        ({"tag": 3}, r"expected \['category', 'creator', 'tag'\], got \['tag'\]"),
        ({"tag": 3, "creator": 0, "category": 2}, "must be at least 1 in each group. Got .*0"),
        ({"tag": 3, "creator": 1.5, "category": 2}, "must be at least 1 in each group"),
    ],
)
def test_wrong_settings_are_refused(blend, space, slice_labels, spec, message):
    """A misspelled group would silently keep none of its classes."""
    with pytest.raises(ValueError, match=message):
        resolve_candidates(spec, blend, slice_labels, space)


def test_recall_counts_the_labels_that_have_a_row(blend, space, slice_labels, caplog):
    """A wrong recall would hide that the candidates lose labels for good."""
    found = select_candidates(blend, np.array([2, 1, 2]), space)
    with caplog.at_level(logging.WARNING, logger="features"):
        recall, overall = candidate_recall(found, slice_labels, space)
    dense = slice_labels.toarray()
    hits = {str(name): [] for name in [*space.group_names, "all"]}
    for i in range(300):
        own = set(found.classes[found.indptr[i] : found.indptr[i + 1]].tolist())
        for c in np.flatnonzero(dense[i]):
            hits[str(space.groups[c])].append(c in own)
            hits["all"].append(c in own)
    assert {**recall, "all": overall} == pytest.approx({n: np.mean(v) for n, v in hits.items()})
    assert "candidate recall below 0.9" in caplog.text
    assert "raise candidates=" in caplog.text


def test_the_warning_has_a_name_for_classes_without_groups(caplog):
    """It said {'': 0.5}."""
    found = Candidates(np.array([0, 1]), np.array([0], dtype=np.int32))
    with caplog.at_level(logging.WARNING, logger="features"):
        candidate_recall(found, csr_array([[1, 1]]), LabelSpace(["x", "y"]))
    assert "candidate recall below 0.9: all 0.500; raise candidates=" in caplog.text


def test_a_group_without_labels_loses_none(caplog):
    """A recall of 0 over no labels at all would raise a false alarm."""
    space = LabelSpace(["a::1", "b::1"])
    found = Candidates(np.array([0, 1]), np.array([0], dtype=np.int32))
    with caplog.at_level(logging.WARNING, logger="features"):
        recall = candidate_recall(found, csr_array(np.array([[1, 0]], dtype=np.int8)), space)
    assert recall == ({"a": 1.0, "b": 1.0}, 1.0)
    assert not caplog.records


def test_a_class_group_named_all_keeps_its_own_recall():
    """The recall of all groups together once overwrote that of a group called "all"."""
    space = LabelSpace(["all::1", "other::1"])
    found = Candidates(np.array([0, 1]), np.array([1], dtype=np.int32))
    labels = csr_array(np.array([[1, 1]], dtype=np.int8))
    assert candidate_recall(found, labels, space) == ({"all": 0.0, "other": 1.0}, 0.5)


@pytest.mark.parametrize("spec", [0.3, "threshold=0.3"])
def test_a_threshold_takes_the_classes_above_it(
    slice_stack, slice_labels, slice_fold, blend, stream, spec
):
    """Images have different numbers of rows: a shift would give them each other's features."""
    features = PairFeatures(blocks=("probabilities", "ranks"), candidates=spec)
    features.fit(slice_stack, slice_labels, slice_fold)
    whole = stream(features, slice_stack, slice_fold, batch_images=300)
    pairs = list(zip(whole.image.tolist(), whole.cls.tolist(), strict=True))
    assert sorted(pairs) == [tuple(pair) for pair in np.argwhere(blend > np.float32(0.3)).tolist()]
    assert 0 < len(pairs) < 300 * 10
    found = features.all_candidates(slice_stack)
    np.testing.assert_array_equal(found.classes, whole.cls)
    for step in (1, 37):
        again = stream(features, slice_stack, slice_fold, batch_images=step)
        np.testing.assert_array_equal(again.cls, whole.cls)
        np.testing.assert_array_equal(again.values, whole.values)
    true = slice_labels.toarray() > 0
    assert features.overall_recall_ == pytest.approx((blend > 0.3)[true].mean())
