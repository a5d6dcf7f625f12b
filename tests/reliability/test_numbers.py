"""Numbers at the edges: constant, empty, tiny, huge; nothing turns into NaN on the way."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from features.assemble import PairFeatures
from features.schema import Stack
from features.store import FeatureStore
from stacker import FBetaDecision, PairStacker, expected_fbeta_sets, fbeta_score


@pytest.fixture
def noisy(rng):
    """Labels and two models of 60 images and 4 classes."""
    labels = (rng.random((60, 4)) < 0.3).astype(np.int8)
    probs = [np.clip(0.6 * labels + 0.4 * rng.random((60, 4)), 0, 1) for _ in range(2)]
    return labels, [p.astype(np.float32) for p in probs]


def fit(probs, labels):
    names = [f"m{k}" for k in range(len(probs))]
    model = PairStacker(cv=2, random_state=0, n_jobs=1)
    return model.fit(Stack(dict(zip(names, probs, strict=True))), labels)


EDGES = {
    "constant columns": lambda y, p: (y, [np.full_like(p[0], 0.5), p[1]]),
    "all zero and all one": lambda y, p: (y, [np.round(p[0]), np.zeros_like(p[1])]),
    "a class without labels": lambda y, p: (y * np.array([1, 1, 1, 0], np.int8), p),
    "a class on every image": lambda y, p: (np.maximum(y, np.array([1, 0, 0, 0], np.int8)), p),
    "images without labels": lambda y, p: (y * (np.arange(60) % 3 > 0)[:, None], p),
    "half precision": lambda y, p: (y, [v.astype(np.float16) for v in p]),
    "one class": lambda y, p: (y[:, :1], [v[:, :1] for v in p]),
    "one model": lambda y, p: (y, p[:1]),
}


@pytest.mark.parametrize("edge", EDGES)
def test_a_stack_of_numbers_at_the_edge_predicts_probabilities(edge, noisy):
    """A division or a logarithm of nothing spreads NaN over all predictions."""
    labels, probs = EDGES[edge](*noisy)
    model = fit(probs, labels)
    names = [f"m{k}" for k in range(len(probs))]
    stack = Stack(dict(zip(names, probs, strict=True)))
    proba = model.predict_proba(stack)
    assert np.isfinite(proba).all()
    assert proba.min() >= 0
    assert proba.max() <= 1
    one = model.predict_proba(stack[:1])
    np.testing.assert_array_equal(one, proba[:1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "must be finite|NaN"),
        (np.inf, "infinite|infinity|finite"),
        (3.5, "Apply a sigmoid"),
        (-0.1, r"lie in \[0, 1\]"),
    ],
)
def test_numbers_that_are_no_probabilities_are_refused_by_name(value, message, noisy):
    """One NaN of a million values makes a model of noise."""
    _, probs = noisy
    bad = probs[0].copy()
    bad[7, 2] = value
    with pytest.raises(ValueError, match=message) as found:
        Stack({"good": probs[1], "bad": bad})
    assert "'bad'" in str(found.value)
    assert "'7'" in str(found.value)


def test_values_just_outside_are_shown_as_they_are(noisy):
    """1.00001 was shown as "value 1", with the advice to apply a sigmoid alone."""
    labels, probs = noisy
    bad = probs[0].copy()
    bad[7, 2] = 1.00001
    with pytest.raises(ValueError, match=r"value 1\.0000\d+\. Clip them if this is rounding"):
        Stack({"good": probs[1], "bad": bad})
    with pytest.raises(ValueError, match=r"value 1\.0000\d+ .*Clip them if this is rounding"):
        FBetaDecision().fit(bad, labels)


@pytest.mark.parametrize("value", [2, np.nan, 0.5])
def test_labels_that_are_no_labels_are_named(value, noisy):
    """The message said "found [nan]", of a million images and ten thousand classes."""
    labels, probs = noisy
    wrong = labels.astype(float)
    wrong[7, 2] = value
    stack = Stack({"a": probs[0]}, image_ids=[f"im{i}" for i in range(60)], classes=list("wxyz"))
    for given in (wrong, csr_array(wrong)):
        with pytest.raises(
            ValueError, match=r"only; found .*, first: image '.*7', class 'y'\. Give"
        ):
            PairStacker(cv=2).fit(stack, given)


def test_embeddings_whose_squares_overflow_are_refused(noisy):
    """scipy said "array must not contain infs or NaNs", of whatever array."""
    _, probs = noisy
    values = np.ones((60, 3), np.float32)
    values[5] = 3e38
    match = r"embeddings 'e' must lie within 1e\+15 of 0; image '5' has more"
    with pytest.raises(ValueError, match=match):
        Stack({"a": probs[0]}, embeddings={"e": values})
    Stack({"a": probs[0]}, embeddings={"e": np.full((60, 3), 65_504, np.float16)})


def test_half_precision_does_not_overflow_in_ratios_and_products():
    """float16 ends at 65,504: a ratio by next to nothing is infinite."""
    half = np.array([[6e-8, 1.0], [0.003, 0.0]], np.float16)
    stack = Stack({"a": half[::-1].copy(), "b": half})
    labels, fold = csr_array(np.eye(2, dtype=np.int8)), np.array([0, 1])
    features = PairFeatures(blocks=("combinations",), candidates=None).fit(stack, labels, fold)
    names = features.feature_names_
    a, b = (np.asarray(stack.probabilities[m], np.float64) for m in "ab")
    exact = {
        "sum:a+b": a + b,
        "diff:a-b": a - b,
        "prod:a*b": a * b,
        "ratio:a/b": a / (b + 1e-6),
    }
    assert exact["ratio:a/b"].max() > 65_504
    assert set(names) == set(exact)
    for batch in features.batches(stack):
        assert batch.features.dtype == np.float32
        for name, values in exact.items():
            found = np.empty((2, 2))
            found[batch.row_image, batch.row_class] = batch.features[:, names.index(name)]
            np.testing.assert_allclose(found, values, rtol=1e-6)


def test_no_class_and_one_image_are_refused_with_a_reason(noisy):
    """LightGBM says "num_data > 0" of a table without columns."""
    labels, probs = noisy
    with pytest.raises(ValueError, match="there is no class to predict"):
        fit([p[:, :0] for p in probs], labels[:, :0])
    with pytest.raises(ValueError, match="2 folds need at least as many split groups; there are 1"):
        fit([p[:1] for p in probs], labels[:1])


def test_statistics_without_names_are_refused(tmp_path):
    """An array has no names of images to be matched by."""
    given = {"image_ids": ["i"], "classes": ["a"], "probabilities": {"m": [[0.5]]}}
    with pytest.raises(ValueError, match=r"image_stats must be a DataFrame, .* got ndarray"):
        FeatureStore.from_arrays(tmp_path / "s", image_stats=np.ones((1, 2)), **given)


N_MANY = 1_000_000


def test_a_million_labels_on_one_image_are_decided_and_scored():
    """A label list as long as the vocabulary ends the run, or memory does."""
    labels = csr_array(np.ones((1, N_MANY), np.int8))
    assert fbeta_score(labels, labels) == 1.0
    proba = csr_array(np.full((1, N_MANY), 0.5, np.float32))
    assert FBetaDecision(strategy="global").fit(proba, labels).predict(proba).sum() == N_MANY


@pytest.mark.slow
def test_a_million_labels_on_one_image_are_stored(tmp_path):
    """The same of a store."""
    store = FeatureStore.create(
        tmp_path / "s",
        image_ids=["i"],
        classes=np.char.add("c", np.arange(N_MANY).astype(str)),
        labels=csr_array(np.ones((1, N_MANY), np.int8)),
    )
    assert FeatureStore.open(store.path).labels.nnz == N_MANY


def test_one_image_and_empty_sets_are_decided():
    """A mean of nothing, a threshold of nobody."""
    assert expected_fbeta_sets(np.zeros((1, 3))).sum() == 0
    empty = np.zeros((4, 3), np.int8)
    assert fbeta_score(empty, empty) == 1.0
    rule = FBetaDecision(strategy="global").fit(np.full((4, 3), 0.2), empty)
    assert rule.predict(np.full((1, 3), 0.2)).shape == (1, 3)
