"""Streams feature blocks into batches of pair rows.

`PairFeatures` is fitted on the labelled images and then walks over any images, a range at a
time: candidates, then every block into its columns of one preallocated float32 buffer. Nothing
of size images x classes x features ever exists; a batch is as large as `max_memory` allows.
"""

import difflib
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from features._labels import as_label_matrix
from features.blending import Blend, blend_of, dense_probs, dense_rows, images_at_once, stack_blend
from features.blocks import BLOCKS
from features.blocks.spaces import Projection, check_spaces, fit_stack_space, space_names
from features.blocks.types import Batch, Block, Column, State, Training
from features.candidates import (
    Candidates,
    CandidateSpec,
    candidate_recall,
    choose_candidates,
    join_candidates,
    resolve_candidates,
    resolve_threshold,
)
from features.schema import LabelSpace, Stack

logger = logging.getLogger(__name__)

BlockSpec = str | Sequence[str | tuple[str, Mapping[str, Any]]]
# A batch larger than this stops fitting the cache: each block walks over the whole buffer.
MOST_ROWS = 65_536
# What a row costs beyond its columns: probabilities, ranks and scratch of the blocks.
SCRATCH_PER_CLASS = 12


@dataclass(frozen=True)
class RowBatch:
    """Rows of one image range, sorted by image then candidate.

    Attributes
    ----------
    start : int
        Position of the range's first image.
    candidates : Candidates of the range
    features : float32 array of shape (n_rows, n_columns)
        A view of a buffer that the next batch overwrites: copy to keep.
    blend : float32 array of shape (n_images, n_classes)
        Logit mean of the range's images.
    """

    start: int
    candidates: Candidates
    features: NDArray[np.float32]
    blend: NDArray[np.float32]

    @property
    def row_image(self) -> NDArray[np.int64]:
        """Position of each row's image in the whole stack, int64 (n_rows,)."""
        return self.start + self.candidates.row_image.astype(np.int64)

    @property
    def row_class(self) -> NDArray[np.int32]:
        """Class of each row, int32 (n_rows,)."""
        return self.candidates.classes


@dataclass
class PairFeatures:
    """Builds pair rows: fitted on labelled images, then streamed over any images.

    Parameters
    ----------
    blocks : "default" or sequence of names or (name, options) pairs
        "default" takes every default block whose inputs the stack has and logs the rest; in a
        sequence a missing input is an error, and "default" among the names stands for the
        default blocks that are not named beside it.
    candidates : see :func:`features.candidates.resolve_candidates`
    max_memory : int or str
        Bound on the working memory of a batch, in bytes or as "4GB".
    n_jobs : int or None
        Threads of the kernels; None takes all cores.
    random_state : int

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> stack = Stack({"a": rng.random((20, 3)), "b": rng.random((20, 3))})
    >>> labels = csr_array((rng.random((20, 3)) < 0.3).astype(np.int8))
    >>> features = PairFeatures(blocks=("probabilities", "combinations"), candidates=None)
    >>> features = features.fit(stack, labels, fold=np.arange(20) % 5)
    >>> [column.name for column in features.columns_]
    ['p:a', 'p:b', 'sum:a+b', 'diff:a-b', 'prod:a*b', 'ratio:a/b']
    >>> sum(len(batch.features) for batch in features.batches(stack))
    60
    """

    blocks: BlockSpec = "default"
    candidates: CandidateSpec = "auto"
    max_memory: int | str = "4GB"
    n_jobs: int | None = None
    random_state: int = 0
    states_: dict[str, State] = field(default_factory=dict, init=False)
    projections_: dict[str, Projection] = field(default_factory=dict, init=False)
    space_: LabelSpace = field(init=False, repr=False)
    models_: list[str] = field(init=False, repr=False)
    columns_: list[Column] = field(default_factory=list, init=False, repr=False)
    n_columns_: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    per_group_: NDArray[np.int64] = field(init=False, repr=False)
    n_folds_: int = field(default=0, init=False)
    above_: float = field(default=-1.0, init=False)
    mean_rows_: int = field(default=0, init=False)
    candidate_recall_: dict[str, float] = field(default_factory=dict, init=False)
    overall_recall_: float = field(default=1.0, init=False)
    seconds_: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def fit(self, stack: Stack, labels: Any, fold: NDArray[np.integer[Any]]) -> "PairFeatures":
        """Choose candidates and fit every block on labelled images.

        Parameters
        ----------
        stack : Stack of n_images
        labels : 0/1 array, DataFrame or sparse matrix of shape (n_images, n_classes)
            Or a list of label-name lists; DataFrames are matched by image id and class name.
        fold : int array of shape (n_images,), 0 .. n_folds - 1
            Folds that level one was predicted out of.

        Raises
        ------
        ValueError
            For unknown or repeated blocks, inputs that the stack does not have, labels of another
            shape, and images without a fold.
        """
        chosen = resolve_blocks(self.blocks, stack)
        if not isinstance(labels, csr_array):
            labels = as_label_matrix(
                labels, classes=stack.classes, n_images=len(stack), image_ids=stack.image_ids
            )
        folds = check_training(stack, labels, fold)
        blend = stack_blend(stack)
        self.space_, self.models_ = stack.label_space, list(stack.models)
        self.above_ = resolve_threshold(self.candidates)
        self.per_group_ = resolve_candidates(self.candidates, blend, labels, self.space_)
        found = self._choose(blend)
        self.candidate_recall_, self.overall_recall_ = candidate_recall(found, labels, self.space_)
        self.mean_rows_ = max(1, -(-len(found) // len(stack)))
        self.projections_ = {}
        if any(block.compares_images for block, _ in chosen):
            for name in space_names(stack):
                self.projections_[name] = fit_stack_space(stack, blend, name)
        train = Training(stack, labels, folds, blend, self.projections_, self.random_state)
        self.n_folds_ = train.n_folds
        self.states_ = {}
        with _threads(self.n_jobs):
            for block, options in chosen:
                self._timed(block.name, "fit", lambda b=block, o=options: self._fit(b, o, train))
        self._name_columns(stack)
        return self

    def _fit(self, block: Block, options: Mapping[str, Any], train: Training) -> None:
        self.states_[block.name] = block.fit(train, **options)

    def _timed(self, name: str, step: str, run: Any) -> None:
        start = time.perf_counter()
        run()
        key = f"{name}/{step}"
        self.seconds_[key] = self.seconds_.get(key, 0.0) + time.perf_counter() - start

    def _name_columns(self, stack: Stack) -> None:
        parts = {name: BLOCKS[name].columns(stack, state) for name, state in self.states_.items()}
        self.n_columns_ = {name: len(columns) for name, columns in parts.items()}
        self.columns_ = [column for columns in parts.values() for column in columns]

    @property
    def feature_names_(self) -> list[str]:
        """Column names in order."""
        return [column.name for column in self.columns_]

    @property
    def rows_per_image_(self) -> int:
        """Rows of an image: the mean over training images, rounded up.

        Exact where every image has the same number; with a threshold or a top-k stack
        images differ.
        """
        return self.mean_rows_ or int(self.per_group_.sum())

    def all_candidates(self, stack: Stack) -> Candidates:
        """Every row of a stack, without its features."""
        step = images_at_once(len(self.space_) * len(self.models_))
        starts = range(0, len(stack), step)
        return join_candidates([self._choose(stack_blend(stack[s : s + step])) for s in starts])

    def _choose(self, blend: Blend) -> Candidates:
        return choose_candidates(blend, self.per_group_, self.space_, above=self.above_)

    def batch_images(self) -> int:
        """Images a batch, from `max_memory`; at least one."""
        row = 4 * len(self.columns_) + 16 * len(self.models_)
        n_classes = len(self.space_)
        image = self.rows_per_image_ * row + n_classes * (4 * len(self.models_) + SCRATCH_PER_CLASS)
        # Half for the batch itself, half for what its consumer holds.
        fit = parse_bytes(self.max_memory) // 2 // image
        return int(max(1, min(fit, max(MOST_ROWS // self.rows_per_image_, 1))))

    def batches(
        self, stack: Stack, fold: NDArray[np.integer[Any]] | None = None, *, batch_images: int = 0
    ) -> Iterator[RowBatch]:
        """Walk over the images of a stack, one batch of rows at a time.

        Parameters
        ----------
        stack : Stack
            The same models and classes as in `fit`.
        fold : int array of shape (n_images,), optional
            Folds of training images, -1 for new ones. All new by default.
        batch_images : int, default=0
            Images a batch; 0 takes what `max_memory` allows. No value changes a feature.

        Yields
        ------
        RowBatch
        """
        self._check_same(stack)
        entry = self._entries(fold, len(stack))
        step = batch_images or self.batch_images()
        buffer = np.empty((0, len(self.columns_)), dtype=np.float32)
        for start in range(0, len(stack), step):
            with _threads(self.n_jobs):
                batch = self._batch(stack[start : start + step], entry[start : start + step])
                if len(batch.candidates) > len(buffer):
                    buffer = np.empty((len(batch.candidates), buffer.shape[1]), dtype=np.float32)
                rows = buffer[: len(batch.candidates)]
                self._fill(batch, rows)
            yield RowBatch(start, batch.candidates, rows, batch.blend)

    def _batch(self, part: Stack, entry: NDArray[np.int64]) -> Batch:
        probs = dense_probs(part)
        blend = blend_of(part, probs)
        candidates, dense = self._choose(blend), dense_rows(blend, slice(None))
        return Batch(part, candidates, entry, probs, dense, self.projections_)

    def _fill(self, batch: Batch, rows: NDArray[np.float32]) -> None:
        start = 0
        for name, state in self.states_.items():
            stop = start + self.n_columns_[name]
            out = rows[:, start:stop]
            self._timed(name, "fill", lambda n=name, s=state, o=out: BLOCKS[n].fill(batch, s, o))
            start = stop

    def _entries(self, fold: NDArray[np.integer[Any]] | None, n_images: int) -> NDArray[np.int64]:
        """Which leave-fold-out entry each image reads: its fold's, or the last for new images."""
        if fold is None:
            return np.full(n_images, self.n_folds_, dtype=np.int64)
        fold = np.asarray(fold, dtype=np.int64)
        if len(fold) != n_images or fold.max(initial=-1) >= self.n_folds_:
            raise ValueError(
                f"fold must hold {n_images} numbers below {self.n_folds_}; however: "
                f"fold.shape={fold.shape}, maximum {fold.max(initial=-1)}."
            )
        return np.where(fold < 0, self.n_folds_, fold)

    def _check_same(self, stack: Stack) -> None:
        if list(stack.models) != self.models_:
            raise ValueError(
                f"the stack must have the models it was fitted on, in order: {self.models_}. "
                f"Got {list(stack.models)} instead."
            )
        if stack.label_space.names.tolist() != self.space_.names.tolist():
            raise ValueError("the stack must have the classes it was fitted on, in order.")
        for name in self.states_:
            missing = BLOCKS[name].available(stack)
            if missing:
                raise ValueError(f"block {name!r} needs {missing}, which this stack does not have.")
        check_spaces(stack, self.projections_)


def check_training(
    stack: Stack, labels: csr_array, fold: NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    """Check that every image of the stack has labels and a fold; the folds as int64."""
    n_images, _, n_classes = stack.shape
    if labels.shape != (n_images, n_classes):
        raise ValueError(
            f"labels must have shape (n_images, n_classes) = {(n_images, n_classes)}; however: "
            f"labels.shape={labels.shape}."
        )
    folds = np.asarray(fold, dtype=np.int64)
    if folds.shape != (n_images,):
        raise ValueError(f"fold must hold {n_images} numbers; however: fold.shape={folds.shape}.")
    unassigned = np.flatnonzero(folds < 0)
    if len(unassigned):
        raise ValueError(
            f"every training image must have a fold; {len(unassigned):,} do not, first: image "
            f"{str(stack.image_ids[unassigned[0]])!r} has fold {folds[unassigned[0]]}."
        )
    if len(np.unique(folds)) < 2:
        raise ValueError("fold must name at least two folds: one learns while another is scored.")
    return folds


def resolve_blocks(spec: BlockSpec, stack: Stack) -> list[tuple[Block, Mapping[str, Any]]]:
    """Turn the `blocks` parameter into blocks with options.

    Raises
    ------
    ValueError
        For an unknown name or option, or (unless "default") an input the stack does not have.
    """
    if isinstance(spec, str) and spec == "default":
        return _default_blocks(stack)
    if isinstance(spec, str):
        spec = (spec,)
    entries = [(entry, {}) if isinstance(entry, str) else entry for entry in spec]
    named = {name for name, _ in entries}
    chosen: list[tuple[Block, Mapping[str, Any]]] = []
    for name, options in entries:
        if name == "default":
            chosen += [pair for pair in _default_blocks(stack) if pair[0].name not in named]
            continue
        block = find_block(name)
        unknown = sorted(set(options) - set(block.options))
        if unknown:
            known = sorted(block.options) or "none"
            raise ValueError(f"block {name!r} has no option {unknown[0]!r}; it has: {known}.")
        missing = block.available(stack)
        if missing:
            raise ValueError(f"block {name!r} needs {missing}, which this stack does not have.")
        if any(block is other for other, _ in chosen):
            raise ValueError(f"block {name!r} is named twice.")
        chosen.append((block, options))
    if not chosen:
        raise ValueError("blocks must name at least one block.")
    return chosen


def find_block(name: str) -> Block:
    """Look a block up by its name.

    Raises
    ------
    ValueError
        Naming the nearest names, and all.
    """
    if name in BLOCKS:
        return BLOCKS[name]
    near = difflib.get_close_matches(name, BLOCKS, n=2)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"unknown block {name!r};{hint} known: {', '.join(BLOCKS)}.")


def _default_blocks(stack: Stack) -> list[tuple[Block, Mapping[str, Any]]]:
    chosen: list[tuple[Block, Mapping[str, Any]]] = []
    for block in BLOCKS.values():
        missing = block.available(stack)
        if block.default and missing:
            logger.info("block %s left out: the stack has no %s", block.name, missing)
        elif block.default:
            chosen.append((block, {}))
    return chosen


def parse_bytes(size: int | str) -> int:
    """Read a memory size.

    Examples
    --------
    >>> parse_bytes("4GB"), parse_bytes("512 MiB"), parse_bytes(1000)
    (4000000000, 536870912, 1000)
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(size), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"max_memory must be bytes or like '4GB'. Got {size!r} instead.")
    step = 1024 if found[3] else 1000
    return int(float(found[1]) * step ** " KMGT".index(found[2].upper() or " "))


class _threads:
    """Run numba's kernels on `n_jobs` threads for the length of a with block."""

    def __init__(self, n_jobs: int | None) -> None:
        most = numba.config.NUMBA_NUM_THREADS
        self.wanted = most if n_jobs is None or n_jobs < 1 else min(n_jobs, most)

    def __enter__(self) -> None:
        self.before = numba.get_num_threads()
        numba.set_num_threads(self.wanted)

    def __exit__(self, *error: object) -> None:
        numba.set_num_threads(self.before)
