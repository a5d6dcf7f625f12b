"""MixUp, CutMix and random erasing: timm's, for several labels an image and from a given seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_extract._torchvision import import_timm, import_torch

if TYPE_CHECKING:
    import torch

    from cnn_extract.train.recipe import InputRecipe

__all__ = ["mix", "seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators that timm and torch draw from, and put them back afterwards.

    Examples
    --------
    >>> import torch
    >>> with seeded(0):
    ...     first = torch.rand(1)
    >>> with seeded(0):
    ...     again = torch.rand(1)
    >>> bool(first == again)
    True
    """
    torch = import_torch()
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002


def mix(batch: torch.Tensor, recipe: InputRecipe) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Erase rectangles and mix images of one batch.

    Parameters
    ----------
    batch : tensor of shape (n_images, channels, height, width)
        Normalised; changed in place.
    recipe : InputRecipe
        Its erase, mixup and cutmix.

    Returns
    -------
    batch : tensor of the same shape
    shares : tensor of shape (n_images, n_images), or None
        How much of each original is in each mixed image: targets become ``shares @ targets``.

    Examples
    --------
    >>> import torch
    >>> from cnn_extract.train.recipe import InputRecipe
    >>> with seeded(0):
    ...     batch, shares = mix(torch.randn(4, 3, 8, 8), InputRecipe(mixup=1.0))
    >>> batch.shape, shares.sum(1).round().tolist()
    (torch.Size([4, 3, 8, 8]), [1.0, 1.0, 1.0, 1.0])
    """
    if recipe.erase:
        batch = _erase(batch, recipe.erase)
    if not (recipe.mixup or recipe.cutmix):
        return batch, None
    torch = import_torch()
    import_timm()
    from timm.data.mixup import Mixup

    n_images = len(batch)
    # timm mixes pairs; of an odd batch the last image stays as it is.
    even = n_images - n_images % 2
    shares = torch.eye(n_images, device=batch.device)
    if even:
        mixer: Any = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=0.0, num_classes=even)
        # Told that each image is a class of its own, timm gives the shares as its targets.
        own = torch.arange(even, device=batch.device)
        batch[:even], shares[:even, :even] = mixer(batch[:even].clone(), own)
    return batch, shares


def _erase(batch: torch.Tensor, probability: float) -> torch.Tensor:
    import_timm()
    from timm.data.random_erasing import RandomErasing

    # Zero is the mean colour after normalising.
    eraser: Any = RandomErasing(probability, mode="const", device=str(batch.device))
    return eraser(batch)
