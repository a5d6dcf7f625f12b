"""Predictions that are not out of fold, and groups on both sides of a fold, do not go unnoticed."""

import logging

import numpy as np
import pytest
from scipy.sparse import csr_array

from features.schema import Stack
from features.store import FeatureStore
from stacker import PairStacker
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
