"""Co-occurrence features, against dense counts and plain loops."""

import math

import numpy as np
import pytest
from scipy.sparse import csr_array

from features.assemble import PairFeatures
from features.schema import Stack

COLUMNS = ("support:blend", "log_lift:blend", "supporter:blend", "contradictor:blend")


def reference(q, labels):
    """Four columns of one image, (n_classes, 4); labels (n_seen, n_classes) 0/1."""
    together, count, n = labels.T @ labels, labels.sum(axis=0), len(labels)
    prior = (count + 0.5) / (n + 1)
    out = []
    for c in range(len(q)):
        others = [d for d in range(len(q)) if q[d] >= 0.02 and d != c]
        given = [(together[c, d] + prior[c]) / (count[d] + 1) for d in others]
        lift = [math.log(p / prior[c]) for p in given]
        mass = [float(q[d]) for d in others]
        support = sum(m * p for m, p in zip(mass, given, strict=True))
        pulls = [m * v for m, v in zip(mass, lift, strict=True)]
        out.append(
            [
                support / sum(mass) if mass else prior[c],
                sum(pulls),
                max((m * p for m, p in zip(mass, given, strict=True)), default=0),
                min([0, *pulls]),
            ]
        )
    return np.array(out)


def test_columns_equal_loops_over_dense_counts(example):
    """A pair of classes counted twice, in the own fold, or left out would go unseen."""
    for i, (q, seen) in enumerate(zip(example.blend, example.seen, strict=True)):
        expected = reference(q, example.labels[seen])
        for j, name in enumerate(COLUMNS):
            got = example.matrix_of[name][i]
            np.testing.assert_allclose(got, expected[:, j], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_classes_that_no_training_image_has_stay_finite(p, stream):
    """Log lift of a class without positives would be infinite, or count the class itself."""
    stack = Stack({"a": np.full((6, 4), p), "b": np.full((6, 4), p)})
    labels = np.zeros((6, 4), dtype=np.int8)
    labels[[0, 3], 0] = labels[[0, 4], 1] = 1
    fold = np.arange(6) % 3
    features = PairFeatures(blocks=("cooccurrence",), candidates=None)
    table = stream(features.fit(stack, csr_array(labels), fold), stack, fold)
    q = stream(PairFeatures(blocks=("logits",), candidates=None).fit(
        stack, csr_array(labels), fold), stack)  # fmt: skip
    q = 1 / (1 + np.exp(-q.matrix("logit:blend").astype(np.float64)))
    for i in range(6):
        expected = reference(q[i], labels[fold != fold[i]].astype(int))
        got = np.stack([table.matrix(name)[i] for name in COLUMNS], axis=1)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
