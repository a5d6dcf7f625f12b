"""Training views: crops, turns, light, noise."""

import numpy as np
import pytest

from cnn_extract.train import augment
from cnn_extract.train.augment import (
    adjust_light,
    plain_view,
    random_resized_box,
    random_view,
    rotate,
)
from cnn_extract.train.recipe import InputRecipe
from cnn_extract.transforms import model_input
from tests.cnn_extract.conftest import picture

STILL = {"hflip": 0.0}


def rng_of(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("shape", "kept"), [((500, 300), (500, 300)), ((500, 900), (500, 600))])
def test_crop_if_needed_keeps_short_sides_and_cuts_long_ones(shape, kept, monkeypatch):
    """A1: with a limit of 600 a 500x300 stays whole and a 500x900 becomes 500x600."""
    seen = []
    monkeypatch.setattr(augment, "resize", lambda image, size: seen.append(image.shape) or image)
    recipe = InputRecipe(crop="if-needed", limit=2.0, **STILL)
    random_view(np.zeros((*shape, 3), np.uint8), recipe, 300, rng_of())
    assert seen == [(*kept, 3)]


def test_crop_if_needed_moves_in_training_and_is_central_otherwise():
    """A1: training always sees the same part, or validation a random one."""
    pixels = np.zeros((40, 400, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, 400).astype(np.uint8)
    recipe = InputRecipe(crop="if-needed", **STILL)
    means = [random_view(pixels, recipe, 20, rng_of(k))[..., 0].mean() for k in range(8)]
    assert np.ptp(means) > 50
    np.testing.assert_array_equal(plain_view(pixels, recipe, 20), model_input(pixels, 20))


def test_random_resized_boxes_fill_the_asked_area_and_aspect(rng):
    """A25: parts are smaller than 0.4 of the image, larger than it, or of any shape."""
    boxes = np.array(
        [random_resized_box(300, 300, (0.4, 1.0), (0.8, 1.2), rng) for _ in range(400)]
    )
    top, left, tall, wide = boxes.T
    share = tall * wide / 300**2
    assert share.min() > 0.39
    assert share.max() <= 1.0
    assert np.quantile(share, [0.1, 0.5]) == pytest.approx([0.45, 0.68], abs=0.06)
    assert (wide / tall).min() > 0.79
    assert (wide / tall).max() < 1.21
    assert (top + tall <= 300).all()
    assert (left + wide <= 300).all()


def test_pad_crops_without_resizing_and_pads_white():
    """A23: the crop of 320 is resized, or small images are not padded."""
    pixels = np.arange(30 * 50 * 3, dtype=np.uint8).reshape(30, 50, 3)
    recipe = InputRecipe(crop="pad", **STILL)
    made = random_view(pixels, recipe, 40, rng_of(3))
    inside = made[(made != 255).any((1, 2))]
    assert made.shape == (40, 40, 3)
    assert len(inside) == 30
    windows = [pixels[:, left : left + 40] for left in range(11)]
    assert any((window == inside).all() for window in windows)
    plain = plain_view(pixels, recipe, 40)
    np.testing.assert_array_equal(plain[5:35], pixels[:, 5:45])
    assert (plain[:5] == 255).all()
    assert (plain[35:] == 255).all()


def test_flips_mirror():
    """A17: a flip is none, or about the wrong axis."""
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    sides = random_view(pixels, InputRecipe(crop="squash", hflip=1.0), 8, rng_of())
    np.testing.assert_array_equal(sides, pixels[:, ::-1])
    upside = InputRecipe(crop="squash", hflip=0.0, vflip=1.0)
    np.testing.assert_array_equal(random_view(pixels, upside, 8, rng_of()), pixels[::-1])


def test_half_of_the_views_are_flipped():
    """A17, A23: mirroring happens always or never."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, 0] = 200
    recipe = InputRecipe(crop="squash", hflip=0.5)
    flipped = [random_view(pixels, recipe, 4, rng_of(k))[0, -1, 0] == 200 for k in range(200)]
    assert 70 < sum(flipped) < 130


def test_a_quarter_turn_is_numpys(rng):
    """A25: rotation by other angles, or of other channels than asked."""
    pixels = picture(rng, 16, 16)
    np.testing.assert_array_equal(rotate(pixels, 90), np.rot90(pixels))
    six = np.concatenate([pixels, pixels], axis=2)
    np.testing.assert_array_equal(rotate(six, 90), np.rot90(six))


def test_light_follows_its_formula(rng):
    """A25: brightness, contrast and gamma are something else."""
    pixels = picture(rng, 12, 10)
    x = (pixels / 255) ** 1.2
    wanted = ((x - x.mean()) * 1.3 + x.mean()) * 0.9
    got = adjust_light(pixels, -0.1, 0.3, 0.2)
    assert np.abs(got - wanted.clip(0, 1) * 255).max() <= 0.5


def test_light_is_drawn_within_its_bounds(rng):
    """A25: brightness changes beyond the setting, or never."""
    pixels = np.full((4, 4, 3), 100, np.uint8)
    recipe = InputRecipe(crop="squash", brightness=0.2)
    values = [int(random_view(pixels, recipe, 4, rng_of(k))[0, 0, 0]) for k in range(300)]
    assert min(values) >= 80
    assert max(values) <= 120
    assert max(values) - min(values) > 35


def test_noise_has_at_most_the_asked_deviation():
    """A25: noise is none, or much stronger than asked."""
    pixels = np.full((64, 64, 3), 128, np.uint8)
    recipe = InputRecipe(crop="squash", noise=8.0)
    stds = [random_view(pixels, recipe, 64, rng_of(k)).std() for k in range(60)]
    assert max(stds) < 8.6
    assert max(stds) > 6
    assert min(stds) < 2


@pytest.mark.parametrize("n_channels", [1, 3, 6])
@pytest.mark.parametrize("crop", ["if-needed", "random-resized", "pad", "squash"])
def test_every_crop_takes_any_number_of_channels(crop, n_channels, rng):
    """C1: images of six channels break an augmentation."""
    pixels = rng.integers(0, 65_536, (37, 53, n_channels)).astype(np.uint16)
    recipe = InputRecipe(crop=crop, rotate=10, brightness=0.1, noise=2.0)
    for made in (random_view(pixels, recipe, 24, rng), plain_view(pixels, recipe, 24)):
        assert made.shape == (24, 24, n_channels)
        assert made.dtype == np.uint8


def test_a_view_depends_on_its_seed_alone(rng):
    """Views differ between runs, so a resumed run is another run."""
    pixels = picture(rng, 50, 70)
    recipe = InputRecipe(crop="random-resized", rotate=20, noise=5.0, contrast=0.3)
    one, same, other = (random_view(pixels, recipe, 32, rng_of(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
