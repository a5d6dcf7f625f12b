"""Partial convolutions: padded borders are weighed up, as the second place of iMet 2019 did (A21).

Padding-based partial convolution, Liu et al. (2018): where a kernel hangs over the border, its
output is multiplied by (kernel size) / (kernel positions inside the image), so that zeros that are
no image do not dim the border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cnn_extract._torchvision import import_torch

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["border_ratio", "make_partial"]


def make_partial(model: nn.Module) -> int:
    """Weigh the borders of every padded convolution of `model`; return how many there are.

    The parameters keep their names, so checkpoints fit both ways.

    Examples
    --------
    >>> from torch import nn
    >>> make_partial(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)))
    1
    """
    torch = import_torch()
    found = 0
    for conv in model.modules():
        if isinstance(conv, torch.nn.Conv2d) and max(_padding(conv)) > 0:
            conv.register_forward_hook(_weigh)
            found += 1
    return found


def _padding(conv: Any) -> tuple[int, int]:
    """Give the padding of each side; timm's "same" convolutions pad by themselves and have 0."""
    if isinstance(conv.padding, str):
        tall, wide = conv.kernel_size
        return (0, 0) if conv.padding == "valid" else (tall // 2, wide // 2)
    return int(conv.padding[0]), int(conv.padding[1])


def _weigh(conv: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    ratio = border_ratio(conv, inputs[0]).to(output.dtype)
    if conv.bias is None:
        return output * ratio
    bias = conv.bias.view(1, -1, 1, 1)
    return (output - bias) * ratio + bias


def border_ratio(conv: Any, batch: torch.Tensor) -> torch.Tensor:
    """(kernel size) / (positions inside the image) of each output place: (1, 1, height, width).

    Examples
    --------
    >>> import torch
    >>> conv = torch.nn.Conv2d(3, 4, 3, padding=1)
    >>> border_ratio(conv, torch.zeros(1, 3, 3, 3))[0, 0].tolist()
    [[2.25, 1.5, 2.25], [1.5, 1.0, 1.5], [2.25, 1.5, 2.25]]
    """
    torch = import_torch()
    inside = torch.ones(1, 1, *batch.shape[2:], device=batch.device)
    kernel = torch.ones(1, 1, *conv.kernel_size, device=batch.device)
    with torch.no_grad():
        count = torch.nn.functional.conv2d(
            inside, kernel, stride=conv.stride, padding=conv.padding, dilation=conv.dilation
        )
    return kernel.numel() / count
