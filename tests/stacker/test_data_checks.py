"""Data checks of the report: images seen twice, and what they do to the gain."""

from types import SimpleNamespace

import numpy as np
from scipy.sparse import csr_array

from features.schema import Stack
from stacker._data_checks import HELD_OUT, check_data, near_duplicates
from stacker._report_held_out import gain_without


def make_vectors(rng, n=60, width=24):
    """Vectors whose copies are: 5 -> 40 (other fold), 7 -> 12 (same fold), 3 -> 59."""
    values = rng.normal(size=(n, width)).astype(np.float32)
    for source, copy in ((5, 40), (7, 12), (3, 59)):
        values[copy] = values[source] + 0.001 * rng.normal(size=width)
    return values


def test_only_pairs_in_different_places_are_found(rng):
    """Copies inside one fold do no harm; those across folds flatter every score."""
    place = np.arange(60) % 5
    pairs = near_duplicates(make_vectors(rng), place)
    assert {(a, b) for a, b in pairs[["first", "second"]].to_numpy()} == {(3, 59)}
    place[40] = 3
    pairs = near_duplicates(make_vectors(np.random.default_rng(0)), place)
    assert {(a, b) for a, b in pairs[["first", "second"]].to_numpy()} == {(3, 59), (5, 40)}
    assert (pairs["similarity"] > 0.99).all()


def test_pairs_equal_a_comparison_of_all_with_all(rng):
    """The search by blocks leaves pairs out, or finds some twice."""
    values = rng.normal(size=(300, 4))
    place = rng.integers(0, 3, 300)
    centred = values - values.mean(axis=0)
    spread, axes = np.linalg.eigh(centred.T @ centred / 300)
    projected = centred @ axes * spread**-0.25
    unit = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    cosine = np.triu(unit @ unit.T, 1)
    expected = set(zip(*np.nonzero((cosine > 0.97) & (place[:, None] != place)), strict=True))
    pairs = near_duplicates(values, place, alike=0.97)
    found = set(map(tuple, pairs[["first", "second"]].to_numpy()))
    assert len(found) == len(pairs)
    # Rounding to int8 may move a pair over the edge, no further.
    assert len(expected) > 50
    assert all(abs(cosine[pair] - 0.97) < 0.005 for pair in found ^ expected)


def test_beyond_the_exact_search_copies_are_still_found(rng, monkeypatch):
    """The cells lose images that are equal."""
    monkeypatch.setattr("stacker._data_checks.EXACT_UP_TO", 10)
    place = np.arange(60) % 5
    place[40] = 3
    pairs = near_duplicates(make_vectors(rng), place)
    assert {(a, b) for a, b in pairs[["first", "second"]].to_numpy()} == {(3, 59), (5, 40)}


def make_checked(rng):
    """A model, its training stack, and a held-out stack whose image "new9" is "t3"."""
    values = make_vectors(rng)
    probs = rng.random((60, 2))
    names = [f"t{i}" for i in range(50)], [f"new{i}" for i in range(10)]
    train, new = (
        Stack({"m": probs[part]}, image_ids=ids, embeddings={"e": values[part]})
        for part, ids in zip((slice(50), slice(50, 60)), names, strict=True)
    )
    model = SimpleNamespace(
        oof_proba_=np.tile([[0.99, 0.01]], (50, 1)),
        folds_=np.arange(50) % 2,
        classes_=np.array(["a", "b"]),
    )
    labels = np.tile([[1, 0]], (50, 1))
    labels[4] = [0, 1]
    return model, train, csr_array(labels), new


def test_held_out_images_with_a_copy_in_training_are_named(rng):
    """A held-out image that was trained on in disguise would go unseen."""
    checks = check_data(*make_checked(rng))
    held = checks.pairs[checks.pairs["second_place"] == HELD_OUT]
    assert held[["first", "second"]].to_numpy().tolist() == [["t3", "new9"]]
    assert checks.copied.tolist() == [False] * 9 + [True]
    assert checks.issues["image_id"].iloc[0] == "t4"


def test_without_embeddings_only_labels_are_checked(rng):
    """A store of probabilities alone ends in an error."""
    model, train, labels, _ = make_checked(rng)
    bare = Stack(train.probabilities, image_ids=train.image_ids)
    checks = check_data(model, bare, labels)
    assert checks.pairs is None
    assert len(checks.issues)


def test_the_gain_without_some_images_is_that_of_the_others():
    """Copied images left in would flatter the figure that is said to be without them."""
    labels = np.array([[1, 0], [1, 0], [0, 1], [1, 1]])
    good, bad = labels, 1 - labels
    mixed = np.array([[1, 0], [1, 0], [1, 0], [0, 0]])  # right on the first two only
    methods = {
        name: SimpleNamespace(sets={"samples": sets})
        for name, sets in (("stack", good), ("mean", mixed), ("other", bad))
    }
    table = SimpleNamespace(
        best_blend={"f2_samples": "mean"}, scores=SimpleNamespace(columns=["f2_samples"])
    )
    held_out = SimpleNamespace(
        labels=csr_array(labels), methods=methods, table=table, groups=np.arange(4)
    )
    assert gain_without(held_out, np.array([0, 0, 1, 1], dtype=bool), 2.0).difference == 0
    assert gain_without(held_out, np.array([1, 1, 0, 0], dtype=bool), 2.0).difference == 1
    assert gain_without(held_out, np.ones(4, dtype=bool), 2.0) is None
