"""Learning rates over time, and optimisers by name."""

import numpy as np
import pytest

from cnn_extract.train.recipe import Stage
from cnn_extract.train.schedules import make_optimiser, make_schedule
from tests.cnn_extract.train.conftest import recipe_of, tiny_network

STEPS = 4


def rates_of(stage, losses=None):
    """Learning rate of every step of a stage."""
    optimiser = make_optimiser(tiny_network(recipe_of(), [""]), stage)
    schedule = make_schedule(optimiser, stage, STEPS)
    rates = []
    for epoch in range(stage.epochs):
        for step in range(STEPS):
            schedule.before_step(epoch * STEPS + step)
            rates.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.after_step()
        schedule.after_epoch(1.0 if losses is None else losses[epoch])
    return np.array(rates).reshape(stage.epochs, STEPS)


def test_constant_stays():
    """A stage without a schedule changes its learning rate."""
    assert (rates_of(Stage(epochs=3, lr=0.1)) == 0.1).all()


def test_manual_drops_come_after_their_epochs():
    """A23: the rate drops an epoch early or late, or by another factor."""
    stage = Stage(epochs=5, lr=1.0, schedule="drops", drops=(2, 4), factor=0.1)
    wanted = np.repeat([1, 1, 0.1, 0.1, 0.01], STEPS).reshape(5, STEPS)
    np.testing.assert_allclose(rates_of(stage), wanted)


def test_the_rate_is_halved_every_n_epochs():
    """B4: the rate is divided by two at other epochs."""
    stage = Stage(epochs=6, lr=1.0, schedule="halve", every=2)
    wanted = np.repeat([1, 1, 0.5, 0.5, 0.25, 0.25], STEPS).reshape(6, STEPS)
    np.testing.assert_allclose(rates_of(stage), wanted)


def test_a_plateau_of_the_training_loss_lowers_the_rate():
    """D5: the rate falls while the loss still falls, or never."""
    stage = Stage(epochs=6, lr=1.0, schedule="plateau", patience=1, factor=0.5)
    rates = rates_of(stage, losses=[3.0, 2.0, 2.0, 2.0, 2.0, 2.0])[:, 0]
    np.testing.assert_allclose(rates, [1, 1, 1, 1, 0.5, 0.5])
    falling = rates_of(stage, losses=[6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert (falling == 1).all()


def test_cosine_rises_over_the_warmup_then_falls_to_zero():
    """A20: there is no warm-up, or the cosine ends elsewhere."""
    rates = rates_of(Stage(epochs=5, lr=1.0, schedule="cosine", warmup=1.0)).ravel()
    assert rates[0] == pytest.approx(0.01)
    assert (np.diff(rates[:STEPS]) > 0).all()
    steps = np.arange(16)
    np.testing.assert_allclose(rates[4:], (1 + np.cos(np.pi * steps / 16)) / 2, atol=1e-9)


def test_one_cycle_rises_and_falls_below_its_start():
    """C2: OneCycleLR is given other bounds."""
    rates = rates_of(Stage(epochs=5, lr=1.0, schedule="onecycle")).ravel()
    assert rates.max() == pytest.approx(1.0, abs=0.02)
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[-1] < 0.01
    assert 4 <= rates.argmax() <= 6


def test_exponential_decays_an_epoch():
    """C2: ExponentialLR decays every step."""
    stage = Stage(epochs=3, lr=1.0, schedule="exponential", decay=0.8)
    np.testing.assert_allclose(rates_of(stage), np.repeat([[1], [0.8], [0.64]], STEPS, axis=1))


@pytest.mark.parametrize(("name", "kind"), [("adamw", "AdamW"), ("sgd", "SGD"), ("radam", "RAdam")])
def test_optimisers_go_by_name(name, kind):
    """A20, C2: another optimiser than asked trains."""
    optimiser = make_optimiser(tiny_network(recipe_of(), [""]), Stage(optimiser=name))
    assert type(optimiser).__name__ == kind


def test_weight_decay_spares_norms_and_biases_and_the_backbone_has_its_own_rate():
    """A20: weight decay pulls on batch norms; the backbone learns as fast as the head."""
    network = tiny_network(recipe_of(), [""])
    stage = Stage(lr=1e-4, weight_decay=0.01, backbone_lr=0.1)
    optimiser = make_optimiser(network, stage)
    head = {id(p) for p in network.head.parameters()}
    for group in optimiser.param_groups:
        assert len({p.ndim > 1 for p in group["params"]}) == 1
        assert group["weight_decay"] == (0.01 if group["params"][0].ndim > 1 else 0)
        own = {id(p) in head for p in group["params"]}
        assert group["lr"] == pytest.approx(1e-4 if own == {True} else 1e-5)


def test_an_unknown_optimiser_names_near_ones():
    """A misspelt optimiser ends in a traceback of timm's."""
    with pytest.raises(ValueError, match=r"timm has no optimiser 'adamww'; near names.*adamw"):
        make_optimiser(tiny_network(recipe_of(), [""]), Stage(optimiser="adamww"))
