import functools
import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import binom
from sklearn.metrics import fbeta_score as sklearn_fbeta

from stacker import expected_fbeta_sets, fbeta_score
from stacker._fbeta_kernels import best_sets
from stacker._inputs import as_rows
from stacker.fbeta import fbeta_per_image, joint_fbeta_sets, unit_counts


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@functools.cache
def all_sets(n):
    return np.array(list(itertools.product([0, 1], repeat=n)))


def expected_by_enumeration(p, beta, empty_score):
    """Expected F-beta of every label set over every outcome, in the order of `all_sets`."""
    sets = all_sets(len(p))
    return score_table(len(p), beta, empty_score) @ np.prod(np.where(sets, p, 1 - p), axis=1)


@functools.cache
def score_table(n, beta, empty_score):
    """F-beta of every predicted set (rows) under every outcome (columns)."""
    sizes, hits = all_sets(n).sum(axis=1), all_sets(n) @ all_sets(n).T
    below = beta**2 * sizes[None, :] + sizes[:, None]
    return np.where(below > 0, (1 + beta**2) * hits / np.maximum(below, 1e-300), empty_score)


def value_of(p, chosen, beta, empty_score):
    values = expected_by_enumeration(p, beta, empty_score)
    return values[(all_sets(len(p)) == chosen).all(axis=1)][0]


def hard_probabilities(rng, n):
    p = rng.random(n) ** rng.choice([0.2, 1.0, 4.0, 12.0])
    special = rng.random(n) < 0.15
    return np.where(special, rng.choice([0.0, 0.5, 1.0, 1e-12, 1 - 1e-12], n), p)


# ------------------------------------------------------------------------------------ metric


@pytest.mark.parametrize("average", ["samples", "macro", "micro"])
@pytest.mark.parametrize("empty_score", [0.0, 1.0, np.nan])
def test_fbeta_score_equals_scikit_learn(average, empty_score, rng):
    """Dense and sparse scores agree with the reference, empty units included."""
    for _ in range(20):
        shape = rng.integers(1, 12), rng.integers(2, 8)
        Y, pred = ((rng.random(shape) < 0.25).astype(int) for _ in range(2))
        wanted = sklearn_fbeta(Y, pred, beta=2, average=average, zero_division=empty_score)
        options = {"beta": 2, "average": average, "empty_score": empty_score}
        assert fbeta_score(Y, pred, **options) == pytest.approx(wanted, nan_ok=True)
        sparse = fbeta_score(sp.csc_matrix(Y), sp.coo_array(pred), **options)
        assert sparse == pytest.approx(wanted, nan_ok=True)


def test_per_image_scores_average_to_the_score(rng):
    """The per-image scores that bootstraps use are those of the metric."""
    Y, pred = rng.random((30, 6)) < 0.3, rng.random((30, 6)) < 0.3
    assert fbeta_per_image(Y, pred, beta=0.5).mean() == pytest.approx(fbeta_score(Y, pred, 0.5))


def test_stored_zeros_of_a_sparse_matrix_are_not_labels():
    """An explicit zero must not count as a label."""
    pred = sp.csr_array((np.array([1, 0]), np.array([0, 1]), np.array([0, 2])), shape=(1, 2))
    assert fbeta_score([[1, 0]], pred) == 1.0
    assert pred.nnz == 2


@pytest.mark.parametrize("average", ["samples", "macro", "micro"])
@pytest.mark.parametrize("shape", [(3000, 40), (70, 40_000), (1, 5), (5, 1)])
def test_large_sparse_sets_score_as_counted(average, shape, rng):
    """Batches, threads and reused marks count what plain matrix products count."""
    density = 60 / shape[1] if shape[1] > 60 else 0.5
    Y, pred = (
        sp.random_array(shape, density=min(density, 0.5), random_state=rng, format="csr")
        for _ in range(2)
    )
    Y.data[:], pred.data[:] = 1, 1
    axis = {"samples": 1, "macro": 0, "micro": None}[average]
    tp, n_true, n_pred = (np.atleast_1d(m.sum(axis=axis)) for m in (Y * pred, Y, pred))
    below = 4 * n_true + n_pred
    wanted = np.where(below > 0, 5 * tp / np.maximum(below, 1), 1.0).mean()
    assert fbeta_score(Y, pred, average=average) == pytest.approx(wanted)
    assert fbeta_score(Y.tocsc(), pred.astype(bool), average=average) == pytest.approx(wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.5, -1])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_labels_are_zero_or_one(bad, container):
    """NaN, infinities and fractions never pass as labels, stored or not."""
    with pytest.raises(ValueError, match="0 and 1 only"):
        fbeta_score(container([[1.0, bad]]), [[1, 0]])


def test_labels_stored_twice_are_refused():
    """Two entries of one label would count twice."""
    twice = sp.csr_array((np.ones(2), np.array([0, 0]), np.array([0, 2])), shape=(1, 2))
    with pytest.raises(ValueError, match="stored twice"):
        fbeta_score(twice, [[1, 0]])


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float16, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_label_containers_do_not_matter(dtype, order, rng):
    """Any number type and memory order of the same labels score the same, read-only too."""
    Y, pred = rng.random((20, 6)) < 0.4, rng.random((20, 6)) < 0.4
    other = np.array(Y, dtype=dtype, order=order)
    other.flags.writeable = False
    assert fbeta_score(other, pred) == fbeta_score(Y, pred)
    frozen = sp.csr_array(other.astype(np.int8))
    frozen.indices.flags.writeable = frozen.indptr.flags.writeable = False
    assert fbeta_score(frozen, sp.csr_array(pred)) == fbeta_score(Y, pred)


@pytest.mark.parametrize(
    ("Y", "pred", "options", "message"),
    [
        ([[1, 2]], [[1, 0]], {}, "0 and 1 only"),
        ([[1, 0]], [[1, 0, 0]], {}, "same shape"),
        ([1, 0], [1, 0], {}, "two-dimensional"),
        ([[1, 0]], [[1, 0]], {"beta": 0}, "'beta'"),
        ([[1, 0]], [[1, 0]], {"beta": np.nan}, "'beta'"),
        ([[1, 0]], [[1, 0]], {"average": "weighted"}, "'average'"),
        ([[1, 0]], [[1, 0]], {"empty_score": 2}, "'empty_score'"),
        (np.zeros((0, 3)), np.zeros((0, 3)), {}, "at least one image"),
    ],
)
def test_fbeta_score_refuses_what_it_cannot_score(Y, pred, options, message):
    """A wrong input is an error that says why, not a number."""
    with pytest.raises(ValueError, match=message):
        fbeta_score(Y, pred, **options)


# ---------------------------------------------------------------------------- expected F-beta


@pytest.mark.parametrize("beta", [0.5, 1, 2, 3])
@pytest.mark.parametrize("empty_score", [0, 1])
def test_expected_sets_equal_enumeration(beta, empty_score):
    """The fast maximiser agrees with a search of all 2^n sets over all 2^n outcomes."""
    rng = np.random.default_rng([int(10 * beta), empty_score])
    for case in range(125):
        p = hard_probabilities(rng, 1 + case % 10)
        chosen, score = expected_fbeta_sets(p[None], beta, empty_score, return_scores=True)
        values = expected_by_enumeration(p, beta, empty_score)
        mine = values[int("".join(map(str, chosen[0])), 2)]
        assert mine == pytest.approx(values.max(), abs=1e-12)
        assert score[0] == pytest.approx(values.max(), abs=1e-12)


@pytest.mark.parametrize("max_labels", [0, 1, 2, 4])
def test_expected_sets_respect_the_largest_size(max_labels, rng):
    """With a cap the best set of at most that size is found."""
    for _ in range(40):
        p = hard_probabilities(rng, 6)
        values = expected_by_enumeration(p, 2, 1)
        best = values[all_sets(6).sum(axis=1) <= max_labels].max()
        chosen = expected_fbeta_sets(p[None], max_labels=max_labels)[0]
        assert chosen.sum() <= max_labels
        assert value_of(p, chosen, 2, 1) == pytest.approx(best, abs=1e-12)


def test_expected_sets_respect_bounds_per_group(rng):
    """Greedy choice under group bounds is the constrained optimum."""
    codes = np.array([0, 0, 0, 1, 1, 1], np.int32)
    low, high = np.array([1, 0]), np.array([2, 1])
    sets = all_sets(6)
    counts = np.stack([sets[:, codes == g].sum(axis=1) for g in range(2)], axis=1)
    allowed = ((counts >= low) & (counts <= high)).all(axis=1)
    for _ in range(40):
        p = hard_probabilities(rng, 6)
        best = expected_by_enumeration(p, 2, 1)[allowed].max()
        limits = {"class_group": codes, "group_min": low, "group_max": high}
        chosen, score = best_sets(as_rows(p[None]), 2.0, 1.0, max_labels=6, **limits)
        assert value_of(p, chosen, 2, 1) == pytest.approx(best, abs=1e-12)
        assert score[0] == pytest.approx(best, abs=1e-12)


def slow_sets(p, beta, empty_score):
    """Untruncated reference: convolution of all other labels, every size, plain numpy."""
    order = np.argsort(-p, kind="stable")
    best, size = empty_score * np.prod(1 - p), 0
    counts = np.array([1.0])
    for x in p:
        counts = np.convolve(counts, [1 - x, x])
    spread = np.arange(len(p) + 1)
    joint = np.zeros(len(p) + 1)
    for k, j in enumerate(order, start=1):
        others = np.array([1.0])
        for x in np.delete(p, j):
            others = np.convolve(others, [1 - x, x])
        joint[1:] += p[j] * others
        value = (1 + beta**2) * (joint[1:] / (beta**2 * spread[1:] + k)).sum()
        if value > best:
            best, size = value, k
    return best, size


@pytest.mark.parametrize("shift", [-7.0, -6.0, -4.0, -1.0])
def test_truncated_equals_untruncated_on_wide_images(shift, rng):
    """Classes below the candidates count exactly; dropping their mass would change the sets."""
    for _ in range(2):
        p = 1 / (1 + np.exp(-(rng.normal(size=120) * 2 + shift)))
        sets, score = expected_fbeta_sets(p[None], return_scores=True)
        best, size = slow_sets(p, 2.0, 1.0)
        assert score[0] == pytest.approx(best, abs=1e-12)
        assert sets.sum() == size


@pytest.mark.slow
def test_truncated_equals_untruncated_on_two_thousand_images(rng):
    """On 2,000 images x 3,474 classes the candidates' floor changes no set."""
    prevalence = 3.2 / 3474
    noise = rng.normal(size=(2000, 3474)) * 2
    p = 1 / (1 + np.exp(-(noise + np.log(prevalence) - 2.0)))
    fast, fast_score = expected_fbeta_sets(p, return_scores=True)
    # Bounds that do not bind switch the floor off: every class is a candidate.
    limits = {
        "class_group": np.zeros(3474, np.int32),
        "group_min": np.array([1]),
        "group_max": np.array([3474]),
    }
    full, full_score = best_sets(as_rows(p), 2.0, 0.0, max_labels=3474, **limits)
    some = fast.sum(axis=1) > 0
    np.testing.assert_array_equal(fast[some], full.reshape(p.shape)[some])
    np.testing.assert_allclose(fast_score[some], full_score[some], atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1e-300, 1e-9, 0.25, 0.5, 0.75, 1 - 1e-9, 1.0])
def test_equal_probabilities_are_stable(value):
    """Dividing labels out loses no precision near 0, 1/2 and 1, with many labels."""
    p = np.full((1, 200), value)
    sets, score = expected_fbeta_sets(p, return_scores=True)
    size = int(sets.sum())
    spread = np.arange(200)
    others = binom.pmf(spread, 199, value)
    values = [5 * k * value * (others / (4 * (spread + 1) + k)).sum() for k in range(1, 201)]
    wanted = max([binom.pmf(0, 200, value), *values])
    assert score[0] == pytest.approx(wanted, abs=1e-11)
    assert size == 0 or values[size - 1] == pytest.approx(wanted, abs=1e-11)


def test_many_likely_labels_fall_back_to_all_candidates(rng):
    """A thousand likely labels underflow a naive count; the set and its score stay right."""
    p = rng.uniform(0.3, 0.7, (2, 3000))
    sets, score = expected_fbeta_sets(p, return_scores=True)
    assert np.isfinite(score).all()
    # With the count nearly fixed at its mean m, the best set is every p above F / (1 + beta^2).
    assert sets.sum(axis=1).tolist() == [3000, 3000]


@pytest.mark.parametrize("beta", [0.5, 1, 2])
@pytest.mark.parametrize("empty_score", [0, 1])
def test_joint_sets_equal_enumeration(beta, empty_score, rng):
    """For any joint distribution of dependent labels the best of all sets is found."""
    sets = all_sets(5)
    for draw in range(20):
        chance = rng.dirichlet(np.full(32, 0.2))
        if draw % 2:  # often nothing is there, and the empty set the best
            chance = 0.4 * chance + 0.6 * (np.arange(32) == 0)
        joint = np.zeros((1, 5, 5))
        for outcome, p in zip(sets[1:], chance[1:], strict=True):
            joint[0, outcome == 1, outcome.sum() - 1] += p
        values = score_table(5, beta, empty_score) @ chance
        chosen, score = joint_fbeta_sets(joint, chance[:1], beta, empty_score)
        assert values[int("".join(map(str, chosen[0])), 2)] == pytest.approx(
            values.max(), abs=1e-12
        )
        assert score[0] == pytest.approx(values.max(), abs=1e-12)


@pytest.mark.parametrize("average", ["samples", "macro", "micro"])
def test_counts_of_units_give_the_score(average, rng):
    """What rules are chosen by is what they are scored by."""
    Y, pred = (sp.csr_array((rng.random((30, 6)) < 0.3).astype(np.int8)) for _ in range(2))
    units = unit_counts(Y, pred, average)
    assert len(units.n_true) == {"samples": 30, "macro": 6, "micro": 1}[average]
    found = units.fbeta(beta=2.0, empty_score=1.0).mean()
    assert found == pytest.approx(fbeta_score(Y, pred, average=average), abs=1e-12)


def test_joint_sets_check_their_input():
    """Shapes that do not fit and numbers that are no probabilities are refused."""
    with pytest.raises(ValueError, match="joint must have shape"):
        joint_fbeta_sets(np.zeros((2, 3)), [0.1, 0.2])
    with pytest.raises(ValueError, match="empty_proba must lie"):
        joint_fbeta_sets(np.zeros((1, 3, 3)), [np.nan])


def test_sparse_and_dense_sets_agree(rng):
    """What a sparse matrix does not store is zero, in any order of storage."""
    p = np.where(rng.random((50, 40)) < 0.2, rng.random((50, 40)), 0)
    dense = expected_fbeta_sets(p)
    sparse = expected_fbeta_sets(sp.csc_array(p))
    assert sp.issparse(sparse)
    assert sparse.dtype == np.int8
    np.testing.assert_array_equal(sparse.toarray(), dense)


@pytest.mark.parametrize(
    "convert",
    [
        lambda p: p.astype(np.float16),
        np.asfortranarray,
        lambda p: p.astype(np.float32),
        lambda p: p[:, ::-1][:, ::-1],
        lambda p: p.tolist(),
    ],
    ids=["float16", "fortran", "float32", "strided", "list"],
)
def test_layout_and_precision_do_not_matter(convert, rng):
    """Every layout gives the sets of the same numbers in C order."""
    p = rng.random((20, 9)).astype(np.float16).astype(np.float64)
    np.testing.assert_array_equal(expected_fbeta_sets(convert(p)), expected_fbeta_sets(p))


def test_input_is_never_written_to(rng):
    """Read-only input works and stays as it was."""
    p = rng.random((5, 7))
    p.flags.writeable = False
    before = p.copy()
    expected_fbeta_sets(p)
    np.testing.assert_array_equal(p, before)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_zero_size_input_gives_zero_size_sets(shape):
    """No images or no classes is no error for a function without a fit."""
    assert expected_fbeta_sets(np.zeros(shape)).shape == shape


def test_rows_of_zeros_get_no_label():
    """An image without any probability gets the empty set and its score."""
    sets, score = expected_fbeta_sets(np.zeros((2, 4)), empty_score=0.7, return_scores=True)
    assert not sets.any()
    assert score.tolist() == [0.7, 0.7]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_values_outside_the_unit_interval_are_refused(bad, container):
    """NaN, infinities and logits never pass as probabilities."""
    p = np.array([[0.2, 0.1], [0.3, bad]])
    with pytest.raises(ValueError, match=r"image 1, class 1"):
        expected_fbeta_sets(container(p))


def test_order_of_images_does_not_matter(rng):
    """Shuffled images give equally shuffled sets."""
    p = rng.random((300, 8))
    order = rng.permutation(300)
    np.testing.assert_array_equal(expected_fbeta_sets(p[order]), expected_fbeta_sets(p)[order])
