"""A timm model by name, as a frozen feature extractor."""

from __future__ import annotations

import copy
import difflib
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cnn_extract._torchvision import import_timm, import_torch

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "InputConfig",
    "autocast",
    "check_model_name",
    "create_model",
    "embed",
    "fuse_norms",
    "input_config",
    "normalise",
]

# Folding changes the order of float32 sums, no more; a wrong fold is off by whole units.
FUSE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class InputConfig:
    """What a model expects: side in pixels, and each channel's mean and std on the scale 0 to 1.

    Examples
    --------
    >>> InputConfig(224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).size
    224
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def check_model_name(name: str) -> str:
    """Return `name` if timm has that model.

    Raises
    ------
    ValueError
        When timm has no such model; names the nearest ones.

    Examples
    --------
    >>> check_model_name("tf_efficientnet_lite0")
    'tf_efficientnet_lite0'
    """
    timm = import_timm()
    if name.startswith(("hf_hub:", "hf-hub:", "local-dir:")) or timm.is_model(name):
        return name
    known = timm.list_models()
    plain = {_plain(k): k for k in known}
    near = difflib.get_close_matches(_plain(name), list(plain), n=5, cutoff=0.5)
    # "efficientnet-lite0" is near to much, but it is a part of few names.
    parts = sorted((k for k in known if _plain(name) in _plain(k)), key=len)
    found = list(dict.fromkeys([*parts[:3], *(plain[n] for n in near)]))[:5]
    hint = f"near names: {', '.join(found)}" if found else "see timm.list_models()"
    raise ValueError(f"timm has no model {name!r}; {hint}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def create_model(
    name: str, *, n_channels: int = 3, num_classes: int | None = None, pretrained: bool = False
) -> nn.Module:
    """Make a timm model in evaluation mode, without gradients.

    Parameters
    ----------
    name : str
        A timm model.
    n_channels : int, default=3
        Channels of the images.
    num_classes : int, optional
        Width of the classifier; default: the model's own.
    pretrained : bool, default=False
        Load weights from timm's hub.

    Examples
    --------
    >>> create_model("test_resnet", num_classes=2).num_classes
    2
    """
    timm = import_timm()
    check_model_name(name)
    extra = {} if num_classes is None else {"num_classes": num_classes}
    model: nn.Module = timm.create_model(name, pretrained=pretrained, in_chans=n_channels, **extra)
    return model.eval().requires_grad_(False)


def input_config(model: nn.Module, *, size: int | None, n_channels: int) -> InputConfig:
    """Input side (`size`, or the model's own), mean and std, repeated over further channels.

    Raises
    ------
    ValueError
        When `size` differs from the only one the model takes.

    Examples
    --------
    >>> input_config(create_model("test_resnet"), size=None, n_channels=3).size
    160
    """
    timm = import_timm()
    found = timm.data.resolve_data_config({}, model=model)
    own = int(found["input_size"][-1])
    fixed = bool(getattr(model, "pretrained_cfg", {}).get("fixed_input_size", False))
    if size is not None and size != own and fixed:
        raise ValueError(f"this model takes only {own} x {own} pixels; got --size {size}")
    repeat = -(-n_channels // 3)
    mean, std = ((tuple(found[k]) * repeat)[:n_channels] for k in ("mean", "std"))
    return InputConfig(size or own, mean, std)


def embed(
    model: nn.Module,
    images: torch.Tensor,
    config: InputConfig,
    *,
    tta: str = "none",
    precision: str = "float32",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Penultimate features and class logits of one batch, from one pass of the backbone.

    Parameters
    ----------
    model : timm model
    images : uint8 tensor of shape (n_images, height, width, channels)
    config : InputConfig
        Mean and std to normalise with.
    tta : {"none", "hflip"}, default="none"
        With "hflip" the features and the logits of the image and of its mirror image are averaged.
    precision : {"float32", "bf16", "fp16"}, default="float32"
        Of the forward pass (A25); the means are taken in float32.

    Returns
    -------
    features : float32 tensor of shape (n_images, dim)
    logits : float32 tensor of shape (n_images, num_classes), or None without a classifier

    Examples
    --------
    >>> import torch
    >>> model = create_model("test_resnet", num_classes=7)
    >>> config = input_config(model, size=32, n_channels=3)
    >>> features, logits = embed(model, torch.zeros(2, 32, 32, 3, dtype=torch.uint8), config)
    >>> tuple(features.shape), tuple(logits.shape)
    ((2, 96), (2, 7))
    """
    torch = import_torch()
    from cnn_extract.transforms import VIEWS

    device = next(iter(model.parameters())).device
    batch = normalise(images.to(device, non_blocking=True), config)
    views = [batch if view == "plain" else batch.flip(3) for view in VIEWS[tta]]
    with torch.inference_mode():
        with autocast(device, precision):
            outputs = [_forward(model, view) for view in views]
        features = torch.stack([f.float() for f, _ in outputs]).mean(0)
        logits = [one.float() for _, one in outputs if one is not None]
        return features, torch.stack(logits).mean(0) if logits else None


def autocast(device: Any, precision: str) -> Any:
    """Context in which a forward pass runs in this precision; float32 changes nothing.

    Examples
    --------
    >>> import torch
    >>> with autocast("cpu", "bf16"):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    """
    torch = import_torch()
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(
        str(device).partition(":")[0],
        dtype=kinds.get(precision, torch.bfloat16),
        enabled=precision in kinds,
    )


def normalise(images: torch.Tensor, config: InputConfig) -> torch.Tensor:
    """Scale to the model's mean and std; the result is channels_last, as the images come.

    Examples
    --------
    >>> import torch
    >>> white = torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)
    >>> normalise(white, InputConfig(1, (0.5, 0.5, 0.5), (0.5, 0.5, 0.25))).ravel().tolist()
    [1.0, 1.0, 2.0]
    """
    as_tensor = import_torch().tensor
    mean = as_tensor(config.mean, device=images.device).view(1, -1, 1, 1) * 255
    scale = as_tensor(config.std, device=images.device).view(1, -1, 1, 1) * 255
    return images.permute(0, 3, 1, 2).float().sub_(mean).div_(scale)


def _forward(model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    features = model.forward_head(model.forward_features(batch), pre_logits=True)
    if model.num_classes == 0:
        return features, None
    classifier = model.get_classifier()
    # Classifiers with two outputs or of a shape of their own (distilled ones) have no plain logits.
    return features, classifier(features) if callable(classifier) else None


def fuse_norms(model: Any, size: int, n_channels: int) -> nn.Module:
    """Fold each batch norm into the convolution before it: the same numbers, sooner.

    Folding relies on a norm that follows its convolution in the module also following it in the
    forward pass, so the result is checked on a random image; a model where that fails is returned
    as it was.

    Examples
    --------
    >>> plain = create_model("test_resnet")
    >>> fused = fuse_norms(plain, 32, 3)
    >>> len(fused.state_dict()) < len(plain.state_dict())
    True
    """
    torch = import_torch()
    fused: Any = copy.deepcopy(model)
    for parent in fused.modules():
        _fuse_children(parent)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(2, n_channels, size, size, generator=generator)
    with torch.inference_mode():
        want, got = (m.forward_features(probe) for m in (model, fused))
    if not torch.is_tensor(want):
        return model
    close = torch.allclose(want, got, rtol=FUSE_TOLERANCE, atol=FUSE_TOLERANCE * want.abs().max())
    return fused if close else model


def _fuse_children(parent: nn.Module) -> None:
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    children = list(parent.named_children())
    for (first, conv), (second, norm) in pairwise(children):
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        if conv.out_channels != norm.num_features:
            continue
        setattr(parent, first, fuse_conv_bn_eval(conv, norm))
        # timm's BatchNormAct2d holds its activation; a plain norm leaves nothing behind.
        rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
        setattr(parent, second, nn.Sequential(*rest) if rest else nn.Identity())
