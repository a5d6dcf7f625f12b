"""A network: a timm backbone, what is read of it, and a head."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnn_extract._torchvision import import_timm, import_torch
from cnn_extract.models import InputConfig, check_model_name, input_config
from cnn_extract.train.heads import make_head
from cnn_extract.train.partial import make_partial
from cnn_extract.weights import Weights, load_model

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cnn_extract.train.recipe import ModelRecipe

__all__ = ["FEATURES", "make_network", "network_input", "without_trunk"]

# Where training begins when only the head is trained.
FEATURES = "features"


def make_network(
    recipe: ModelRecipe,
    weights: Weights,
    class_group: Sequence[str],
    share: NDArray[np.float64],
    *,
    n_channels: int = 3,
    size: int = 224,
) -> Any:
    """Make a network with the backbone's weights and a fresh head.

    Parameters
    ----------
    recipe : ModelRecipe
    weights : Weights
        Of the backbone.
    class_group : sequence of str, n_classes long
    share : float array of shape (n_classes,)
        How frequent each class is.
    n_channels : int
        Of the images; weights of the first layer are spread over other than three.
    size : int
        Input side, to find out how wide the features are.

    Returns
    -------
    torch module
        Normalised images (n_images, n_channels, size, size) to logits; with `backbone`, `head`,
        and ``features(batch)``.

    Examples
    --------
    >>> import torch
    >>> from cnn_extract.train.recipe import ModelRecipe
    >>> recipe = ModelRecipe(name="test_resnet")
    >>> network = make_network(recipe, Weights("none"), ["", ""], np.array([0.5, 0.1]), size=32)
    >>> network(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 2])
    """
    backbone = _backbone(recipe, weights, n_channels)
    if recipe.partial_conv:
        make_partial(backbone)
    reader = _last_two if recipe.reads == "last-two" else _last
    width = _width(backbone, reader, n_channels, size)
    return _network(backbone, make_head(recipe, width, class_group, share), reader)


def _backbone(recipe: ModelRecipe, weights: Weights, n_channels: int) -> Any:
    timm = import_timm()
    check_model_name(recipe.name)
    extra = {"drop_path_rate": recipe.drop_path} if recipe.drop_path else {}
    try:
        made = timm.create_model(recipe.name, in_chans=n_channels, num_classes=0, **extra)
    except TypeError as error:
        raise ValueError(
            f"model {recipe.name!r} does not take drop_path: {error}; set [model] drop_path = 0"
        ) from error
    if weights.kind != "none":
        given: Any = load_model(recipe.name, weights, n_channels=n_channels)
        state = {k: v for k, v in given.state_dict().items() if k in made.state_dict()}
        made.load_state_dict(state)
    return made.requires_grad_(True)


def _last(backbone: Any, batch: torch.Tensor) -> torch.Tensor:
    """Read the model's features before its classifier."""
    return backbone.forward_head(backbone.forward_features(batch), pre_logits=True)


def _last_two(backbone: Any, batch: torch.Tensor) -> torch.Tensor:
    """Read the model's features, and the mean of the stage before the last (A28)."""
    torch = import_torch()
    final, stages = backbone.forward_intermediates(batch, indices=2)
    features = backbone.forward_head(final, pre_logits=True)
    return torch.cat([features, stages[0].mean((2, 3))], 1)


def _width(backbone: Any, reader: Any, n_channels: int, size: int) -> int:
    torch = import_torch()
    with torch.inference_mode():
        probe = torch.zeros(1, n_channels, size, size)
        return int(reader(backbone.eval(), probe).shape[1])


def _network(backbone: Any, head: Any, reader: Any) -> Any:
    from torch import nn

    class Network(nn.Module):
        """A backbone and a head, by name."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone
            self.head = head
            self.begin_at(None)

        def begin_at(self, cut: str | None) -> None:
            """Take what arrives at a module, or the features, in place of images."""
            # Not registered: the tail shares the backbone's modules, in copies of the network too.
            tail = cut and cut != FEATURES and without_trunk(self.backbone, cut)
            self.__dict__["_cut"], self.__dict__["_tail"] = cut, tail

        def features(self, batch: torch.Tensor) -> torch.Tensor:
            """Give what the head reads, (n_images, width)."""
            read: torch.Tensor = reader(self.backbone, batch)
            return read

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            cut = self.__dict__["_cut"]
            if cut == FEATURES:
                return self._logits(batch)
            return self._logits(
                reader(self.__dict__["_tail"], batch) if cut else self.features(batch)
            )

        def _logits(self, features: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(features)
            return logits

    return Network()


def without_trunk(backbone: Any, cut: str) -> Any:
    """Share a backbone's modules from `cut` on; what comes before lets everything through.

    Parameters
    ----------
    backbone : timm model
    cut : str
        A module by name, such as "layer4" or "blocks.6".

    Examples
    --------
    >>> from cnn_extract.models import create_model
    >>> tail = without_trunk(create_model("test_resnet", num_classes=0), "layer4")
    >>> type(tail.layer3).__name__, type(tail.layer4).__name__
    ('Identity', 'Sequential')
    """
    first, _, number = cut.partition(".")
    tail = _shallow(backbone)
    for name in list(tail._modules):
        if name == first:
            break
        tail._modules[name] = _through()
    if number:
        blocks = _shallow(tail._modules[first])
        for name in list(blocks._modules):
            if name == number:
                break
            blocks._modules[name] = _through()
        tail._modules[first] = blocks
    return tail


def _shallow(module: Any) -> Any:
    """Copy a module that shares its parts with the original."""
    made = copy.copy(module)
    made._modules = dict(module._modules)
    return made


def _through() -> Any:
    return import_torch().nn.Identity()


def network_input(
    recipe_name: str,
    *,
    size: int | None,
    n_channels: int,
    collected: tuple[Sequence[float], Sequence[float]] | None = None,
) -> InputConfig:
    """Side, mean and std of the input; mean and std are the images' own where `collected` (B3).

    Examples
    --------
    >>> network_input("tf_efficientnet_lite0", size=None, n_channels=3)
    InputConfig(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    """
    timm = import_timm()
    # Without the weights of a large model: only its configuration is wanted.
    torch = import_torch()
    with torch.device("meta"):
        model: nn.Module = timm.create_model(check_model_name(recipe_name))
    config = input_config(model, size=size, n_channels=n_channels)
    if collected is None:
        return config
    mean, std = collected
    return InputConfig(config.size, tuple(mean), tuple(std))
