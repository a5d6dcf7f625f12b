"""Import torchvision where its compiled operators do not load.

timm imports torchvision, and torchvision registers shape functions for its compiled operators when
it is imported. Where a torchvision build does not fit the installed torch (a CPU-only torch beside
a CUDA torchvision, say), the compiled operators are not loaded and that registration fails with
"operator torchvision::nms does not exist". timm needs none of these operators, so declaring them is
enough. Where torchvision works this module does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["import_timm", "import_torch", "mend_torchvision"]

_MISSING = "{name} is needed to run a CNN and is not installed: pip install 'pairstack[cnn]'"
_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# A torch.library.Library undoes its definitions when it is collected, so it must stay alive.
_KEPT: list[torch.library.Library] = []


def import_torch() -> Any:
    """Return the torch module, or name the extra that installs it.

    Raises
    ------
    ImportError
        When torch is not installed. Installed but broken keeps its own error.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise _named(error, "torch") from error
    return torch


def import_timm() -> Any:
    """Return the timm module; mends torchvision first, because timm imports it.

    Raises
    ------
    ImportError
        When timm or torchvision is not installed.
    """
    mend_torchvision()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise _named(error, "timm") from error
    return timm


def mend_torchvision() -> bool:
    """Make ``import torchvision`` work; return whether it had to be mended.

    Raises
    ------
    ImportError
        When torch or torchvision is not installed.
    RuntimeError
        When torchvision fails for any reason but its missing ``nms`` operator.
    """
    torch = import_torch()
    try:
        import torchvision
    except ModuleNotFoundError as error:
        raise _named(error, "torchvision") from error
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    else:
        return False
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + _NMS)
    _KEPT.append(library)
    import torchvision  # noqa: F401

    return True


def _named(error: ModuleNotFoundError, name: str) -> ModuleNotFoundError:
    """Say which extra installs `name`; a module missing inside it keeps its own error."""
    if error.name != name:
        return error
    return ModuleNotFoundError(_MISSING.format(name=name), name=name)
