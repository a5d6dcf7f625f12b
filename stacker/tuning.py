"""Tuning with Optuna: one set of binned rows, trials pruned fold by fold, studies that resume.

A trial is first tried on a quarter of the training images, on one fold and then on another; the
best go on to all images, fold by fold. What is scored was held out of the booster, and of the
half of the fold that chose rounds, shrinkage and thresholds.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone

from features.assemble import resolve_blocks
from stacker._training_set import TrainingSet, read_training_set
from stacker._tuning_data import OBJECTIVES, TuningData
from stacker._tuning_space import Settings, default_draw, draw_settings

if TYPE_CHECKING:
    import optuna

    from stacker.estimator import PairStacker

__all__ = ["fail_orphans", "open_storage", "study_frame", "tune", "tune_known"]

logger = logging.getLogger(__name__)

# Share of the trials that go on after each step: two screenings, then fold after fold.
GO_ON = (0.3, 0.5, 0.5, 0.6)
MOST_FOLDS = 3  # folds of all images that a trial is scored on
STARTUP_TRIALS = 10
STUDY_NAME = "pairstack"
OPENING_TRIES = 10
WORKER = "worker"  # attribute of a trial: the machine and process that it runs in

Step = Callable[[str], None]


def tune(
    model: PairStacker,
    X: Any,
    Y: Any = None,
    groups: ArrayLike | None = None,
    classes: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    *,
    n_trials: int = 50,
    timeout: float | None = None,
    storage: str | None = None,
    objective: str = "fbeta",
    step: Step | None = None,
) -> PairStacker:
    """Find better settings for a `PairStacker`.

    Parameters
    ----------
    model : PairStacker
        Not fitted; what it sets in `booster_params` stays as it is.
    X, Y, groups, classes, sample_weight
        As for `PairStacker.fit`.
    n_trials : int, default 50
        Finished trials (pruned ones count) after which to stop; those of a resumed study count.
    timeout : float, optional
        Seconds after which no further trial starts; the first always runs to its end.
    storage : str, optional
        Where the study lives: a journal file, or SQLite by a name that ends in ``.db``. Given
        again it goes on where it stopped; several processes may work on it at the same time.
        In memory by default.
    objective : {"fbeta", "log_loss"}
        What is maximised or minimised: F-beta after the decision, or the log loss an image.
    step : callable, optional
        Told at the start of every trial, for a progress bar.

    Returns
    -------
    PairStacker
        Not fitted, with the best settings found; its ``study_`` is the study, ``trials_`` the
        table of the finished trials and ``tuned_params_`` the best trial's parameters.

    Raises
    ------
    ValueError
        For an unknown objective, more than one booster, or a study of other data.

    Examples
    --------
    >>> import numpy as np
    >>> from stacker import PairStacker
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> start = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1)
    >>> best = tune(start, X, Y, n_trials=1)
    >>> best.trials_["state"].tolist()
    ['complete']
    """
    train = read_training_set(
        X, Y, groups, classes, sample_weight, cv=model.cv, random_state=model.random_state or 0
    )
    return tune_known(
        model,
        train,
        n_trials=n_trials,
        timeout=timeout,
        storage=storage,
        objective=objective,
        step=step,
    )


def tune_known(
    model: PairStacker,
    train: TrainingSet,
    *,
    n_trials: int,
    timeout: float | None = None,
    storage: str | None = None,
    objective: str = "fbeta",
    step: Step | None = None,
) -> PairStacker:
    """Do the same on a training set that was read already.

    Examples
    --------
    >>> import numpy as np
    >>> from stacker import PairStacker
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> start = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1)
    >>> train = read_training_set(X, Y, None, None, None, cv=3, random_state=0)
    >>> len(tune_known(start, train, n_trials=1).trials_)
    1
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be of {OBJECTIVES}. Got {objective!r} instead.")
    if not isinstance(model.booster, str):
        raise ValueError(f"tuning takes one booster at a time. Got {model.booster!r}.")
    if n_trials < 1:
        raise ValueError(f"n_trials must be at least 1. Got {n_trials!r}.")
    seconds = time.monotonic()
    draft = clone(model).set_params(n_trials=0)
    rows, base = draft._make_rows(train)
    study = _open_study(storage, _fingerprint(draft, rows, train.labels, objective))
    fail_orphans(study)
    if not _alive(study):
        # What a killed worker began with is begun again; another worker may have done so by now.
        begun = bool(study.get_trials(deepcopy=False))
        study.enqueue_trial(default_draw(draft.booster, draft.base), skip_if_exists=not begun)
    if len(_finished(study)) < n_trials:
        data = TuningData(draft, rows, train.labels, train.groups, base, objective=objective)
        _run(study, data, n_trials, None if timeout is None else seconds + timeout, step)
    best = clone(model).set_params(n_trials=0, **_as_params(draft, study.best_trial, train.stack))
    best.study_, best.tuned_params_ = study, dict(study.best_params)
    best.trials_ = study_frame(study)
    return best


def open_storage(path: str | None) -> Any:
    """Open Optuna's storage of a path: SQLite for ``.db``, else a journal file; None is memory.

    Examples
    --------
    >>> open_storage(None) is None
    True
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if path is None:
        return None
    if path.endswith(".db") or "://" in path:
        url = path if "://" in path else f"sqlite:///{path}"
        return _open_database(url)
    return JournalStorage(JournalFileBackend(path))


def study_frame(study: Any) -> Any:
    """Table of the finished trials.

    Returns
    -------
    DataFrame
        ``trial``, ``value`` (NaN where pruned), ``screen`` (score of the first screening),
        ``state``, ``steps``, ``seconds`` and a column for each parameter.

    Examples
    --------
    >>> import optuna
    >>> study = optuna.create_study()
    >>> study.add_trial(optuna.trial.create_trial(value=0.5))
    >>> study_frame(study)[["trial", "value", "state"]].values.tolist()
    [[0, 0.5, 'complete']]
    """
    import pandas as pd

    rows = [
        {
            "trial": trial.number,
            "value": trial.value if trial.state.name == "COMPLETE" else np.nan,
            "screen": trial.intermediate_values.get(0, np.nan),
            "state": trial.state.name.lower(),
            "steps": len(trial.intermediate_values),
            "seconds": trial.duration.total_seconds() if trial.duration else np.nan,
            **trial.params,
        }
        for trial in _finished(study)
    ]
    return pd.DataFrame(rows)


def _run(
    study: optuna.Study, data: TuningData, n_trials: int, stop: float | None, step: Step | None
) -> None:
    import optuna

    while len(_finished(study)) < n_trials:
        # Without a finished trial there is nothing to choose from: the first one always runs.
        late = stop is not None and time.monotonic() >= stop
        if late and any(t.state.name == "COMPLETE" for t in _finished(study)):
            return
        # A sampler for each trial, seeded by its number: a resumed study draws what an
        # uninterrupted one would have drawn.
        number = len([t for t in _alive(study) if t.state.name != "WAITING"])
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP_TRIALS,
            multivariate=True,
            seed=data.seed * 100_003 + number,
        )
        trial = study.ask()
        trial.set_user_attr(WORKER, _this_worker())
        if step is not None:
            step(f"trial {trial.number}")
        try:
            value = _evaluate(study, trial, data, first=number == 0)
        except BaseException:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise
        if value is None:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, value)
        logger.info("trial %d: %s", trial.number, "pruned" if value is None else f"{value:.4f}")


def _evaluate(
    study: optuna.Study, trial: optuna.Trial, data: TuningData, *, first: bool
) -> float | None:
    """Score a trial fold by fold; None when it was pruned."""
    settings = draw_settings(
        trial,
        data.name,
        blocks=data.blocks,
        fixed=dict(data.model.booster_params or {}),
        base=data.model.base,
    )
    full: list[float] = []
    steps = _schedule(data.n_folds)
    last = len(steps) - 1
    for at, (fold, screen) in enumerate(steps):
        score = data.score(settings, fold, screen=screen)
        if not screen:
            full.append(score)
        told = score if screen else float(np.mean(full))
        trial.report(told, at)
        # The defaults run to the end: they are what the others are measured against.
        if not first and at < last and _worse(study, trial, at, told):
            return None
    return float(np.mean(full))


def _schedule(n_folds: int) -> list[tuple[int, bool]]:
    """(fold, screening) of each step."""
    screens = [(fold, True) for fold in range(min(2, n_folds))]
    return screens + [(fold, False) for fold in range(n_folds)][:MOST_FOLDS]


def _worse(study: optuna.Study, trial: optuna.Trial, at: int, value: float) -> bool:
    """Whether a trial is not among the best at a step."""
    others = [
        other.intermediate_values[at]
        for other in _alive(study)
        if at in other.intermediate_values and other.number != trial.number
    ]
    if len(others) < 2:
        return False
    share = GO_ON[min(at, len(GO_ON) - 1)]
    return sum(other > value for other in others) >= share * (len(others) + 1)


def _open_database(url: str) -> Any:
    """Open a database; of workers that make its tables at the same moment, one finds them made."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, OperationalError

    for _ in range(OPENING_TRIES):
        try:
            return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        except (IntegrityError, OperationalError) as error:
            # Another worker made a table, or wrote the version of the tables, a moment before.
            if not any(sign in str(error) for sign in ("already exists", "alembic_version")):
                raise
            time.sleep(0.2)
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


def _open_study(storage: str | None, fingerprint: str) -> optuna.Study:
    import optuna

    with _quiet(optuna):
        study = optuna.create_study(
            storage=open_storage(storage),
            study_name=STUDY_NAME,
            direction="maximize",
            load_if_exists=storage is not None,
        )
    known = study.user_attrs.get("data")
    if known is None:
        study.set_user_attr("data", fingerprint)
    elif known != fingerprint:
        raise ValueError(
            f"the study in {storage!r} was made on other data or with another objective, booster "
            f"or seed. Give another storage, or the data it was made on."
        )
    return study


class _quiet:
    """Keep Optuna's own log lines out of ours."""

    def __init__(self, optuna: Any) -> None:
        self.logging = optuna.logging

    def __enter__(self) -> None:
        self.before = self.logging.get_verbosity()
        self.logging.set_verbosity(self.logging.WARNING)

    def __exit__(self, *error: object) -> None:
        self.logging.set_verbosity(self.before)


def _fingerprint(model: Any, rows: Any, labels: Any, objective: str) -> str:
    """Short name of what a study is about."""
    digest = hashlib.sha256()
    for part in (rows.image, rows.cls, rows.fold, rows.base, labels.indices, labels.indptr):
        digest.update(np.ascontiguousarray(part).tobytes())
    said = (objective, model.booster, model.average, model.beta, model.random_state)
    digest.update(repr((said, model.feature_names_)).encode())
    return digest.hexdigest()[:16]


def fail_orphans(study: optuna.Study) -> None:
    """End the trials of killed workers of this machine, so that the study goes on without them.

    A trial of another machine is left alone: nobody here knows whether it still runs.

    Examples
    --------
    >>> import optuna
    >>> study = optuna.create_study()
    >>> fail_orphans(study)  # none was begun
    """
    import optuna

    host = platform.node()
    for trial in study.get_trials(deepcopy=False):
        name, _, process = str(trial.user_attrs.get(WORKER, "")).rpartition(":")
        if trial.state.name == "RUNNING" and name == host and not _runs(int(process)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _this_worker() -> str:
    return f"{platform.node()}:{os.getpid()}"


def _runs(process: int) -> bool:
    """Whether another process of that number exists."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _alive(study: optuna.Study) -> list[Any]:
    """Trials that were not ended by an error or a kill."""
    return [t for t in study.get_trials(deepcopy=False) if t.state.name != "FAIL"]


def _finished(study: optuna.Study) -> list[Any]:
    wanted = ("COMPLETE", "PRUNED")
    return [t for t in study.get_trials(deepcopy=False) if t.state.name in wanted]


def _as_params(model: Any, trial: Any, stack: Any) -> dict[str, Any]:
    """Give the parameters of an estimator that does what a trial did."""
    import optuna

    names = list(dict.fromkeys(column.block for column in model.columns_))
    drawn = draw_settings(
        optuna.trial.FixedTrial(trial.params),
        model.booster,
        blocks=names,
        fixed=dict(model.booster_params or {}),
        base=model.base,
    )
    return {
        "booster_params": drawn.booster_params,
        "base": drawn.base,
        "blocks": _without(model, drawn, stack),
        "candidates": _fewer(model, drawn),
    }


def _without(model: Any, drawn: Settings, stack: Any) -> Any:
    if not drawn.without:
        return model.blocks
    chosen = resolve_blocks(model.blocks, stack)
    return tuple((b.name, dict(o)) for b, o in chosen if b.name not in drawn.without)


def _fewer(model: Any, drawn: Settings) -> Any:
    if drawn.kept == 1.0:
        return model.candidates
    return {name: max(1, int(np.ceil(k * drawn.kept))) for name, k in model.candidates_.items()}
