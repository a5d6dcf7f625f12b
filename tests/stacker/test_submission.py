"""Submissions: the two usual forms, by the names of a sample."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.sparse import csr_array

from stacker import write_submission

SETS = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=np.int8)
NAMES = np.array(["ant", "bee", "cat"])
IDS = np.array(["x", "y", "z"])
FRAME = pd.DataFrame(SETS, IDS, NAMES)


@pytest.mark.parametrize(
    "labels",
    [
        SETS,
        csr_array(SETS),
        [["ant", "cat"], [], ["bee"]],
        FRAME,
        pl.DataFrame({"image_id": IDS, **{n: SETS[:, i] for i, n in enumerate(NAMES)}}),
    ],
)
@pytest.mark.parametrize("form", ["joined", "wide"])
def test_every_kind_of_label_sets_gives_the_same_file(tmp_path, labels, form):
    """Arrays, sparse matrices, lists and frames of both libraries."""
    path = write_submission(tmp_path / "s.csv", labels, image_ids=IDS, classes=NAMES, form=form)
    got = pd.read_csv(path, keep_default_na=False, index_col=0)
    if form == "joined":
        assert got["labels"].to_dict() == {"x": "ant cat", "y": "", "z": "bee"}
    else:
        np.testing.assert_array_equal(got[NAMES].to_numpy(), SETS)


@pytest.mark.parametrize("form", ["joined", "wide"])
def test_a_sample_gives_ids_their_order_and_columns_by_name(tmp_path, form):
    """Kaggle scores by row: a file in another order or under other names is refused there."""
    sample = pd.DataFrame({"Id": ["z", "x", "y"], "Predicted": ""})
    if form == "wide":
        sample = pd.DataFrame({"Id": ["z", "x", "y"], "cat": 0, "ant": 0, "bee": 0})
    sample.to_csv(tmp_path / "sample.csv", index=False)
    path = write_submission(tmp_path / "s.csv", FRAME, like=tmp_path / "sample.csv")
    got = pd.read_csv(path, keep_default_na=False)
    assert got.columns.tolist() == sample.columns.tolist()
    assert got["Id"].tolist() == ["z", "x", "y"]
    if form == "joined":
        assert got["Predicted"].tolist() == ["bee", "ant cat", ""]
    else:
        np.testing.assert_array_equal(got.set_index("Id").loc[IDS, NAMES].to_numpy(), SETS)


def test_probabilities_go_out_wide(tmp_path):
    """A competition by average precision asks for numbers, not sets."""
    path = write_submission(
        tmp_path / "s.csv", SETS * 0.25, image_ids=IDS, classes=NAMES, form="wide"
    )
    assert pd.read_csv(path)["ant"].tolist() == [0.25, 0, 0]
    with pytest.raises(ValueError, match="must be 0 or 1"):
        write_submission(tmp_path / "t.csv", SETS * 0.25, image_ids=IDS, classes=NAMES)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_without_ids_take_those_beside_them(tmp_path, library):
    """`image_ids=` was left aside: rows were called 0, 1, 2, of polars the first class went."""
    frame = pd.DataFrame({"x": [1, 0, 1], "y": [0, 1, 1]})
    if library == "polars":
        frame = pytest.importorskip("polars").from_pandas(frame)
    path = write_submission(tmp_path / "s.csv", frame, image_ids=["a", "b", "c"])
    assert path.read_text().split() == ["image_id,labels", "a,x", "b,y", "c,x", "y"]


def test_images_that_stand_twice_are_refused(tmp_path):
    """A competition refuses the file, or scores one of the two lines."""
    with pytest.raises(ValueError, match=r"image id 'a' stands twice\. Give one set an image"):
        write_submission(tmp_path / "s.csv", [["x"], []], image_ids=["a", "a"])


def test_images_that_the_sample_does_not_have_are_named(tmp_path):
    """The message said that 0 are missing."""
    (tmp_path / "sample.csv").write_text("id,labels\na,\n")
    with pytest.raises(
        ValueError,
        match=r"asks for 1 images, there are label sets of 2; 1 it does not have, first: \['b'\]",
    ):
        write_submission(
            tmp_path / "s.csv", [["x"], []], image_ids=["a", "b"], like=tmp_path / "sample.csv"
        )


def test_what_does_not_match_the_sample_is_refused(tmp_path):
    """Missing images, other classes, names that hold the separator, a file that exists."""
    pd.DataFrame({"id": ["x", "q"], "labels": ""}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match=r"1 are missing, first: \['q'\]"):
        write_submission(tmp_path / "s.csv", FRAME, like=tmp_path / "a.csv")
    pd.DataFrame({"id": IDS, "ant": 0, "bee": 0, "eel": 0}).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(ValueError, match=r"first: \['cat', 'eel'\]"):
        write_submission(tmp_path / "s.csv", FRAME, like=tmp_path / "b.csv")
    with pytest.raises(ValueError, match="'sea lion' holds the separator"):
        write_submission(tmp_path / "s.csv", [["sea lion"]], image_ids=["x"])
    with pytest.raises(ValueError, match="classes= must name"):
        write_submission(tmp_path / "s.csv", SETS, image_ids=IDS)
    with pytest.raises(ValueError, match="image_ids= must name"):
        write_submission(tmp_path / "s.csv", [["a"]])
    (tmp_path / "s.csv").write_text("mine")
    with pytest.raises(FileExistsError):
        write_submission(tmp_path / "s.csv", FRAME)
    assert (tmp_path / "s.csv").read_text() == "mine"
