import numpy as np
import pytest

from cnn_extract.tables import read_labels, read_metadata, write_csv
from tests.cnn_extract.conftest import write_labels


def test_labels_are_realigned_to_the_images(tmp_path):
    """The file's order of lines must not matter; images it does not name are not known."""
    path = write_labels(tmp_path / "l.csv", {"b": ["y", "x", "y"], "a": ["x"], "c": []})
    labels = read_labels(path)
    matrix, known = labels.aligned(["a", "b", "c", "d"])
    assert labels.classes == ("x", "y")
    assert matrix.toarray().tolist() == [[1, 0], [1, 1], [0, 0], [0, 0]]
    assert known.tolist() == [True, True, True, False]


def test_order_of_lines_does_not_change_the_checksum(tmp_path):
    """A shuffled label file holds the same settings, other labels do not."""
    one = read_labels(write_labels(tmp_path / "1.csv", {"a": ["x", "y"], "b": ["y"]}))
    two = read_labels(write_labels(tmp_path / "2.csv", {"b": ["y"], "a": ["y", "x"]}))
    three = read_labels(write_labels(tmp_path / "3.csv", {"b": ["x"], "a": ["y", "x"]}))
    assert one.sha256() == two.sha256() != three.sha256()


def test_an_image_called_na_is_no_gap(tmp_path):
    """Pandas reads NA as missing unless told otherwise."""
    labels = read_labels(write_labels(tmp_path / "l.csv", {"NA": ["null"], "b": ["nan"]}))
    assert labels.image_ids == ("NA", "b")
    assert labels.classes == ("nan", "null")


def test_columns_have_settable_names(tmp_path):
    """The iMet file calls them id and attribute_ids."""
    path = tmp_path / "train.csv"
    path.write_text("id,attribute_ids\na,1 2\n")
    labels = read_labels(path, id_column="id", label_column="attribute_ids")
    assert labels.classes == ("1", "2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image_id,tags\na,x\n", r"must have the columns.*'labels' is missing, it has"),
        ("id,labels\na,x\n", r"'image_id' is missing"),
        ("image_id,labels\na,x\na,y\n", r"must name each image once; 1 stand twice, first: 'a'"),
        ("image_id,labels\na,\n", "gives no image a label"),
        ("", "is no CSV file"),
    ],
)
def test_bad_label_file_is_an_error(tmp_path, content, message):
    """Each names the file and what is wrong with it."""
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_labels(path)
    assert "labels.csv" in str(caught.value)


def test_missing_label_file_is_an_error(tmp_path):
    """The message names the file."""
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.csv"):
        read_labels(tmp_path / "absent.csv")


def test_metadata_keeps_types_and_split_groups_as_text(tmp_path):
    """A split group "007" is not 7, and an empty cell is a gap."""
    path = tmp_path / "meta.csv"
    path.write_text("image_id,split_group,width,artist\na,007,3,Anna\nb,7,4,\n")
    frame = read_metadata(path)
    assert frame.loc["a", "split_group"] == "007"
    assert frame["width"].dtype == np.int64
    assert frame["artist"].isna().tolist() == [False, True]


def test_table_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A reader must never see half a table, nor leftovers of one."""
    path = tmp_path / "meta.csv"
    path.write_text("image_id\na\n")
    frame = read_metadata(path)

    def fail(self, target, **options):
        target.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr("pandas.DataFrame.to_csv", fail)
    with pytest.raises(OSError, match="disk full"):
        write_csv(frame, tmp_path / "out.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["meta.csv"]
