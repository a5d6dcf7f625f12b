"""LabelSpace, Stack and the reading of labels."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils import _safe_indexing, indexable

from features.schema import LabelSpace, Stack, as_label_matrix, as_stack

IDS = ["i0", "i1", "i2", "i3"]
CLASSES = ["tag::cat", "tag::dog", "culture::french"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def probs(rng):
    return rng.random((4, 3))


def make_stack(probs, **more):
    return Stack({"a": probs, "b": probs / 2}, image_ids=IDS, classes=CLASSES, **more)


def test_groups_default_to_the_part_before_the_colons():
    """Class groups would be wrong for every data set that does not pass them."""
    space = LabelSpace(["culture::french", "dog", "tag::a::b", "culture::greek"])
    assert space.groups.tolist() == ["culture", "", "tag", "culture"]
    assert space.group_names.tolist() == ["culture", "", "tag"]
    assert space.group_codes.tolist() == [0, 1, 2, 0]
    assert space.group_codes.dtype == np.int32


def test_parents_by_name_and_by_position_agree():
    """A hierarchy given by name would differ from the same one by position."""
    by_name = LabelSpace(["rose", "rosales", "root"], parents=["rosales", "root", None])
    by_position = LabelSpace(["rose", "rosales", "root"], parents=[1, 2, -1])
    assert by_name.parents.tolist() == by_position.parents.tolist() == [1, 2, -1]
    assert by_name == by_position
    assert by_name.parent_names == ["rosales", "root", None]
    assert LabelSpace(["a"]).parents is None


@given(st.integers(2, 40), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_every_cycle_of_parents_is_found_and_no_tree_is_refused(n, random):
    """A cycle would make a walk up the hierarchy endless."""
    parents = [random.randint(-1, i - 1) for i in range(n)]
    LabelSpace([f"c{i}" for i in range(n)], parents=parents)
    first, last = sorted(random.sample(range(n), 2))
    for i in range(first, last):
        parents[i + 1] = i
    parents[first] = last
    with pytest.raises(ValueError, match="cycle"):
        LabelSpace([f"c{i}" for i in range(n)], parents=parents)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["a", "b", "a"]}, "class names must be unique; 1 occur more than once: 'a'"),
        ({"names": ["a", ""]}, "may not be empty"),
        ({"names": ["a", None]}, "every class name must be given"),
        ({"names": [["a"]]}, "one-dimensional"),
        ({"names": ["a" * 5000]}, "at most 4,096 characters"),
        ({"names": ["a" * 5000, "b"], "groups": ["x", "y"]}, "at most 4,096 characters"),
        ({"names": np.array(["a\0b", "c"], dtype=object)}, "NUL"),
        ({"names": ["a", "b"], "groups": ["x"]}, "1 groups for 2 classes"),
        ({"names": ["a", "b"], "parents": ["c", None]}, "unknown class names, first: 'c'"),
        ({"names": ["a", "b"], "parents": [2, -1]}, "must lie in -1..1; got 2"),
        ({"names": ["a", "b"], "parents": [None]}, "one parent a class"),
    ],
)
def test_label_space_refuses_bad_vocabularies(arguments, message):
    """A vocabulary that is ambiguous would give wrong columns later."""
    with pytest.raises(ValueError, match=message):
        LabelSpace(**arguments)


def test_index_finds_positions_and_names_the_unknown():
    """Labels would be attached to wrong columns."""
    space = LabelSpace(CLASSES)
    assert space.index(["culture::french", "tag::cat", "tag::cat"]).tolist() == [2, 0, 0]
    with pytest.raises(ValueError, match=r"2 unknown class names, first: 'x', 'y'\. Known are 3"):
        space.index(["x", "tag::cat", "y", "x"])


def test_label_space_cannot_be_changed():
    """A class renamed in place would be renamed for every holder of the space."""
    with pytest.raises(ValueError, match="read-only"):
        LabelSpace(CLASSES).names[0] = "other"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, bool])
def test_stack_keeps_half_and_single_precision_and_narrows_the_rest(dtype, probs):
    """float64 copies would double the memory of every model."""
    stack = Stack({"a": probs.astype(dtype)})
    expected = dtype if dtype in (np.float16, np.float32) else np.float32
    assert stack.probabilities["a"].dtype == expected


def test_half_and_single_precision_are_not_copied(probs):
    """A copy of each model's matrix would double the memory."""
    values = probs.astype(np.float16)
    assert np.shares_memory(Stack({"a": values}).probabilities["a"], values)


def test_stack_names_default_to_numbers_or_to_the_first_frame(probs):
    """Names would be lost between a DataFrame and the stack."""
    plain = Stack({"a": probs})
    assert plain.image_ids.tolist() == list("0123")
    assert plain.classes.tolist() == list("012")
    framed = Stack({"a": pd.DataFrame(probs, index=IDS, columns=CLASSES)})
    assert framed.image_ids.tolist() == IDS
    assert framed.class_group.tolist() == ["tag", "tag", "culture"]


def test_frames_are_realigned_by_index_and_columns(probs, rng):
    """Shuffled rows or columns would be read as other images and classes."""
    frame = pd.DataFrame(probs, index=IDS, columns=CLASSES)
    shuffled = frame.iloc[rng.permutation(4), rng.permutation(3)]
    stack = Stack({"a": frame, "b": shuffled}, embeddings={"e": shuffled}, image_stats=shuffled)
    np.testing.assert_array_equal(stack.probabilities["a"], stack.probabilities["b"])
    np.testing.assert_array_equal(stack.embeddings["e"], shuffled.loc[IDS].to_numpy("float32"))
    assert stack.image_stats.index.tolist() == IDS
    np.testing.assert_array_equal(stack.image_stats["tag::cat"], frame["tag::cat"])


def test_three_dimensional_array_and_mapping_make_the_same_stack(probs):
    """Cross-validation on the 3-D array would score something else than the mapping."""
    cube = np.stack([probs, probs / 2], axis=1)
    stack = as_stack(cube)
    assert stack.models == ["model0", "model1"]
    assert stack.shape == cube.shape
    assert stack.ndim == cube.ndim
    mapped = as_stack({"model0": probs, "model1": probs / 2})
    for model in stack.models:
        np.testing.assert_array_equal(stack.probabilities[model], mapped.probabilities[model])
    assert as_stack(stack) is stack


@pytest.mark.parametrize(
    "index",
    [
        np.array([2, 0]),
        [1, 1, 3],
        np.array([True, False, True, False]),
        [True, False, False, True],
        slice(1, 3),
        np.array([-1, 0]),
        np.array([], dtype=int),
        Ellipsis,
    ],
    ids=str,
)
@pytest.mark.parametrize("tail", [None, (Ellipsis,), (slice(None), slice(None))], ids=str)
def test_indexing_equals_indexing_the_array(index, tail, probs):
    """Splits would take other rows of the stack than of the labels."""
    stats = pd.DataFrame({"s": np.arange(4.0)}, index=IDS)
    stack = make_stack(probs, embeddings={"e": probs}, image_stats=stats, metadata=stats)
    taken = stack[index if tail is None else (index, *tail)]
    rows = np.arange(4)[index]
    np.testing.assert_array_equal(taken.probabilities["b"], stack.probabilities["b"][rows])
    np.testing.assert_array_equal(taken.image_ids, np.array(IDS)[rows])
    np.testing.assert_array_equal(taken.embeddings["e"], stack.embeddings["e"][rows])
    np.testing.assert_array_equal(taken.image_stats["s"], rows)
    np.testing.assert_array_equal(taken.metadata["s"], rows)
    assert len(taken) == taken.shape[0] == len(rows)
    assert taken.imagenet_logits == {}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ((slice(None), 0), "indexed by image only"),
        (2, r"write stack\[\[i\]\]"),
        ([True, False], "2 entries for 4 images"),
        (["i0"], "integer array, a mask or a slice"),
        ([0.5], "integer array, a mask or a slice"),
    ],
    ids=str,
)
def test_indexing_refuses_what_is_no_choice_of_images(index, message, probs):
    """A model or class dropped by an index would go unnoticed."""
    with pytest.raises(IndexError, match=message):
        make_stack(probs)[index]


class _Recorder(BaseEstimator):
    """Scores 1 when it is given matching rows of a Stack and of y."""

    def __init__(self, knob=0):
        self.knob = knob

    def fit(self, X, y):
        assert isinstance(X, Stack)
        return self

    def score(self, X, y):
        return float(np.array_equal(X.probabilities["a"][:, 0], y[:, 0]))


def test_stack_goes_through_scikit_learn(probs):
    """PairStacker could not be cross-validated."""
    probs = probs.astype(np.float32)
    stack = make_stack(probs)
    assert indexable(stack, probs)[0] is stack
    assert _safe_indexing(stack, [2, 1]).image_ids.tolist() == ["i2", "i1"]
    assert cross_val_score(_Recorder(), stack, probs, cv=2).tolist() == [1, 1]
    search = GridSearchCV(_Recorder(), {"knob": [0, 1]}, cv=2).fit(stack, probs)
    assert search.best_score_ == 1


def test_sparse_models_stay_sparse(probs):
    """Tens of thousands of classes would be made dense."""
    matrix = sparse.csr_array(np.where(probs > 0.5, probs, 0).astype(np.float16).astype(np.float32))
    stack = Stack({"a": matrix, "b": matrix.tocoo()}, classes=CLASSES)
    assert stack.is_sparse
    assert not make_stack(probs).is_sparse
    taken = stack[[3, 0]]
    assert sparse.issparse(taken.probabilities["b"])
    np.testing.assert_array_equal(taken.probabilities["b"].toarray(), matrix.toarray()[[3, 0]])
    with pytest.raises(ValueError, match="all dense or all sparse"):
        Stack({"a": matrix, "b": probs})


def test_a_callers_sparse_matrix_is_not_changed():
    """Summing duplicates in place would corrupt the matrix in the caller's hands."""
    parts = np.array([0.25, 0.5, 0.25]), np.array([1, 0, 1]), np.array([0, 3])
    matrix = sparse.csr_array(parts, shape=(1, 2))
    stack = Stack({"a": matrix})
    assert stack.probabilities["a"].toarray().tolist() == [[0.5, 0.5]]
    assert matrix.indices.tolist() == [1, 0, 1]
    assert matrix.nnz == 3
    half = sparse.csr_array((np.array([0.5], dtype=np.float16), [1], [0, 1]), shape=(1, 2))
    assert Stack({"a": half}).probabilities["a"].dtype == np.float32


def _with(probs, value):
    changed = probs.copy()
    changed[2, 1] = value
    return changed


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, "Apply a sigmoid"),
        (-0.001, "Apply a sigmoid"),
        (np.nan, "must be finite"),
        (np.inf, "must be finite"),
    ],
)
def test_values_that_are_no_probabilities_are_refused_by_name(value, message, probs):
    """Logits would be averaged as if they were probabilities."""
    place = "first: model 'b', image 'i2', class 'tag::dog'"
    for convert in (np.asarray, sparse.csr_array):
        models = {"a": convert(probs), "b": convert(_with(probs, value))}
        with pytest.raises(ValueError, match=message) as error:
            Stack(models, image_ids=IDS, classes=CLASSES)
        assert place in str(error.value)
        assert "1 values" in str(error.value)


def test_all_bad_values_are_counted_across_blocks(monkeypatch):
    """The count in the message would cover one block only."""
    monkeypatch.setattr("features._checks.CHECK_BLOCK", 7)
    values = np.full((10, 4), 0.5)
    values[[3, 8], 1] = 2
    with pytest.raises(ValueError, match=r"; 2 values do not, first: model 'm', image '3'"):
        Stack({"m": values})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_ids": IDS[:3]}, r"must have shape \(n_images, n_classes\) = \(3, 3\)"),
        ({"image_ids": ["i0", "i0", "i1", "i2"]}, "image ids must be unique; 1 occur .* 'i0'"),
        ({"classes": ["a", "b"]}, r"= \(4, 2\)"),
        ({"embeddings": {"e": np.zeros((3, 2))}}, r"embeddings 'e' must have shape"),
        ({"embeddings": {"e": np.full((4, 2), np.nan)}}, "embeddings 'e' must be finite; image"),
        ({"imagenet_logits": {"e": np.zeros(4)}}, "imagenet_logits 'e' must have shape"),
        ({"image_stats": np.zeros((3, 2))}, "image_stats must have 4 rows"),
        ({"metadata": np.zeros(4)}, "metadata must have 4 rows"),
        (
            {"metadata": pd.DataFrame({"x": range(4)}, index=["i0", "i1", "i2", "zz"])},
            "metadata: 1 of 4 expected image ids are missing, first: 'i3'",
        ),
        (
            {"image_stats": pd.DataFrame({"x": range(5)}, index=[*IDS, "zz"])},
            "image_stats: 1 unknown image ids, first: 'zz'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_stack_refuses_what_does_not_fit(change, message, probs):
    """Rows would be attached to other images."""
    arguments = {"image_ids": IDS, "classes": CLASSES} | change
    with pytest.raises(ValueError, match=message):
        Stack({"a": probs}, **arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one model"),
        (np.zeros((4, 0, 3)), "at least one model"),
        (np.zeros((4, 3)), r"got shape \(4, 3\)"),
        ({"a": np.zeros(4)}, "model 'a' must have shape"),
        ({"a": np.array([["x"]])}, "must be numbers; got dtype"),
        ({"a": np.array([["x"]], dtype=object)}, "must be numbers"),
    ],
)
def test_stack_refuses_what_are_no_matrices(given, message):
    """A wrong shape would surface deep inside a kernel."""
    with pytest.raises(ValueError, match=message):
        Stack(given)


def test_arrays_of_stats_and_metadata_get_column_names(probs):
    """Feature names would be missing for plain arrays."""
    stack = make_stack(probs, image_stats=probs, metadata=probs[:, :1])
    assert stack.image_stats.columns.tolist() == ["stat0", "stat1", "stat2"]
    assert stack.metadata.columns.tolist() == ["metadata0"]


def test_every_form_of_labels_gives_the_same_matrix(rng):
    """The same labels in two forms would train two models."""
    dense = (rng.random((6, 3)) < 0.4).astype(int)
    lists = [[CLASSES[c] for c in np.flatnonzero(row)] for row in dense]
    explicit_zeros = sparse.csr_array((np.zeros(1), ([0], [0])), shape=dense.shape)
    frame = pd.DataFrame(dense, columns=CLASSES)
    forms = [
        dense,
        dense.astype(bool),
        dense.astype(np.float32),
        dense.tolist(),
        sparse.coo_array(dense),
        sparse.csr_array(dense) + explicit_zeros,
        lists,
        [set(labels) for labels in lists],
        [(*labels, *labels) for labels in lists],
        frame[CLASSES[::-1]],
    ]
    for form in forms:
        matrix = as_label_matrix(form, classes=CLASSES, n_images=6)
        np.testing.assert_array_equal(matrix.toarray(), dense)
        assert matrix.dtype == np.int8
        assert (matrix.data == 1).all()
        assert matrix.has_canonical_format


def test_label_frames_are_realigned_to_image_ids():
    """Labels in another row order would go to other images."""
    frame = pd.DataFrame([[1, 0], [0, 1]], index=["y", "x"], columns=["b", "a"])
    matrix = as_label_matrix(frame, classes=["a", "b"], n_images=2, image_ids=["x", "y"])
    assert matrix.toarray().tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 2]], "must hold 0 and 1 only; found"),
        (np.array([[0.5, 0]]), "must hold 0 and 1 only"),
        (np.array([[np.nan, 0]]), "must hold 0 and 1 only"),
        (sparse.csr_array(np.array([[3, 0]])), "must hold 0 and 1 only"),
        (sparse.coo_array(([1, 1], ([0, 0], [1, 1])), (1, 2)), "0 and 1 only; an entry .* twice"),
        ([["zebra"]], "unknown class names, first: 'zebra'"),
        (["zebra"], "got the string 'zebra': wrap it"),
        (np.array(["zebra"]), "one string each: wrap it"),
        (np.zeros(2), "must have shape"),
        (np.zeros((2, 2)), r"= \(1, 2\); got \(2, 2\)"),
        (np.zeros((1, 3)), r"= \(1, 2\); got \(1, 3\)"),
        (pd.DataFrame({"a": [1], "c": [0]}), "Y: 1 of 2 expected class names are missing"),
    ],
)
def test_labels_that_are_none_are_refused(labels, message):
    """Label matrices with other values would silently be cut to 0 and 1."""
    with pytest.raises(ValueError, match=message):
        as_label_matrix(labels, classes=["a", "b"], n_images=1)


@pytest.mark.parametrize("form", ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"])
def test_labels_of_every_sparse_form_are_read(form):
    """Not every form keeps its values in one array, and the caller's is not changed."""
    given = sparse.csr_array(np.array([[1, 0], [0, 0]])).asformat(form)
    matrix = as_label_matrix(given, classes=["a", "b"], n_images=2)
    assert matrix.toarray().tolist() == given.toarray().tolist() == [[1, 0], [0, 0]]
