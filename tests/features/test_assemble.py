"""Streaming: any batch size, thread count or order of images gives the same bits."""

import logging

import numpy as np
import pandas as pd
import pytest

from features.assemble import PairFeatures, parse_bytes, resolve_blocks, stack_blend
from features.blocks import BLOCKS
from features.schema import Stack

PER_GROUP = {"category": 9, "creator": 3, "tag": 7}


@pytest.fixture(scope="module")
def features(small_stack, slice_labels, slice_fold):
    """Every block, fitted with candidates per class group."""
    chosen = PairFeatures(blocks=tuple(BLOCKS), candidates=PER_GROUP)
    return chosen.fit(small_stack, slice_labels, slice_fold)


@pytest.fixture(scope="module")
def whole(features, small_stack, slice_fold, stream):
    """All training rows, built in one batch."""
    return stream(features, small_stack, slice_fold, batch_images=300)


@pytest.mark.parametrize("batch_images", [1, 7, 39])
def test_any_batch_size_gives_the_same_bits(
    features, whole, small_stack, slice_fold, stream, batch_images
):
    """A feature that depends on its batch would differ between training and prediction."""
    table = stream(features, small_stack[:40], slice_fold[:40], batch_images=batch_images)
    n_rows = len(table.image)
    assert n_rows == 40 * sum(PER_GROUP.values())
    np.testing.assert_array_equal(table.cls, whole.cls[:n_rows])
    for j, name in enumerate(features.feature_names_):
        np.testing.assert_array_equal(table.values[:, j], whole.values[:n_rows, j], err_msg=name)


@pytest.mark.parametrize("n_jobs", [1, 2, None])
def test_any_number_of_threads_gives_the_same_bits(
    features, whole, small_stack, slice_fold, slice_labels, stream, n_jobs
):
    """Threads that share a sum would make results differ from run to run."""
    again = PairFeatures(blocks=tuple(BLOCKS), candidates=PER_GROUP, n_jobs=n_jobs)
    again.fit(small_stack, slice_labels, slice_fold)
    same_bits(stream(again, small_stack, slice_fold), whole)


@pytest.mark.parametrize("kind", ["array", "coo", "frame", "lists"])
def test_labels_of_every_form_give_the_same_candidates(small_stack, slice_labels, slice_fold, kind):
    """Anything but CSR ended in an AttributeError of numpy or pandas."""
    dense, classes = slice_labels.toarray(), small_stack.classes
    forms = {
        "array": dense,
        "coo": slice_labels.tocoo(),
        "frame": pd.DataFrame(dense, small_stack.image_ids, classes).iloc[::-1, ::-1],
        "lists": [classes[row > 0].tolist() for row in dense],
    }
    plain = PairFeatures(blocks=("class_prior",)).fit(small_stack, slice_labels, slice_fold)
    found = PairFeatures(blocks=("class_prior",)).fit(small_stack, forms[kind], slice_fold)
    assert found.candidate_recall_ == plain.candidate_recall_
    np.testing.assert_array_equal(found.per_group_, plain.per_group_)


def test_shuffled_images_give_equally_shuffled_rows(
    features, whole, small_stack, slice_fold, stream, rng
):
    """A feature that reads its neighbours in the batch would change with their order."""
    order = rng.permutation(300)
    table = stream(features, small_stack[order], slice_fold[order], batch_images=41)
    for position, image in enumerate(order):
        mine, theirs = table.image == position, whole.image == image
        np.testing.assert_array_equal(table.cls[mine], whole.cls[theirs])
        np.testing.assert_array_equal(table.values[mine], whole.values[theirs])


def test_shuffled_training_images_leave_the_fit_as_it_was(
    small_stack, slice_labels, slice_fold, stream, rng
):
    """What is learned about classes must not depend on the order of the training images."""
    order = rng.permutation(300)
    tables = []
    for rows in (np.arange(300), order):
        chosen = PairFeatures(blocks=("class_prior", "cooccurrence"), candidates=PER_GROUP)
        chosen.fit(small_stack[rows], slice_labels[rows], slice_fold[rows])
        tables.append(stream(chosen, small_stack, slice_fold))
    np.testing.assert_array_equal(tables[0].cls, tables[1].cls)
    np.testing.assert_allclose(tables[0].values, tables[1].values, rtol=1e-5)


def test_rows_follow_images_then_groups_then_probability(whole, features, small_stack):
    """Consumers find the row of an image and its rank by position."""
    blend, space = stack_blend(small_stack), small_stack.label_space
    assert (np.diff(whole.image) >= 0).all()
    for i in range(300):
        cls = whole.cls[whole.image == i]
        expected = []
        for code, name in enumerate(space.group_names):
            own = [c for c in range(60) if space.group_codes[c] == code]
            expected += sorted(own, key=lambda c: (-blend[i, c], c))[: PER_GROUP[name]]
        assert cls.tolist() == expected


def test_all_candidates_are_the_rows_that_stream(features, whole, small_stack, monkeypatch):
    """Labels and folds are laid beside the features by this list."""
    monkeypatch.setattr("features.blending.CELLS_AT_ONCE", 60 * 77)
    found = features.all_candidates(small_stack)
    np.testing.assert_array_equal(found.classes, whole.cls)
    np.testing.assert_array_equal(found.row_image, whole.image)


def test_new_images_read_what_all_training_images_said(features, small_stack, slice_labels, stream):
    """New images must not be treated as one of the folds."""
    table = stream(features, small_stack[:9])
    positives = slice_labels.toarray().sum(axis=0)
    np.testing.assert_array_equal(table["positives:class"], positives[table.cls])
    same_bits(stream(features, small_stack[:9], np.full(9, -1)), table)
    # A training image read as new finds itself: nothing is nearer.
    assert table["nearest:embedding:lite0"] == pytest.approx(1)


@pytest.mark.parametrize("case", ["zeros", "ones", "mixed", "one image of each"])
def test_certain_probabilities_give_finite_features(
    small_stack, slice_labels, slice_fold, stream, rng, case
):
    """float16 predictions are often exactly 0 or 1: their logits and ratios would be infinite."""
    shape = (300, 60)
    values = {
        "zeros": np.zeros(shape),
        "ones": np.ones(shape),
        "mixed": (rng.random(shape) < 0.5).astype(float),
        "one image of each": np.repeat([[0.0], [1.0]], [299, 1], axis=0) * np.ones((1, 60)),
    }[case]
    stack = Stack(
        {"a": values, "b": 1 - values, "c": values.astype(np.float16)},
        image_ids=small_stack.image_ids,
        classes=small_stack.classes,
        class_parent=small_stack.label_space.parents,
        embeddings={"flat": np.zeros((300, 4))},
        imagenet_logits={"flat": np.zeros((300, 5))},
        image_stats=small_stack.image_stats,
        metadata=small_stack.metadata,
    )
    blocks = tuple(name for name in BLOCKS if name != "combinations")
    both = ("combinations", {"order": 3, "space": "both"})
    chosen = PairFeatures(blocks=(*blocks, both), candidates=20)
    table = stream(chosen.fit(stack, slice_labels, slice_fold), stack, slice_fold)
    bad = ~np.isfinite(table.values).all(axis=0)
    assert [n for n, b in zip(chosen.feature_names_, bad, strict=True) if b] == []


def test_default_blocks_leave_out_what_the_stack_has_no_input_for(
    slice_stack, slice_labels, slice_fold, caplog
):
    """A plain mapping of probabilities must work, and the log must name what is missing."""
    model = slice_stack.models[0]
    alone = Stack({model: slice_stack.probabilities[model]})
    with caplog.at_level(logging.INFO, logger="features"):
        chosen = PairFeatures().fit(alone, slice_labels, slice_fold)
    assert {column.block for column in chosen.columns_} == {
        name
        for name, block in BLOCKS.items()
        if block.default and name not in ("combinations", "image_stats", "hierarchy")
    }
    assert "block image_stats left out: the stack has no image_stats" in caplog.text


def test_default_among_names_stands_for_the_default_blocks(slice_stack):
    """Adding one block to the defaults must not mean listing them all, nor take one twice."""
    chosen = resolve_blocks(("class_id", "default", ("ranks", {"per_model": "both"})), slice_stack)
    defaults = [block.name for block, _ in resolve_blocks("default", slice_stack)]
    named = [block.name for block, _ in chosen]
    others = [name for name in defaults if name != "ranks"]
    assert named == ["class_id", *others, "ranks"]
    assert chosen[-1][1] == {"per_model": "both"}


def test_batches_fit_into_max_memory(features, small_stack):
    """The bound of a batch must follow the setting, down to one image."""
    small = PairFeatures(blocks=tuple(BLOCKS), candidates=PER_GROUP, max_memory="300kB")
    small.__dict__.update(
        {key: value for key, value in features.__dict__.items() if key.endswith("_")}
    )
    n_bytes = [b.features.nbytes for b in small.batches(small_stack[:50])]
    assert len(n_bytes) > 3
    assert max(n_bytes) <= 150_000
    small.max_memory = 1
    assert small.batch_images() == 1


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (("rank",), r"unknown block 'rank'.*ranks"),
        ((), "must name at least one block"),
        (("ranks", "ranks"), "block 'ranks' is named twice"),
        (("image_stats",), "'image_stats' needs image_stats, which this stack does not have"),
        (("metadata",), "'metadata' needs metadata"),
        (("imagenet",), "'imagenet' needs imagenet_logits"),
        ((("ranks", {"top": 3}),), "block 'ranks' has no option 'top'; it has: .'per_model'"),
    ],
)
def test_wrong_blocks_are_refused_by_name(slice_stack, slice_labels, slice_fold, blocks, message):
    """A missing input or a misspelled name must not quietly drop a block."""
    bare = Stack(slice_stack.probabilities)
    with pytest.raises(ValueError, match=message):
        PairFeatures(blocks=blocks).fit(bare, slice_labels, slice_fold)


def broken_fits(stack, labels, fold):
    """Arguments of `fit` that must be refused, and what the error says."""
    return {
        "labels of other images": (
            (stack, labels[:5], fold),
            r"labels must have shape .*\(300, 60\); however: labels.shape=\(5, 60\)",
        ),
        "fold of other images": ((stack, labels, fold[:7]), r"fold must .*fold.shape=\(7,\)"),
        "unassigned fold": (
            (stack, labels, np.where(np.arange(300) == 3, -1, fold)),
            "image '.*' has fold -1",
        ),
        "one fold": ((stack, labels, fold * 0), "at least two folds"),
    }


@pytest.mark.parametrize(
    "case", ["labels of other images", "fold of other images", "unassigned fold", "one fold"]
)
def test_wrong_labels_and_folds_are_refused(slice_stack, slice_labels, slice_fold, case):
    """An image outside every fold would be fitted on itself, or on nothing."""
    given, message = broken_fits(slice_stack, slice_labels, slice_fold)[case]
    with pytest.raises(ValueError, match=message):
        PairFeatures(blocks=("class_prior",)).fit(*given)


def test_another_stack_is_refused(features, small_stack, slice_fold):
    """Models or classes in another order would fill the columns with other numbers."""
    probs = small_stack.probabilities
    turned = Stack(dict(reversed(probs.items())), classes=small_stack.classes)
    with pytest.raises(ValueError, match="must have the models it was fitted on, in order"):
        next(features.batches(turned))
    renamed = Stack(probs, classes=[f"{name}!" for name in small_stack.classes])
    with pytest.raises(ValueError, match="must have the classes it was fitted on, in order"):
        next(features.batches(renamed))
    with pytest.raises(ValueError, match=r"fold must hold 300 numbers below 5.*maximum 5"):
        next(features.batches(small_stack, slice_fold + 1))
    bare = Stack(probs, classes=small_stack.classes)
    with pytest.raises(ValueError, match="block 'image_stats' needs image_stats"):
        next(features.batches(bare))
    other = Stack(
        probs,
        classes=small_stack.classes,
        class_parent=small_stack.label_space.parents,
        embeddings={"lite0": small_stack.embeddings["lite0"]},
        imagenet_logits=small_stack.imagenet_logits,
        image_stats=small_stack.image_stats.to_numpy(),
        metadata=small_stack.metadata.to_numpy(),
    )
    with pytest.raises(ValueError, match=r"must have the spaces .*'embedding:lite1'"):
        next(features.batches(other))


@pytest.mark.parametrize(
    ("size", "n_bytes"), [("4GB", 4_000_000_000), ("1.5 MiB", 1_572_864), ("64k", 64_000), (7, 7)]
)
def test_memory_sizes_are_read(size, n_bytes):
    """A size off by 1,024 would fill the machine."""
    assert parse_bytes(size) == n_bytes


@pytest.mark.parametrize("size", ["", "4 PB", "-1GB", 0, -5, True, "0GB"])
def test_wrong_memory_sizes_are_refused(size):
    """A size that cannot be read must not become another one."""
    with pytest.raises(ValueError, match="max_memory must be bytes or like '4GB'"):
        parse_bytes(size)


def same_bits(table, expected):
    np.testing.assert_array_equal(table.image, expected.image)
    np.testing.assert_array_equal(table.cls, expected.cls)
    for j, name in enumerate(expected.features.feature_names_):
        np.testing.assert_array_equal(table.values[:, j], expected.values[:, j], err_msg=name)
