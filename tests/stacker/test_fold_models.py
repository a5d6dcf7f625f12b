"""Fold models apart, or their mean."""

import numpy as np
import pytest
from scipy.special import expit, logit

from features.store import FeatureStore
from stacker import PairStacker
from stacker.fold_models import fold_stacks, predict_proba_by_fold


@pytest.fixture(scope="module")
def store(tmp_path_factory, slice_stack, slice_labels):
    """200 labelled images; 100 without labels, seen by three fold models."""
    known = np.arange(300) < 200
    store = FeatureStore.create(
        tmp_path_factory.mktemp("folds") / "store",
        image_ids=slice_stack.image_ids,
        classes=slice_stack.classes,
        labels=slice_labels.multiply(known[:, None]).astype(np.int8),
        labels_known=known,
    )
    rng = np.random.default_rng(0)
    for model in slice_stack.models[:2]:
        probs = slice_stack.probabilities[model].astype(np.float32)
        own = np.full((3, *probs.shape), np.nan, dtype=np.float32)
        odds = logit(np.clip(probs[~known], 1e-4, 1 - 1e-4))
        own[:, ~known] = expit(odds + rng.normal(size=(3, *odds.shape)))
        probs[~known] = own[:, ~known].mean(axis=0)
        store.add_probabilities(model, probs)
        store.add_fold_probabilities(model, own)
    return store


def test_each_stack_holds_one_fold_models_predictions(store):
    """Mixing fold models up would average what was meant to stay apart."""
    stacks = fold_stacks(store)
    assert len(stacks) == 3
    assert stacks[0].image_ids.tolist() == store.image_ids[200:].tolist()
    model = stacks[0].models[0]
    own = store.fold_probabilities(model)[:, 200:]
    for k, stack in enumerate(stacks):
        np.testing.assert_array_equal(stack.probabilities[model], own[k])


def test_the_result_is_the_mean_of_the_stacks_log_odds(store):
    """Each fold model is stacked as the training rows were, then the log-odds are averaged."""
    model = PairStacker(blocks=("probabilities", "ranks"), cv=2, random_state=0, n_jobs=1)
    model.fit(store)
    stacks = fold_stacks(store)
    found = predict_proba_by_fold(model, stacks)
    odds = [logit(model.predict_proba(s).astype(float)) for s in stacks]
    np.testing.assert_allclose(found, expit(np.mean(odds, axis=0)), atol=1e-4)


def test_images_without_fold_predictions_are_named(store):
    """Labelled images have one out-of-fold prediction, and no fold models to average."""
    with pytest.raises(ValueError, match="are missing for 2 images"):
        fold_stacks(store, store.image_ids[[0, 1]])
