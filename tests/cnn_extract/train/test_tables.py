"""Tables beside the labels."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from cnn_extract.tables import Labels
from cnn_extract.train.tables import (
    add_pseudo_labels,
    read_image_list,
    read_parents,
    read_teacher,
)
from features.store import FeatureStore
from tests.cnn_extract.train.conftest import samples_of, write_table

IDS = ["a", "b", "c", "d"]
LABELS = Labels("labels.csv", ("a", "b"), (("x",), ("y",)), ("x", "y"))


def pseudo_of(tmp_path, lines, header=("image_id", "labels", "weight")):
    path = write_table(tmp_path / "pseudo.csv", header, lines)
    return add_pseudo_labels(
        samples_of([[1, 0], [0, 1]]),
        path,
        IDS,
        LABELS,
        id_column="image_id",
        label_column="labels",
    )


def test_pseudo_labels_come_behind_the_true_ones_with_their_weights(tmp_path):
    """A7: pseudo-labels are given to other images, or weigh as much as true ones."""
    samples = pseudo_of(tmp_path, [["d", "x y", 0.5], ["c", "y", 0.25]])
    assert samples.rows.tolist() == [0, 1, 2, 3]
    assert samples.labels.toarray().tolist() == [[1, 0], [0, 1], [0, 1], [1, 1]]
    assert samples.weights.tolist() == [1, 1, 0.25, 0.5]
    assert not samples.listed_hard.any()


def test_pseudo_labels_without_weights_weigh_one(tmp_path):
    """A7: the column weight must be there."""
    samples = pseudo_of(tmp_path, [["c", "y"]], header=("image_id", "labels"))
    assert samples.weights.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["a", "x", 1], "must name images without labels; 1 have some in labels.csv, first: 'a'"),
        (["z", "x", 1], "1 are not in the images, first: 'z'"),
        (["c", "q", 1], "must use the classes of labels.csv; 1 are unknown, first: 'q'"),
        (["c", "x", 0], "weight must be a number above 0; 1 are not, first: image 'c'"),
        (["c", "x", "much"], "weight must be a number above 0"),
    ],
)
def test_wrong_pseudo_labels_are_refused(tmp_path, line, message):
    """A7: a pseudo-label overrides a true label, or is dropped without a word."""
    with pytest.raises(ValueError, match=message):
        pseudo_of(tmp_path, [line])


def test_an_image_list_marks_its_images(tmp_path):
    """A5, A6: other images than those listed are dropped or replayed."""
    path = write_table(tmp_path / "drop.csv", ["image_id", "loss"], [["c", 9.1], ["a", 3.0]])
    assert read_image_list(path, IDS, "image_id").tolist() == [True, False, True, False]
    write_table(path, ["image_id"], [["q"]])
    with pytest.raises(ValueError, match="must name images that are there; 1 are not, first: 'q'"):
        read_image_list(path, IDS, "image_id")


def test_parents_are_read_by_name(tmp_path):
    """B1: a class gets another's parent."""
    path = write_table(tmp_path / "p.csv", ["class", "parent"], [["s1", "g"], ["g", ""]])
    assert read_parents(path, ["g", "s0", "s1"]) == [None, None, "g"]
    write_table(path, ["class", "parent"], [["s1", "f"]])
    with pytest.raises(ValueError, match=r"must name classes of the labels; 1 are unknown.*'f'"):
        read_parents(path, ["g", "s1"])
    write_table(path, ["class"], [["s1"]])
    with pytest.raises(ValueError, match="must have the columns 'class', 'parent'"):
        read_parents(path, ["s1"])
    with pytest.raises(FileNotFoundError):
        read_parents(tmp_path / "none.csv", ["s1"])


@pytest.fixture
def teacher(tmp_path):
    """Make a store with two models."""
    one = np.array([[0.1, 0.9], [0.5, 0.25], [1.0, 0.0]])
    return FeatureStore.from_arrays(
        tmp_path / "teacher",
        image_ids=["c", "a", "b"],
        classes=["y", "x"],
        probabilities={"one": one, "two": csr_array(one / 2)},
    )


def test_a_teacher_is_realigned_by_name(teacher):
    """A27: the teacher's images or classes are in another order."""
    got = read_teacher(f"{teacher.path}:one", ["a", "c"], ["x", "y"])
    np.testing.assert_allclose(got, [[0.25, 0.5], [0.9, 0.1]], rtol=1e-6)
    both = read_teacher(str(teacher.path), ["a", "c"], ["x", "y"])
    np.testing.assert_allclose(both, got * 0.75, rtol=1e-6)


def test_a_teacher_must_know_images_classes_and_model(teacher):
    """A27: what a teacher does not know counts as 0 without a word."""
    with pytest.raises(ValueError, match="must know all classes; 1 are missing, first: 'z'"):
        read_teacher(str(teacher.path), ["a"], ["z"])
    with pytest.raises(ValueError, match="1 image ids are not in"):
        read_teacher(str(teacher.path), ["q"], ["x"])
    with pytest.raises(ValueError, match="three"):
        read_teacher(f"{teacher.path}:three", ["a"], ["x"])
