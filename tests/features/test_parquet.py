"""The pair folder: what other readers see in it; a killed run resumes to the same bytes."""

import hashlib
import os
from dataclasses import replace

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_array

from features import _pair_folder
from features.assemble import PairFeatures
from features.parquet import (
    PairRows,
    feature_matrix,
    image_ranges,
    label_at,
    pair_columns,
    read_pairs,
    uniform,
    write_pairs,
)
from features.schema import Stack

BLOCKS = ("probabilities", "combinations", "ranks", "class_prior", "cooccurrence", "neighbours")


@pytest.fixture(scope="module")
def rows(small_stack, slice_labels, slice_fold):
    """Rows of 60 images; every sixth has no labels, though one of these has a fold."""
    images = np.arange(0, 300, 5)
    known = np.arange(60) % 6 > 0
    fold = np.where(known, slice_fold[images], -1)
    fold[6] = 2
    stack, labels = small_stack[images], slice_labels[images]
    features = PairFeatures(
        blocks=BLOCKS, candidates={"category": 3, "creator": 1, "tag": 2}, n_jobs=1
    )
    features.fit(stack[known], labels[known], fold[known])
    return PairRows(features, stack, labels, known, fold)


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    """Write a complete pair folder of six parts."""
    path = tmp_path_factory.mktemp("whole") / "pairs"
    write_pairs(path, rows, settings={"a": 1}, rows_per_part=60)
    return path


@pytest.fixture(scope="module")
def few_rows(rows):
    """Take the rows of the first 12 images."""
    known, fold = rows.labels_known[:12], rows.fold[:12]
    return PairRows(rows.features, rows.stack[:12], rows.labels[:12], known, fold)


def digests(path):
    """Checksum of every file, temporary ones included."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(path.iterdir())}


def test_parts_are_image_ranges_and_the_only_other_file_starts_with_an_underscore(folder):
    """A reader that lists the folder finds parts in order, and can tell what is no part."""
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["_pairs.parquet", *(f"part-{n:05d}.parquet" for n in range(6))]


def test_pandas_polars_and_duckdb_read_the_same_rows_from_the_folder(rows, folder, stream):
    """Each reader opens the folder as it stands and sees the values in memory."""
    entry = np.where(rows.labels_known, rows.fold, -1)
    expected = stream(rows.features, rows.stack, entry)
    names = rows.features.feature_names_
    by_pandas = pd.read_parquet(folder)
    by_polars = pl.read_parquet(folder)
    by_duckdb = duckdb.sql(f"select * from read_parquet('{folder}/*.parquet')").df()
    for frame in (by_pandas, by_polars, by_duckdb):
        np.testing.assert_array_equal(frame[names].to_numpy(), expected.values)
        assert list(frame["image_id"]) == rows.stack.image_ids[expected.image].tolist()
        assert list(frame["class"]) == rows.stack.classes[expected.cls].tolist()
        assert list(frame["class_group"]) == rows.stack.class_group[expected.cls].tolist()


def test_keys_have_the_types_of_the_contract(folder):
    """Names or types of the key columns change silently."""
    schema = pq.read_schema(folder / "part-00000.parquet")
    assert [str(schema.field(n).type) for n in ("image_id", "label", "fold")] == [
        "string",
        "int8",
        "int16",
    ]
    assert pa.types.is_dictionary(schema.field("class").type)
    assert all(field.type == pa.float32() for field in list(schema)[5:])


def test_labels_are_null_where_unknown_and_the_matrix_elsewhere(rows, folder):
    """An unlabelled image is written as one without any label, or labels shift by a row."""
    frame = pd.read_parquet(folder)
    image = pd.Index(rows.stack.image_ids).get_indexer(frame["image_id"])
    cls = pd.Index(rows.stack.classes).get_indexer(frame["class"])
    np.testing.assert_array_equal(frame["label"].isna(), ~rows.labels_known[image])
    truth = rows.labels.toarray()[image, cls]
    known = rows.labels_known[image]
    np.testing.assert_array_equal(frame["label"][known], truth[known])
    np.testing.assert_array_equal(frame["fold"], rows.fold[image])
    assert truth[known].any()


def test_an_unlabelled_image_is_new_even_where_it_has_a_fold(rows, folder, stream):
    """Its fold would leave training images out for no reason."""
    new = stream(rows.features, rows.stack[6:7])
    frame = pd.read_parquet(folder)
    own = frame[frame["image_id"] == rows.stack.image_ids[6]]
    np.testing.assert_array_equal(own[rows.features.feature_names_], new.values)


def test_field_metadata_give_back_every_column(rows, folder):
    """Block, formula, models and the fold-fitted flag get lost on the way to disk."""
    table = next(read_pairs(folder))
    assert pair_columns(table.schema) == rows.features.columns_
    assert any(column.fold_fitted for column in rows.features.columns_)
    assert feature_matrix(table).shape == (60, len(rows.features.columns_))


def test_read_pairs_walks_the_parts_in_order_and_takes_columns(rows, folder):
    """Iterating back loses or reorders rows."""
    tables = list(read_pairs(folder, columns=["image_id"]))
    assert (
        pa.concat_tables(tables)["image_id"].to_pylist()
        == np.repeat(rows.stack.image_ids, 6).tolist()
    )


@pytest.mark.parametrize("changed", [{"max_memory": 100_000}, {"n_jobs": 2}])
def test_bytes_do_not_depend_on_memory_or_threads(rows, folder, tmp_path, monkeypatch, changed):
    """Files follow the batches, so that two machines write different ones."""
    for name, value in changed.items():
        monkeypatch.setattr(rows.features, name, value)
    if "max_memory" in changed:
        assert rows.features.batch_images() < 10
    write_pairs(tmp_path / "pairs", rows, settings={"a": 1}, rows_per_part=60)
    assert digests(tmp_path / "pairs") == digests(folder)


def test_row_groups_hold_whole_images_and_no_more_rows_than_asked(few_rows, tmp_path, monkeypatch):
    """A part of many rows becomes one group that no reader can hold."""
    monkeypatch.setattr("features.parquet.ROWS_PER_GROUP", 20)
    write_pairs(tmp_path / "pairs", few_rows, settings={}, rows_per_part=50)
    with pq.ParquetFile(tmp_path / "pairs" / "part-00000.parquet") as file:
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        codec = file.metadata.row_group(0).column(9).compression
    assert (sizes, codec) == ([18, 18, 12], "ZSTD")


def test_a_part_has_one_image_at_least(few_rows, tmp_path):
    """More candidates than rows a part: no part could ever be written."""
    done = write_pairs(tmp_path / "pairs", few_rows, settings={}, rows_per_part=1)
    assert done.n_parts == 12


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


@pytest.mark.parametrize("moment", [1, 2, 3, 6, 13, 14])
def test_a_run_killed_before_any_rename_resumes_to_the_same_bytes(
    rows, folder, tmp_path, monkeypatch, moment
):
    """A half-written part or record counts as done, or left-overs stay behind."""
    fsync, calls = os.fsync, []

    def kill(descriptor):
        calls.append(descriptor)
        if len(calls) == moment:
            raise Killed
        fsync(descriptor)

    path = tmp_path / "pairs"
    monkeypatch.setattr(_pair_folder.os, "fsync", kill)
    with pytest.raises(Killed):
        write_pairs(path, rows, settings={"a": 1}, rows_per_part=60)
    monkeypatch.undo()
    if moment > 1:
        with pytest.raises(ValueError, match="is not complete"):
            next(read_pairs(path))
    done = write_pairs(path, rows, settings={"a": 1}, rows_per_part=60)
    # Writes alternate: the record, then a part and the record that knows it.
    assert len(done.resumed) == max(moment - 2, 0) // 2
    assert digests(path) == digests(folder)


def test_a_part_that_was_damaged_meanwhile_is_written_again(rows, folder, tmp_path):
    """A part cut short by a full disk is taken for complete because its name is there."""
    path = tmp_path / "pairs"
    stop = iter([None, None])
    with pytest.raises(StopIteration):
        write_pairs(path, rows, settings={"a": 1}, rows_per_part=60, advance=lambda n: next(stop))
    (path / "part-00001.parquet").write_bytes(b"cut")
    done = write_pairs(path, rows, settings={"a": 1}, rows_per_part=60)
    assert done.rewritten == ["part-00001.parquet"]
    assert digests(path) == digests(folder)


def test_a_complete_folder_is_refused_and_replaced_with_force(rows, few_rows, folder, tmp_path):
    """Hours of work are overwritten unasked, or force leaves parts of the old folder."""
    path = tmp_path / "pairs"
    write_pairs(path, few_rows, settings={"a": 1}, rows_per_part=6)
    with pytest.raises(FileExistsError, match=r"is complete: 72 rows of 12 images.*--force"):
        write_pairs(path, few_rows, settings={"a": 1}, rows_per_part=6)
    write_pairs(path, rows, settings={"a": 1}, rows_per_part=60, force=True)
    assert digests(path) == digests(folder)


def test_other_settings_are_refused_naming_what_differs(rows, tmp_path):
    """Half of the folder comes from one set of blocks, half from another."""
    path = tmp_path / "pairs"
    with pytest.raises(ZeroDivisionError):
        write_pairs(path, rows, settings={"a": 1}, rows_per_part=60, advance=lambda n: n / 0)
    with pytest.raises(FileExistsError, match=r"other settings: a was 1, is 2\. Run it with those"):
        write_pairs(path, rows, settings={"a": 2}, rows_per_part=60)


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_something_else_is_never_touched(rows, tmp_path, force):
    """--force on a mistyped path deletes a user's files."""
    (tmp_path / "part-thesis.parquet").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is no pair folder"):
        write_pairs(tmp_path, rows, settings={}, force=force)
    assert (tmp_path / "part-thesis.parquet").read_text() == "mine"


def test_reading_what_is_no_pair_folder_says_so(tmp_path):
    """An empty folder reads as a data set without rows."""
    with pytest.raises(FileNotFoundError, match="is no pair folder"):
        next(read_pairs(tmp_path))


def test_two_columns_of_one_name_are_refused(rows, tmp_path, monkeypatch):
    """Readers would show one of the two, and not say which."""
    columns = rows.features.columns_
    monkeypatch.setattr(rows.features, "columns_", [columns[0], *columns[:-1]])
    with pytest.raises(ValueError, match=r"'p:lite0_lin' stands twice"):
        write_pairs(tmp_path / "pairs", rows, settings={})


def test_labels_of_rows_equal_the_dense_matrix(rng, slice_labels):
    """The sparse look-up drops or shifts labels in a range that does not begin at zero."""
    image, cls = rng.integers(100, 300, 500), rng.integers(0, 60, 500).astype(np.int32)
    expected = slice_labels.toarray()[image, cls]
    np.testing.assert_array_equal(label_at(slice_labels, image, cls), expected)


@pytest.fixture(scope="module")
def thinned(rows, tmp_path_factory):
    """Write the rows with a quarter of the negatives: (folder, frame)."""
    path = tmp_path_factory.mktemp("thinned") / "pairs"
    some = replace(rows, negatives=0.25)
    done = write_pairs(path, some, settings={"a": 1}, rows_per_part=60)
    frame = pd.read_parquet(path)
    assert done.n_rows == len(frame) == some.indptr[-1]
    return path, frame


def test_thinned_negatives_weigh_for_those_left_out(folder, thinned):
    """A model trained on the rows would believe that a class is four times as frequent."""
    whole, frame = pd.read_parquet(folder), thinned[1]
    keys = ["image_id", "class"]
    kept = whole.merge(frame[[*keys, "weight"]], on=keys, how="left")["weight"]
    negative = (whole["label"] == 0).to_numpy()
    assert (kept[~negative] == 1).all()
    assert set(kept[negative].dropna()) == {4.0}
    share = kept[negative].notna().mean()
    spread = 4 * np.sqrt(0.25 * 0.75 / negative.sum())
    assert share == pytest.approx(0.25, abs=spread)
    assert "weight" not in whole
    names = [name for name in frame if ":" in name]
    same = whole[kept.notna().to_numpy()][names].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame[names], same)


@pytest.mark.parametrize("rows_per_part", [20, 300])
def test_which_negatives_stay_depends_on_the_pair_alone(rows, thinned, tmp_path, rows_per_part):
    """Draws that follow parts or batches would differ between a resumed and a whole run."""
    some = replace(rows, negatives=0.25)
    write_pairs(tmp_path / "pairs", some, settings={"a": 1}, rows_per_part=rows_per_part)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "pairs"), thinned[1])


def test_draws_of_keys_are_even(rng):
    """A poor mix of the key's bits would keep some classes' negatives and no others'."""
    drawn = uniform(np.arange(200_000))
    assert ((drawn >= 0) & (drawn < 1)).all()
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert np.abs(counts - 10_000).max() < 500
    by_class = drawn.reshape(-1, 100).mean(axis=0)
    assert np.abs(by_class - 0.5).max() < 0.03


def test_a_top_k_store_has_the_rows_it_says(small_stack, slice_labels, slice_fold, tmp_path):
    """Top-k images differ in rows: bounds per image wrote wrong counts and small parts."""
    sparse = {
        m: csr_array(np.where(p > 0.05, p, 0).astype(np.float32))
        for m, p in small_stack.probabilities.items()
    }
    stack = Stack(sparse, image_ids=small_stack.image_ids, classes=small_stack.classes)
    features = PairFeatures(blocks=("probabilities",), candidates=20)
    features.fit(stack, slice_labels, slice_fold)
    rows = PairRows(features, stack, slice_labels, np.ones(300, bool), slice_fold)
    done = write_pairs(tmp_path / "pairs", rows, settings={}, rows_per_part=200)
    sizes = [len(pd.read_parquet(p)) for p in sorted((tmp_path / "pairs").glob("part-*"))]
    assert sum(sizes) == done.n_rows == len(features.all_candidates(stack))
    assert max(sizes) <= 200
    assert min(sizes[:-1]) > 140


def test_ranges_hold_whole_images_and_all_of_them():
    """An image with more rows than asked, or with none, must not stop the walk."""
    assert image_ranges(np.array([0, 0, 7, 8, 8]), 3) == [(0, 1), (1, 2), (2, 4)]
    assert image_ranges(np.array([0]), 3) == []
