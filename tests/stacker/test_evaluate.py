"""`evaluate`: scores, breakdowns and every baseline beside a fitted stack."""

import json

import numpy as np
import pytest
from scipy.sparse import csr_array

from features import Stack
from stacker import PairStacker, evaluate, fbeta_score
from stacker.evaluation import calibration_error, log_loss


@pytest.fixture(scope="module")
def case(slice_stack, slice_labels, slice_groups):
    """A model fitted on 200 images and 16 classes, and the other 100 images."""
    train, test = np.arange(200), np.arange(200, 300)
    columns = np.sort(np.argsort(-np.asarray(slice_labels.sum(axis=0)).ravel())[:16])
    probs = {m: slice_stack.probabilities[m][:, columns] for m in slice_stack.models[:2]}
    slice_stack = Stack(probs, classes=slice_stack.classes[columns])
    slice_labels = slice_labels[:, columns]
    model = PairStacker(cv=2, blocks=("probabilities", "ranks"), random_state=0, n_jobs=1)
    model.fit(slice_stack[train], slice_labels[train], groups=slice_groups[train])
    return model, slice_stack, slice_labels, slice_groups, train, test


def test_scores_are_those_of_the_predictions(case):
    """Every figure equals the metric of what `predict` and `predict_proba` say."""
    model, stack, labels, groups, _, test = case
    found = evaluate(model, stack[test], labels[test], groups[test], n=50)
    proba, sets = model.predict_proba(stack[test]), model.predict(stack[test])
    row = found.scores.loc["stack"]
    for average in ("samples", "macro", "micro"):
        expected = fbeta_score(labels[test], sets, 2.0, average)
        assert row[f"f2_{average}"] == pytest.approx(expected)
    assert row["log_loss"] == pytest.approx(log_loss(labels[test], proba))
    assert row["calibration_error"] == pytest.approx(calibration_error(labels[test], proba))
    assert list(found.scores.index) == ["base", "stack"]
    gain = found.table.gain("f2_samples")
    assert gain.difference == pytest.approx(row["f2_samples"] - found.scores.loc["base"].iloc[0])
    json.dumps(found.to_dict())


def test_scores_of_the_training_images_come_with_a_warning(case, caplog):
    """`stacker evaluate MODEL STORE` with the store of `fit` showed 0.99 without a word."""
    model, stack, labels, _, train, test = case
    evaluate(model, stack[test], labels[test], n=5)
    # As many images as in training, but others.
    mixed = np.concatenate([test, train[:100]])
    evaluate(model, stack[mixed], labels[mixed], n=5)
    assert "fitted on" not in caplog.text
    evaluate(model, stack[train], labels[train], n=5)
    assert "look like the images that the model was fitted on" in caplog.text


def test_breakdowns_hold_each_class_once(case):
    """Bins are scored on their own classes and together hold all of them."""
    model, stack, labels, _, _, test = case
    found = evaluate(model, stack[test], labels[test], n=20)
    for frame in (found.by_group, found.by_frequency):
        own = frame.loc["stack"]
        assert own["n_classes"].sum() == labels.shape[1]
        assert own["n_positives"].sum() == labels[test].sum()
    name = str(model.class_group_[0])
    group = np.flatnonzero(model.class_group_ == name)
    expected = fbeta_score(labels[test][:, group], model.predict(stack[test])[:, group], 2, "micro")
    assert found.by_group.loc[("stack", name), "f2_micro"] == pytest.approx(expected)


def test_every_baseline_stands_beside_it_when_the_training_data_is_given(case):
    """Blends are fitted on the training images; rules never see the images scored."""
    model, stack, labels, groups, train, test = case
    known = (stack[train], labels[train])
    found = evaluate(model, stack[test], labels[test], groups[test], trained_on=known, n=20)
    names = {"base", "stack", "best_single", "mean", "logit_mean", "selection", "logistic"}
    assert set(found.scores.index) == names
    shuffled = csr_array(labels[test][np.random.default_rng(0).permutation(len(test))])
    other = evaluate(model, stack[test], shuffled, trained_on=known, n=20)
    assert other.scores.loc["logistic", "f2_samples"] < found.scores.loc["logistic", "f2_samples"]
    with pytest.raises(ValueError, match="Give what `fit` was given"):
        evaluate(model, stack[test], labels[test], trained_on=(stack, labels))
