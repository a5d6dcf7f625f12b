"""Training views of an image: crop, turn, light and noise, for any number of channels.

Numpy and Pillow only, so that the processes that decode images need no torch. Everything drawn
comes from the generator given, so an image's view depends on its seed alone, not on the process
that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnn_extract.decode import decode_pixels
from cnn_extract.images import ImageError, ImageSource, Pixels, to_uint8
from cnn_extract.transforms import crop_if_needed, model_input

if TYPE_CHECKING:
    from cnn_extract.train.recipe import InputRecipe

__all__ = [
    "View",
    "adjust_light",
    "decode_views",
    "plain_view",
    "random_resized_box",
    "random_view",
]

Image8: TypeAlias = NDArray[np.uint8]
# How often a part of the wanted area and aspect is drawn before the whole image is taken.
TRIES = 10
# What pads an image that is smaller than the crop, and what a turn brings into view.
WHITE = 255


@dataclass(frozen=True)
class View:
    """One image to decode: its position in the source, and the seed of its view; -1: no chance.

    Examples
    --------
    >>> View(7)  # image 7, plain; with a seed a random view
    View(index=7, seed=-1)
    """

    index: int
    seed: int = -1


def decode_views(
    source: ImageSource,
    views: Sequence[View],
    *,
    recipe: InputRecipe,
    size: int,
    n_channels: int,
) -> Image8:
    """Decode images and make each one's view; never leaves out or replaces one.

    Returns
    -------
    uint8 array of shape (n_views, size, size, n_channels)

    Raises
    ------
    ImageError
        For an image that cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from cnn_extract.images import open_images
    >>> from cnn_extract.train.recipe import InputRecipe
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (60, 40)).save(folder + "/black.png")
    ...     views, source = [View(0), View(0, seed=1)], open_images(folder)
    ...     decode_views(source, views, recipe=InputRecipe(), size=32, n_channels=3).shape
    (2, 32, 32, 3)
    """
    made = np.empty((len(views), size, size, n_channels), dtype=np.uint8)
    for row, view in enumerate(views):
        try:
            pixels = decode_pixels(source, view.index, n_channels)
        except ImageError as error:
            raise ImageError(f"{error}; it was readable when this run began") from error
        if view.seed < 0:
            made[row] = plain_view(pixels, recipe, size)
        else:
            made[row] = random_view(pixels, recipe, size, np.random.default_rng(view.seed))
    return made


def plain_view(pixels: Pixels, recipe: InputRecipe, size: int) -> Image8:
    """View for validation and prediction: the recipe's crop about the centre, nothing drawn.

    Parameters
    ----------
    pixels : uint8 or uint16 array of shape (height, width, channels)
    recipe : InputRecipe
    size : int

    Returns
    -------
    uint8 array of shape (size, size, channels)

    Examples
    --------
    >>> from cnn_extract.train.recipe import InputRecipe
    >>> plain_view(np.zeros((40, 60, 3), np.uint8), InputRecipe(crop="pad"), 32).shape
    (32, 32, 3)
    """
    if recipe.crop == "pad":
        height, width = pixels.shape[:2]
        return _crop_or_pad(to_uint8(pixels), (height - size) // 2, (width - size) // 2, size)
    if recipe.crop == "if-needed" and recipe.limit == 2.0:
        return model_input(pixels, size)
    limit = round(recipe.limit * size) if recipe.crop == "if-needed" else max(pixels.shape)
    return resize(to_uint8(crop_if_needed(pixels, limit)), size)


def random_view(pixels: Pixels, recipe: InputRecipe, size: int, rng: np.random.Generator) -> Image8:
    """View for training, drawn from `rng`; parameters and result as in `plain_view`.

    Examples
    --------
    >>> from cnn_extract.train.recipe import InputRecipe
    >>> pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    >>> same = [random_view(pixels, InputRecipe(), 8, np.random.default_rng(0)) for _ in range(2)]
    >>> np.array_equal(*same)
    True
    """
    image = _random_crop(to_uint8(pixels), recipe, size, rng)
    if rng.random() < recipe.hflip:
        image = image[:, ::-1]
    if rng.random() < recipe.vflip:
        image = image[::-1]
    if recipe.rotate:
        image = rotate(image, rng.uniform(-recipe.rotate, recipe.rotate))
    changes = [rng.uniform(-most, most) for most in _light(recipe)]
    if any(changes):
        image = adjust_light(image, *changes)
    if recipe.noise:
        image = add_noise(image, rng.uniform(0, recipe.noise), rng)
    return np.ascontiguousarray(image)


def _light(recipe: InputRecipe) -> tuple[float, float, float]:
    return recipe.brightness, recipe.contrast, recipe.gamma


def _random_crop(image: Image8, recipe: InputRecipe, size: int, rng: np.random.Generator) -> Image8:
    height, width = image.shape[:2]
    if recipe.crop == "random-resized":
        top, left, tall, wide = random_resized_box(height, width, recipe.area, recipe.ratio, rng)
        return resize(image[top : top + tall, left : left + wide], size)
    if recipe.crop == "pad":
        return _crop_or_pad(image, _place(height, size, rng), _place(width, size, rng), size)
    if recipe.crop == "if-needed":
        limit = round(recipe.limit * size)
        top = int(rng.integers(max(0, height - limit) + 1))
        left = int(rng.integers(max(0, width - limit) + 1))
        image = image[top : top + limit, left : left + limit]
    return resize(image, size)


def _place(length: int, size: int, rng: np.random.Generator) -> int:
    """Where a crop begins; below 0 when the image is smaller and the padding is divided."""
    low, high = min(0, length - size), max(0, length - size)
    return int(rng.integers(low, high + 1))


def _crop_or_pad(image: Image8, top: int, left: int, size: int) -> Image8:
    made = np.full((size, size, image.shape[2]), WHITE, dtype=np.uint8)
    part = image[max(0, top) : top + size, max(0, left) : left + size]
    down, right = max(0, -top), max(0, -left)
    made[down : down + part.shape[0], right : right + part.shape[1]] = part
    return made


def random_resized_box(
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draw a part of an image: (top, left, height, width), Szegedy et al. (2015).

    Parameters
    ----------
    height, width : int
    area : (float, float)
        Least and largest share of the image's area.
    ratio : (float, float)
        Least and largest width / height, drawn evenly on the logarithmic scale.
    rng : Generator

    Examples
    --------
    >>> random_resized_box(40, 60, (1.0, 1.0), (1.5, 1.5), np.random.default_rng(0))
    (0, 0, 40, 60)
    """
    for _ in range(TRIES):
        wanted = rng.uniform(*area) * height * width
        aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        wide, tall = round(np.sqrt(wanted * aspect)), round(np.sqrt(wanted / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
            return int(top), int(left), int(tall), int(wide)
    return 0, 0, height, width


def resize(image: Image8, size: int) -> Image8:
    """Resize both sides, antialiased bicubic; uint8 (size, size, channels)."""
    return _by_plane(image, lambda plane: plane.resize((size, size), Image.Resampling.BICUBIC))


def rotate(image: Image8, degrees: float) -> Image8:
    """Turn about the centre; what comes into view is white."""
    return _by_plane(
        image,
        lambda plane: plane.rotate(
            degrees,
            Image.Resampling.BILINEAR,
            fillcolor=(WHITE,) * 3 if plane.mode == "RGB" else WHITE,
        ),
    )


def _by_plane(image: Image8, change: Callable[[Image.Image], Image.Image]) -> Image8:
    """Let Pillow change an image; with other than three channels each by itself."""
    if image.shape[2] == 3:
        return np.asarray(change(Image.fromarray(np.ascontiguousarray(image))))
    planes = (np.ascontiguousarray(image[:, :, k]) for k in range(image.shape[2]))
    return np.stack([np.asarray(change(Image.fromarray(plane))) for plane in planes], axis=2)


def adjust_light(image: Image8, brightness: float, contrast: float, gamma: float) -> Image8:
    """Change brightness, contrast and gamma by relative amounts; 0 leaves each as it is.

    With intensities x from 0 to 1: ``x ** (1 + gamma)``, then ``(x - m) * (1 + contrast) + m``
    with m the image's mean, then ``x * (1 + brightness)``, cut to 0 to 1.

    Parameters
    ----------
    image : uint8 array of shape (height, width, channels)
    brightness, contrast, gamma : float
        Above -1.

    Examples
    --------
    >>> adjust_light(np.full((1, 1, 3), 100, np.uint8), 0.5, 0.0, 0.0)[0, 0].tolist()
    [150, 150, 150]
    """
    # 256 levels are changed, not the pixels: the same for any number of channels, and cheap.
    levels = (np.arange(256) / 255) ** (1 + gamma)
    counts = np.bincount(image.ravel(), minlength=256)
    mean = counts @ levels / counts.sum()
    levels = ((levels - mean) * (1 + contrast) + mean) * (1 + brightness)
    return np.rint(levels.clip(0, 1) * 255).astype(np.uint8)[image]


def add_noise(image: Image8, std: float, rng: np.random.Generator) -> Image8:
    """Add Gaussian noise of this standard deviation in grey levels to every value."""
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(std)
    return np.rint(image + noise).clip(0, 255).astype(np.uint8)
