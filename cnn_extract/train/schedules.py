"""Optimisers and learning rate schedules of a stage: timm's and torch's, by name."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cnn_extract._torchvision import import_timm, import_torch

if TYPE_CHECKING:
    from cnn_extract.train.recipe import Stage

__all__ = ["Schedule", "make_optimiser", "make_schedule"]


def make_optimiser(network: Any, stage: Stage) -> Any:
    """Make the stage's optimiser over the parameters that learn; head and backbone apart.

    Raises
    ------
    ValueError
        When timm knows no optimiser of that name; names the nearest.

    Examples
    --------
    >>> import torch
    >>> from cnn_extract.train.recipe import Stage
    >>> parts = {"backbone": torch.nn.Linear(4, 3), "head": torch.nn.Linear(3, 2)}
    >>> network = torch.nn.ModuleDict(parts)
    >>> optimiser = make_optimiser(network, Stage(optimiser="sgd", lr=0.1, backbone_lr=0.5))
    >>> sorted({group["lr"] for group in optimiser.param_groups})
    [0.05, 0.1]
    """
    import_timm()
    from timm.optim import create_optimizer_v2, list_optimizers

    known = list_optimizers()
    if stage.optimiser not in known:
        near = difflib.get_close_matches(stage.optimiser, known, n=3)
        raise ValueError(f"timm has no optimiser {stage.optimiser!r}; near names: {near}")
    groups = []
    for part, factor in (("head.", 1.0), ("backbone.", stage.backbone_lr)):
        groups += _decay_groups(network, part, factor, stage)
    return create_optimizer_v2(
        groups,
        opt=stage.optimiser,
        lr=stage.lr,
        weight_decay=stage.weight_decay,
        momentum=stage.momentum,
    )


def _decay_groups(network: Any, part: str, factor: float, stage: Stage) -> list[dict[str, Any]]:
    """Weights with decay and, apart, biases and norms without: as timm's own filter does."""
    mine = [p for n, p in network.named_parameters() if p.requires_grad and n.startswith(part)]
    sets = (
        ([p for p in mine if p.ndim > 1], stage.weight_decay),
        ([p for p in mine if p.ndim <= 1], 0.0),
    )
    return [
        {"params": params, "weight_decay": decay, "lr": stage.lr * factor}
        for params, decay in sets
        if params
    ]


@dataclass
class Schedule:
    """Sets the learning rate before each step and, where it wants it, after each epoch.

    Examples
    --------
    >>> Schedule("constant", None).state_dict()
    {}
    """

    kind: str
    scheduler: Any

    def before_step(self, step: int) -> None:
        """Set the learning rate for step number `step` of the stage, from 0."""
        if self.kind in ("cosine", "drops", "halve"):
            self.scheduler.step_update(step)

    def after_step(self) -> None:
        """Tell the schedules that count steps themselves."""
        if self.kind == "onecycle":
            self.scheduler.step()

    def after_epoch(self, train_loss: float) -> None:
        """Tell the schedules that count epochs or watch the training loss."""
        if self.kind == "plateau":
            self.scheduler.step(train_loss)
        elif self.kind == "exponential":
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """State as JSON takes it; empty where the step's number says everything."""
        if self.kind not in ("onecycle", "plateau", "exponential"):
            return {}
        kept = self.scheduler.state_dict().items()
        return {k: v for k, v in kept if isinstance(v, (int, float, str, list, type(None)))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        if state:
            self.scheduler.load_state_dict(state)


def make_schedule(optimiser: Any, stage: Stage, steps_per_epoch: int) -> Schedule:
    """Make the stage's schedule.

    Parameters
    ----------
    optimiser : torch optimiser
    stage : Stage
    steps_per_epoch : int
        Steps of the optimiser in an epoch.

    Examples
    --------
    >>> import torch
    >>> from cnn_extract.train.recipe import Stage
    >>> optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> schedule = make_schedule(optimiser, Stage(epochs=4, lr=0.1, schedule="halve", every=2), 1)
    >>> rates = []
    >>> for step in range(4):
    ...     schedule.before_step(step)
    ...     rates.append(optimiser.param_groups[0]["lr"])
    >>> rates
    [0.1, 0.1, 0.05, 0.05]
    """
    import_timm()
    from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, StepLRScheduler

    torch = import_torch()
    schedulers = torch.optim.lr_scheduler
    total = stage.epochs * steps_per_epoch
    kind = stage.schedule
    made: Any = None
    if kind == "cosine":
        warmup = min(math.ceil(stage.warmup * steps_per_epoch), total - 1)
        made = CosineLRScheduler(
            optimiser,
            t_initial=total - warmup,
            warmup_t=warmup,
            warmup_lr_init=stage.lr / 100,
            warmup_prefix=True,
            t_in_epochs=False,
        )
    elif kind == "drops":
        made = MultiStepLRScheduler(
            optimiser,
            # timm counts from the step to come: without the 1 the rate drops a step early.
            decay_t=[epoch * steps_per_epoch + 1 for epoch in stage.drops],
            decay_rate=stage.factor,
            t_in_epochs=False,
        )
    elif kind == "halve":
        made = StepLRScheduler(
            optimiser, decay_t=stage.every * steps_per_epoch, decay_rate=0.5, t_in_epochs=False
        )
    elif kind == "plateau":
        made = schedulers.ReduceLROnPlateau(optimiser, factor=stage.factor, patience=stage.patience)
    elif kind == "exponential":
        made = schedulers.ExponentialLR(optimiser, gamma=stage.decay)
    elif kind == "onecycle":
        highest = [group["lr"] for group in optimiser.param_groups]
        cycles = "betas" in optimiser.defaults or "momentum" in optimiser.defaults
        made = schedulers.OneCycleLR(
            optimiser, max_lr=highest, total_steps=total, cycle_momentum=cycles
        )
    return Schedule(kind, made)
