"""Makers shared by the tests of decisions."""

import numpy as np
import pytest
from scipy.special import expit


@pytest.fixture
def simulate(rng):
    """Make calibrated probabilities of uneven classes, and labels drawn from them."""

    def make(n_images=400, n_classes=9):
        level = np.linspace(0.5, -3.5, n_classes)
        probs = expit(rng.normal(size=(n_images, n_classes)) * 1.5 + level).astype(np.float32)
        return probs, (rng.random(probs.shape) < probs).astype(np.int8)

    return make
