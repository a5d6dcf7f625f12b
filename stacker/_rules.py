"""Decision rules: each is a function that fits plain parameters and one that applies them.

A fitted rule is a dict of numbers, strings, arrays and such dicts, so it is saved without pickle.
Rules that compare a score with a threshold share one form: a *key* per (image, class) pair, made
from the probabilities, and a threshold per class. Label-count bounds are put into the keys.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import expit

from stacker._calibration_maps import log_odds
from stacker._fbeta_kernels import best_sets
from stacker._inputs import Matrix, as_rows, entry_columns
from stacker._keys import Bounds, affine_keys, bounded_keys, rank_keys, ratio_keys, shifted_keys
from stacker._sweep import NOTHING, Search, class_cuts, cuts_by_code
from stacker.calibration import ProbabilityCalibrator

__all__ = ["RULES", "Params", "Problem", "Task", "apply_rule"]

Params = dict[str, Any]
Floats = NDArray[np.float64]


class Task(NamedTuple):
    """What is to be maximised, and within which bounds."""

    class_group: NDArray[np.int32]  # (n_classes,) codes
    bounds: Bounds
    beta: float
    average: str
    empty_score: float
    shrinkage: float = 20.0
    random_state: int | None = None

    @property
    def metric(self) -> dict[str, float]:
        """Keyword arguments of F-beta."""
        return {"beta": self.beta, "empty_score": self.empty_score}


class Problem(NamedTuple):
    """What a rule is fitted to."""

    task: Task
    probs: Matrix  # (n_images, n_classes) float32, dense or CSR
    labels: sp.csr_array  # (n_images, n_classes) int8
    split_group: NDArray[np.intp]  # (n_images,) images of one group stay together

    def take(self, images: NDArray[np.intp]) -> "Problem":
        """Restrict the problem to some images."""
        rest = (self.probs[images], self.labels[images], self.split_group[images])
        return Problem(self.task, *rest)


# ------------------------------------------------------------------------------------ searches


def make_search(problem: Problem, keys: NDArray[np.float32]) -> Search:
    """Where a threshold on the keys is searched, the label-count bounds put into them."""
    task, rows = problem.task, as_rows(problem.probs)
    rows = rows._replace(values=bounded_keys(rows, keys, task.bounds))
    return Search(rows, problem.labels, task.average, task.metric)


def one_cut(problem: Problem, keys: NDArray[np.float32]) -> tuple[float, float]:
    """Find the best threshold on the keys, the same for all classes, and its F-beta."""
    same = np.zeros_like(problem.task.class_group)
    cuts, score = cuts_by_code(make_search(problem, keys), same)
    return float(cuts[0]), score


def group_cuts(problem: Problem, keys: NDArray[np.float32]) -> Floats:
    """Find a threshold for each class group."""
    return cuts_by_code(make_search(problem, keys), problem.task.class_group)[0]


# --------------------------------------------------------------------------- fitting the rules


def fit_global(problem: Problem) -> Params:
    """Fit one threshold for all classes."""
    return {"threshold": one_cut(problem, as_rows(problem.probs).values)[0]}


def fit_group(problem: Problem) -> Params:
    """Fit a threshold for each class group."""
    cuts = group_cuts(problem, as_rows(problem.probs).values)
    return {"threshold": cuts[problem.task.class_group]}


def fit_max_ratio(problem: Problem) -> Params:
    """Fit one threshold on the probability over the image's largest."""
    return {"threshold": one_cut(problem, ratio_keys(as_rows(problem.probs)))[0]}


def fit_max_affine(problem: Problem) -> Params:
    """Fit p >= offset + slope max(p), p above slope max(p): exact sweeps in turn, two starts."""
    plain, ratio = fit_global(problem)["threshold"], fit_max_ratio(problem)["threshold"]
    starts = [{"offset": plain, "slope": 0.0}, {"offset": 0.0, "slope": ratio}]
    found = [_affine_descent(problem, start) for start in starts]
    return max(found, key=lambda pair: pair[0])[1]


def _affine_descent(problem: Problem, params: Params) -> tuple[float, Params]:
    rows = as_rows(problem.probs)
    score, turn = -1.0, "slope" if params["slope"] == 0.0 else "offset"
    for _ in range(6):
        fixed = "offset" if turn == "slope" else "slope"
        cut, found = one_cut(problem, affine_keys(rows, **{fixed: params[fixed]}))
        if found <= score + 1e-5:
            break
        score = found
        params = {**params, turn: cut}
        turn = fixed
    return score, params


def fit_top_k(problem: Problem) -> Params:
    """Fit how many of the most probable classes of each group to take."""
    keys = rank_keys(as_rows(problem.probs), problem.task.class_group)
    cuts = group_cuts(problem, keys)
    return {"k": np.floor(1.0 / cuts + 1e-3).astype(np.int64)}


def fit_class(problem: Problem) -> Params:
    """Fit a threshold for each class, shrunk where positives are few."""
    if problem.task.average == "macro":
        return {"threshold": _shrunk_class_cuts(problem)}
    return {"threshold": _shifted_class_cuts(problem)}


def _shrunk_class_cuts(problem: Problem) -> Floats:
    """Each class's own best threshold, pulled to the global one in log-odds.

    A class with n positives keeps n / (n + shrinkage) of the difference.
    """
    keys = as_rows(problem.probs).values
    own, n = class_cuts(make_search(problem, keys))
    common = min(one_cut(problem, keys)[0], 1.0)
    weight = n / np.maximum(n + problem.task.shrinkage, 1e-9)
    own = np.where(np.isnan(own), common, np.minimum(own, 1.0))
    return expit(weight * log_odds(own) + (1 - weight) * log_odds(np.array(common)))


def _shifted_class_cuts(problem: Problem) -> Floats:
    """Fit a shift of each class's log-odds (MAP), then one exact threshold for all."""
    task, rows = problem.task, as_rows(problem.probs)
    calibrator = ProbabilityCalibrator("platt", "class", shrinkage=task.shrinkage)
    calibrator.fit(problem.probs, problem.labels)
    slope = calibrator.map_["curve"][0, 0]
    if slope < 1e-6:
        return np.full(len(task.class_group), one_cut(problem, rows.values)[0])
    # Slope and common shift change no order: the keys need the classes' shifts only.
    shift = calibrator.map_["offset"] / slope
    cut = one_cut(problem, shifted_keys(rows, shift))[0]
    if cut >= 1:
        return np.full(len(task.class_group), one_cut(problem, rows.values)[0])
    return expit(log_odds(np.array(cut)) - shift)


def fit_expected(problem: Problem) -> Params:
    """Calibrate; for macro and micro, thresholds from expected counts."""
    task = problem.task
    calibrator = ProbabilityCalibrator(
        class_groups=task.class_group, shrinkage=task.shrinkage, random_state=task.random_state
    )
    calibrator.fit(problem.probs, problem.labels, groups=problem.split_group)
    params: Params = {"calibrator": calibrator.to_state()}
    if task.average != "samples":
        probs = calibrator.transform(problem.probs)
        params["threshold"] = _expected_cuts(probs, task)
    return params


def _expected_cuts(probs: Matrix, task: Task) -> Floats:
    """Thresholds that maximise the F-beta of expected counts, for all classes or each.

    Dinkelbach's iteration: the best threshold is F / (1 + beta^2) with F the value it reaches
    (Ye et al., 2012; Lipton, Elkan and Naryanaswamy, 2014); it rises to the fixed point in a few
    steps.
    """
    rows = as_rows(probs)
    columns = entry_columns(rows)
    if task.average == "micro":
        columns = np.zeros_like(columns)
    n_units = rows.n_columns if task.average == "macro" else 1
    mean = np.bincount(columns, rows.values, n_units)
    cut = np.zeros(n_units)
    for _ in range(100):
        chosen = (rows.values > 0) & (rows.values >= cut[columns])  # zeros are never selected
        tp = np.bincount(columns[chosen], rows.values[chosen], n_units)
        below = task.beta**2 * mean + np.bincount(columns[chosen], minlength=n_units)
        new = np.divide(tp, below, out=np.full(n_units, NOTHING), where=below > 0)
        if np.allclose(new, cut, rtol=1e-12, atol=0):
            break
        cut = new
    return np.broadcast_to(cut, rows.n_columns).copy()


def fit_argmax(problem: Problem) -> Params:
    """Nothing to fit: the most probable class."""
    return {}


RULES: dict[str, Callable[[Problem], Params]] = {
    "global": fit_global,
    "group": fit_group,
    "class": fit_class,
    "max_ratio": fit_max_ratio,
    "max_affine": fit_max_affine,
    "top_k": fit_top_k,
    "expected": fit_expected,
    "argmax": fit_argmax,
}


# -------------------------------------------------------------------------- applying the rules


def apply_rule(strategy: str, params: Params, probs: Matrix, task: Task) -> NDArray[np.int8]:
    """0/1 for every entry of the probabilities."""
    if strategy == "expected":
        probs = ProbabilityCalibrator.from_state(params["calibrator"]).transform(probs)
        if "threshold" not in params:
            return _expected_sets(probs, task)
    rows = as_rows(probs)
    keys, threshold = _keys_and_threshold(strategy, params, probs, task)
    threshold = np.asarray(threshold, dtype=np.float32)
    if threshold.ndim:
        threshold = threshold[entry_columns(rows)]
    keys = bounded_keys(rows, keys, task.bounds)
    return ((keys > 0) & (keys >= threshold)).astype(np.int8)


def _keys_and_threshold(strategy: str, params: Params, probs: Matrix, task: Task) -> Any:
    rows = as_rows(probs)
    if strategy == "max_ratio":
        return ratio_keys(rows), params["threshold"]
    if strategy == "max_affine":
        return affine_keys(rows, slope=params["slope"]), params["offset"]
    if strategy == "top_k":
        cuts = 1.0 / (np.asarray(params["k"]) + 0.5)
        return rank_keys(rows, task.class_group), cuts[task.class_group]
    if strategy == "argmax":
        return rank_keys(rows, np.zeros_like(task.class_group)), 1.0
    return rows.values, params["threshold"]


def _expected_sets(probs: Matrix, task: Task) -> NDArray[np.int8]:
    bounds = task.bounds
    limits: dict[str, Any] = {"max_labels": len(bounds.codes)}
    if bounds.binding:
        limits |= {"class_group": bounds.codes, "group_min": bounds.low, "group_max": bounds.high}
    return best_sets(as_rows(probs), task.beta, task.empty_score, **limits)[0]
