"""Nested comparison: what scores an image never saw it."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator

from features.schema import Stack
from stacker import _compare
from stacker._compare import OutOfFold, as_json, compare, decide_methods, fit_blends
from stacker.decision import FBetaDecision


class Recorder(BaseEstimator):
    """A stack that is the mean of the models, and remembers what it was fitted on."""

    seen: list = []  # noqa: RUF012

    def __init__(self, beta=2.0):
        self.beta = beta

    def fit(self, X, Y, groups=None):
        Recorder.seen.append((set(X.image_ids), Y.toarray()))
        self.oof_proba_ = self.predict_proba(X)
        rule = FBetaDecision(strategy="global").fit(self.oof_proba_, Y)
        self.decision_ = SimpleNamespace(
            average="samples", strategy_="own", predict=rule.predict, rule=rule
        )
        return self

    def predict_proba(self, X):
        return np.mean([np.asarray(p, dtype=np.float32) for p in X.probabilities.values()], axis=0)


@pytest.fixture
def case(monkeypatch):
    # One rule instead of a choice among all: the choice has its own tests, and takes seconds.
    rule = functools.partial(FBetaDecision, strategy="max_ratio")
    monkeypatch.setattr(_compare, "FBetaDecision", rule)
    rng = np.random.default_rng(0)
    n, c = 90, 6
    Y = (rng.random((n, c)) < 0.3).astype(np.int8)
    models = {name: np.clip(0.4 * Y + 0.5 * rng.random((n, c)), 0, 1) for name in ("x", "y")}
    models["z"] = 0.2 * Y + 0.6 * rng.random((n, c))
    stack = Stack(models, classes=[f"a::{k}" for k in range(3)] + [f"b::{k}" for k in range(3)])
    return stack, csr_array(Y), rng.permutation(n) % 3


def test_every_outer_fold_is_predicted_by_models_that_never_saw_it(case):
    """One image in both fit and score makes every number of the table too good."""
    stack, Y, fold = case
    Recorder.seen.clear()
    compare(stack, Y, fold, Recorder(), n=20)
    assert len(Recorder.seen) == 3
    for k, (ids, labels) in enumerate(Recorder.seen):
        assert ids == set(stack.image_ids[fold != k])
        assert (labels == Y.toarray()[fold != k]).all()


def test_labels_of_a_fold_do_not_change_its_own_predictions(case):
    """Leakage test: the blends' and rules' view of fold 1 must not depend on its labels."""
    stack, Y, fold = case
    other = Y.toarray()
    other[fold == 1] = 1 - other[fold == 1]
    first, second = (
        _compare.nested_predictions(stack, labels, fold, Recorder())
        for labels in (Y, csr_array(other))
    )
    rows = np.flatnonzero(fold == 1)
    for name in first:
        assert np.array_equal(first[name].proba[rows], second[name].proba[rows]), name
        same = first[name].sets["samples"][rows] == second[name].sets["samples"][rows]
        assert np.all(same), name


def test_predictions_come_back_in_the_images_order(case):
    """Folds are predicted one after the other; rows must return to their place."""
    stack, Y, fold = case
    found = _compare.nested_predictions(stack, Y, fold, Recorder())
    mean = np.mean([stack.probabilities[name] for name in stack.models], axis=0)
    assert found["mean"].proba == pytest.approx(mean, abs=1e-6)
    assert found["stack"].proba == pytest.approx(mean, abs=1e-6)


def test_the_json_holds_the_contract(case):
    """Keys and meaning are the contract of `stacker compare --json`."""
    stack, Y, fold = case
    table = compare(stack, Y, fold, Recorder(), average="macro", n=20)
    found = as_json(table, "macro")
    assert list(found["scores"]) == list(_compare.METHODS)
    assert found["best_blend"] in _compare.BLENDS
    assert found["gain"] == pytest.approx(
        found["scores"]["stack"] - found["scores"][found["best_blend"]]
    )
    assert found["n_images"] == 90


def test_the_best_single_model_is_chosen_on_training_images(case):
    """A model that is only good on the test images must not be picked."""
    stack, Y, fold = case
    train, test = fold != 0, fold == 0
    y = Y.toarray()
    lucky = np.where(test[:, None], y, 0.1).astype(np.float32)
    good = stack.probabilities["x"]
    methods = {f"single:{n}": OutOfFold(p[train], p[test]) for n, p in [("l", lucky), ("g", good)]}
    methods |= {name: OutOfFold(good[train], good[test]) for name in [*_compare.BLENDS, "stack"]}
    found = decide_methods(methods, Y[train], class_group=stack.class_group)
    assert found["best_single"].title == "Best single model (g)"


def test_the_stack_keeps_its_own_rule_for_its_own_average(case):
    """What is scored as the stack is what `predict` would return."""
    stack, Y, fold = case
    train, test = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    methods = fit_blends(stack[train], Y[train], stack[test])
    model = Recorder().fit(stack[train], Y[train])
    methods["stack"] = OutOfFold(
        model.oof_proba_, model.predict_proba(stack[test]), model.decision_
    )
    found = decide_methods(methods, Y[train], class_group=stack.class_group)
    assert found["stack"].strategy["samples"] == "own"
    assert found["stack"].strategy["macro"] != "own"


def test_every_step_is_told(case):
    """The progress bar must end at its total."""
    stack, Y, fold = case
    told = []
    compare(stack, Y, fold, Recorder(), n=5, step=told.append)
    assert len(told) == 3 * _compare.N_STEPS
    assert told[0].startswith("fold 0: mean")
