"""The device and the processes that train together, through accelerate."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from cnn_extract._torchvision import import_torch

if TYPE_CHECKING:
    import torch

__all__ = ["main_first", "make_accelerator", "sum_over_ranks"]

DEVICES = ("auto", "cpu", "cuda")


def make_accelerator(device: str, precision: str) -> Any:
    """Make the accelerator of this process; under ``accelerate launch`` one of several.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
    precision : {"no", "bf16", "fp16"}
        Mixed precision of training.

    Raises
    ------
    ValueError
        For a device that is not there, and fp16 training on a CPU.

    Examples
    --------
    >>> make_accelerator("cpu", "no").device.type
    'cpu'
    """
    torch = import_torch()
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}; got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is not available: torch sees no GPU; use --device cpu")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if on_cpu and precision == "fp16":
        raise ValueError("fp16 training needs a GPU; use --set batch.precision=bf16 on a CPU")
    # accelerate keeps one state a process; a second run in it may want another precision.
    state: Any = AcceleratorState
    if PartialState._shared_state and PartialState().num_processes == 1:
        state._reset_state(reset_partial_state=True)
    return Accelerator(cpu=on_cpu, mixed_precision=precision)


def main_first(accelerator: Any) -> Any:
    """Context that the main process goes through before the others.

    Examples
    --------
    >>> with main_first(make_accelerator("cpu", "no")):
    ...     print("one process need not wait")
    one process need not wait
    """
    return accelerator.main_process_first() if accelerator.num_processes > 1 else nullcontext()


def sum_over_ranks(accelerator: Any, values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all processes; the tensor itself where there is one.

    Examples
    --------
    >>> import torch
    >>> sum_over_ranks(make_accelerator("cpu", "no"), torch.tensor([2.0, 3.0])).tolist()
    [2.0, 3.0]
    """
    if accelerator.num_processes == 1:
        return values
    return accelerator.reduce(values.to(accelerator.device), reduction="sum").cpu()
