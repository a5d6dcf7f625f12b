"""MixUp and erasing for several labels, from a seed, without touching the global generators."""

import random

import numpy as np
import pytest
import torch

from cnn_extract.train.mixing import mix, seeded
from cnn_extract.train.recipe import InputRecipe


def mixed(n_images, seed=1, **settings):
    """Mix constant images: image k holds the value k."""
    batch = torch.arange(n_images, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    with seeded(seed):
        return mix(batch.clone(), InputRecipe(**settings))


@pytest.mark.parametrize("n_images", [6, 7, 1])
def test_targets_are_mixed_as_the_images_are(n_images):
    """A20, A23: images are mixed by other shares than their labels."""
    batch, shares = mixed(n_images, mixup=0.4)
    values = torch.arange(n_images, dtype=torch.float32)
    torch.testing.assert_close(batch[:, 0, 0, 0], shares @ values)
    torch.testing.assert_close(shares.sum(1), torch.ones(n_images))


def test_mixup_shares_are_beta_distributed():
    """A20: mixup is off, or always half and half."""
    lam = np.array([mixed(2, seed=s, mixup=0.2)[1][0, 0].item() for s in range(300)])
    far = (np.abs(lam - 0.5) > 0.4).mean()
    wanted = (np.abs(np.random.default_rng(0).beta(0.2, 0.2, 100_000) - 0.5) > 0.4).mean()
    assert far == pytest.approx(wanted, abs=0.1)


def test_cutmix_shares_are_those_of_the_area():
    """Labels are mixed by the share asked for, not by what was pasted."""
    batch, shares = mixed(2, cutmix=1.0)
    torch.testing.assert_close((batch[0] == 0).float().mean(), shares[0, 0])


def test_erasing_takes_a_rectangle_of_some_images():
    """A23: random erasing erases nothing, everything, or in every image."""
    batch, shares = mixed(200, erase=0.25)
    erased = ((batch == 0).float().mean((1, 2, 3)))[1:]
    share = (erased > 0).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.1)
    assert erased.max() < 0.6
    assert shares is None


def test_without_settings_nothing_is_drawn():
    """Batches are changed although the recipe mixes nothing."""
    batch, shares = mixed(3)
    assert shares is None
    torch.testing.assert_close(batch[:, 0, 0, 0], torch.arange(3.0))


def test_the_global_generators_are_put_back():
    """Training changes the draws of the program around it."""
    get_state = np.random.get_state
    states = random.getstate(), get_state()[1].tolist(), torch.get_rng_state()
    one, _ = mixed(4, mixup=0.4)
    same, _ = mixed(4, mixup=0.4)
    torch.testing.assert_close(one, same)
    assert random.getstate() == states[0]
    assert get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
