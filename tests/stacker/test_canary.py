"""Canary: labels that say nothing about the images must not make the stack look good."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from stacker import FBetaDecision, PairStacker
from stacker.blend import BLENDS, cross_fit
from stacker.evaluation import paired_bootstrap
from stacker.fbeta import fbeta_per_image


def nested_sets(stack, labels, fold, groups, k):
    """Label sets of fold k by the stack and by the mean, everything fitted on the others."""
    train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
    options = {"class_groups": stack.class_group, "random_state": 0}
    model = PairStacker(cv=2, candidates=10, base="mean", random_state=0, n_jobs=1)
    model.fit(stack[train], labels[train], groups=groups[train])
    oof = cross_fit(BLENDS["mean"](), stack[train], labels[train], model.folds_)
    rule = FBetaDecision(**options).fit(oof, labels[train], groups=groups[train])
    mean = BLENDS["mean"]().fit(stack[train], labels[train]).predict_proba(stack[test])
    return test, model.predict(stack[test]), rule.predict(mean)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_labels_replaced_by_noise_gain_nothing_over_the_mean(
    slice_stack, slice_labels, slice_fold, slice_groups, seed
):
    """A feature that leaks a row's own label turns noise into a gain."""
    order = np.random.default_rng(seed).permutation(300)
    labels = csr_array(slice_labels[order])
    stack_score, mean_score = np.empty(300), np.empty(300)
    for k in range(2):
        test, own, mean = nested_sets(slice_stack, labels, slice_fold % 2, slice_groups, k)
        stack_score[test] = fbeta_per_image(labels[test], own)
        mean_score[test] = fbeta_per_image(labels[test], mean)
    gain = paired_bootstrap(stack_score, mean_score, slice_groups)
    assert gain[1] <= 0, gain
