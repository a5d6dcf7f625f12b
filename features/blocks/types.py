"""What a feature block is, and what it sees.

A block is three plain functions: `fit` reads the training images once, `columns` names what it
writes, `fill` writes one batch of rows. Its fitted state is a dict of arrays, so that it saves
without pickle and merges across machines.

Everything that reads labels is fitted per fold: state tables carry a leading axis of
``n_folds + 1`` entries, entry k made without the images of fold k and the last one with all.
A training image of fold k reads entry k, a new image the last (``Batch.entry``). That one
mechanism (:func:`leave_fold_out`) keeps every row's features free of its own labels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from features.blending import Blend
from features.blocks._ranking import count_above
from features.blocks.spaces import Codes, Projection, encode_stack
from features.candidates import Candidates
from features.schema import LabelSpace, Stack

State = dict[str, Any]  # arrays, CSR arrays, numbers, strings and lists of them
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Column:
    """One feature: its name, and where it comes from.

    Examples
    --------
    >>> Column("sum:a+b", "combinations", "a + b", ("a", "b")).models
    ('a', 'b')
    """

    name: str
    block: str
    formula: str
    models: tuple[str, ...] = ()
    fold_fitted: bool = False


@dataclass(frozen=True)
class Training:
    """The labelled images that blocks are fitted on.

    Attributes
    ----------
    stack : Stack of n_images
    labels : CSR array of shape (n_images, n_classes)
    fold : int array of shape (n_images,), 0 .. n_folds - 1
    blend : float32 array of shape (n_images, n_classes), or SparseBlend of a top-k stack
        Logit mean of the models, the probability that context is computed from.
    projections : {space name: Projection}
        Empty where no chosen block compares images.
    random_state : int

    Examples
    --------
    >>> stack = Stack({"a": np.full((4, 2), 0.5)})
    >>> labels = csr_array(np.eye(4, 2, dtype=np.int8))
    >>> train = Training(stack, labels, np.array([0, 1, 0, 1]), np.zeros((4, 2), np.float32))
    >>> train.n_folds, len(train.space)
    (2, 2)
    """

    stack: Stack
    labels: csr_array
    fold: NDArray[np.int64]
    blend: Blend
    projections: dict[str, Projection] = field(default_factory=dict)
    random_state: int = 0
    _codes: dict[str, Codes] = field(default_factory=dict)

    def codes(self, name: str) -> Codes:
        """Encode the images in a space, once for all blocks."""
        return _encode_once(self, name)

    @property
    def n_folds(self) -> int:
        """Number of folds; state tables have one entry more."""
        return int(self.fold.max(initial=-1)) + 1

    @property
    def space(self) -> LabelSpace:
        """The classes."""
        return self.stack.label_space


@dataclass(frozen=True)
class Batch:
    """One image range and its candidate rows.

    Attributes
    ----------
    stack : Stack of the n_images of this range
    candidates : Candidates of these images, n_rows in all
    entry : int64 array of shape (n_images,)
        Which entry of a leave-fold-out table each image reads.
    probs : float32 array of shape (n_models, n_images, n_classes)
    blend : float32 array of shape (n_images, n_classes)
    projections : {space name: Projection}

    Examples
    --------
    >>> probs = np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    >>> found = Candidates(np.array([0, 1, 2]), np.array([0, 1], dtype=np.int32))
    >>> batch = Batch(Stack({"a": probs}), found, np.zeros(2, np.int64), probs[None], probs)
    >>> batch.row_image.tolist(), batch.row_class.tolist()
    ([0, 1], [0, 1])
    """

    stack: Stack
    candidates: Candidates
    entry: NDArray[np.int64]
    probs: Float
    blend: Float
    projections: dict[str, Projection] = field(default_factory=dict)
    _codes: dict[str, Codes] = field(default_factory=dict)

    def codes(self, name: str) -> Codes:
        """Encode the images in a space, once for all blocks."""
        return _encode_once(self, name)

    @cached_property
    def row_image(self) -> NDArray[np.int32]:
        """Position in the range of each row's image, int32 (n_rows,)."""
        return self.candidates.row_image

    @property
    def row_class(self) -> NDArray[np.int32]:
        """Class of each row, int32 (n_rows,)."""
        return self.candidates.classes

    @property
    def space(self) -> LabelSpace:
        """The classes."""
        return self.stack.label_space

    @cached_property
    def row_probs(self) -> Float:
        """Each model's probability of each row, float32 (n_rows, n_models)."""
        return np.ascontiguousarray(self.probs[:, self.row_image, self.row_class].T)

    @cached_property
    def row_ranks(self) -> Float:
        """Each model's rank of each row's class in its image, float32 (n_rows, n_models)."""
        return count_above(self.probs, self.candidates.indptr, self.row_class)

    @cached_property
    def row_blend(self) -> Float:
        """Blended probability of each row, float32 (n_rows,)."""
        return self.blend[self.row_image, self.row_class]


@dataclass(frozen=True)
class Block:
    """A named group of features.

    Attributes
    ----------
    name : str
    fit : (Training, **options) -> State
    columns : (Stack, State) -> list of Column
    fill : (Batch, State, out) -> None
        Writes float32 ``out`` of shape (n_rows, n_columns).
    available : (Stack) -> "" or what is missing
    default : bool
        Part of ``blocks="default"`` where its inputs are there.
    compares_images : bool
        Whether it needs the projections of :mod:`features.blocks.spaces`.
    options : names and default values that a user may set

    Examples
    --------
    >>> def squares(batch, state, out):
    ...     out[:, 0] = batch.blend[batch.row_image, batch.row_class] ** 2
    >>> column = Column("square:blend", "squares", "logit ** 2")
    >>> block = Block("squares", nothing_to_fit, lambda stack, state: [column], squares)
    >>> block.columns(Stack({"a": [[0.5]]}), {})[0].name
    'square:blend'
    """

    name: str
    fit: Callable[..., State]
    columns: Callable[[Stack, State], list[Column]]
    fill: Callable[[Batch, State, Float], None]
    available: Callable[[Stack], str] = field(default=lambda stack: "")
    default: bool = True
    compares_images: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def _encode_once(part: Training | Batch, name: str) -> Codes:
    if name not in part._codes:
        part._codes[name] = encode_stack(part.stack, part.blend, name, part.projections[name])
    return part._codes[name]


def nothing_to_fit(train: Training) -> State:
    """`fit` of the blocks that only read probabilities."""
    return {}


def leave_fold_out(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """Add up all folds but one, and all, from each fold's own sums.

    Entry k adds up the other folds in order and never touches part k (subtracting it from the
    total would leave a trace of it in the rounding).

    Parameters
    ----------
    parts : n_folds arrays of one shape

    Returns
    -------
    array of shape (n_folds + 1, *shape)

    Examples
    --------
    >>> leave_fold_out([np.array([1.0]), np.array([2.0]), np.array([4.0])]).ravel().tolist()
    [6.0, 5.0, 3.0, 7.0]
    """
    parts = list(parts)
    out = np.zeros((len(parts) + 1, *parts[0].shape), dtype=parts[0].dtype)
    for entry in range(len(parts) + 1):
        for fold, part in enumerate(parts):
            if fold != entry:
                out[entry] += part
    return out


def fold_sums(train: Training, sums: Callable[[NDArray[np.int64]], NDArray[Any]]) -> NDArray[Any]:
    """Leave-fold-out table of a statistic that adds up over images.

    Parameters
    ----------
    train : Training
    sums : function from image positions to that subset's sums

    Returns
    -------
    array of shape (n_folds + 1, *shape)
    """
    return leave_fold_out(sums(np.flatnonzero(train.fold == k)) for k in range(train.n_folds))
