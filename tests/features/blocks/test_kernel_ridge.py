"""Kernel ridge features, against scikit-learn fitted anew without each query's fold."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.kernel_ridge import KernelRidge

from features.assemble import PairFeatures
from features.blocks.kernel_ridge import BANDWIDTH, PENALTY, _available
from features.blocks.spaces import space_names, unit_vectors
from features.schema import Stack


def kernel(example):
    """Kernel of queries (rows) and training images, and of training images among themselves."""
    state = example.table.features.states_["kernel_ridge"]
    names = space_names(example.train)
    known = [state[f"{n}/values"].astype(np.float64) / state[f"{n}/norms"][:, None] for n in names]
    asked = [unit_vectors(example.batch.codes(n)).astype(np.float64) for n in names]
    rise = lambda left: np.exp(  # noqa: E731
        BANDWIDTH * (np.mean([a @ b.T for a, b in zip(left, known, strict=True)], axis=0) - 1)
    )
    return rise(asked), rise(known)


def test_predictions_equal_scikit_learn_without_the_own_fold(example):
    """A fold's labels that reach its own images, or a penalty left out, would show."""
    asked, known = kernel(example)
    for i, seen in enumerate(example.seen):
        mean = example.labels[seen].mean(axis=0)
        model = KernelRidge(alpha=PENALTY, kernel="precomputed")
        model.fit(known[np.ix_(seen, seen)], example.labels[seen] - mean)
        expected = model.predict(asked[i, seen][None])[0] + mean
        np.testing.assert_allclose(example.matrix("ridge:all")[i], expected, atol=2e-4)


def test_fewer_images_in_the_kernel_are_evenly_spaced(small_stack, slice_labels, slice_fold):
    """Taking the first images would leave out whatever comes last in a file."""
    options = {"most_images": 4}
    features = PairFeatures(blocks=(("kernel_ridge", options),), candidates=3)
    features.fit(small_stack, slice_labels, slice_fold)
    state = features.states_["kernel_ridge"]
    assert state["steps"].shape[2] == 4
    everything = PairFeatures(blocks=("kernel_ridge",), candidates=3)
    everything.fit(small_stack, slice_labels, slice_fold)
    key = "blend/values"
    whole = everything.states_["kernel_ridge"][key]
    np.testing.assert_array_equal(state[key], whole[[0, 99, 199, 299]])


@pytest.mark.parametrize("options", [{"penalty": 0.0}, {"bandwidth": -1.0}])
def test_options_that_make_no_kernel_are_refused(options):
    """A penalty of 0 would divide by zero on near-duplicates."""
    stack = Stack({"a": np.full((4, 2), 0.5)})
    labels = csr_array(np.eye(4, 2, dtype=np.int8))
    features = PairFeatures(blocks=(("kernel_ridge", options),), candidates=None)
    with pytest.raises(ValueError, match="penalty and bandwidth of kernel_ridge must be above 0"):
        features.fit(stack, labels, np.array([0, 1, 0, 1]))


def test_tens_of_thousands_of_classes_are_too_many():
    """Coefficients of every class and image would fill the memory."""
    assert _available(Stack({"a": np.full((1, 3_001), 0.5)})) == "at most 3,000 classes"
