"""Pair rows on a Dask cluster are those of one machine."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from features import FeatureStore, PairFeatures
from features import dask as features_dask
from features._build import Request, build

ROWS_PER_PART = 500


@pytest.fixture(scope="module")
def store(tmp_path_factory, slice_stack, slice_labels, slice_fold, slice_groups):
    """Store of the slice; a tenth of the images has no labels."""
    known = np.arange(len(slice_stack)) % 10 != 3
    stack = slice_stack
    return FeatureStore.from_arrays(
        tmp_path_factory.mktemp("stores") / "slice",
        image_ids=stack.image_ids,
        classes=stack.classes,
        class_parent=stack.label_space.parent_names,
        probabilities=stack.probabilities,
        labels=slice_labels.multiply(known[:, None]).tocsr(),
        labels_known=known,
        fold=slice_fold,
        split_group=slice_groups,
        embeddings=stack.embeddings,
        image_stats=stack.image_stats,
        chunk_images=64,
    )


@pytest.fixture(scope="module")
def local(store, tmp_path_factory):
    """Pair folder that this process wrote."""
    out = tmp_path_factory.mktemp("pairs") / "local"
    build(Request(str(store.path), out, rows_per_part=ROWS_PER_PART, n_jobs=1, negatives=0.5))
    return out


def far(store, out, cluster):
    """Build the same folder on the cluster."""
    common = {"rows_per_part": ROWS_PER_PART, "negatives": 0.5}
    return build(Request(str(store.path), out, **common, dask=cluster.address))


def assert_same_files(one, other):
    """Both folders hold the same files with the same bytes."""
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_workers_in_other_folders_write_the_same_bytes(
    store, local, cluster, tmp_path, monkeypatch
):
    """Features depend on where they are built, or a relative path is read on a worker."""
    monkeypatch.chdir(store.path.parent)
    common = {"rows_per_part": ROWS_PER_PART, "negatives": 0.5}
    out = Path(os.path.relpath(tmp_path / "far"))
    build(Request(store.path.name, out, **common, dask=cluster.address))
    assert_same_files(local, tmp_path / "far")


def test_a_killed_worker_changes_nothing(store, local, cluster, tmp_path):
    """What a worker held is lost with it, or built otherwise elsewhere."""
    (third,) = cluster.start(1)
    run = threading.Thread(target=far, args=(store, tmp_path / "far", cluster))
    run.start()
    cluster.wait_until(lambda: len(list(tmp_path.glob("far/part-*.parquet"))) >= 2)
    cluster.kill(third)
    run.join(timeout=240)
    assert_same_files(local, tmp_path / "far")


def test_rows_of_arrays_in_memory_are_the_same(cluster, slice_stack, slice_labels, slice_fold):
    """Only stores work, or rows of a partition differ from those of a batch."""
    settings = {"blocks": "default", "candidates": 8, "max_memory": "1GB", "random_state": 0}
    here = PairFeatures(**settings, n_jobs=1).fit(slice_stack, slice_labels, slice_fold)
    images = features_dask.Images(slice_stack)
    client = cluster.client
    state, there = features_dask.fit_features(client, images, slice_labels, slice_fold, settings)
    assert there.feature_names_ == here.feature_names_
    indptr = here.all_candidates(slice_stack).indptr
    parts = features_dask.row_partitions(
        client, state, images, slice_fold, indptr, rows_per_part=700
    )
    rows = np.concatenate(client.gather([part.features for part in parts]))
    expected = [batch.features.copy() for batch in here.batches(slice_stack, slice_fold)]
    np.testing.assert_array_equal(rows, np.concatenate(expected))


def test_a_store_that_workers_do_not_see_is_named(cluster):
    """The error says nothing about workers."""
    images = features_dask.Images(None, "/nowhere/store", ["a"], np.arange(3))
    with pytest.raises(FileNotFoundError, match=r"worker tcp://.* sees no store at /nowhere"):
        features_dask.fit_features(cluster.client, images, None, np.zeros(3), {})


def test_current_needs_a_client():
    """`dask="current"` without a client ends in an error of Dask's own."""
    with pytest.raises(ValueError, match="needs an active client"):
        features_dask.connect("current")
