"""Predictions that are not out of fold, and groups on both sides of a fold, do not go unnoticed."""

import itertools
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.model_selection import KFold
from typer.testing import CliRunner

from features.cli import app as features_app
from features.schema import Stack
from features.store import FeatureStore
from stacker import FBetaDecision, PairStacker, fbeta_score
from stacker.calibration import ProbabilityCalibrator
from stacker.cli import app as stacker_app
from stacker.leakage import suspect_in_sample


@pytest.fixture
def honest(slice_stack):
    """Two honest models."""
    names = slice_stack.models[:2]
    return {name: np.asarray(slice_stack.probabilities[name], np.float32) for name in names}


def memory(labels, rng, strength):
    """Predictions of a model that has seen the labels: it is surer of them than of others."""
    noise = rng.normal(size=labels.shape)
    return (1 / (1 + np.exp(3 - strength * labels.toarray() - noise))).astype(np.float32)


def test_honest_models_are_not_suspect(slice_stack, slice_labels, slice_fold):
    """A warning that comes always is read never."""
    assert suspect_in_sample(slice_stack, slice_labels, slice_fold) == []


def test_a_model_that_has_seen_its_images_is_named(
    honest, slice_stack, slice_labels, slice_fold, rng, caplog
):
    """Every score of the stack is a lie, and nobody is told."""
    stack = Stack(
        {**honest, "seen": memory(slice_labels, rng, 7.0)},
        image_ids=slice_stack.image_ids,
        classes=slice_stack.classes,
    )
    (found,) = suspect_in_sample(stack, slice_labels, slice_fold)
    assert (found.model, found.check) == ("seen", "against the others")
    with caplog.at_level(logging.WARNING, logger="stacker.estimator"):
        PairStacker(cv=3, random_state=0, n_jobs=1, blocks=("probabilities",)).fit(
            stack, slice_labels
        )
    assert "model 'seen' looks as if it was trained on the images it predicts" in caplog.text
    assert "Give out-of-fold predictions" in caplog.text


def test_classes_that_no_honest_model_can_know_tell_alone(rng):
    """One model by itself: its classes with all positives in one fold are ranked at random."""
    n_images, n_classes = 400, 30
    fold = np.arange(n_images) % 4
    labels = np.zeros((n_images, n_classes), np.int8)
    for c in range(n_classes):
        labels[rng.choice(np.flatnonzero(fold == c % 4), 3, replace=False), c] = 1
    labels = csr_array(labels)
    blind = rng.random((n_images, n_classes)).astype(np.float32)
    assert suspect_in_sample(Stack({"m": blind}), labels, fold) == []
    (found,) = suspect_in_sample(Stack({"m": memory(labels, rng, 6.0)}), labels, fold)
    assert (found.check, found.n) == ("unseen classes", n_classes)
    assert found.value > 0.95


def test_a_group_on_both_sides_of_a_fold_is_refused(honest, slice_stack, slice_labels, tmp_path):
    """Near-duplicates on both sides: the held-out score is that of training images."""
    n_images = len(slice_stack)
    store = FeatureStore.from_arrays(
        tmp_path / "s",
        image_ids=slice_stack.image_ids,
        classes=slice_stack.classes,
        probabilities=honest,
        labels=slice_labels,
        fold=np.arange(n_images) % 3,
        split_group=[f"g{k // 2}" for k in range(n_images)],
    )
    with pytest.raises(ValueError, match=r"group.*'g0'"):
        PairStacker(cv="store").fit(store)


def noise_store(path, seed, **given):
    """Make a store whose predictions know nothing of the labels."""
    rng, n_images = np.random.default_rng(seed), 120
    labels = (rng.random((n_images, 4)) < 0.3).astype(np.int8)
    FeatureStore.from_arrays(
        path,
        image_ids=[f"{path.name}{k}" for k in range(n_images)],
        classes=list("abcd"),
        probabilities={m: rng.random((n_images, 4)).astype(np.float32) for m in "mn"},
        labels=labels,
        fold=np.arange(n_images) % 2,
        **given,
    )
    return labels


@pytest.mark.parametrize(
    ("app", "command"),
    [
        (stacker_app, ["compare", "store", "--quiet"]),
        (stacker_app, ["fit", "store", "--out", "out", "--quiet"]),
        (stacker_app, ["tune", "store", "--out", "out", "--trials", "1", "--quiet"]),
        (features_app, ["store", "--out", "out", "--quiet"]),
    ],
    ids=["stacker compare", "stacker fit", "stacker tune", "build-features"],
)
def test_every_command_refuses_folds_that_part_a_group(app, command, tmp_path, monkeypatch):
    """One command takes the folds as they are, and its scores are those of training images."""
    monkeypatch.chdir(tmp_path)
    noise_store(tmp_path / "store", 0, split_group=[f"g{k // 2}" for k in range(120)])
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2, done.output
    assert "a split group must lie in one fold; 60 groups do not: 'g0', 'g1'" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:The groups parameter is ignored by KFold")
@pytest.mark.parametrize("cv", [KFold(3), np.arange(60) % 3], ids=["splitter", "folds"])
@pytest.mark.parametrize("made", [FBetaDecision, ProbabilityCalibrator])
def test_rules_and_calibration_refuse_folds_that_part_a_group(made, cv, rng):
    """The groups that were given are left aside where the folds are given too."""
    probs = rng.random((60, 3)).astype(np.float32)
    labels, groups = (probs > 0.6).astype(np.int8), np.arange(60) // 2 % 29
    with pytest.raises(ValueError, match=r"a split group must not part; image 0 is held out"):
        made(cv=cv).fit(probs, labels, groups=groups)


def test_noise_scores_like_the_prior_in_every_command(tmp_path, monkeypatch):
    """A command that scores what it was fitted on shows a gain where there is nothing to learn."""
    monkeypatch.chdir(tmp_path)
    labels, new = noise_store(tmp_path / "store", 0), noise_store(tmp_path / "new", 1)
    sets = [np.tile(s, (120, 1)) for s in itertools.product([0, 1], repeat=4)]
    # Nobody who knows nothing of an image beats the best set for all, but by luck: 0.03 is a
    # standard error.
    most = 0.06 + max(fbeta_score(y, s) for y in (labels, new) for s in sets)
    assert most < 0.7
    run = {
        "compare": ["compare", "store", "--json", "c.json", "--quiet"],
        "fit": ["fit", "store", "--out", "model", "--quiet"],
        "tune": ["tune", "store", "--out", "tuned", "--trials", "1", "--quiet"],
        "evaluate": ["evaluate", "model", "new", "--quiet"],
    }
    for name, command in run.items():
        done = CliRunner().invoke(stacker_app, command)
        assert done.exit_code == 0, done.output
        # The first number of a line is F2 (samples): of a method, or of the stack out of fold.
        told = [float(x) for x in re.findall(r"^│[^│\d]*│\s+([01]\.\d{4}) ", done.stdout, re.M)]
        if name == "compare":
            told = list(json.loads(Path("c.json").read_text())["scores"].values())
        assert len(told) >= 2, (name, done.stdout)
        assert max(told) < most, (name, told)
