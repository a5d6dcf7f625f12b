import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_extract.transforms import crop_if_needed, model_input


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((500, 300), (500, 300)), ((500, 900), (500, 600)), ((900, 500), (600, 500))],
)
def test_sides_longer_than_twice_the_size_are_cropped(shape, expected):
    """The iMet winner's crop, with a model of 300 pixels (docs/recipes.md: A1)."""
    assert crop_if_needed(np.zeros((*shape, 3), np.uint8), 600).shape[:2] == expected


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20))
def test_crop_is_about_the_centre(height, width, limit):
    """A crop from the corner loses the subject."""
    pixels = np.arange(height * width).reshape(height, width, 1).astype(np.uint16)
    crop = crop_if_needed(pixels, limit)
    assert crop.shape == (min(height, limit), min(width, limit), 1)
    top, left = divmod(int(crop[0, 0, 0]), width)
    bottom, right = height - top - crop.shape[0], width - left - crop.shape[1]
    assert abs(top - bottom) <= 1
    assert abs(left - right) <= 1


def test_input_ignores_what_is_cropped(rng):
    """Pixels beyond twice the size must not reach the model."""
    pixels = rng.integers(0, 256, (32, 200, 3)).astype(np.uint8)
    changed = pixels.copy()
    changed[:, :60] = 0
    np.testing.assert_array_equal(model_input(pixels, 32), model_input(changed, 32))


@pytest.mark.parametrize("n_channels", [1, 3, 6])
def test_input_has_the_size_and_channels_asked_for(rng, n_channels):
    """Each channel of a many-channel image is resized as a grey image is."""
    pixels = rng.integers(0, 256, (40, 50, n_channels)).astype(np.uint8)
    resized = model_input(pixels, 24)
    assert resized.shape == (24, 24, n_channels)
    alone = model_input(np.ascontiguousarray(pixels[:, :, :1]), 24)
    np.testing.assert_array_equal(resized[:, :, :1], alone)


def test_constant_image_keeps_its_value():
    """16-bit white stays white, and resizing adds no ringing to a flat image."""
    white = np.full((40, 70, 3), 65_535, np.uint16)
    assert (model_input(white, 24) == 255).all()
