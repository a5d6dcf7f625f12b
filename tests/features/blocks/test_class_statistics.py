"""What training says about a class, against plain means over the images a row may see."""

import math

import numpy as np
import pytest
from scipy.sparse import csr_array

from features.assemble import PairFeatures
from features.blocks.class_statistics import SHRINKAGE
from features.schema import Stack


def shrunk(total, count, all_total, all_count):
    """Mean pulled to the mean over all classes."""
    overall = all_total / max(all_count, 1)
    return (total + SHRINKAGE * overall) / (count + SHRINKAGE)


def test_prior_columns_equal_plain_counts(example):
    """Frequencies that count the row's own fold would tell the booster its labels."""
    for i, seen in enumerate(example.seen):
        labels = example.labels[seen]
        p = example.train_blend[seen].astype(np.float64)
        positives, negatives = labels.sum(axis=0), (1 - labels).sum(axis=0)
        on, off = (p * labels).sum(axis=0), (p * (1 - labels)).sum(axis=0)
        for c in range(60):
            expected = {
                "prior_logit:class": math.log((positives[c] + 1) / (negatives[c] + 1)),
                "positives:class": positives[c],
                "p_positive:class": shrunk(on[c], positives[c], on.sum(), positives.sum()),
                "p_negative:class": shrunk(off[c], negatives[c], off.sum(), negatives.sum()),
                "group:class": ["category", "creator", "tag"].index(example.query.class_group[c]),
            }
            got = {name: example.matrix_of[name][i, c] for name in expected}
            assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_class_id_is_the_position_of_the_class(example):
    """As a categorical it must name the same class in every batch."""
    expected = np.broadcast_to(np.arange(60), (24, 60))
    np.testing.assert_array_equal(example.matrix_of["class_id"], expected)


def codes_of(example, space):
    """Return unit vectors of the training images and of the queries in one space, float64."""
    state = example.table.features.states_["neighbours"]
    batch = example.batch
    train = state[f"{space}/values"].astype(np.float64)
    query = batch.codes(space).values.astype(np.float64)
    return unit(train), unit(query)


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize("space", ["embedding:lite0", "embedding:lite1", "imagenet:lite0", "blend"])
def test_similarity_is_the_cosine_to_the_mean_positive(example, space):
    """A centroid of other classes, or with the row's own fold in it, would go unseen."""
    train, query = codes_of(example, space)
    got = example.matrix_of[f"centroid:{space}"]
    for i, seen in enumerate(example.seen):
        for c in range(60):
            positives = train[seen & (example.labels[:, c] == 1)]
            centre = positives.sum(axis=0) if len(positives) else np.zeros(train.shape[1])
            expected = query[i] @ centre / max(np.linalg.norm(centre), 1e-12)
            # The centroid is rounded to int8: up to half a step of its largest entry.
            assert got[i, c] == pytest.approx(expected, abs=0.01)


def test_a_first_fold_without_any_label_is_counted_as_one(stream):
    """Sums over no labels came as integers, and those of the other folds could not be added."""
    stack = Stack({"m": np.array([[0.25, 0.5], [0.75, 0.5], [0.5, 0.5]], dtype=np.float32)})
    labels = csr_array(np.array([[0, 0], [1, 0], [0, 1]], dtype=np.int8))
    features = PairFeatures(("class_prior",), None).fit(stack, labels, np.arange(3))
    table = stream(features, stack, np.arange(3))
    assert table["positives:class"].tolist() == [1, 1, 0, 1, 1, 0]
    # The more probable class comes first: its positive has 0.5, the other's 0.75.
    assert table["p_positive:class"][:2] == pytest.approx([0.625 - 0.125 / 6, 0.625 + 0.125 / 6])
