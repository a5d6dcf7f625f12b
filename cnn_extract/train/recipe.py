"""A training recipe: a TOML file as frozen dataclasses, every setting checked by name and value.

Stages run one after the other; what a stage does not say it keeps from the stage before it.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

__all__ = [
    "BatchRecipe",
    "DistillRecipe",
    "InputRecipe",
    "ModelRecipe",
    "PredictRecipe",
    "Recipe",
    "SamplingRecipe",
    "Stage",
    "parse_recipe",
    "read_recipe",
    "to_toml",
    "with_settings",
]

Table = TypeVar("Table")
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
    """Learn from a teacher's predictions: target = max(y, weight * teacher) (A27)."""

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
    """

    hflip: bool = True
    views: int = _number(0)
    mean: str = _one_of("logits", "probabilities")
    precision: str = _one_of("float32", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run but its data; see `read_recipe`."""

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


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file; its name is the file's.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is no TOML, or a key or a value is not allowed; names the nearest key.
    """
    file = Path(path)
    return parse_recipe(file.read_text(encoding="utf-8"), name=file.stem, where=str(file))


def parse_recipe(text: str, *, name: str, where: str = "the recipe") -> Recipe:
    r"""Read a recipe from TOML text.

    Parameters
    ----------
    text : str
    name : str
        The recipe's name; `name` in the text goes before it.
    where : str
        What errors call the text.

    Examples
    --------
    >>> recipe = parse_recipe("[[stage]]\nepochs = 2\nlr = 0.1\n[[stage]]\nlr = 0.01", name="x")
    >>> [(stage.epochs, stage.lr) for stage in recipe.stage]
    [(2, 0.1), (2, 0.01)]
    >>> parse_recipe("[model]\nhaed = 'mlp'", name="x")
    Traceback (most recent call last):
    ...
    ValueError: the recipe: [model] has no setting 'haed'; did you mean 'head'?
    """
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is no TOML file: {error}") from error
    return _build(given, name, where)


def _build(given: Mapping[str, Any], name: str, where: str) -> Recipe:
    tables = {f.name: f for f in fields(Recipe)}
    _refuse_unknown(given, tables, where, "the top level")
    values: dict[str, Any] = {"name": name}
    for key, value in given.items():
        kind = _types(Recipe)[key]
        if key == "stage":
            values[key] = _stages(value, where)
        elif dataclasses.is_dataclass(kind):
            values[key] = _fill(typing.cast(Any, kind)(), value, where, f"[{key}]")
        else:
            values[key] = _value(value, kind, tables[key], where, key)
    recipe = Recipe(**values)
    _check_whole(recipe, where)
    return recipe


def _stages(given: Any, where: str) -> tuple[Stage, ...]:
    if not isinstance(given, list) or not given:
        raise ValueError(f"{where}: write each stage as a table [[stage]]")
    stages: list[Stage] = []
    for k, table in enumerate(given):
        # A name and its domain's copies belong to one stage; everything else carries on.
        before = replace(stages[-1], name="") if stages else Stage()
        stages.append(_fill(before, table, where, f"[[stage]] {k + 1}"))
    return tuple(stages)


def _fill(table: Table, given: Any, where: str, place: str) -> Table:
    """Replace the values of a settings table by those given."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: {place} must be a table; got {given!r}")
    kind: Any = type(table)
    known = {f.name: f for f in fields(kind)}
    _refuse_unknown(given, known, where, place)
    types = _types(kind)
    values = {k: _value(v, types[k], known[k], where, f"{place} {k}") for k, v in given.items()}
    return typing.cast(Table, replace(typing.cast(Any, table), **values))


def _refuse_unknown(
    given: Mapping[str, Any], known: Mapping[str, Any], where: str, place: str
) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{where}: {place} has no setting {key!r}; {hint}")


def _types(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _value(given: Any, kind: Any, about: dataclasses.Field[Any], where: str, place: str) -> Any:
    """Bring a TOML value to the field's type, and check it."""
    value, wanted = _convert(given, kind)
    if wanted:
        raise ValueError(f"{where}: {place} must be {wanted}; got {given!r}")
    check = about.metadata.get("check")
    rule = check(value) if check else None
    if rule:
        raise ValueError(f"{where}: {place} must be {rule}; got {given!r}")
    return value


_PLAIN = {bool: "true or false", int: "a whole number", str: "text"}


def _convert(given: Any, kind: Any) -> tuple[Any, str | None]:
    """Give the value in the wanted type, or what it should have been."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _convert_all(given, inner[0])
    if origin is not None:
        return _convert_mapping(given, inner[1])
    if kind is float:
        fits = isinstance(given, (int, float)) and not isinstance(given, bool)
        return (float(given), None) if fits else (given, "a number")
    return (given, None) if type(given) is kind else (given, _PLAIN[kind])


def _convert_all(given: Any, kind: Any) -> tuple[Any, str | None]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        return given, "a list"
    pairs = [_convert(v, kind) for v in given]
    return tuple(v for v, _ in pairs), next((f"a list, each {w}" for _, w in pairs if w), None)


def _convert_mapping(given: Any, kind: Any) -> tuple[Any, str | None]:
    if not isinstance(given, Mapping):
        return given, "a table"
    pairs = {str(k): _convert(v, kind) for k, v in given.items()}
    wrong = next((f"a table, each {w}" for _, w in pairs.values() if w), None)
    return {k: v for k, (v, _) in pairs.items()}, wrong


_SOFTMAX = ("cross-entropy", "am-softmax")


def _check_whole(recipe: Recipe, where: str) -> None:
    """Refuse settings that contradict each other."""
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
    if recipe.distill.weight and True in softmax:
        raise ValueError(f"{where}: [distill] needs a loss of single classes, such as bce")
    if recipe.batch.effective and recipe.batch.effective < recipe.batch.size:
        raise ValueError(
            f"{where}: [batch] effective must be at least size = {recipe.batch.size}; got "
            f"{recipe.batch.effective}"
        )


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Change single settings, each written ``table.key=value`` as in TOML.

    ``stage.key=value`` changes every stage.

    Examples
    --------
    >>> changed = with_settings(Recipe("x"), ["input.size=64", "model.name='test_resnet'"])
    >>> changed.input.size, changed.model.name
    (64, 'test_resnet')
    """
    for setting in settings:
        recipe = _with_setting(recipe, setting)
    if settings:
        _check_whole(recipe, "--set")
    return recipe


def _with_setting(recipe: Recipe, setting: str) -> Recipe:
    place, equals, text = setting.partition("=")
    table, _, key = place.strip().rpartition(".")
    if not equals or not key:
        raise ValueError(
            f"--set must be TABLE.KEY=VALUE, for example input.size=64; got {setting!r}"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    if not table:
        return _fill(recipe, {key: value}, "--set", "the top level")
    known = [f.name for f in fields(Recipe) if f.name not in ("name", "about", "folds")]
    _refuse_unknown({table: value}, dict.fromkeys(known), "--set", "a recipe")
    if table == "stage":
        stages = tuple(_fill(s, {key: value}, "--set", "[stage]") for s in recipe.stage)
        return replace(recipe, stage=stages)
    filled = _fill(getattr(recipe, table), {key: value}, "--set", f"[{table}]")
    return replace(recipe, **{table: filled})


def to_toml(recipe: Recipe) -> str:
    r"""Write every setting of a recipe as TOML, defaults included.

    Examples
    --------
    >>> recipe = parse_recipe("[[stage]]\nlr = 0.1", name="x")
    >>> parse_recipe(to_toml(recipe), name="x") == recipe
    True
    """
    lines: list[str] = []
    tables: list[str] = []
    for key, value in recipe.as_dict().items():
        if key == "stage":
            for stage in value:
                tables += ["", "[[stage]]", *_lines(stage)]
        elif isinstance(value, dict):
            tables += ["", f"[{key}]", *_lines(value)]
        else:
            lines.append(f"{key} = {_text(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_text(value)}" for key, value in table.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_text(k)} = {_text(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return repr(value)
