"""The openclipart loader, the stratified subset and the test slice."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from stacker.datasets import load_openclipart, stratified_subset


@pytest.fixture(scope="module")
def whole():
    return load_openclipart()


def test_the_whole_set_has_the_documented_size(whole):
    """The numbers in the docstring are the data's own."""
    assert whole.labels.shape == (5223, 488)
    assert len(set(whole.split_group)) == 4395
    assert round(whole.labels.sum() / 5223, 2) == 6.52
    assert set(whole.class_group) == {"category", "creator", "tag"}
    assert "public domain" in whole.DESCR
    assert "Public domain" in whole.licence


def test_every_class_has_five_images_and_every_image_a_label(whole):
    """A class without positives or an image without labels would break the demo's scores."""
    assert np.asarray(whole.labels.sum(axis=0)).min() >= 5
    assert np.asarray(whole.labels.sum(axis=1)).min() >= 1


@pytest.mark.parametrize("n_images", [300, 2000])
def test_a_subset_is_stratified_deterministic_and_keeps_groups_whole(whole, n_images):
    """Near-duplicates on both sides of a split would make every held-out score too good."""
    part, again = load_openclipart(n_images), load_openclipart(n_images)
    assert (part.image_ids == again.image_ids).all()
    assert len(part.image_ids) == n_images == len(set(part.image_ids))
    assert np.isin(whole.split_group, part.split_group).sum() == n_images
    share = n_images / 5223
    wanted = np.asarray(whole.labels.sum(axis=0)).ravel() * share
    got = np.asarray(part.labels.sum(axis=0)).ravel()
    assert np.abs(got - wanted).max() < n_images**0.5
    assert np.abs(got - wanted).mean() < 1


def test_subset_rows_are_the_same_images_as_in_the_whole_set(whole):
    """A shifted row would give every image its neighbour's labels."""
    part = load_openclipart(50, random_state=3)
    rows = [list(whole.image_ids).index(name) for name in part.image_ids]
    assert (part.labels.toarray() == whole.labels.toarray()[rows]).all()
    assert (part.split_group == whole.split_group[rows]).all()
    assert list(part.metadata.index) == list(part.image_ids)


def test_rare_classes_are_left_out_on_request():
    """min_images counts within the subset, not within the whole set."""
    part = load_openclipart(500, min_images=5, sparse=False)
    assert part.labels.sum(axis=0).min() >= 5
    assert part.labels.shape == (500, len(part.classes)) == (500, len(part.class_group))


def test_images_are_decoded_only_on_request():
    """Loading must not need pillow unless pixels are asked for."""
    assert load_openclipart(3).images is None
    pytest.importorskip("PIL")
    images = load_openclipart(3, return_images=True).images
    assert len(images) == 3
    assert all(a.dtype == np.uint8 and a.shape[2] == 3 and max(a.shape) <= 224 for a in images)


@pytest.mark.parametrize("n_images", [0, -3, 5224])
def test_an_impossible_number_of_images_is_refused(n_images):
    """Silently giving fewer images than asked for would change every later number."""
    with pytest.raises(ValueError, match=r"between 1 and the number of images there are, 5,223"):
        load_openclipart(n_images)


def test_a_group_is_cut_only_when_no_whole_group_fits():
    """Two groups of four cannot give three images whole: the size still is exact."""
    labels = csr_array(np.ones((8, 1), dtype=np.int8))
    picked = stratified_subset(labels, list("aaaabbbb"), 3)
    assert len(picked) == 3
    assert len({"aaaabbbb"[i] for i in picked}) == 1
