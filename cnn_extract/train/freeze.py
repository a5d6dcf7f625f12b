"""Which parameters a stage trains; everything else stays bit for bit as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cnn_extract._torchvision import import_timm

if TYPE_CHECKING:
    from torch import nn

__all__ = ["first_of_last_stages", "parameters_of_last_stages", "set_trained", "train_mode"]

# Last stages that a stage of the recipe trains, beside the head.
N_STAGES = {"head": 0, "last-stage": 1, "last-two-stages": 2}
# A last norm by itself, a weight and a bias, counts as a part of the stage before it.
SMALLEST = 2


def parameters_of_last_stages(backbone: nn.Module, n_stages: int) -> list[str]:
    """Names of the parameters of a timm model's last stages, in the model's order.

    What a stage is comes from timm's own `group_matcher`: a layer of a ResNet, a block of
    a transformer.

    Examples
    --------
    >>> from cnn_extract.models import create_model
    >>> names = parameters_of_last_stages(create_model("test_resnet", num_classes=0), 1)
    >>> {name.split(".")[0] for name in names}
    {'layer4'}
    """
    import_timm()
    from timm.models import group_parameters

    if n_stages == 0:
        return []
    matcher: Any = getattr(backbone, "group_matcher")  # noqa: B009
    groups: dict[int, list[str]] = group_parameters(backbone, matcher(coarse=True))
    parts = [groups[key] for key in sorted(groups)]
    while len(parts) > 1 and len(parts[-1]) <= SMALLEST:
        parts[-2:] = [parts[-2] + parts[-1]]
    wanted = {name for part in parts[-n_stages:] for name in part}
    return [name for name, _ in backbone.named_parameters() if name in wanted]


def first_of_last_stages(backbone: nn.Module, n_stages: int) -> str:
    """Name of the module that the last stages begin with, for example "blocks.6".

    Examples
    --------
    >>> from cnn_extract.models import create_model
    >>> first_of_last_stages(create_model("test_resnet", num_classes=0), 2)
    'layer3'
    """
    names = parameters_of_last_stages(backbone, n_stages)
    stage = names[0].split(".")
    # A numbered stage of a list ("blocks.6"), or a module of its own ("layer4").
    return ".".join(stage[:2] if stage[1].isdigit() and stage[0] in _LISTS else stage[:1])


_LISTS = ("blocks", "stages", "layers", "features")


def set_trained(network: Any, train: str) -> list[str]:
    """Let only the parameters of `train` learn; their names.

    Parameters
    ----------
    network : Network
        With a `backbone` and a `head`.
    train : {"all", "head", "last-stage", "last-two-stages"}

    Examples
    --------
    >>> import numpy as np
    >>> from cnn_extract.train.networks import make_network
    >>> from cnn_extract.train.recipe import ModelRecipe
    >>> from cnn_extract.weights import Weights
    >>> recipe = ModelRecipe(name="test_resnet")
    >>> network = make_network(recipe, Weights("none"), ["", ""], np.array([0.5, 0.1]), size=32)
    >>> set_trained(network, "head")
    ['head.1.weight', 'head.1.bias']
    """
    if train == "all":
        network.requires_grad_(True)
    else:
        network.requires_grad_(False)
        network.head.requires_grad_(True)
        last = set(parameters_of_last_stages(network.backbone, N_STAGES[train]))
        for name, parameter in network.backbone.named_parameters():
            parameter.requires_grad_(name in last)
    return [name for name, p in network.named_parameters() if p.requires_grad]


@contextmanager
def train_mode(network: Any) -> Iterator[None]:
    """Training mode, but frozen modules as in prediction: no dropout, no new batch statistics.

    Examples
    --------
    >>> from torch import nn
    >>> network = nn.Sequential(nn.BatchNorm2d(3).requires_grad_(False), nn.Conv2d(3, 4, 1))
    >>> with train_mode(network):
    ...     [part.training for part in network]
    [False, True]
    """
    network.train()
    for module in network.modules():
        own = list(module.parameters(recurse=True))
        if own and not any(p.requires_grad for p in own):
            module.eval()
    try:
        yield
    finally:
        network.eval()
