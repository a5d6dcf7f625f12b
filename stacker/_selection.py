"""Choosing a decision rule by grouped cross-validation and the one-standard-error rule."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stacker._inputs import Matrix
from stacker._rules import RULES, Problem, rule_counts
from stacker._sweep import Counts, mean_fbeta

__all__ = ["choose_strategy", "make_splits"]

Split = tuple[NDArray[np.intp], NDArray[np.intp]]

# From simple to rich: the first within one standard error of the best is taken.
ORDER = ("global", "max_ratio", "group")


def choose_strategy(
    problem: Problem, groups: ArrayLike | None, cv: Any
) -> tuple[str, dict[str, Any]]:
    """Name of the rule to use, and the table of what was compared."""
    names = [name for name in ORDER if _applies(name, problem)]
    codes = group_codes(groups, problem.probs.shape[0])
    splits = make_splits(cv, problem.probs, problem.labels, codes, problem.random_state)
    if len(splits) < 2:
        return names[0], {}
    counts = {name: [_fold_counts(name, problem, split) for split in splits] for name in names}
    scores = np.array([[mean_fbeta(c, **problem.metric) for c in counts[n]] for n in names])
    means = scores.mean(axis=1)
    best = int(means.argmax())
    # Standard error of the paired difference to the best rule, over folds.
    gaps = scores[best] - scores
    errors = gaps.std(axis=1, ddof=1) / np.sqrt(len(splits))
    chosen = int(np.flatnonzero(gaps.mean(axis=1) <= errors + 1e-12)[0])
    return names[chosen], {
        "strategy": np.array(names),
        "mean_score": means,
        "std_score": scores.std(axis=1, ddof=1),
        "gap_to_best": gaps.mean(axis=1),
        "gap_standard_error": errors,
        "chosen": np.arange(len(names)) == chosen,
    }


def _applies(name: str, problem: Problem) -> bool:
    return name != "group" or problem.class_group.max(initial=0) > 0


def _fold_counts(name: str, problem: Problem, split: Split) -> Counts:
    train, test = split
    return rule_counts(name, RULES[name](problem.take(train)), problem.take(test))


def group_codes(groups: ArrayLike | None, n_images: int) -> NDArray[np.intp]:
    """Integer group of each image; each its own group when None."""
    if groups is None:
        return np.arange(n_images)
    values = np.asarray(groups)
    if values.shape != (n_images,):
        raise ValueError(
            f"groups must have one entry per image: shape ({n_images},), however: "
            f"groups.shape={values.shape}."
        )
    return np.unique(values, return_inverse=True)[1]


def make_splits(
    cv: Any, probs: Matrix, labels: Any, codes: NDArray[np.intp], random_state: int | None
) -> list[Split]:
    """Train and test positions of each fold; a group of images never parts."""
    if hasattr(cv, "split"):
        return list(cv.split(np.zeros((probs.shape[0], 1)), labels, codes))
    fold = np.asarray(cv) if np.ndim(cv) == 1 else _random_folds(codes, cv, random_state)
    folds = np.unique(fold[fold >= 0])
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in folds]


def _random_folds(
    codes: NDArray[np.intp], n_folds: int, random_state: int | None
) -> NDArray[np.intp]:
    """Whole groups to folds of like size, the largest groups first."""
    if int(n_folds) != n_folds or n_folds < 2:
        raise ValueError(f"The 'cv' parameter must be an int of at least 2. Got {n_folds!r}.")
    sizes = np.bincount(codes)
    rng = np.random.default_rng(random_state)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of_group = np.empty(len(sizes), np.intp)
    load = np.zeros(min(n_folds, len(sizes)))
    for g in order:
        fold_of_group[g] = load.argmin()
        load[fold_of_group[g]] += sizes[g]
    return fold_of_group[codes]
