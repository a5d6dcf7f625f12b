"""New images seen by each fold model apart, or by their mean.

A training row holds one fold model's prediction, a new image's row the mean of several: smoother
than anything the boosters learned from. Where a store keeps each fold model's predictions of the
new images, the stack can read them one fold model at a time, as it was trained, and average its
own log-odds. What that is worth is measured in docs/fitting.md.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.numeric import logit, sigmoid
from features.schema import Stack
from features.store import FeatureStore

__all__ = ["fold_stacks", "predict_proba_by_fold"]


def fold_stacks(store: FeatureStore, image_ids: ArrayLike | None = None) -> list[Stack]:
    """Give one stack for each fold model: its predictions of images without labels.

    Parameters
    ----------
    store : FeatureStore
        With ``fold_probabilities`` for all of its models, the same number of folds each.
    image_ids : array-like of str, optional
        Images to take; by default those without labels.

    Raises
    ------
    ValueError
        When a model has no fold predictions, of other folds, or not of these images.

    Examples
    --------
    >>> import tempfile
    >>> store = FeatureStore.create(
    ...     tempfile.mkdtemp() + "/store", image_ids=["i", "j"], classes=["cat"],
    ...     labels=[["cat"], []], labels_known=[True, False])
    >>> store.add_probabilities("a", [[0.9], [0.4]])
    >>> store.add_fold_probabilities("a", [[[0.0], [0.25]], [[0.0], [0.5]]])
    >>> [stack.probabilities["a"].tolist() for stack in fold_stacks(store)]
    [[[0.25]], [[0.5]]]
    """
    wanted = store.image_ids[~store.labels_known] if image_ids is None else np.asarray(image_ids)
    some = store.subset(wanted)
    mean = some.to_stack()
    by_model = {model: some.fold_probabilities(model) for model in mean.models}
    sizes = {model: len(values) for model, values in by_model.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"models must have the same number of fold models. Got {sizes}.")
    for model, values in by_model.items():
        missing = np.isnan(values).any(axis=(0, 2))
        if missing.any():
            raise ValueError(
                f"fold predictions of model {model!r} are missing for {int(missing.sum()):,} "
                f"images, first: {str(mean.image_ids[np.argmax(missing)])!r}. Fold models predict "
                f"images without labels only; give image_ids= of those."
            )
    return [
        _with_probabilities(mean, {model: values[k] for model, values in by_model.items()})
        for k in range(next(iter(sizes.values())))
    ]


def predict_proba_by_fold(model: Any, stacks: list[Stack]) -> NDArray[np.float32]:
    """Stack each fold model's predictions, then average the log-odds.

    Parameters
    ----------
    model : fitted PairStacker
    stacks : list of Stack
        The same images as each fold model sees them, as from :func:`fold_stacks`.

    Returns
    -------
    float32 array of shape (n_images, n_classes)

    Examples
    --------
    >>> from stacker import PairStacker
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> model = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1).fit(X, Y)
    >>> one, two = Stack(X), Stack({m: p * 0.9 for m, p in X.items()})
    >>> predict_proba_by_fold(model, [one, two]).shape
    (60, 4)
    """
    total = sum(logit(model.predict_proba(stack)) for stack in stacks)
    return sigmoid(np.asarray(total / len(stacks), dtype=np.float32))


def _with_probabilities(stack: Stack, probabilities: dict[str, NDArray[Any]]) -> Stack:
    """Give the stack other probabilities; context and names stay."""
    space = stack.label_space
    return Stack(
        probabilities,
        image_ids=stack.image_ids,
        classes=space.names,
        class_group=space.groups,
        class_parent=None if space.parents is None else space.parents.tolist(),
        embeddings=stack.embeddings,
        imagenet_logits=stack.imagenet_logits,
        image_stats=stack.image_stats,
        metadata=stack.metadata,
    )
