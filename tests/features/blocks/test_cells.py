"""Approximate neighbours: cells of images, and what a query finds in the nearest ones."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from features.assemble import PairFeatures
from features.blocks import _cells
from features.blocks._cells import best_of, fit_cells, nearest_cell, union_of
from features.blocks.spaces import Codes, quantise

CELLS = (("neighbours", {"exact_up_to": 0}),)


@pytest.fixture(scope="module")
def fit(small_stack, slice_labels, slice_fold):
    """Fit the block alone, with cells or without."""

    def run(blocks=CELLS, labels=slice_labels, **options):
        features = PairFeatures(blocks=blocks, candidates=15, **options)
        return features.fit(small_stack, labels, slice_fold)

    return run


@pytest.fixture
def few(monkeypatch):
    """Look through about a quarter of the images only."""
    monkeypatch.setattr(_cells, "SCANNED", 75)


def test_looking_through_every_cell_equals_the_exact_search(fit, small_stack, slice_fold, stream):
    """A cell forgotten or an image in two cells changes the votes."""
    exact = stream(fit(("neighbours",)), small_stack, slice_fold)
    cells = stream(fit(), small_stack, slice_fold)
    for name in exact.features.feature_names_:
        if not name.endswith(":all"):
            np.testing.assert_allclose(cells[name], exact[name], rtol=1e-5, err_msg=name)
    # Together, images are compared that some space found among its 60: the nearest are there.
    assert np.mean(cells["nearest:all"] == exact["nearest:all"]) > 0.99
    for k, least in ((5, 0.99), (15, 0.99), (60, 0.95)):
        name = f"neighbours_k{k}:all"
        assert np.corrcoef(cells[name], exact[name])[0, 1] > least


def test_a_quarter_of_the_images_holds_most_neighbours(few, fit, small_stack, slice_fold, stream):
    """Cells that do not follow the images would find a quarter of the neighbours."""
    exact = stream(fit(("neighbours",)), small_stack, slice_fold)
    cells = stream(fit(), small_stack, slice_fold)
    for space in ("embedding:lite0", "imagenet:lite0", "blend"):
        name = f"nearest:{space}"
        assert (cells[name] <= exact[name]).all()
        assert np.mean(cells[name] == exact[name]) > 0.7
        votes = f"neighbours_k5:{space}"
        assert np.corrcoef(cells[votes], exact[votes])[0, 1] > 0.8


@pytest.mark.parametrize("batch_images", [1, 7])
def test_any_batch_size_gives_the_same_bits(
    few, fit, small_stack, slice_fold, stream, batch_images
):
    """Cells are walked for all queries of a batch at once: a tie must not fall by company."""
    features = fit()
    whole = stream(features, small_stack, slice_fold)
    some = stream(features, small_stack[:40], slice_fold[:40], batch_images=batch_images)
    np.testing.assert_array_equal(some.values, whole.values[: len(some.values)])


def test_any_number_of_threads_gives_the_same_bits(few, fit, small_stack, slice_fold, stream):
    """k-means that adds up per thread moves its centres with the number of cores."""
    one, two = (stream(fit(n_jobs=n), small_stack, slice_fold) for n in (1, 2))
    np.testing.assert_array_equal(one.values, two.values)


def test_labels_of_a_fold_change_no_feature_of_its_rows(
    few, fit, small_stack, slice_labels, slice_fold, stream, rng
):
    """The approximate search could see the own fold's labels where the exact one does not."""
    labels, own = slice_labels.toarray(), slice_fold == 2
    labels[own] = rng.permuted(labels[own], axis=0)
    before = stream(fit(), small_stack, slice_fold)
    after = stream(fit(labels=csr_array(labels)), small_stack, slice_fold)
    hidden = own[before.image]
    np.testing.assert_array_equal(before.values[hidden], after.values[hidden])
    assert (before.values[~hidden] != after.values[~hidden]).any()


def test_every_image_lies_in_its_nearest_cell(rng):
    """A lost image is never anybody's neighbour."""
    codes = quantise(rng.normal(size=(500, 8)).astype(np.float32))
    cells = fit_cells(codes)
    assert sorted(cells["members"].tolist()) == list(range(500))
    centres = Codes(cells["centres"], cells["centre_norms"])
    cosine = codes.values.astype(float) @ centres.values.T.astype(float) / centres.norms
    cell = np.empty(500, dtype=int)
    for c, (start, stop) in enumerate(zip(cells["starts"][:-1], cells["starts"][1:], strict=True)):
        cell[cells["members"][start:stop]] = c
    np.testing.assert_allclose(cosine[np.arange(500), cell], cosine.max(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(nearest_cell(codes, centres), cell)


def test_equal_images_leave_cells_empty_without_harm():
    """A flat space (constant embeddings) has one place for all images."""
    codes = quantise(np.ones((50, 4), dtype=np.float32))
    cells = fit_cells(codes)
    assert cells["starts"][-1] == 50
    assert (cells["centre_norms"] > 0).all()


def test_a_neighbour_found_in_two_spaces_votes_once():
    """An image twice in the union would count double among all spaces together."""
    first = np.array([[4, 2, -1]]), np.zeros((1, 3), np.float32)
    second = np.array([[2, 7, 4]]), np.zeros((1, 3), np.float32)
    ids = union_of([first, second])
    assert ids.tolist() == [[-1, 2, -1, 4, -1, 7]]
    similarity = np.array([[9, 0.5, 9, 0.7, 9, 0.5]], dtype=np.float32)
    best, value = best_of(ids, similarity, 4)
    assert best.tolist() == [[4, 2, 7, -1]]
    assert value[0, -1] == -1
