"""What a stack starts from, and what it falls back to.

Two blends play these parts. The *anchor* is the best blend by held-out log loss: where the
boosters have nothing to add, the stack is that blend. The *start* is the boosters' initial score
(recipe E2). They differ under ``base="auto"``: a blend that was fitted on labels fits the other
folds' labels in each fold, and boosting on top of it learns that difference instead of the
classes. Measured on openclipart OOF, fold 0: per-class logistic is the better blend (log loss an
image 8.28 against 8.67), yet boosted from it the stack ends at 7.10, from the logit mean at 6.97.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from features.numeric import logit
from features.schema import Stack
from stacker._held import held_pairs, mark_labels
from stacker.blend import BLENDS, cross_fit, weighted_log_loss

Probs = Any  # float32 array (n_images, n_classes), or CSR array of a top-k stack

AUTO_ANCHORS = ("logit_mean", "logistic")
AUTO_START = "logit_mean"  # reads no labels


@dataclass
class StackBase:
    """The two fitted blends.

    Attributes
    ----------
    name, start_name : str
        Names of the anchor and of the start; "none" starts from probabilities of one half.
    anchor, start : fitted blends, or None
        The same object where one blend is both.
    """

    name: str
    anchor: Any
    start_name: str
    start: Any

    def predict(self, stack: Stack) -> tuple[Probs, Probs]:
        """Probabilities of the anchor and of the start, each (n_images, n_classes)."""
        anchor = _predict(self.anchor, stack)
        same = self.start is self.anchor
        return anchor, anchor if same else _predict(self.start, stack)


def fit_base(
    base: str | None, stack: Stack, labels: csr_array, fold: NDArray[np.int64]
) -> tuple[StackBase, Probs, Probs]:
    """Fit anchor and start.

    Returns
    -------
    StackBase, and the out-of-fold probabilities of its anchor and its start
    """
    if base is None:
        half = _predict(None, stack)
        return StackBase("none", None, "none", None), half, half
    names = AUTO_ANCHORS if base == "auto" else (base,)
    held_out = {name: cross_fit(BLENDS[name](), stack, labels, fold) for name in names}
    best = min(names, key=lambda name: _log_loss(held_out[name], labels))
    start_name = AUTO_START if base == "auto" else best
    anchor = BLENDS[best]().fit(stack, labels)
    start = anchor if start_name == best else BLENDS[start_name]().fit(stack, labels)
    return StackBase(best, anchor, start_name, start), held_out[best], held_out[start_name]


def _predict(blend: Any, stack: Stack) -> Probs:
    if blend is not None:
        found: Probs = blend.predict_proba(stack)
        return found
    if stack.is_sparse:
        held = held_pairs(stack)
        return held.matrix(np.full(len(held.classes), 0.5, dtype=np.float32))
    return np.full((len(stack), len(stack.classes)), 0.5, dtype=np.float32)


def _log_loss(proba: Probs, labels: csr_array, step: int = 2048) -> float:
    """Mean log loss over all pairs, range by range; of a top-k stack over those it holds."""
    if issparse(proba):
        marked = mark_labels(proba.indptr.astype(np.int64), proba.indices, labels)
        return weighted_log_loss(logit(proba.data), marked.astype(np.float32))
    starts = range(0, len(proba), step)
    losses = [
        weighted_log_loss(
            logit(proba[s : s + step]), labels[s : s + step].toarray().astype(np.float32)
        )
        for s in starts
    ]
    sizes = [len(proba[s : s + step]) for s in starts]
    return float(np.average(losses, weights=sizes))
