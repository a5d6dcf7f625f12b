"""Choosing a decision rule by grouped cross-validation and the one-standard-error rule."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stacker._hits import Counts
from stacker._inputs import check_labels
from stacker._rules import RULES, Problem, Task, apply_rule
from stacker._splits import make_splits
from stacker.fbeta import as_sets, unit_counts

__all__ = ["choose_strategy"]

# From simple to rich: the first within one standard error of the best is taken. max_affine is left
# out for its cost, and for never being measurably better than max_ratio (docs/decisions.md).
ORDER = ("global", "top_k", "max_ratio", "group", "class", "expected")


def choose_strategy(problem: Problem, cv: Any) -> tuple[str, dict[str, Any]]:
    """Name of the rule to use, and the table of what was compared.

    Each rule is fitted on the other folds and applied to the held-out one; its score is that of
    all held-out sets together, so that for macro averages a class counts over all folds. The
    simplest rule within one standard error of the best is taken: that of the difference between
    the two, by the jackknife over folds.
    """
    task = problem.task
    names = [name for name in ORDER if name != "group" or task.class_group.max(initial=0) > 0]
    if problem.split_group.max(initial=0) == 0:  # one group of images cannot be split
        return names[0], {}
    splits = make_splits(cv, problem.probs, problem.labels, problem.split_group, task.random_state)
    folds = [_fold_counts(names, problem, train, test) for train, test in splits]
    counts = {name: [fold[name] for fold in folds] for name in names}
    scores = np.array([_score(counts[name], task) for name in names])
    without = np.array([_without_each(counts[name], task) for name in names])
    best = int(scores.argmax())
    errors = _jackknife(without[best] - without)
    chosen = int(np.flatnonzero(scores[best] - scores <= errors + 1e-12)[0])
    table = {
        "strategy": np.array(names),
        "mean_score": scores,
        "gap_to_best": scores[best] - scores,
        "gap_standard_error": errors,
        "chosen": np.arange(len(names)) == chosen,
    }
    per_fold = {
        f"split{f}_score": np.array([_score([fold[name]], task) for name in names])
        for f, fold in enumerate(folds)
    }
    return names[chosen], table | per_fold


def _fold_counts(names: list[str], problem: Problem, train: Any, test: Any) -> dict[str, Counts]:
    """Count each unit of the held-out fold, by rule."""
    task, rest, held = problem.task, problem.take(train), problem.take(test)
    counts = {}
    for name in names:
        chosen = apply_rule(name, RULES[name](rest), held.probs, task)
        sets = check_labels(as_sets(chosen, held.probs))
        counts[name] = unit_counts(held.labels, sets, task.average)
    return counts


def _score(folds: list[Counts], task: Task) -> float:
    """F-beta of the sets of several folds together."""
    join = np.concatenate if task.average == "samples" else sum
    together = Counts(*(join(parts) for parts in zip(*folds, strict=True)))
    return float(together.fbeta(**task.metric).mean())


def _without_each(folds: list[Counts], task: Task) -> list[float]:
    """Scores with each fold left out in turn."""
    if len(folds) < 2:
        return [_score(folds, task)]
    return [_score(folds[:f] + folds[f + 1 :], task) for f in range(len(folds))]


def _jackknife(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimate the standard error of each row's statistic from its leave-one-out values."""
    n = values.shape[1]
    errors: NDArray[np.float64] = np.sqrt((n - 1) * values.var(axis=1))
    return errors
