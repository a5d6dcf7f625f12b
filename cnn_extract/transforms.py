"""From an image's pixels to a model's input: crop if needed, resize, flip."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnn_extract.images import Pixels, to_uint8

__all__ = ["VIEWS", "crop_if_needed", "model_input"]

# Test-time augmentations by name: which views of an image are averaged.
VIEWS: dict[str, tuple[str, ...]] = {"none": ("plain",), "hflip": ("plain", "flipped")}


def crop_if_needed(pixels: Pixels, limit: int) -> Pixels:
    """Crop each side that is longer than `limit` to `limit`, about the centre (recipe A1).

    Very long images lose their ends instead of being squashed; ordinary ones stay whole. The first
    place of iMet 2019 used twice the model's input size as the limit.

    Parameters
    ----------
    pixels : array of shape (height, width, channels)
    limit : int
        In pixels.

    Returns
    -------
    array of shape (min(height, limit), min(width, limit), channels)
        A view of `pixels`.

    Examples
    --------
    >>> crop_if_needed(np.zeros((500, 300, 3), np.uint8), 600).shape
    (500, 300, 3)
    >>> crop_if_needed(np.zeros((500, 900, 3), np.uint8), 600).shape
    (500, 600, 3)
    """
    height, width = pixels.shape[:2]
    top, left = max(0, (height - limit) // 2), max(0, (width - limit) // 2)
    return pixels[top : top + limit, left : left + limit]


def model_input(pixels: Pixels, size: int) -> NDArray[np.uint8]:
    """Crop to twice the input size where needed, then resize both sides to it (recipe A1).

    Parameters
    ----------
    pixels : uint8 or uint16 array of shape (height, width, channels)
    size : int
        Side of the model's input in pixels.

    Returns
    -------
    uint8 array of shape (size, size, channels)
        Resized with an antialiased bicubic filter.

    Examples
    --------
    >>> model_input(np.zeros((500, 900, 3), np.uint8), 224).shape
    (224, 224, 3)
    """
    crop = np.ascontiguousarray(to_uint8(crop_if_needed(pixels, 2 * size)))
    if crop.shape[2] == 3:
        return _resize(crop, size)
    planes = [_resize(np.ascontiguousarray(crop[:, :, k]), size) for k in range(crop.shape[2])]
    return np.stack(planes, axis=2)


def _resize(crop: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))
