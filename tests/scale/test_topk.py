"""Top-k stacks: what the dense path says, without a matrix of images x classes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array, issparse
from typer.testing import CliRunner

from features import FeatureStore, Stack
from features.numeric import logit
from stacker import FBetaDecision, PairStacker, evaluate
from stacker._proba_scores import _blocks, calibration_curve
from stacker.blend import BLENDS, cross_fit
from stacker.cli import app
from stacker.evaluation import evaluate_sets
from stacker.explain import permutation_importance

ROOT = Path(__file__).parents[2]


def top(values, k):
    """Keep each row's k largest values, as CSR."""
    kept = np.where(values >= np.sort(values, axis=1)[:, [-k]], values, 0)
    return csr_array(kept.astype(np.float32))


@pytest.fixture(scope="module")
def stacks(slice_stack):
    """Make the slice a top-12 stack, and the same numbers as a dense one."""
    kept = {m: top(np.asarray(p, np.float32), 12) for m, p in slice_stack.probabilities.items()}
    common = {"image_ids": slice_stack.image_ids, "classes": slice_stack.classes}
    dense = {m: p.toarray() for m, p in kept.items()}
    return Stack(kept, **common), Stack(dense, **common)


@pytest.mark.parametrize("name", sorted(BLENDS))
def test_blends_of_held_pairs_are_the_dense_ones(name, stacks, slice_labels):
    """A blend of a top-k stack is another one, or stores what no model holds."""
    sparse, dense = (BLENDS[name]().fit(s, slice_labels).predict_proba(s) for s in stacks)
    assert issparse(sparse)
    held = sum(p.toarray() > 0 for p in stacks[0].probabilities.values()) > 0
    np.testing.assert_array_equal(sparse.toarray() > 0, held)
    np.testing.assert_allclose(sparse.toarray()[held], dense[held], rtol=2e-4, atol=1e-6)


def test_the_logistic_blend_counts_the_pairs_that_no_model_holds(stacks, slice_labels):
    """Leaving out unheld pairs biases each class's intercept."""
    sparse, dense = (BLENDS["logistic"]().fit(s, slice_labels) for s in stacks)
    np.testing.assert_allclose(sparse.coef_, dense.coef_, rtol=1e-3, atol=1e-3)


def test_cross_fitted_rows_keep_their_places(stacks, slice_labels, slice_fold):
    """Rows of a fold land at other images."""
    found = cross_fit(BLENDS["logistic"](), stacks[0], slice_labels, slice_fold)
    expected = cross_fit(BLENDS["logistic"](), stacks[1], slice_labels, slice_fold)
    held = found.toarray() > 0
    np.testing.assert_allclose(found.toarray()[held], expected[held], rtol=1e-2, atol=1e-4)


def test_scores_of_sparse_probabilities_are_the_dense_ones(stacks, slice_labels):
    """Pairs that are not stored are left out of a mean."""
    proba = BLENDS["mean"]().fit(stacks[0]).predict_proba(stacks[0])
    sets = FBetaDecision(strategy="global").fit(proba, slice_labels).predict(proba)
    assert issparse(sets)
    sparse = evaluate_sets(slice_labels, sets, proba)
    dense = evaluate_sets(slice_labels.toarray(), sets.toarray(), proba.toarray())
    assert sparse == pytest.approx(dense, abs=1e-6)
    assert calibration_curve(slice_labels, proba)["n_pairs"].sum() == np.prod(proba.shape)


def test_blocks_hold_every_row(stacks, slice_labels):
    """The dense path of the scores skips rows."""
    parts = list(_blocks(slice_labels, stacks[1].probabilities[stacks[1].models[0]], n_rows=77))
    assert sum(len(y) for y, _ in parts) == slice_labels.shape[0]


def test_a_stack_of_top_k_is_fitted_saved_and_predicts_sparsely(stacks, slice_labels, tmp_path):
    """Fitting, saving or predicting makes a dense matrix, or other numbers than before saving."""
    stack, new = stacks[0][:220], stacks[0][220:]
    blocks = ("probabilities", "ranks", "class_prior")
    model = PairStacker("xgboost", blocks=blocks, candidates=8, cv=3, random_state=0, n_jobs=1)
    model.fit(stack, slice_labels[:220])
    proba = model.predict_proba(new)
    assert issparse(proba)
    assert issparse(model.oof_proba_)
    assert issparse(model.predict(new))
    assert len(model.predict_labels(new)) == len(new)
    assert model.oof_score_ > 0.5
    model.save(tmp_path / "model")
    again = PairStacker.load(tmp_path / "model").predict_proba(new)
    np.testing.assert_array_equal(again.toarray(), proba.toarray())


def test_a_top_k_stack_is_evaluated_explained_and_reported(stacks, slice_labels, tmp_path):
    """What comes after `fit` asks for a dense matrix: baselines, importance, the report."""
    for name, rows in (("old", slice(0, 220)), ("new", slice(220, 300))):
        part = stacks[0][rows]
        FeatureStore.from_arrays(
            tmp_path / name,
            image_ids=part.image_ids,
            classes=part.classes,
            probabilities=part.probabilities,
            labels=slice_labels[rows],
        )
    old, new = (FeatureStore.open(tmp_path / name) for name in ("old", "new"))
    blocks = ("probabilities", "logits", "class_prior")
    model = PairStacker(blocks=blocks, candidates=8, cv=3, random_state=0, n_jobs=1).fit(old)
    assert model.shrinkage_ > 0
    scores = evaluate(model, new, trained_on=old, n=20).table.scores
    assert set(scores.index) == {"base", "stack", "best_single", *BLENDS}
    rises = permutation_importance(model, new, n_repeats=1).set_index("block")["log_loss_rise"]
    assert set(rises.index) == set(blocks)
    assert rises.max() > 0
    base, proba = model.base_.predict(new.to_stack())[0].toarray(), model.predict_proba(new)
    image = int(np.argmax(np.abs(proba.toarray() - base).max(axis=1)))
    told = model.explain(new, image, labels=new.classes[base[image] > 0].tolist())
    moved = logit(told["stack"].astype(float)) - logit(told["base"].astype(float))
    np.testing.assert_allclose(told["correction"], moved, atol=2e-4)
    model.save(tmp_path / "model")
    words = ["--store", str(tmp_path / "new"), "--trained-on", str(tmp_path / "old")]
    command = ["report", str(tmp_path / "model"), *words, "--out", str(tmp_path / "r.html")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert 'id="importance"' in (tmp_path / "r.html").read_text()


SCRIPT = """
import resource
import numpy as np
from scipy.sparse import csr_array
from features import Stack
from stacker import PairStacker
from stacker.evaluation import evaluate_sets

n_images, n_classes, k = 6_000, 30_000, 15
rng = np.random.default_rng(0)
true = rng.integers(n_classes, size=n_images)
indptr = np.arange(n_images + 1) * k
def model():
    others = (true[:, None] + 1 + np.arange(k - 1) * 7 + rng.integers(7, size=(n_images, 1)))
    index = np.concatenate([true[:, None], others % n_classes], axis=1)
    value = rng.random(index.shape, dtype=np.float32) * 0.5
    value[:, 0] += 0.3
    matrix = csr_array((value.ravel(), index.ravel(), indptr), shape=(n_images, n_classes))
    matrix.sort_indices()
    return matrix
stack = Stack({"a": model(), "b": model()})
ones = np.ones(n_images, np.int8)
Y = csr_array((ones, true, np.arange(n_images + 1)), shape=(n_images, n_classes))
def fit(stack, Y):
    made = PairStacker("xgboost", blocks=("probabilities", "ranks", "class_prior", "cooccurrence"),
                       candidates=10, cv=3, random_state=0, n_jobs=1, max_memory="150MB",
                       booster_params={"learning_rate": 0.5})
    return made.fit(stack, Y)
small = fit(stack[:400], Y[:400])  # compiles and imports everything
small.predict(stack[:50])
evaluate_sets(Y[:50], small.predict(stack[:50]), small.predict_proba(stack[:50]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
big = fit(stack, Y)
proba = big.predict_proba(stack)
evaluate_sets(Y, big.decision_.predict(proba), proba)
print(before // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_thirty_thousand_classes_stay_within_a_bound_that_one_dense_matrix_bursts():
    """Something makes images x classes dense: 720 MB here, more than the bound."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=ROOT
    )
    before, peak = map(int, done.stdout.split())
    assert peak - before < 500
