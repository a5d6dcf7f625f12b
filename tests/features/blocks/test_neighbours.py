"""Neighbour votes, against a search that sorts every similarity."""

import numpy as np
import pytest

from features.assemble import PairFeatures
from features.blocks.neighbours import _keep_best, _keep_best_together
from features.schema import Stack

SPACES = ("embedding:lite0", "embedding:lite1", "imagenet:lite0", "image_stats", "blend")


def cosine_matrix(batch, state, space):
    """Similarity of every query to every training image; integer products, then float32."""
    left, right = batch.codes(space).values.astype(int), state[f"{space}/values"].astype(int)
    out = np.empty((len(left), len(right)), dtype=np.float32)
    for q in range(len(left)):
        for r in range(len(right)):
            lengths = [np.float32(np.sqrt(max((v**2).sum(), 1))) for v in (left[q], right[r])]
            out[q, r] = np.float32(left[q] @ right[r]) / lengths[0] / lengths[1]
    return out


def votes(similarity, seen, labels, k, sharpness=15.0):
    """Share of the votes that each class gets from the k most similar images seen."""
    allowed = np.flatnonzero(seen)
    order = allowed[np.argsort(-similarity[allowed], kind="stable")[:k]]
    weight = np.exp(sharpness * (similarity[order] - similarity[order[0]]).astype(np.float64))
    return weight @ labels[order] / weight.sum(), similarity[order[0]]


@pytest.fixture(scope="module")
def similarities(example):
    """Cosine matrices of all spaces, and their mean under the name "all"."""
    state = example.table.features.states_["neighbours"]
    found = {space: cosine_matrix(example.batch, state, space) for space in SPACES}
    total = sum(found[space] for space in SPACES)
    return {**found, "all": (total / np.float32(len(SPACES))).astype(np.float32)}


@pytest.mark.parametrize("space", [*SPACES, "all"])
def test_votes_equal_a_full_sort(example, similarities, space):
    """A neighbour of the own fold, a lost tie or a wrong weight would change the votes."""
    for i, seen in enumerate(example.seen):
        for k in (5, 15, 60):
            shares, nearest = votes(similarities[space][i], seen, example.labels, k)
            got = example.matrix_of[f"neighbours_k{k}:{space}"][i]
            np.testing.assert_allclose(got, shares, rtol=1e-4, atol=1e-6)
        assert (example.matrix_of[f"nearest:{space}"][i] == nearest).all()


def test_k_and_sharpness_are_settings(small_stack, slice_labels, slice_fold, stream):
    """An option that is read but not used would go unseen."""
    options = {"k": (3, 400), "sharpness": 0.0}
    features = PairFeatures(blocks=(("neighbours", options),), candidates=None)
    features.fit(small_stack, slice_labels, slice_fold)
    some = np.arange(0, 300, 30)
    table = stream(features, small_stack[some], slice_fold[some])
    assert {name for name in features.feature_names_ if "lite1" in name} == {
        f"{name}:embedding:lite1" for name in ("neighbours_k3", "neighbours_k400", "nearest")
    }
    # All images outside the fold, each with one vote: the share is the class's frequency.
    for i, image in enumerate(some):
        frequency = slice_labels.toarray()[slice_fold != slice_fold[image]].mean(axis=0)
        got = table.matrix("neighbours_k400:blend")[i]
        np.testing.assert_allclose(got, frequency, rtol=1e-5)


def test_blocks_of_reference_images_do_not_change_the_result(
    small_stack, slice_labels, slice_fold, stream, monkeypatch
):
    """The k best found so far must survive the next block of the search."""
    features = PairFeatures(blocks=("neighbours",), candidates=8)
    features.fit(small_stack, slice_labels, slice_fold)
    whole = stream(features, small_stack, slice_fold)
    monkeypatch.setattr("features.blocks.neighbours.REFERENCE_BLOCK", 37)
    np.testing.assert_array_equal(stream(features, small_stack, slice_fold).values, whole.values)


@pytest.mark.parametrize("k", [(), (0, 5), (5, 5), (15, 5)])
def test_k_must_rise(small_stack, slice_labels, slice_fold, k):
    """The kernel walks over k in order: another order would write the wrong columns."""
    features = PairFeatures(blocks=(("neighbours", {"k": k}),), candidates=1)
    small_stack = Stack(small_stack.probabilities)
    with pytest.raises(
        ValueError, match=r"k must be rising numbers of neighbours, 1 or more\. Got"
    ):
        features.fit(small_stack, slice_labels, slice_fold)


@pytest.mark.parametrize("keep", [_keep_best, _keep_best_together])
def test_of_equally_similar_images_the_first_stay(keep):
    """A tie for the last place goes to the image seen last, so that batches disagree."""
    similarity = np.array([[0.5, 0.9, 0.5, 0.5, 0.9, 0.5]], dtype=np.float32)
    ids, best = np.full((1, 3), -1), np.full((1, 3), -1, dtype=np.float32)
    image, fold = np.arange(6), np.array([7, 0, 0, 0, 0, 0])
    keep(similarity, np.array([0]), image, np.array([7]), fold, ids, best)
    assert ids.tolist() == [[1, 4, 2]]  # image 0 is of the query's own fold
