"""Makers of pair rows for the tests of blocks and assembly."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pytest

from features.assemble import PairFeatures, stack_blend
from features.blocks import BLOCKS
from features.schema import Stack


@dataclass
class Table:
    """Pair rows in one array, as a consumer that keeps everything would hold them."""

    features: PairFeatures
    values: np.ndarray  # float32 (n_rows, n_columns)
    image: np.ndarray  # (n_rows,) position in the stack
    cls: np.ndarray  # (n_rows,)

    def __getitem__(self, name):
        return self.values[:, self.features.feature_names_.index(name)]

    def of_block(self, block):
        """Columns of one block, (n_rows, n_block_columns)."""
        own = [column.block == block for column in self.features.columns_]
        return self.values[:, own]

    def matrix(self, name):
        """Scatter one column to (n_images, n_classes); NaN where a pair has no row."""
        out = np.full((self.image.max() + 1, len(self.features.space_)), np.nan, dtype=np.float32)
        out[self.image, self.cls] = self[name]
        return out


def table_of(features, stack, fold=None, **options):
    """Stream a stack through fitted features and keep every batch."""
    parts = [
        (batch.features.copy(), batch.row_image, batch.row_class)
        for batch in features.batches(stack, fold, **options)
    ]
    values, image, cls = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    return Table(features, values, image, cls)


@pytest.fixture(scope="session")
def stream():
    """`table_of` as a fixture: (fitted features, stack, fold) to a Table."""
    return table_of


@pytest.fixture(scope="session")
def small_stack(slice_arrays, slice_stack):
    """Make the slice with short embeddings (fast to fit) and user columns."""
    whole = slice_stack
    frame = pd.DataFrame(
        {
            "year": np.where(np.arange(300) % 7 == 0, np.nan, 1900.0 + np.arange(300)),
            "medium": pd.Series(["oil", "ink", None, "wood"] * 75, dtype="object").to_numpy(),
        },
        index=whole.image_ids,
    )
    return Stack(
        whole.probabilities,
        image_ids=whole.image_ids,
        classes=whole.classes,
        class_parent=whole.label_space.parents,
        embeddings={name: values[:, ::20] for name, values in whole.embeddings.items()},
        imagenet_logits={"lite0": whole.imagenet_logits["lite0"][:, ::10]},
        image_stats=whole.image_stats,
        metadata=frame,
    )


@dataclass
class Example:
    """A fit on 250 images, and rows of 24 queries: 16 of them training images, 8 new.

    `seen[q]` marks the training images that query q may learn from: those outside its fold, or
    all of them for a new image.
    """

    train: Stack
    labels: np.ndarray  # int (250, 60)
    query: Stack
    seen: np.ndarray  # bool (24, 250)
    blend: np.ndarray  # float32 (24, 60)
    train_blend: np.ndarray  # float32 (250, 60)
    probs: np.ndarray  # float32 (n_models, 24, 60)
    table: Table

    @cached_property
    def matrix_of(self):
        """Every column as a float32 (24, 60) matrix, by name."""
        return {name: self.table.matrix(name) for name in self.table.features.feature_names_}

    def matrix(self, name):
        return self.matrix_of[name]

    @cached_property
    def batch(self):
        """The queries as one `Batch`, for their codes in each space."""
        return self.table.features._batch(self.query, np.zeros(len(self.query), dtype=np.int64))


@pytest.fixture(scope="session")
def example(small_stack, slice_labels, slice_fold):
    """Every block, fitted and filled once, beside the raw material for slow references."""
    train, new = np.arange(250), np.arange(250, 300)
    queries = np.concatenate([train[::16], new[::7]])
    entry = np.where(queries < 250, slice_fold[queries], -1)
    features = PairFeatures(blocks=tuple(BLOCKS), candidates=None)
    features.fit(small_stack[train], slice_labels[train], slice_fold[train])
    query = small_stack[queries]
    return Example(
        train=small_stack[train],
        labels=slice_labels[train].toarray().astype(int),
        query=query,
        seen=slice_fold[train][None] != entry[:, None],
        blend=stack_blend(query),
        train_blend=stack_blend(small_stack[train]),
        probs=np.stack([np.asarray(p, dtype=np.float32) for p in query.probabilities.values()]),
        table=table_of(features, query, entry),
    )
