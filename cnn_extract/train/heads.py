"""Heads: what turns a backbone's features into logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnn_extract._torchvision import import_torch
from cnn_extract.train.losses import columns_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cnn_extract.train.recipe import ModelRecipe

__all__ = ["cosine_head", "make_head"]

# Keeps the first bias finite for classes that no or every training image has.
RAREST = 1e-4


def make_head(
    recipe: ModelRecipe, width: int, class_group: Sequence[str], share: NDArray[np.float64]
) -> nn.Module:
    """Make a head: (n_images, width) features to (n_images, n_classes) logits.

    Parameters
    ----------
    recipe : ModelRecipe
        Its head, hidden, dropout, scale and per_group.
    width : int
    class_group : sequence of str, n_classes long
    share : float array of shape (n_classes,)
        How frequent each class is in training; what the head says before it has learnt anything.

    Examples
    --------
    >>> import torch
    >>> from cnn_extract.train.recipe import ModelRecipe
    >>> head = make_head(ModelRecipe(head="mlp"), 8, ["tag", "tag"], np.array([0.5, 0.1])).eval()
    >>> head(torch.zeros(3, 8)).shape
    torch.Size([3, 2])
    """
    if not recipe.per_group:
        return _one_head(recipe, width, share)
    columns = columns_of(class_group)
    heads = [_one_head(recipe, width, share[index]) for index in columns.values()]
    return _grouped(heads, list(columns.values()))


def _one_head(recipe: ModelRecipe, width: int, share: NDArray[np.float64]) -> nn.Module:
    from torch import nn

    drop = nn.Dropout(recipe.dropout)
    if recipe.head == "cosine":
        return nn.Sequential(drop, cosine_head(width, len(share), recipe.scale))
    if recipe.head == "linear":
        return nn.Sequential(drop, _last(width, share))
    first = nn.Linear(width, recipe.hidden)
    again = nn.Dropout(recipe.dropout)
    return nn.Sequential(drop, first, nn.ReLU(), again, _last(recipe.hidden, share))


def _last(width: int, share: NDArray[np.float64]) -> nn.Linear:
    """Make a layer that gives every image the classes' frequencies, until it is trained."""
    torch = import_torch()
    layer: nn.Linear = torch.nn.Linear(width, len(share))
    usual = np.clip(share, RAREST, 1 - RAREST)
    with torch.no_grad():
        layer.weight.mul_(0.1)
        layer.bias.copy_(torch.from_numpy(np.log(usual / (1 - usual))))
    return layer


def cosine_head(width: int, n_classes: int, scale: float) -> nn.Module:
    """Logits ``scale * cos(features, class weights)`` (C2).

    Examples
    --------
    >>> import torch
    >>> logits = cosine_head(width=8, n_classes=2, scale=30.0)(torch.ones(5, 8))
    >>> logits.shape, bool(logits.abs().max() <= 30)
    (torch.Size([5, 2]), True)
    """
    from torch import nn
    from torch.nn import functional

    class CosineHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(import_torch().empty(n_classes, width))
            nn.init.xavier_normal_(self.weight)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            unit = functional.normalize(features.float(), dim=1)
            return scale * functional.linear(unit, functional.normalize(self.weight, dim=1))

    return CosineHead()


def _grouped(heads: list[Any], columns: list[NDArray[np.intp]]) -> nn.Module:
    """Put the heads of the class groups side by side, columns in the classes' order (A29, B1)."""
    from torch import cat, from_numpy, nn

    # Column k of the result is column order[k] of the heads' outputs one after the other.
    order = from_numpy(np.argsort(np.concatenate(columns)))

    class GroupedHeads(nn.Module):
        order: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(heads)
            self.register_buffer("order", order, persistent=False)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return cat([head(features) for head in self.heads], 1)[:, self.order]

    return GroupedHeads()
