"""Where a network's input comes from: images decoded by worker processes, or kept activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cnn_extract._torchvision import import_torch
from cnn_extract.decode import DecodePool
from cnn_extract.models import InputConfig, normalise
from cnn_extract.train.augment import View, decode_views

if TYPE_CHECKING:
    import torch

    from cnn_extract.train.recipe import InputRecipe

__all__ = ["Feed", "ImageFeed", "views_of"]


class Feed(Protocol):
    """Gives the network's input for images, batch by batch.

    Examples
    --------
    >>> import torch
    >>> class Noise:
    ...     def batches(self, batches):
    ...         return (torch.randn(len(views), 3, 32, 32) for views in batches)
    ...
    ...     def mirror(self, views, batch):
    ...         return batch.flip(3)
    >>> feed: Feed = Noise()
    >>> next(feed.batches([views_of(np.arange(2))])).shape
    torch.Size([2, 3, 32, 32])
    """

    def batches(self, batches: Iterable[Sequence[View]]) -> Iterator[torch.Tensor]:
        """Give one tensor, on the device, for each batch of views."""

    def mirror(self, views: Sequence[View], batch: torch.Tensor) -> torch.Tensor:
        """Give the input for the mirror images of plain views whose own input is `batch`."""


@dataclass(frozen=True)
class ImageFeed:
    """Decodes, augments and normalises images.

    Parameters
    ----------
    pool : DecodePool
    recipe : InputRecipe
    config : InputConfig
        Side, mean and std.
    device : torch device or str

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from cnn_extract.images import open_images
    >>> from cnn_extract.train.recipe import InputRecipe
    >>> config = InputConfig(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (40, 40), "white").save(folder + "/white.png")
    ...     with DecodePool(open_images(folder), workers=0) as pool:
    ...         batch = next(ImageFeed(pool, InputRecipe(), config).batches([[View(0)]]))
    >>> batch.shape, batch.max().item()
    (torch.Size([1, 3, 32, 32]), 1.0)
    """

    pool: DecodePool
    recipe: InputRecipe
    config: InputConfig
    device: Any = "cpu"

    def batches(self, batches: Iterable[Sequence[View]]) -> Iterator[torch.Tensor]:
        """Normalised float32 tensors (n_images, channels, size, size), channels last."""
        torch = import_torch()
        task = partial(
            decode_views,
            recipe=self.recipe,
            size=self.config.size,
            n_channels=len(self.config.mean),
        )
        for images in self.pool.map(task, batches):
            batch = torch.from_numpy(images)
            yield normalise(batch.to(self.device, non_blocking=True), self.config)

    def mirror(self, views: Sequence[View], batch: torch.Tensor) -> torch.Tensor:
        """Mirror the images left to right."""
        return batch.flip(3)


def views_of(rows: NDArray[np.intp], seeds: NDArray[np.uint64] | None = None) -> list[View]:
    """Make views of images: random ones with these seeds, or plain ones.

    Examples
    --------
    >>> views_of(np.array([4, 9]))
    [View(index=4, seed=-1), View(index=9, seed=-1)]
    """
    if seeds is None:
        return [View(int(row)) for row in rows]
    return [View(int(row), int(seed)) for row, seed in zip(rows, seeds, strict=True)]
