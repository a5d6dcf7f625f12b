"""Stores made of CSV and Parquet tables."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

from features.importing import read_predictions
from features.schema import Stack
from features.store import FeatureStore


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def tables(tmp_path, rng):
    """Two models, labels and metadata as CSV; rows and columns of the second in another order."""
    a = pd.DataFrame(rng.random((4, 3)).round(4), ["x/1", "NA", "3", "4,5"], ["t::a", "t::b", "NA"])
    a.index.name = "image_id"
    b = a.iloc[::-1, [2, 0, 1]] / 2
    paths = {name: tmp_path / f"{name}.csv" for name in ("a", "b", "labels", "meta")}
    a.to_csv(paths["a"])
    b.to_csv(paths["b"], encoding="utf-8-sig", lineterminator="\r\n")
    paths["labels"].write_text('image_id,labels\n"4,5",t::b t::a\nx/1,NA\nNA,\n')
    paths["meta"].write_text(
        'image_id,country,split_group,fold,year\n3,fr,g1,0,1900\nx/1,,g1,0,\n"4,5",de,NA,1,2\nNA,x,g2,1,3\n'
    )
    return a, paths


def check_tables(store, a):
    assert store.image_ids.tolist() == ["x/1", "NA", "3", "4,5"]
    assert store.classes.tolist() == ["t::a", "t::b", "NA"]
    np.testing.assert_allclose(store.probability_array("a"), a, rtol=1e-6)
    np.testing.assert_allclose(store.probability_array("b"), a / 2, rtol=1e-6)
    assert store.labels.toarray().tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert store.labels_known.tolist() == [True, True, False, True]
    assert store.split_group.tolist() == ["g1", "g2", "g1", "NA"]
    assert store.fold.tolist() == [0, 1, 0, 1]
    assert store.metadata["country"].tolist() == ["", "x", "fr", "de"]
    assert np.isnan(store.metadata["year"].iloc[0])


def test_from_csv_matches_all_files_by_name(tables, tmp_path):
    """Files in another order would be stacked row by row."""
    a, paths = tables
    store = FeatureStore.from_csv(
        tmp_path / "s",
        {"a": paths["a"], "b": paths["b"]},
        labels=paths["labels"],
        metadata=paths["meta"],
        chunk_images=2,
    )
    check_tables(store, a)
    assert store.chunk_images == 2


def test_from_parquet_equals_from_csv(tables, tmp_path):
    """The two readers would treat the same table differently."""
    a, paths = tables
    a.to_parquet(tmp_path / "a.parquet")
    (a.iloc[::-1] / 2).reset_index().to_parquet(tmp_path / "b.parquet")
    lists = pd.DataFrame(
        {"image_id": ["4,5", "x/1", "NA"], "labels": [["t::b", "t::a"], ["NA"], []]}
    )
    lists.to_parquet(tmp_path / "labels.parquet")
    models = {"a": tmp_path / "a.parquet", "b": tmp_path / "b.parquet"}
    for number, labels in enumerate((tmp_path / "labels.parquet", paths["labels"])):
        store = FeatureStore.from_parquet(
            tmp_path / f"s{number}", models, labels=labels, metadata=paths["meta"]
        )
        check_tables(store, a)


def test_column_names_are_settable(tmp_path):
    """The iMet files call their columns id and attribute_ids."""
    (tmp_path / "p.csv").write_text("id,c\n1,0.5\n2,0.25\n")
    (tmp_path / "l.csv").write_text("id,attribute_ids\n1,c\n")
    store = FeatureStore.from_csv(
        tmp_path / "s",
        {"m": tmp_path / "p.csv"},
        labels=tmp_path / "l.csv",
        id_column="id",
        label_column="attribute_ids",
    )
    assert store.labels.toarray().tolist() == [[1], [0]]
    assert store.image_ids.tolist() == ["1", "2"]


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        ("id,c\n1,0.5\n", None, r"p.csv must have the columns \['image_id'\].* it has 'id', 'c'"),
        ("image_id;c\n1;0.5\n", None, "separated by semicolons"),
        ("", None, "p.csv is empty"),
        ("image_id\n1\n", None, "there is no class column"),
        ("image_id,c,c\n1,0.5,0.5\n", None, "columns stand twice: 'c'"),
        ("image_id,c\n1,0.5\n1,0.5\n", None, "p.csv: image ids must be unique; 1 occur .*: '1'"),
        ("image_id,c\n1,0.5\n2,oops\n", None, "column 'c' must hold numbers; image '2' has 'oops'"),
        ("image_id,c\n1,\n", None, "must be finite; .* image '1', class 'c'"),
        ("image_id,c\n1,-4\n", None, "Apply a sigmoid"),
        ("image_id,c\n1,1\n", "image_id,tags\n1,c\n", r"l.csv must have the columns \['labels'\]"),
        ("image_id,c\n1,1\n", "image_id,labels\n2,c\n", "1 images have labels but no prob.*: '2'"),
        ("image_id,c\n1,1\n", "image_id,labels\n1,c d\n", "image '1' has labels that are no .*'d'"),
        ("image_id,c\n1,1\n", "image_id,labels\n1,c\n1,c\n", "l.csv: image ids must be unique"),
    ],
)
def test_bad_tables_are_refused_by_name(model, labels, message, tmp_path):
    """A table read wrongly would make a store of wrong predictions."""
    (tmp_path / "p.csv").write_text(model)
    if labels:
        (tmp_path / "l.csv").write_text(labels)
    with pytest.raises(ValueError, match=message):
        FeatureStore.from_csv(
            tmp_path / "s", {"m": tmp_path / "p.csv"}, labels=labels and tmp_path / "l.csv"
        )
    assert not (tmp_path / "s").exists()


def test_tables_that_are_missing_or_unasked(tables, tmp_path):
    """The error would name a parser, not the file."""
    _, paths = tables
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing.csv"):
        FeatureStore.from_csv(tmp_path / "s", {"m": tmp_path / "nothing.csv"})
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing.parquet"):
        FeatureStore.from_parquet(tmp_path / "s", {"m": tmp_path / "nothing.parquet"})
    with pytest.raises(ValueError, match="name at least one model"):
        FeatureStore.from_csv(tmp_path / "s", {})
    with pytest.raises(TypeError, match=r"unknown settings \['chunks'\]"):
        FeatureStore.from_csv(tmp_path / "s", {"a": paths["a"]}, chunks=3)
    paths["meta"].write_text("image_id,year\n3,1\nx/1,2\nNA,3\n")
    with pytest.raises(ValueError, match=r"meta.csv: 1 of 4 expected image ids are missing"):
        FeatureStore.from_csv(tmp_path / "s", {"a": paths["a"]}, metadata=paths["meta"])


def test_an_index_without_a_name_holds_the_ids(tmp_path):
    """`frame.to_csv(path)` of a frame that nobody named the index of is what most people have."""
    frame = pd.DataFrame({"a": [0.5, 0.25], "b": [1.0, 0.0]}, ["i", "j"])
    frame.to_csv(tmp_path / "m.csv")
    (found,) = read_predictions(tmp_path / "m.csv").values()
    assert found.index.tolist() == ["i", "j"]
    np.testing.assert_array_equal(found, frame)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"image_id,a\ni,0.5,0.1\nj,0.5,0.1\n", "m.csv: its lines have more cells than its first"),
        (b"image_id,a\ni,0.5\nj,0.5,0.1\n", "m.csv cannot be read: .*Expected 2 fields"),
        (b"image_id,\xe9\ni,0.5\n", "m.csv cannot be read: .*codec.* Save it as UTF-8"),
        (b"image_id,a\n\xe9,0.5\n", "m.csv cannot be read: .*codec.* Save it as UTF-8"),
        (b"image_id,a,a\ni,0.5,0.5\n", r"m.csv: columns stand twice: 'a'"),
        (b"", "m.csv is empty; its first line must name the columns"),
        (b"image_id,a\ni,0.5\n,0.5\n", "m.csv: a image id may not be empty"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, text, message):
    """One of twenty files is broken, and the message says where a codec stopped."""
    (tmp_path / "m.csv").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        FeatureStore.from_csv(tmp_path / "store", {"m": tmp_path / "m.csv"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.parquet", "m.parquet is no Parquet file, or damaged"),
        ("m.npy", "m.npy holds Python objects, or is no NumPy file"),
        ("m.npz", "m.npz holds Python objects, or is (no NumPy file|damaged)"),
        ("m.h5", "m.h5 is no HDF5 file, or damaged"),
    ],
)
def test_a_damaged_binary_file_is_named(tmp_path, name, message):
    """pyarrow, NumPy, zipfile and HDF5 have seven kinds of errors, most without the file."""
    if name == "m.h5":
        pytest.importorskip("h5py")
    for data in (b"", b"PAR1" * 9, b"\x93NUMPY\1\0", b"PK\3\4" + bytes(40)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_predictions(tmp_path / name)


def test_polars_frames_are_matched_by_their_ids(tmp_path):
    """The ids were taken for numbers, or for a statistic, and rows by position."""
    ids, classes = ["i", "j", "k"], ["cat", "dog"]
    wanted = {"cat": [0.1, 0.2, 0.3], "dog": [0.9, 0.8, 0.7]}
    table = pl.DataFrame({"image_id": ids, **wanted})[::-1]
    numbers = pl.DataFrame({"image_id": ids, "width": [1.0, 2.0, 3.0]})[::-1]
    context = {"embeddings": {"e": numbers}, "image_stats": numbers, "metadata": numbers}
    store = FeatureStore.from_arrays(
        tmp_path / "s", image_ids=ids, classes=classes, probabilities={"a": table}, **context
    )
    stack = Stack({"a": table}, image_ids=ids, classes=classes, **context)
    for found in (stack, store.to_stack()):
        np.testing.assert_allclose(found.probabilities["a"].T, list(wanted.values()), rtol=1e-6)
        assert found.embeddings["e"].ravel().tolist() == [1, 2, 3]
        assert found.image_stats["width"].tolist() == [1, 2, 3]
        assert found.metadata["width"].tolist() == [1, 2, 3]
    store = FeatureStore.open(tmp_path / "s", "r+")
    store.add_image_stats(numbers.drop("image_id"))  # no ids: the order of the store
    assert store.image_stats["width"].tolist() == [3, 2, 1]
    with pytest.raises(ValueError, match="a polars frame of 2 rows has no column image_id"):
        store.add_metadata(numbers.drop("image_id")[:2])
