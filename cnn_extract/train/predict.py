"""Predict with a trained network: views averaged, each image by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnn_extract._torchvision import import_torch
from cnn_extract.models import autocast
from cnn_extract.train.feeds import Feed, views_of
from cnn_extract.train.losses import to_probabilities

if TYPE_CHECKING:
    import torch

    from cnn_extract.train.recipe import PredictRecipe

__all__ = ["average_views", "predict_rows"]


def average_views(
    views: Sequence[torch.Tensor], class_group: Sequence[str], *, mean: str, softmax: bool
) -> torch.Tensor:
    """Probabilities of images from several views' logits (A17, B5).

    Parameters
    ----------
    views : sequence of tensors of shape (n_images, n_classes)
        Logits.
    class_group : sequence of str, n_classes long
    mean : {"logits", "probabilities"}
        What is averaged.
    softmax : bool
        Whether the classes of a group compete.

    Examples
    --------
    >>> import torch
    >>> views = [torch.tensor([[0.0]]), torch.tensor([[4.0]])]
    >>> [round(average_views(views, [""], mean=m, softmax=False).item(), 3)
    ...  for m in ("logits", "probabilities")]
    [0.881, 0.741]
    """
    torch = import_torch()
    if mean == "logits":
        together = torch.stack([view.float() for view in views]).mean(0)
        return to_probabilities(together, class_group, softmax=softmax)
    every = [to_probabilities(view, class_group, softmax=softmax) for view in views]
    return torch.stack(every).mean(0)


def predict_rows(
    network: Any,
    feed: Feed,
    rows: NDArray[np.intp],
    recipe: PredictRecipe,
    class_group: Sequence[str],
    *,
    softmax: bool,
    batch_size: int,
    device: Any = "cpu",
    seed: int = 0,
    advance: Any = None,
) -> NDArray[np.float32]:
    """Probabilities of some images, float32 of shape (n_rows, n_classes).

    Parameters
    ----------
    network : Network
        In prediction mode.
    feed : Feed
    rows : int array
        Positions of the images.
    recipe : PredictRecipe
        Which views, what is averaged, the precision.
    class_group : sequence of str, n_classes long
    softmax : bool
    batch_size : int
    device : torch device or str
    seed : int
        Of the random views; an image's views depend on it and the image's position alone.
    advance : function of int, optional
        Told of every batch.

    Examples
    --------
    >>> import torch
    >>> from cnn_extract.train.recipe import PredictRecipe
    >>> class Blank:
    ...     def batches(self, batches):
    ...         return (torch.zeros(len(views), 4) for views in batches)
    >>> network, recipe = torch.nn.Linear(4, 2).eval(), PredictRecipe(hflip=False)
    >>> rows = np.arange(5)
    >>> predict_rows(network, Blank(), rows, recipe, ["", ""], softmax=False, batch_size=2).shape
    (5, 2)
    """
    torch = import_torch()
    parts = [rows[k : k + batch_size] for k in range(0, len(rows), batch_size)]
    kinds = 1 + recipe.views
    plan = [[views_of(part, _seeds(part, v, seed)) for v in range(kinds)] for part in parts]
    inputs = feed.batches(views for each in plan for views in each)
    made = np.empty((len(rows), len(class_group)), dtype=np.float32)
    done = 0
    for part, views in zip(parts, plan, strict=True):
        logits = []
        with torch.inference_mode(), autocast(device, recipe.precision):
            for kind in range(kinds):
                batch = next(inputs)
                logits.append(network(batch))
                if recipe.hflip and kind == 0:
                    logits.append(network(feed.mirror(views[0], batch)))
        probs = average_views(logits, class_group, mean=recipe.mean, softmax=softmax)
        made[done : done + len(part)] = probs.cpu().numpy()
        done += len(part)
        if advance is not None:
            advance(len(part))
    return made


def _seeds(rows: NDArray[np.intp], view: int, seed: int) -> NDArray[np.uint64] | None:
    """None for the plain view, else a seed for each image."""
    if view == 0:
        return None
    states = (np.random.SeedSequence([seed, view, int(row)]) for row in rows)
    return np.array([s.generate_state(1, np.uint64)[0] >> np.uint64(1) for s in states])
