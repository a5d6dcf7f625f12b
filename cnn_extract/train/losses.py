"""Losses: (n_images, n_classes) logits and targets in, one loss an image out.

Losses of single classes are summed over the classes. Softmax losses compare the classes of one
class group with each other: a group is a level of the hierarchy, or the one list of classes where
there are no groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cnn_extract._torchvision import import_timm, import_torch

if TYPE_CHECKING:
    import torch

    from cnn_extract.train.recipe import Stage

__all__ = [
    "SOFTMAX",
    "Loss",
    "am_softmax",
    "class_weights",
    "cross_entropy",
    "focal",
    "make_loss",
    "smooth",
    "soft_fbeta",
    "to_probabilities",
]

Loss: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"
# Losses whose outputs are probabilities of one class out of a group.
SOFTMAX = ("cross-entropy", "am-softmax")
# Of "effective" class weights: (1 - EFFECTIVE) / (1 - EFFECTIVE ** n), Cui et al. (2019).
EFFECTIVE = 0.999


def make_loss(
    stage: Stage,
    class_group: Sequence[str],
    counts: NDArray[np.int64],
    *,
    scale: float = 1.0,
    device: str = "cpu",
) -> Loss:
    """Make the loss of a stage.

    Parameters
    ----------
    stage : Stage
    class_group : sequence of str, n_classes long
    counts : int array of shape (n_classes,)
        How many training images have each class, for class weights.
    scale : float
        Of a cosine head's logits.
    device : str

    Returns
    -------
    function of (logits, targets), both (n_images, n_classes), to losses of shape (n_images,)

    Raises
    ------
    ValueError
        For class groups that are not there.

    Examples
    --------
    >>> import torch
    >>> from cnn_extract.train.recipe import Stage
    >>> loss = make_loss(Stage(loss="bce"), ["", ""], np.array([5, 1]))
    >>> loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).round(decimals=2)
    tensor([1.3900])
    """
    weights = group_weights(stage, class_group)
    if stage.loss in SOFTMAX:
        return _softmax_loss(stage, class_group, weights, scale, device)
    of_group = np.array([weights[g] for g in class_group])
    per_class = of_group * class_weights(counts, stage.class_weights)
    column = import_torch().as_tensor(per_class.astype(np.float32), device=device)
    if stage.loss == "soft-fbeta":
        used = np.flatnonzero(per_class > 0)
        return lambda x, y: soft_fbeta(x[:, used], y[:, used], stage.beta)
    element = _element_loss(stage)

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (element(logits.float(), smooth(targets, stage.smoothing)) * column).sum(1)

    return loss


def _element_loss(stage: Stage) -> Loss:
    torch = import_torch()
    if stage.loss == "focal":
        return lambda x, y: focal(x, y, stage.focus)
    if stage.loss == "asymmetric":
        import_timm()
        from timm.loss import AsymmetricLossMultiLabel

        asymmetric: Loss = AsymmetricLossMultiLabel(gamma_neg=stage.focus, reduction="none")
        return asymmetric
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    return lambda x, y: bce(x, y, reduction="none")


def _softmax_loss(
    stage: Stage,
    class_group: Sequence[str],
    weights: dict[str, float],
    scale: float,
    device: str,
) -> Loss:
    as_tensor, zeros = import_torch().as_tensor, import_torch().zeros
    columns = {g: as_tensor(c, device=device) for g, c in columns_of(class_group).items()}
    margin = stage.margin * scale if stage.loss == "am-softmax" else 0.0

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x, total = logits.float(), zeros(len(logits), device=logits.device)
        for group, index in columns.items():
            if weights[group]:
                part = am_softmax(x[:, index], targets[:, index], margin, stage.smoothing)
                total = total + weights[group] * part
        return total

    return loss


def columns_of(class_group: Sequence[str]) -> dict[str, NDArray[np.intp]]:
    """Positions of each group's classes, groups in order of first appearance.

    Examples
    --------
    >>> {k: v.tolist() for k, v in columns_of(["tag", "culture", "tag"]).items()}
    {'tag': [0, 2], 'culture': [1]}
    """
    groups = np.asarray(class_group)
    return {str(g): np.flatnonzero(groups == g) for g in dict.fromkeys(groups.tolist())}


def group_weights(stage: Stage, class_group: Sequence[str]) -> dict[str, float]:
    """Weight of each class group's loss in a stage (B1); 0 for groups it leaves out (A19).

    Raises
    ------
    ValueError
        For a group that no class has.
    """
    there = list(columns_of(class_group))
    for name in (*stage.groups, *stage.group_weights):
        if name not in there:
            raise ValueError(
                f"stage {stage.name!r} names class group {name!r}; the labels have "
                f"{', '.join(map(repr, there))}. A label's group is what stands before '::'; "
                f"choose groups that are there with --set stage.groups='[]' or in the recipe."
            )
    counted = stage.groups or there
    return {g: stage.group_weights.get(g, 1.0) if g in counted else 0.0 for g in there}


def class_weights(counts: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
    """Weights of the classes in the loss, mean 1 (B2).

    Parameters
    ----------
    counts : int array of shape (n_classes,)
        Images with each class; 0 counts as 1.
    kind : {"none", "log", "inverse", "effective"}
        1; 1 + log(largest / n); 1 / n; 1 / (effective number of n images), Cui et al. (2019).

    Examples
    --------
    >>> class_weights(np.array([3, 1]), "inverse").tolist()
    [0.5, 1.5]
    """
    n = np.maximum(counts, 1).astype(np.float64)
    raw = {
        "none": np.ones_like(n),
        "log": 1 + np.log(n.max(initial=1) / n),
        "inverse": 1 / n,
        "effective": (1 - EFFECTIVE) / (1 - EFFECTIVE**n),
    }[kind]
    return np.asarray(raw / raw.mean())


def smooth(targets: torch.Tensor, amount: float) -> torch.Tensor:
    """Label smoothing over n classes: ``y * (1 - amount) + amount / n`` (A20).

    Examples
    --------
    >>> import torch
    >>> smooth(torch.tensor([[1.0, 0.0]]), 0.1).tolist()
    [[0.949999988079071, 0.05000000074505806]]
    """
    return targets * (1 - amount) + amount / targets.shape[1] if amount else targets


def focal(logits: torch.Tensor, targets: torch.Tensor, focus: float) -> torch.Tensor:
    """Focal loss of each image and class, Lin et al. (2017), without its alpha (A4).

    ``y * (1 - p)**focus * -log(p) + (1 - y) * p**focus * -log(1 - p)``, p the sigmoid.

    Examples
    --------
    >>> import torch
    >>> focal(torch.zeros(1, 1), torch.ones(1, 1), focus=2.0).round(decimals=3)  # 0.25 * log(2)
    tensor([[0.1730]])
    """
    torch = import_torch()
    log_p = torch.nn.functional.logsigmoid(logits)
    log_q = torch.nn.functional.logsigmoid(-logits)
    p, q = log_p.exp(), log_q.exp()
    return -(targets * q**focus * log_p + (1 - targets) * p**focus * log_q)


def soft_fbeta(logits: torch.Tensor, targets: torch.Tensor, beta: float = 2.0) -> torch.Tensor:
    """1 - F-beta of each image, with probabilities in place of decisions (A28).

    ``1 - (1 + b**2) * sum(p * y) / (b**2 * sum(y) + sum(p))``; 0 for an image without labels that
    is given none.

    Examples
    --------
    >>> import torch
    >>> soft_fbeta(torch.tensor([[50.0, -50.0]]), torch.tensor([[1.0, 0.0]])).item()
    0.0
    """
    p = logits.float().sigmoid()
    hits, wanted, given = (p * targets).sum(1), targets.sum(1), p.sum(1)
    # The 1e-6 is what an image without labels and predictions would otherwise divide by.
    return 1 - ((1 + beta**2) * hits + 1e-6) / (beta**2 * wanted + given + 1e-6)


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """Softmax cross-entropy of each image; several labels share the target evenly.

    An image without a label says nothing: its loss is 0.

    Examples
    --------
    >>> import torch
    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([[1.0, 1, 0, 0]])).round(decimals=3)  # log(4)
    tensor([1.3860])
    """
    n_labels = targets.sum(1, keepdim=True)
    shares = smooth(targets / n_labels.clamp(min=1e-12), smoothing)
    losses = -(shares * logits.log_softmax(1)).sum(1)
    return losses * (n_labels.squeeze(1) > 0)


def am_softmax(
    logits: torch.Tensor, targets: torch.Tensor, margin: float, smoothing: float = 0.0
) -> torch.Tensor:
    """Additive-margin softmax, Wang et al. (2018): the image's own classes are made harder (C2).

    Parameters
    ----------
    logits, targets : tensors of shape (n_images, n_classes)
        Logits are scale * cosine.
    margin : float
        Taken from the logits of the image's classes: scale * margin of the cosines.
    smoothing : float

    Examples
    --------
    >>> import torch
    >>> logits, targets = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> bool(am_softmax(logits, targets, margin=1.0) > cross_entropy(logits, targets))
    True
    """
    return cross_entropy(logits - margin * targets, targets, smoothing)


def to_probabilities(
    logits: torch.Tensor, class_group: Sequence[str], *, softmax: bool
) -> torch.Tensor:
    """Probabilities: the sigmoid, or the softmax within each class group.

    Examples
    --------
    >>> import torch
    >>> to_probabilities(torch.zeros(1, 3), ["a", "a", "b"], softmax=True).tolist()
    [[0.5, 0.5, 1.0]]
    """
    torch = import_torch()
    if not softmax:
        return logits.float().sigmoid()
    made = torch.empty_like(logits, dtype=torch.float32)
    for index in columns_of(class_group).values():
        made[:, index] = logits[:, index].float().softmax(1)
    return made
