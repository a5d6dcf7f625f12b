"""A training recipe as frozen dataclasses: every setting, what it may be, where it comes from.

The ids in brackets are the rows of docs/recipes.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BatchRecipe",
    "DistillRecipe",
    "InputRecipe",
    "ModelRecipe",
    "PredictRecipe",
    "Recipe",
    "SamplingRecipe",
    "Stage",
    "refuse_contradictions",
]

Check = Callable[[Any], str | None]


def _check(rule: str, holds: Callable[[Any], bool]) -> dict[str, Check]:
    return {"check": lambda value: None if holds(value) else rule}


def _one_of(default: str, *others: str) -> Any:
    allowed = (default, *others)
    return field(
        default=default, metadata=_check(f"one of {', '.join(allowed)}", lambda v: v in allowed)
    )


def _number(default: float, low: float = 0.0, high: float = float("inf")) -> Any:
    rule = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
    return field(default=default, metadata=_check(rule, lambda v: low <= v <= high))


def _span(low: float, high: float) -> Any:
    ordered = _check("two rising numbers above 0", lambda v: len(v) == 2 and 0 < v[0] <= v[1])
    return field(default=(low, high), metadata=ordered)


@dataclass(frozen=True)
class ModelRecipe:
    """The network: a timm backbone and what classifies its features.

    Attributes
    ----------
    name : str
        Any timm model (C6, D6).
    reads : {"last", "last-two"}
        What the head reads: the model's features, or those and the stage before them (A28).
    head : {"linear", "mlp", "cosine"}
    per_group : bool
        A head of its own for each class group (A8, A29) or level (B1).
    separate : bool
        A network of its own for each class group (A8).
    hidden : int
        Width of an MLP head.
    dropout, drop_path : float
        Before the head; of residual blocks, where the model has them.
    scale : float
        Of a cosine head's logits (C2).
    partial_conv : bool
        Padded convolutions weigh up what the padding leaves out (A21).

    Examples
    --------
    >>> ModelRecipe(name="convnext_tiny", head="mlp").hidden
    512
    """

    name: str = "tf_efficientnet_lite0"
    reads: str = _one_of("last", "last-two")
    head: str = _one_of("linear", "mlp", "cosine")
    per_group: bool = False
    separate: bool = False
    hidden: int = _number(512, 1)
    dropout: float = _number(0.0, 0, 0.99)
    drop_path: float = _number(0.0, 0, 0.99)
    scale: float = _number(30.0, 1)
    partial_conv: bool = False


@dataclass(frozen=True)
class InputRecipe:
    """From an image to a network's input, in training.

    Attributes
    ----------
    size : int
        Side in pixels; 0: the model's own.
    sizes : mapping of str to int
        Sides of particular models (A2).
    crop : {"if-needed", "random-resized", "pad", "squash"}
        Crop sides longer than ``limit * size``, then resize (A1); a random part of the image,
        resized (A25); a part of the input's size, padded where the image is smaller (A23); resize
        the whole image.
    area, ratio : (float, float)
        Share of the image and aspect that "random-resized" takes.
    hflip, vflip : float
        Probability of mirroring.
    rotate : float
        Largest turn in degrees, either way.
    brightness, contrast, gamma : float
        Largest relative change, either way.
    noise : float
        Standard deviation of the added noise in grey levels, at most.
    erase : float
        Probability of erasing a rectangle (A23).
    mixup, cutmix : float
        Alpha of the mixing (A20, A23); 0: none.
    normalise : {"model", "collected"}
        Mean and std of the pretrained model, or of these images (B3).
    cache_trunk : bool
        Run the frozen stages once and train on their activations; needs an input without chance.

    Examples
    --------
    >>> InputRecipe(size=320, mixup=0.4).crop
    'if-needed'
    """

    size: int = _number(0)
    sizes: Mapping[str, int] = field(default_factory=dict)
    crop: str = _one_of("if-needed", "random-resized", "pad", "squash")
    limit: float = _number(2.0, 1)
    area: tuple[float, float] = _span(0.4, 1.0)
    ratio: tuple[float, float] = _span(0.75, 4 / 3)
    hflip: float = _number(0.5, 0, 1)
    vflip: float = _number(0.0, 0, 1)
    rotate: float = _number(0.0, 0, 180)
    brightness: float = _number(0.0, 0, 0.95)
    contrast: float = _number(0.0, 0, 0.95)
    gamma: float = _number(0.0, 0, 0.95)
    noise: float = _number(0.0, 0, 128)
    erase: float = _number(0.0, 0, 1)
    mixup: float = _number(0.0)
    cutmix: float = _number(0.0)
    normalise: str = _one_of("model", "collected")
    cache_trunk: bool = False


@dataclass(frozen=True)
class SamplingRecipe:
    """Which images an epoch shows.

    Attributes
    ----------
    draw : {"shuffle", "log-class"}
        Each image once; or as many draws with weights that rise with the logarithm of how rare the
        image's classes are (A4).
    hard_share : float
        This share of the images, the hardest of the last epoch, comes again (A6).

    Examples
    --------
    >>> SamplingRecipe(draw="log-class").hard_share
    0.0
    """

    draw: str = _one_of("shuffle", "log-class")
    hard_share: float = _number(0.0, 0, 1)


@dataclass(frozen=True)
class BatchRecipe:
    """How images are batched and the network runs.

    Attributes
    ----------
    size : int
        Images in a forward pass on one device.
    effective : int
        Images in a step of the optimiser, accumulated over passes (A3); 0: `size`.
    precision : {"no", "bf16", "fp16"}
        Mixed precision of training.
    ema : float
        Decay of the moving average of the weights that predicts; 0: none.
    clip_grad : float
        Largest norm of the gradient; 0: any.
    compile : bool
        `torch.compile` the network.

    Examples
    --------
    >>> BatchRecipe(size=48, effective=960).ema
    0.0
    """

    size: int = _number(32, 1)
    effective: int = _number(0)
    precision: str = _one_of("no", "bf16", "fp16")
    ema: float = _number(0.0, 0, 0.999999)
    clip_grad: float = _number(0.0)
    compile: bool = False


@dataclass(frozen=True)
class Stage:
    """Some epochs with one loss, one optimiser and one set of trained parameters.

    Attributes
    ----------
    train : {"all", "head", "last-stage", "last-two-stages"}
        What is trained; the rest stays bit for bit as it is (A19, A27, C3, D1).
    groups : sequence of str
        Class groups whose loss counts (A19: tags only); empty: all.
    group_weights : mapping of str to float
        Weights of the class groups' losses (B1); a group not named has 1.
    domain : {"all", "each"}
        "each": from here on, a copy of the network for each domain (C4).
    loss : {"bce", "focal", "asymmetric", "soft-fbeta", "cross-entropy", "am-softmax"}
    focus : float
        Exponent of the focal loss; of the asymmetric loss's negatives.
    class_weights : {"none", "log", "inverse", "effective"}
        Weights of rare classes in the loss (B2).
    smoothing : float
        Label smoothing (A20).
    margin : float
        AM-Softmax's (C2).
    beta : float
        Of the soft F-beta (A28).
    optimiser : str
        Any of timm's.
    backbone_lr : float
        Learning rate of the backbone relative to the head's.
    schedule : {"constant", "drops", "halve", "plateau", "cosine", "onecycle", "exponential"}
        Manual drops after the epochs in `drops`; by two every `every` epochs (B4); on a plateau
        of the training loss (D5); `decay` an epoch (C2).
    warmup : float
        Epochs of rising learning rate before "cosine".

    Examples
    --------
    >>> Stage(train="head", epochs=2, lr=3e-3).loss
    'bce'
    """

    name: str = ""
    epochs: int = _number(1, 1)
    train: str = _one_of("all", "head", "last-stage", "last-two-stages")
    groups: tuple[str, ...] = ()
    group_weights: Mapping[str, float] = field(default_factory=dict)
    domain: str = _one_of("all", "each")
    loss: str = _one_of("bce", "focal", "asymmetric", "soft-fbeta", "cross-entropy", "am-softmax")
    focus: float = _number(2.0)
    class_weights: str = _one_of("none", "log", "inverse", "effective")
    smoothing: float = _number(0.0, 0, 0.99)
    margin: float = _number(0.35)
    beta: float = _number(2.0)
    optimiser: str = "adamw"
    lr: float = _number(1e-3)
    weight_decay: float = _number(0.01)
    momentum: float = _number(0.9, 0, 1)
    backbone_lr: float = _number(1.0)
    schedule: str = _one_of(
        "constant", "drops", "halve", "plateau", "cosine", "onecycle", "exponential"
    )
    warmup: float = _number(0.0)
    drops: tuple[int, ...] = ()
    every: int = _number(5, 1)
    factor: float = _number(0.1, 0, 1)
    patience: int = _number(2)
    decay: float = _number(0.9, 0, 1)


@dataclass(frozen=True)
class DistillRecipe:
    """Learn from a teacher's predictions: target = max(y, weight * teacher) (A27).

    Examples
    --------
    >>> DistillRecipe(weight=0.7)
    DistillRecipe(weight=0.7)
    """

    weight: float = _number(0.0, 0, 1)


@dataclass(frozen=True)
class PredictRecipe:
    """Prediction by the trained networks.

    Attributes
    ----------
    hflip : bool
        Average the image and its mirror image (A17).
    views : int
        Further views with training's augmentation (B5).
    mean : {"logits", "probabilities"}
        What the views' average is taken of (B5).
    precision : {"float32", "bf16", "fp16"}
        Of the forward pass (A25).

    Examples
    --------
    >>> PredictRecipe(views=3).mean
    'logits'
    """

    hflip: bool = True
    views: int = _number(0)
    mean: str = _one_of("logits", "probabilities")
    precision: str = _one_of("float32", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run but its data; read by `cnn_extract.train.toml`.

    Examples
    --------
    >>> recipe = Recipe("mine", input=InputRecipe(size=224, sizes={"pnasnet5large": 331}))
    >>> recipe.size, len(recipe.stage)
    (224, 1)
    """

    name: str
    about: str = ""
    folds: int = _number(5, 2)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    input: InputRecipe = field(default_factory=InputRecipe)
    sampling: SamplingRecipe = field(default_factory=SamplingRecipe)
    batch: BatchRecipe = field(default_factory=BatchRecipe)
    distill: DistillRecipe = field(default_factory=DistillRecipe)
    predict: PredictRecipe = field(default_factory=PredictRecipe)
    stage: tuple[Stage, ...] = (Stage(),)

    @property
    def size(self) -> int | None:
        """Side of the input for this model, None for the model's own (A2)."""
        return self.input.sizes.get(self.model.name, self.input.size) or None

    def as_dict(self) -> dict[str, Any]:
        """Every setting, as JSON takes it."""
        return dataclasses.asdict(self)


_SOFTMAX = ("cross-entropy", "am-softmax")


def refuse_contradictions(recipe: Recipe, where: str) -> None:
    """Refuse settings that contradict each other.

    Examples
    --------
    >>> refuse_contradictions(Recipe("mine", stage=(Stage(loss="am-softmax"),)), "mine.toml")
    Traceback (most recent call last):
    ...
    ValueError: mine.toml: [[stage]] 1: loss 'am-softmax' needs [model] head = 'cosine'
    """
    for k, stage in enumerate(recipe.stage):
        place = f"{where}: [[stage]] {k + 1}"
        if stage.loss == "am-softmax" and recipe.model.head != "cosine":
            raise ValueError(f"{place}: loss 'am-softmax' needs [model] head = 'cosine'")
        if stage.schedule == "drops" and not stage.drops:
            raise ValueError(f"{place}: schedule 'drops' needs the epochs, as drops = [6, 9]")
        if k and recipe.stage[k - 1].domain == "each" and stage.domain == "all":
            raise ValueError(
                f"{place}: after a stage with domain 'each' all stages are of the copies; "
                f"got domain 'all'"
            )
    softmax = {stage.loss in _SOFTMAX for stage in recipe.stage}
    if len(softmax) > 1:
        raise ValueError(
            f"{where}: stages with a softmax loss ({', '.join(_SOFTMAX)}) and with a loss of "
            f"single classes do not go together: their outputs mean different things"
        )
    if recipe.input.cache_trunk and _has_chance(recipe.input):
        raise ValueError(
            f"{where}: [input] cache_trunk needs an input without chance but mirroring: crop "
            f"'if-needed' or 'squash', and no rotate, light, noise, erase, mixup, cutmix, vflip"
        )
    if recipe.distill.weight and True in softmax:
        raise ValueError(f"{where}: [distill] needs a loss of single classes, such as bce")
    if recipe.batch.effective and recipe.batch.effective < recipe.batch.size:
        raise ValueError(
            f"{where}: [batch] effective must be at least size = {recipe.batch.size}; got "
            f"{recipe.batch.effective}"
        )


def _has_chance(given: InputRecipe) -> bool:
    drawn = (
        *(given.rotate, given.brightness, given.contrast, given.gamma, given.noise),
        *(given.erase, given.mixup, given.cutmix, given.vflip),
    )
    return any(drawn) or given.crop not in ("if-needed", "squash")
