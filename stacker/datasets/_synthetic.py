"""Made-up predictions over very many classes, for sizes that no small data set has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.utils import Bunch

from features.schema import Stack

__all__ = ["make_wide_stack"]

N_THEMES = 50


def make_wide_stack(
    n_images: int = 2000,
    n_classes: int = 30_000,
    *,
    n_models: int = 3,
    top: int = 50,
    random_state: int = 0,
) -> Any:
    """Make top-k predictions over very many classes, with structure that a stack can find.

    Every image has a theme, and themes have their own frequent classes; its labels are three
    classes of its theme. Every model sees them with noise of its own and keeps at most `top`
    classes; rare classes it often misses, as an honest out-of-fold model does.

    Parameters
    ----------
    n_images, n_classes, n_models : int
    top : int
        Classes that a model keeps of an image.
    random_state : int

    Returns
    -------
    sklearn.utils.Bunch
        stack : Stack of sparse predictions; labels : int8 csr_array (n_images, n_classes)

    Examples
    --------
    >>> data = make_wide_stack(50, 1000, top=10)
    >>> data.stack.is_sparse, data.labels.shape
    (True, (50, 1000))
    """
    rng = np.random.default_rng(random_state)
    theme = rng.integers(0, N_THEMES, n_images)
    # A theme's own classes, the first of them much more frequent than the last.
    own = rng.integers(0, n_classes, (N_THEMES, 40))
    place = (40 * rng.random((n_images, 3)) ** 2).astype(np.int64)
    true = own[theme[:, None], place]
    labels = _csr(true, np.ones(true.shape, np.float32), n_classes)
    labels.data[:] = 1
    count = np.bincount(true.ravel(), minlength=n_classes)[true]
    models = {}
    for m in range(n_models):
        near = own[theme[:, None], rng.integers(0, 40, (n_images, top // 2))]
        far = rng.integers(0, n_classes, (n_images, top - top // 2 - 3))
        picked = np.concatenate([true, near, far], axis=1)
        centre = np.repeat([0.0, -2.0, -3.0], [3, near.shape[1], far.shape[1]])
        logits = centre + 1.5 * rng.standard_normal(picked.shape)
        probs = (1 / (1 + np.exp(-logits))).astype(np.float32)
        # Without other images of a class to learn from there is nothing to predict it by.
        probs[:, :3] *= rng.random(true.shape) < (count - 1) / (count + 4)
        models[f"model{m}"] = _csr(picked, probs, n_classes)
    names = [f"class{c}" for c in range(n_classes)]
    return Bunch(stack=Stack(models, classes=names), labels=labels.astype(np.int8))


def _csr(classes: NDArray[np.int64], values: NDArray[np.float32], n_classes: int) -> csr_array:
    """CSR of (image, class) pairs; of a class drawn twice the larger value."""
    n_images, width = classes.shape
    image = np.repeat(np.arange(n_images), width)
    order = np.lexsort((-values.ravel(), classes.ravel(), image))
    keys = image[order] * n_classes + classes.ravel()[order]
    first = order[np.concatenate([[True], keys[1:] != keys[:-1]])]
    first = first[values.ravel()[first] > 0]
    entries = (values.ravel()[first], (image[first], classes.ravel()[first]))
    return csr_array(entries, shape=(n_images, n_classes))
