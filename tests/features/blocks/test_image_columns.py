"""Facts of the image on each of its rows: statistics, ImageNet predictions, user columns."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from features.assemble import PairFeatures
from features.schema import Stack


def fitted(block, stack, labels, fold):
    return PairFeatures(blocks=(block,), candidates=3).fit(stack, labels, fold)


def test_statistics_stand_on_every_row_of_their_image(example):
    """Statistics of the neighbouring image would go unseen."""
    frame = example.query.image_stats
    assert frame.shape[1] == 19
    for name in frame:
        expected = np.broadcast_to(frame[name].to_numpy(np.float32)[:, None], (24, 60))
        np.testing.assert_array_equal(example.matrix_of[f"stat:{name}"], expected)


def test_statistics_are_found_by_name(small_stack, slice_labels, slice_fold, stream):
    """Another column order in the new images would swap brightness and size."""
    features = fitted("image_stats", small_stack, slice_labels, slice_fold)
    turned = with_frames(small_stack, image_stats=small_stack.image_stats.iloc[:, ::-1])
    expected = stream(features, small_stack).values
    np.testing.assert_array_equal(stream(features, turned).values, expected)
    short = with_frames(small_stack, image_stats=small_stack.image_stats.iloc[:, 2:])
    with pytest.raises(ValueError, match=r"image_stats .*lacks .*stat0"):
        stream(features, short)


def test_all_imagenet_logits_and_their_softmax(small_stack, slice_labels, slice_fold, stream):
    """A14 wants all ImageNet predictions: every class in its place, softmax summing to 1."""
    logits = small_stack.imagenet_logits["lite0"].astype(np.float64)
    for form in ("logits", "softmax"):
        block = ("imagenet", {"form": form})
        table = stream(fitted(block, small_stack, slice_labels, slice_fold), small_stack)
        assert table.features.feature_names_[7] == f"imagenet_{form}7:lite0"
        for row in range(0, len(table.image), 97):
            z = logits[table.image[row]].tolist()
            total = math.fsum(math.exp(v) for v in z)
            expected = z if form == "logits" else [math.exp(v) / total for v in z]
            np.testing.assert_allclose(table.values[row], expected, rtol=1e-5, atol=1e-7)


def test_principal_components_span_the_largest_variance(
    small_stack, slice_labels, slice_fold, stream
):
    """Wrong axes, or a mean of the batch, would still look like sensible numbers."""
    block = ("imagenet", {"n_components": 4})
    table = stream(fitted(block, small_stack, slice_labels, slice_fold), small_stack[:20])
    x = small_stack.imagenet_logits["lite0"].astype(np.float64)
    centred = x - x.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:4].T
    axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    np.testing.assert_allclose(table.values, (centred @ axes)[table.image], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "rank"}, "form must be one of .* Got 'rank'"),
        ({"n_components": 0}, "n_components must be at least 1. Got 0"),
    ],
)
def test_wrong_imagenet_options_are_refused(
    small_stack, slice_labels, slice_fold, options, message
):
    """An unknown form would write nothing, or something else."""
    with pytest.raises(ValueError, match=message):
        fitted(("imagenet", options), small_stack, slice_labels, slice_fold)


def test_numbers_and_categories_of_the_user(example):
    """A missing value must be -1, a category its place among the sorted training categories."""
    frame = example.query.metadata
    known = sorted(example.train.metadata["medium"].dropna().unique())
    assert known == ["ink", "oil", "wood"]
    for i in range(24):
        year, medium = frame["year"].iloc[i], frame["medium"].iloc[i]
        assert (example.matrix_of["meta:year"][i] == (-1 if np.isnan(year) else year)).all()
        code = -1 if pd.isna(medium) else known.index(medium)
        assert (example.matrix_of["meta:medium"][i] == code).all()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pd.array([1, None, 3, 1], dtype="Int64"), [1, -1, 3, 1]),
        (pd.array([True, False, True, False]), [1, 0, 1, 0]),
        (pd.Categorical(["b", "a", "b", None]), [1, 0, 1, -1]),
        (pd.array(["x", None, "y", "x"], dtype="string"), [0, -1, 1, 0]),
        ([1, "a", 2.5, "a"], [0, 2, 1, 2]),
        (pd.to_datetime(["2021-05-05", None, "2020-01-01", "2021-05-05"]), [1, -1, 0, 1]),
        (pd.to_timedelta(["1 days", None, "2 days", "1 days"]), [0, -1, 1, 0]),
    ],
)
def test_any_kind_of_column_becomes_numbers(column, expected, stream):
    """A nullable, boolean, categorical or mixed column would raise or turn into NaN."""
    ids = list("wxyz")
    frame = pd.DataFrame({7: column}, index=ids)
    stack = Stack({"m": np.full((4, 2), 0.5)}, image_ids=ids, metadata=frame)
    labels = csr_array(np.eye(4, 2, dtype=np.int8))
    table = stream(fitted("metadata", stack, labels, np.arange(4) % 2), stack)
    assert table.features.feature_names_ == ["meta:7"]
    assert table.values[::2, 0].tolist() == expected


def test_a_category_that_training_never_saw_is_minus_one(
    small_stack, slice_labels, slice_fold, stream
):
    """New categories must not take the number of another one."""
    features = fitted("metadata", small_stack, slice_labels, slice_fold)
    strange = small_stack.metadata.assign(medium="marble")
    table = stream(features, with_frames(small_stack, metadata=strange))
    assert set(table["meta:medium"]) == {-1.0}
    with pytest.raises(ValueError, match=r"metadata .*lacks .*medium"):
        stream(features, with_frames(small_stack, metadata=strange[["year"]]))


def with_frames(stack, **frames):
    """Copy a stack's probabilities with other image statistics or metadata."""
    return Stack(
        stack.probabilities,
        image_ids=stack.image_ids,
        classes=stack.classes,
        class_parent=stack.label_space.parents,
        **frames,
    )
