"""What a training run shall do, and what it did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cnn_extract.run import CHUNK_IMAGES
from cnn_extract.train.presets import find_recipe
from cnn_extract.train.recipe import Recipe
from cnn_extract.train.toml import with_settings
from features._console import clock

__all__ = ["TrainRequest", "TrainSummary", "parse_weights", "resolve_recipe"]


@dataclass(frozen=True)
class TrainRequest:
    """What `train` shall do; the command line's arguments.

    Parameters
    ----------
    images, labels : Path
        A folder or zip of images; a CSV file with their labels.
    recipe : str
        A preset's name or a TOML file.
    out : Path
        The folder of the run: checkpoints, curves and, without `store`, the store.
    store : Path, optional
        A store to add the model to, made where there is none; its folds are used.
    name : str, optional
        The model's name in the store; default: the recipe's.
    model : str, optional
        ``NAME[=WEIGHTS]`` in place of the recipe's.
    size, epochs : int, optional
        Input side; most epochs of a stage.
    metadata : Path, optional
        CSV of user columns: ``split_group``, the domains.
    drop, hard : Path, optional
        CSV with the images to leave out of training (A5), to show twice (A6).
    pseudo : Path, optional
        CSV ``image_id,labels[,weight]`` of unlabelled images to train on (A7).
    parents : Path, optional
        CSV ``class,parent`` of hierarchical classes (B1).
    teacher : str, optional
        ``STORE[:MODEL]`` whose predictions are distilled (A27).
    init : Path, optional
        A run whose networks training begins from, fold by fold (D1).
    domain : str, optional
        The metadata column with each image's domain (C4, D1).
    domain_weights : mapping of str to float
        Weight of each domain's images in the loss (D2); 0 leaves them out of training.
    only_head : bool
        Every stage trains the head alone (D1).
    folds : int, optional
        Number of folds; default: the recipe's.
    only_folds : sequence of int
        Train only these; the run is complete when all are.
    settings : sequence of str
        Changes of the recipe, each ``table.key=value``.
    embeddings : bool
        Also write embeddings and ImageNet logits of the pretrained backbone.
    cache : Path, optional
        Folder for the activations of frozen stages (``input.cache_trunk``), which runs on the same
        images share; default: `out`.
    device : {"auto", "cpu", "cuda"}

    Examples
    --------
    >>> TrainRequest(Path("images"), Path("labels.csv"), "imet-1st", Path("run")).device
    'auto'
    """

    images: Path
    labels: Path
    recipe: str
    out: Path
    store: Path | None = None
    name: str | None = None
    model: str | None = None
    size: int | None = None
    epochs: int | None = None
    metadata: Path | None = None
    drop: Path | None = None
    hard: Path | None = None
    pseudo: Path | None = None
    parents: Path | None = None
    teacher: str | None = None
    init: Path | None = None
    domain: str | None = None
    domain_weights: Mapping[str, float] = field(default_factory=dict)
    only_head: bool = False
    folds: int | None = None
    only_folds: Sequence[int] = ()
    settings: Sequence[str] = ()
    embeddings: bool = True
    cache: Path | None = None
    seed: int = 0
    workers: int | None = None
    device: str = "auto"
    on_error: str = "stop"
    tensorboard: bool = False
    id_column: str = "image_id"
    label_column: str = "labels"
    chunk_images: int = CHUNK_IMAGES
    force: bool = False


@dataclass
class TrainSummary:
    """What a training run did.

    Examples
    --------
    >>> from dataclasses import fields
    >>> [field.name for field in fields(TrainSummary)][:2]
    ['out', 'store']
    """

    out: str
    store: str
    model: str
    n_images: int = 0
    n_trained_on: int = 0
    n_classes: int = 0
    folds: list[str] = field(default_factory=list)
    complete: bool = False
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """Write it as lines of text."""
        state = "complete" if self.complete else "folds missing: run the others to complete it"
        return [
            f"run      {self.out}",
            f"store    {self.store}",
            f"model    {self.model}: {state}",
            f"images   {self.n_images:,}: {self.n_trained_on:,} to train on",
            f"classes  {self.n_classes:,}",
            *(f"fold     {line}" for line in self.folds),
            f"time     {clock(self.seconds)}",
        ]


def resolve_recipe(request: TrainRequest) -> tuple[Recipe, str | None]:
    """Apply the command line to its recipe; the recipe and where the weights come from.

    Raises
    ------
    ValueError
        For unknown recipes, settings and values.

    Examples
    --------
    >>> request = TrainRequest(
    ...     Path("images"), Path("labels.csv"), "imet-1st", Path("run"), model="test_resnet=none"
    ... )
    >>> recipe, weights = resolve_recipe(request)
    >>> recipe.model.name, weights
    ('test_resnet', 'none')
    """
    recipe = with_settings(find_recipe(request.recipe), list(request.settings))
    weights = None
    if request.model is not None:
        name, _, given = request.model.partition("=")
        recipe, weights = replace(recipe, model=replace(recipe.model, name=name)), given or None
    if request.size is not None:
        recipe = replace(recipe, input=replace(recipe.input, size=request.size, sizes={}))
    if request.folds is not None:
        recipe = with_settings(recipe, [f"folds={request.folds}"])
    stages = recipe.stage
    if request.epochs is not None:
        if request.epochs < 1:
            raise ValueError(f"epochs must be at least 1; got {request.epochs}")
        stages = tuple(replace(s, epochs=min(s.epochs, request.epochs)) for s in stages)
    if request.only_head:
        stages = tuple(replace(s, train="head") for s in stages)
    return replace(recipe, stage=stages), weights


def parse_weights(given: Sequence[str]) -> dict[str, float]:
    """Read ``NAME=WEIGHT`` texts.

    Raises
    ------
    ValueError
        For a text of another form, or a weight below 0.

    Examples
    --------
    >>> parse_weights(["source=0.2"])
    {'source': 0.2}
    """
    weights = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not 0 <= weights[name] < math.inf:
            raise ValueError(f"--domain-weight must be DOMAIN=WEIGHT, at least 0; got {text!r}")
    return weights
