"""Makers shared by all tests: the slice of real out-of-fold predictions in several shapes."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from features.schema import Stack

LOADER = Path(__file__).parent / "data" / "load_slice.py"


@pytest.fixture
def rng():
    """Fresh random numbers, the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def slice_arrays():
    """Arrays of the slice by key: 6 models, 300 images, 60 classes (see tests/data/README.md)."""
    return runpy.run_path(str(LOADER))["load_slice"]()


@pytest.fixture(scope="session")
def slice_stack(slice_arrays):
    """Make the slice a `Stack` with every kind of context, class parents by the dots included."""
    arrays = slice_arrays
    return Stack(
        dict(zip(arrays["model"].tolist(), arrays["probabilities"], strict=True)),
        image_ids=arrays["image_id"],
        classes=arrays["classes"],
        class_parent=parents_by_dots(arrays["classes"].tolist()),
        embeddings={
            "lite0": arrays["embedding_lite0"],
            "lite1": arrays["embedding_lite1"],
        },
        imagenet_logits={"lite0": arrays["imagenet_logits_lite0"]},
        image_stats=arrays["image_stats"],
    )


@pytest.fixture(scope="session")
def slice_labels(slice_arrays):
    """Labels of the slice, int8 CSR of shape (300, 60)."""
    return csr_array(slice_arrays["labels"].astype(np.int8))


@pytest.fixture(scope="session")
def slice_fold(slice_arrays):
    """Fold of every image, int64 (300,), 0 to 4."""
    return slice_arrays["fold"].astype(np.int64)


@pytest.fixture(scope="session")
def slice_groups(slice_arrays):
    """Group of every image that must not part, str (300,)."""
    return slice_arrays["split_group"]


def parents_by_dots(classes):
    """Parent of "a.b.c" is "a.b" where that is a class, else None."""
    parents = [name.rpartition(".")[0] for name in classes]
    return [parent if parent in classes else None for parent in parents]
