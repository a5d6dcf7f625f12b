import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import expit

from stacker import FBetaDecision, fbeta_score
from stacker.decision import budgeted_sets


def value_of(sets, p, beta, empty_score=1.0):
    """Macro F-beta of expected counts of label sets (..., n_images, n_classes)."""
    tp, n_pred, n_true = (sets * p).sum(-2), sets.sum(-2), p.sum(-2)
    below = beta**2 * n_true + n_pred
    score = np.where(below > 0, (1 + beta**2) * tp / np.maximum(below, 1e-300), empty_score)
    return score.mean(-1)


@pytest.mark.parametrize("beta", [0.5, 1, 2])
@pytest.mark.parametrize("most", [1, 2])
def test_budgeted_sets_come_close_to_enumeration(beta, most, rng):
    """Of all sets within the budget of four images the best is found, nearly always."""
    rows = [row for row in itertools.product([0, 1], repeat=3) if sum(row) <= most]
    every = np.array(list(itertools.product(rows, repeat=4)))
    share = []
    for _ in range(40):
        p = rng.random((4, 3)) ** rng.choice([1, 3])
        sets = budgeted_sets(p, most, beta)
        assert sets.sum(axis=1).max() <= most
        share.append(value_of(sets, p, beta) / value_of(every, p, beta).max())
    assert max(share) <= 1 + 1e-12
    assert np.mean(share) > 0.98  # an ascent may end in a local optimum
    assert np.mean(np.array(share) > 1 - 1e-12) > 0.8


def test_no_image_can_be_improved_on_its_own(rng):
    """The ascent ends at a block optimum: every other set of any one image is no better."""
    p = rng.random((30, 5)) ** 3
    sets = budgeted_sets(p, 2)
    best = value_of(sets, p, 2)
    rows = [row for row in itertools.product([0, 1], repeat=5) if sum(row) <= 2]
    for i, row in itertools.product(range(30), rows):
        other = sets.copy()
        other[i] = row
        assert value_of(other, p, 2) <= best + 1e-9


def test_budgeted_sets_beat_the_most_probable_labels_on_a_long_tail():
    """With two labels an image, macro F2 of drawn labels rises well above top-2's."""
    rng = np.random.default_rng(0)
    odds = rng.normal(size=(3000, 40)) * 2 - np.linspace(1, 6, 40)
    Y = rng.random(odds.shape) < expit(odds)
    ours = budgeted_sets(expit(odds), 2)
    capped = FBetaDecision(strategy="class", average="macro", max_labels=2)
    capped = capped.fit(expit(odds), Y).predict(expit(odds))
    top = np.argsort(np.argsort(-odds, axis=1), axis=1) < 2
    score = [fbeta_score(Y, sets, average="macro") for sets in (ours, capped, top)]
    assert score[0] > score[1] + 0.005
    assert score[0] > score[2] + 0.05


def test_sparse_and_dense_budgets_agree(rng):
    """What is not stored is 0 and never predicted."""
    p = np.where(rng.random((40, 8)) < 0.5, rng.random((40, 8)), 0)
    dense, sparse = budgeted_sets(p, 2), budgeted_sets(sp.csc_array(p), 2)
    np.testing.assert_array_equal(sparse.toarray(), dense)
    assert not dense[p == 0].any()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 3)])
def test_nothing_to_predict_gives_empty_sets(shape):
    """No images, no classes and no probability are no errors."""
    assert not budgeted_sets(np.zeros(shape), 2).any()
    assert budgeted_sets(sp.csr_array(shape), 2).nnz == 0


def test_a_budget_of_no_labels_is_kept_and_a_wrong_one_refused(rng):
    """0 is a budget; a negative one or a fraction is an error."""
    assert not budgeted_sets(rng.random((3, 3)), 0).any()
    for most in (-1, 1.5):
        with pytest.raises(ValueError, match="'max_labels'"):
            budgeted_sets(rng.random((3, 3)), most)
