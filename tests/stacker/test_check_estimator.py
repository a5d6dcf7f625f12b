"""scikit-learn's own checks, for the estimators whose tests are not beside them."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.utils.estimator_checks import (
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
)

from stacker import FBetaDecision, PairStacker, StackingMultilabelClassifier
from stacker.adapt import PriorShift, TargetAdapter
from stacker.blend import EnsembleSelection, LogisticBlend, LogitMeanBlend, MeanBlend
from stacker.calibration import ProbabilityCalibrator

# Two matrices or a stack go into `fit`: check_estimator, which gives one matrix, does not apply.
OTHER_INPUT = (
    PairStacker,
    MeanBlend,
    LogitMeanBlend,
    EnsembleSelection,
    LogisticBlend,
    PriorShift,
    TargetAdapter,
)
ONE_MATRIX = (FBetaDecision, ProbabilityCalibrator, StackingMultilabelClassifier)


def test_every_public_estimator_is_in_one_of_the_lists():
    """A new estimator escapes scikit-learn's checks."""
    from stacker import adapt, blend, calibration, decision, estimator, multilabel

    found = {
        value
        for module in (adapt, blend, calibration, decision, estimator, multilabel)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseEstimator)
        if value.__module__.startswith("stacker.") and not value.__name__.startswith("_")
    }
    assert found == {*OTHER_INPUT, *ONE_MATRIX}


@pytest.mark.parametrize("estimator", OTHER_INPUT, ids=lambda kind: kind.__name__)
def test_the_checks_that_need_no_matrix_pass(estimator):
    """`clone`, `get_params` and `set_params` keep parameters; __init__ stores and does no more."""
    check_parameters_default_constructible(estimator.__name__, estimator())
    check_no_attributes_set_in_init(estimator.__name__, estimator())
    copy = clone(estimator())
    assert copy.get_params() == estimator().get_params()
    assert copy.set_params(**copy.get_params()) is copy
    assert repr(copy)


@pytest.mark.parametrize("estimator", OTHER_INPUT, ids=lambda kind: kind.__name__)
def test_an_estimator_that_was_not_fitted_says_so(estimator):
    """`NotFittedError`, not an AttributeError about some attribute."""
    from sklearn.exceptions import NotFittedError

    probs = {"a": np.full((3, 2), 0.5)}
    given = probs["a"] if estimator in (PriorShift, TargetAdapter) else probs
    method = "transform" if estimator is PriorShift else "predict_proba"
    with pytest.raises(NotFittedError):
        getattr(estimator(), method)(given)
