"""Choosing a decision rule by grouped cross-validation and the one-standard-error rule."""

from typing import Any

import numpy as np

from stacker._inputs import check_labels
from stacker._rules import RULES, Problem, apply_rule
from stacker._splits import make_splits
from stacker.fbeta import as_sets, fbeta_score

__all__ = ["choose_strategy"]

# From simple to rich: the first within one standard error of the best is taken. Left out for
# their cost: max_affine (never measurably better than max_ratio) and top_k (much worse).
ORDER = ("global", "max_ratio", "group", "class", "expected")


def choose_strategy(problem: Problem, cv: Any) -> tuple[str, dict[str, Any]]:
    """Name of the rule to use, and the table of what was compared.

    Each rule is fitted on the other folds and scored on the held-out one. The simplest rule whose
    mean score is within one standard error of the best rule's is taken; the standard error is that
    of the paired difference over folds.
    """
    task = problem.task
    names = [name for name in ORDER if name != "group" or task.class_group.max(initial=0) > 0]
    if problem.split_group.max(initial=0) == 0:  # one group of images cannot be split
        return names[0], {}
    splits = make_splits(cv, problem.probs, problem.labels, problem.split_group, task.random_state)
    scores = np.array([_fold_scores(names, problem, train, test) for train, test in splits]).T
    means = scores.mean(axis=1)
    gaps = scores[int(means.argmax())] - scores
    errors = gaps.std(axis=1, ddof=1) / np.sqrt(len(splits)) if len(splits) > 1 else 0 * means
    chosen = int(np.flatnonzero(gaps.mean(axis=1) <= errors + 1e-12)[0])
    table = {
        "strategy": np.array(names),
        "mean_score": means,
        "std_score": scores.std(axis=1),
        "gap_to_best": gaps.mean(axis=1),
        "gap_standard_error": errors,
        "chosen": np.arange(len(names)) == chosen,
    }
    return names[chosen], table | {f"split{f}_score": scores[:, f] for f in range(len(splits))}


def _fold_scores(names: list[str], problem: Problem, train: Any, test: Any) -> list[float]:
    task, rest, held = problem.task, problem.take(train), problem.take(test)
    scores = []
    for name in names:
        chosen = apply_rule(name, RULES[name](rest), held.probs, task)
        sets = check_labels(as_sets(chosen, held.probs))
        scores.append(fbeta_score(held.labels, sets, task.beta, task.average, task.empty_score))
    return scores
