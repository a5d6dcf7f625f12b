"""Top-k (CSR) stacks: rows only for classes that a model holds, the same features otherwise."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from features.assemble import PairFeatures, stack_blend
from features.blending import FLOOR, SparseBlend, column_sums, dense_rows, pair_values
from features.blocks import BLOCKS
from features.candidates import choose_candidates, select_candidates
from features.schema import LabelSpace, Stack


def copy_with(stack, probabilities):
    """Copy a stack with other probabilities."""
    return Stack(
        probabilities,
        image_ids=stack.image_ids,
        classes=stack.classes,
        class_parent=stack.label_space.parents,
        embeddings=stack.embeddings,
        imagenet_logits=stack.imagenet_logits,
        image_stats=stack.image_stats,
        metadata=stack.metadata,
    )


def top_k_only(values, k):
    """Keep each image's k most probable classes."""
    values = np.asarray(values, dtype=np.float32)
    kept = np.zeros_like(values)
    best = np.argsort(-values, axis=1, kind="stable")[:, :k]
    np.put_along_axis(kept, best, np.take_along_axis(values, best, axis=1), axis=1)
    return kept


@pytest.fixture(scope="module")
def both(small_stack):
    """The same top 12 of each model, as dense zeros and as CSR."""
    kept = {m: top_k_only(p, 12) for m, p in small_stack.probabilities.items()}
    sparse = {m: csr_array(p) for m, p in kept.items()}
    return copy_with(small_stack, kept), copy_with(small_stack, sparse)


@pytest.fixture(scope="module")
def tables(both, slice_labels, slice_fold, stream):
    """Every block on the dense and on the CSR stack: candidates of the latter may be fewer."""
    found = []
    for stack in both:
        features = PairFeatures(blocks=tuple(BLOCKS), candidates=20)
        features.fit(stack, slice_labels, slice_fold)
        found.append(stream(features, stack, slice_fold, batch_images=70))
    return found


def test_only_classes_that_a_model_holds_become_rows(both, tables):
    """With 32,000 classes a row for each class that nobody named would drown the others."""
    table, held = tables[1], sum((p > 0).astype(int) for p in both[1].probabilities.values())
    held = held.toarray() > 0
    assert held[table.image, table.cls].all()
    counts = np.bincount(table.image, minlength=300)
    groups = both[1].label_space.group_codes
    expected = [sum(min(20, held[i, groups == g].sum()) for g in range(3)) for i in range(300)]
    assert counts.tolist() == expected
    assert len(set(expected)) > 1
    found = table.features.all_candidates(both[1])
    np.testing.assert_array_equal(found.classes, table.cls)
    np.testing.assert_array_equal(found.row_image, table.image)


@pytest.mark.parametrize("block", list(BLOCKS))
def test_each_block_says_the_same_of_a_sparse_and_a_dense_stack(tables, block):
    """A block that reads stored values only, or by another order, would differ."""
    dense, sparse = tables
    place = {(i, c): row for row, (i, c) in enumerate(zip(dense.image, dense.cls, strict=True))}
    rows = [place[pair] for pair in zip(sparse.image, sparse.cls, strict=True)]
    expected, got = dense.of_block(block)[rows], sparse.of_block(block)
    assert np.isfinite(got).all()
    if block in ("class_similarity", "neighbours", "kernel_ridge"):
        # Rounding to int8 may turn a last bit into a step: compare as a whole.
        assert np.corrcoef(expected.ravel(), got.ravel())[0, 1] > 0.999
    else:
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch_images", [1, 13])
def test_any_batch_size_gives_the_same_bits(both, tables, slice_fold, stream, batch_images):
    """Ragged rows must not shift from one batch into the next."""
    table, some = tables[1], slice(0, 40)
    again = stream(table.features, both[1][some], slice_fold[some], batch_images=batch_images)
    n_rows = len(again.image)
    np.testing.assert_array_equal(again.cls, table.cls[:n_rows])
    np.testing.assert_array_equal(again.values, table.values[:n_rows])


def test_the_sparse_blend_is_the_dense_one_with_a_floor(both):
    """A class that nobody holds must have the logit mean of zeros, not zero."""
    dense, sparse = stack_blend(both[0]), stack_blend(both[1])
    assert isinstance(sparse, SparseBlend)
    rows = np.array([5, 3, 299])
    np.testing.assert_allclose(dense_rows(sparse, rows), dense[rows], rtol=1e-4, atol=1e-7)
    assert dense_rows(sparse, rows).min() == np.float32(FLOOR)
    np.testing.assert_allclose(column_sums(sparse, rows), dense[rows].sum(axis=0), rtol=1e-4)
    cols = np.array([0, 17, 59])
    np.testing.assert_allclose(
        pair_values(sparse, rows, cols), dense[rows, cols], rtol=1e-4, atol=1e-7
    )


def test_long_vectors_keep_the_features_that_vary_most(monkeypatch, both, rng):
    """Principal axes of 32,000 classes would take hours and gigabytes."""
    from features.blocks import spaces

    monkeypatch.setattr(spaces, "MOST_FEATURES", 9)
    for stack in both:
        blend = stack_blend(stack)
        projection = spaces.fit_stack_space(stack, blend, "blend")
        values = np.sqrt(dense_rows(blend, slice(None))).astype(np.float64)
        expected = np.sort(np.argsort(-values.var(axis=0))[:9])
        np.testing.assert_array_equal(projection.columns, expected)
        assert projection.mean.shape == (60,)
        short = spaces.fit_space(values[:, expected].astype(np.float32))
        codes = spaces.encode(values.astype(np.float32), projection).values
        own = spaces.encode(values[:, expected].astype(np.float32), short).values
        np.testing.assert_allclose(codes, own, atol=1)


def test_an_image_that_no_model_knows_has_no_rows(small_stack, slice_labels, slice_fold, stream):
    """An image without any candidate must not disturb the images around it."""
    kept = {m: top_k_only(p, 5) for m, p in small_stack.probabilities.items()}
    for values in kept.values():
        values[[0, 7, 299]] = 0
    stack = copy_with(small_stack, {m: csr_array(p) for m, p in kept.items()})
    features = PairFeatures(candidates=5).fit(stack, slice_labels, slice_fold)
    whole = stream(features, stack, slice_fold, batch_images=300)
    assert set(range(300)) - set(whole.image.tolist()) == {0, 7, 299}
    first = stream(features, stack[:12], slice_fold[:12], batch_images=1)
    np.testing.assert_array_equal(first.values, whole.values[: len(first.image)])


@pytest.mark.parametrize("above", [-1.0, 0.1])  # 0.1: values that equal it
def test_candidates_of_a_sparse_blend_are_those_of_its_dense_rows(above):
    """Ties fall the other way, groups mix, or a class that no model holds gets a row."""
    rng = np.random.default_rng(0)
    space = LabelSpace([f"{g}::{i}" for i in range(40) for g in ("a", "b", "c")])
    values = np.round(rng.random((50, 120)), 1) * (rng.random((50, 120)) < 0.2)
    blend = SparseBlend(csr_array(values.astype(np.float32)))
    per_group = np.array([3, 1, 12])
    got = choose_candidates(blend, per_group, space, above=above)
    dense = dense_rows(blend, slice(None))
    expected = select_candidates(dense, per_group, space, above=max(above, FLOOR))
    np.testing.assert_array_equal(got.indptr, expected.indptr)
    np.testing.assert_array_equal(got.classes, expected.classes)
