"""How many rounds, and how far from the base: chosen on held-out folds, told apart honestly.

A fold's out-of-fold prediction uses the number of rounds and the shrinkage that the *other*
folds chose, so that what it is scored with was not picked on it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stacker.blend import log_losses, weighted_log_loss
from stacker.boosters import SNAPSHOT_EVERY, FoldFit, Rows

SHRINKAGES = np.linspace(0, 1, 11)


@dataclass(frozen=True)
class Stages:
    """What cross-validation chose.

    Attributes
    ----------
    rounds : dict of booster name to int
    shrinkage : float
        The final logit is base + shrinkage * (boosted - base); 0 leaves the base alone.
    correction : float32 array of shape (n_rows,)
        Out-of-fold shrinkage * (boosted - base) of every row.
    """

    rounds: dict[str, int]
    shrinkage: float
    correction: NDArray[np.float32]


def choose_stages(fits: dict[str, dict[int, FoldFit]], rows: Rows) -> Stages:
    """Choose rounds per booster and the shrinkage of their mean.

    Parameters
    ----------
    fits : {booster name: {fold: FoldFit}}
    rows : Rows
    """
    raw = rows.start - rows.base  # boosted - base, before any tree
    rounds = {}
    for name, by_fold in fits.items():
        curves = _padded(by_fold)
        sizes = np.array([_mass(rows, rows.row_fold == fold) for fold in by_fold])
        rounds[name] = _best(curves, sizes) * SNAPSHOT_EVERY
        for position, (fold, fit) in enumerate(by_fold.items()):
            others = np.arange(len(sizes)) != position
            moment = _best(curves[others], sizes[others]) if others.any() else _best(curves, sizes)
            raw[rows.row_fold == fold] += fit.raw[min(moment, len(fit.raw) - 1)] / len(fits)
    own = {fold: choose_shrinkage(rows, raw, rows.row_fold != fold) for fold in _folds(fits)}
    scale = np.zeros(len(rows), dtype=np.float32)
    for fold, shrinkage in own.items():
        scale[rows.row_fold == fold] = shrinkage
    everywhere = np.ones(len(rows), dtype=bool)
    return Stages(rounds, choose_shrinkage(rows, raw, everywhere), scale * raw)


def choose_shrinkage(rows: Rows, raw: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """Find the s with the lowest log loss of base + s * correction; 0 unless it clearly helps.

    "Clearly": the mean gain over images is more than two standard errors, so that on a set too
    small to learn from the stack is the base.
    """
    base, label, own = rows.base[inside], rows.label[inside], raw[inside]
    weight = None if rows.weight is None else rows.weight[inside]
    losses = [weighted_log_loss(base + np.float32(s) * own, label, weight) for s in SHRINKAGES]
    best = float(SHRINKAGES[int(np.argmin(losses))])
    gain = log_losses(base, label) - log_losses(base + np.float32(best) * own, label)
    image = rows.image[inside]
    if weight is not None:
        image, gain = image[weight > 0], (gain * weight)[weight > 0]
    per_image = np.bincount(image, gain)[np.unique(image)]
    if len(per_image) < 2 or per_image.mean() <= 2 * per_image.std(ddof=1) / len(per_image) ** 0.5:
        return 0.0
    return best


def _mass(rows: Rows, inside: NDArray[np.bool_]) -> float:
    """How much some rows count: their number, or the sum of their weights."""
    return float(inside.sum() if rows.weight is None else rows.weight[inside].sum())


def _folds(fits: dict[str, dict[int, FoldFit]]) -> list[int]:
    return list(next(iter(fits.values())))


def _padded(by_fold: dict[int, FoldFit]) -> NDArray[np.float64]:
    """Loss curves (n_folds, n_moments); one that stopped early stays at its last value."""
    longest = max(len(fit.loss) for fit in by_fold.values())
    return np.stack(
        [np.pad(fit.loss, (0, longest - len(fit.loss)), mode="edge") for fit in by_fold.values()]
    )


def _best(curves: NDArray[np.float64], sizes: NDArray[np.float64]) -> int:
    return int(np.argmin(np.average(curves, axis=0, weights=sizes))) if sizes.any() else 0
