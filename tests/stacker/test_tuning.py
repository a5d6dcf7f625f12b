"""Tuning: never below the defaults' trial, resumed after a kill, shared, repeatable."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import optuna
import pandas as pd
import pytest
from scipy.sparse import csr_array
from sqlalchemy.exc import IntegrityError, OperationalError

from features import Stack
from stacker import PairStacker
from stacker.boosters import BOOSTERS
from stacker.report import render_report
from stacker.tuning import open_storage, study_frame, tune

BLOCKS = ("probabilities", "ranks", "class_prior")


def small(**params) -> PairStacker:
    settings = {"cv": 2, "random_state": 0, "blocks": BLOCKS, "n_jobs": 1, "candidates": 8}
    return PairStacker(**{**settings, **params})


@pytest.fixture(scope="module")
def part(slice_stack, slice_labels, slice_groups):
    """Sixteen classes and two models: trials of a tenth of a second."""
    columns = np.argsort(-np.asarray(slice_labels.sum(axis=0)).ravel())[:16]
    models = slice_stack.models[:2]
    probs = {m: slice_stack.probabilities[m][:, columns] for m in models}
    return (
        Stack(probs, classes=slice_stack.classes[columns]),
        slice_labels[:, columns],
        slice_groups,
    )


@pytest.fixture(scope="module", params=["lightgbm", "xgboost"])
def tuned(request, part):
    stack, labels, groups = part
    return tune(small(booster=request.param), stack, labels, groups, n_trials=6)


def test_the_defaults_come_first_and_the_best_is_not_below_them(tuned):
    """Tuning must not end with settings that its own trials found worse."""
    frame = study_frame(tuned.study_)
    assert len(frame) == 6
    assert frame["state"][0] == "complete"
    assert frame["learning_rate"][0] == 0.05
    assert tuned.study_.best_value >= frame["value"][0]
    assert (frame["state"] == "pruned").any()
    assert frame["steps"][0] == 4  # two screenings, two folds


def test_what_is_returned_does_what_the_best_trial_did(tuned, part):
    """Parameters of the estimator follow the draw: booster, base, blocks, candidates."""
    best = tuned.study_.best_params
    for name in ("learning_rate", "lambda_l2", "subsample"):
        if name in best:
            assert tuned.booster_params[name] == best[name]
    left_out = {best["without_1"], best["without_2"]} - {""}
    names = [b if isinstance(b, str) else b[0] for b in tuned.blocks]
    assert set(names) == set(BLOCKS) - left_out
    stack, labels, groups = part
    assert tuned.fit(stack, labels, groups).predict(stack).shape == labels.shape


def test_rows_are_binned_once(part, monkeypatch):
    """The cost of binning must not come back with every trial."""
    calls = []
    plain = BOOSTERS["lightgbm"].bin
    monkeypatch.setattr(
        BOOSTERS["lightgbm"], "bin", lambda self, rows: calls.append(1) or plain(self, rows)
    )
    tune(small(), part[0], part[1], n_trials=4)
    assert len(calls) == 1


def test_n_trials_of_the_estimator_tunes_and_keeps_its_parameters(part):
    """`PairStacker(n_trials=...)` is fitted with what was found; `get_params` stays as given."""
    stack, labels, groups = part
    model = small(n_trials=3).fit(stack, labels, groups)
    assert len(model.study_.trials) == 3
    assert model.get_params()["n_trials"] == 3
    assert model.booster_params is None
    again = small(n_trials=3).fit(stack, labels, groups)
    np.testing.assert_array_equal(model.oof_proba_, again.oof_proba_)
    assert model.tuned_params_ == again.tuned_params_


def test_a_saved_model_keeps_its_trials_and_the_report_shows_them(part, tmp_path):
    """History, importance and every trial can be looked at without Optuna's storage."""
    stack, labels, groups = part
    model = small(n_trials=9).fit(stack, labels, groups)
    model.save(tmp_path / "model")
    loaded = PairStacker.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.trials_, model.trials_, check_dtype=False)
    assert loaded.tuned_params_ == model.tuned_params_
    page = render_report(loaded)
    assert "Tuning: 9 trials" in page
    for heading in ("History", "Importance of the parameters", "Every trial"):
        assert heading in page
    assert "learning_rate" in page


def test_what_the_user_sets_is_not_tuned(part):
    """A parameter that was given stays, whatever the trials draw."""
    best = tune(small(booster_params={"num_leaves": 5}), part[0], part[1], n_trials=3)
    assert best.booster_params["num_leaves"] == 5


SCRIPT = """
import sys
import numpy as np
import optuna
from features import Stack
from stacker import PairStacker
from stacker.tuning import tune
data = np.load(sys.argv[1])
stack = Stack({"a": data["a"], "b": data["b"]})
blocks = ("probabilities", "ranks", "class_prior")
model = PairStacker(cv=2, random_state=0, blocks=blocks, n_jobs=1)
tune(model, stack, data["Y"], n_trials=int(sys.argv[3]), storage=sys.argv[2])
"""


@pytest.fixture
def saved_part(part, tmp_path):
    stack, labels, _ = part
    path = tmp_path / "part.npz"
    first, second = stack.probabilities.values()
    np.savez(path, a=first, b=second, Y=labels.toarray())
    return path


def start(path, storage, n_trials):
    command = [sys.executable, "-c", SCRIPT, str(path), str(storage), str(n_trials)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def states(storage):

    try:
        study = optuna.load_study(study_name="pairstack", storage=open_storage(str(storage)))
    except KeyError:
        return []
    return [(t.state.name, t.params, t.value) for t in study.get_trials(deepcopy=False)]


@pytest.mark.parametrize("name", ["study.db", "study.log"])
def test_a_killed_run_resumes_with_its_finished_trials(saved_part, tmp_path, name):
    """SIGKILL in the middle loses at most the trial under way."""
    storage = tmp_path / name
    process = start(saved_part, storage, 1000)
    for _ in range(200):
        time.sleep(0.3)
        if storage.exists() and len(states(storage)) > 4:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = [s for s in states(storage) if s[0] in ("COMPLETE", "PRUNED")]
    assert len(before) >= 4
    wanted = len(before) + 3
    assert start(saved_part, storage, wanted).wait() == 0
    after = [s for s in states(storage) if s[0] in ("COMPLETE", "PRUNED")]
    assert len(after) == wanted
    assert after[: len(before)] == before


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("CREATE TABLE", {}, Exception("table studies already exists")),
        IntegrityError("INSERT", {}, Exception("UNIQUE failed: alembic_version.version_num")),
    ],
)
def test_tables_that_another_worker_makes_meanwhile_are_taken(tmp_path, monkeypatch, error):
    """Two workers that start together on a new database must not stop one of them."""
    made, beats = optuna.storages.RDBStorage, [True]

    def beaten(url, **options):
        if beats.pop():
            beats.append(False)
            raise error
        return made(url, **options)

    monkeypatch.setattr(optuna.storages, "RDBStorage", beaten)
    assert open_storage(str(tmp_path / "study.db")).get_all_studies() == []


def test_two_workers_share_a_study(saved_part, tmp_path):
    """Trials are divided, not repeated: together they stop near the number asked for."""
    storage = tmp_path / "study.log"
    assert start(saved_part, storage, 1).wait() == 0
    workers = [start(saved_part, storage, 8) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    finished = [s for s in states(storage) if s[0] in ("COMPLETE", "PRUNED")]
    assert 8 <= len(finished) <= 9


def test_a_study_of_other_data_is_refused(part, tmp_path):
    """Values of another data set would steer the search and name a wrong winner."""
    stack, labels, _ = part
    storage = str(tmp_path / "study.log")
    tune(small(), stack, labels, n_trials=1, storage=storage)
    with pytest.raises(ValueError, match="made on other data"):
        tune(small(), stack[:200], labels[:200], n_trials=2, storage=storage)


def test_timeout_stops_before_the_next_trial(part):
    """A time limit must hold whatever the number of trials."""
    began = time.monotonic()
    best = tune(small(), part[0], part[1], n_trials=10_000, timeout=3)
    assert time.monotonic() - began < 20
    assert 1 <= len(best.study_.trials) < 10_000


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        ({}, {"objective": "auc"}, "objective must be of"),
        ({"booster": ("lightgbm", "xgboost")}, {}, "one booster at a time"),
        ({}, {"n_trials": 0}, "n_trials must be at least 1"),
    ],
)
def test_bad_arguments_are_named(params, options, message, part):
    """A wrong argument must say what would be right."""
    with pytest.raises(ValueError, match=message):
        tune(small(**params), part[0], part[1], **options)


@pytest.mark.parametrize("objective", ["fbeta", "log_loss"])
@pytest.mark.parametrize("booster", ["lightgbm", "xgboost"])
def test_a_top_k_stack_is_tuned_as_its_dense_twin(booster, objective, part):
    """Tuning indexed out-of-fold probabilities as an array; every class held, it is the same."""
    stack, labels, groups = part
    probs = {m: np.maximum(p, np.float32(1e-4)) for m, p in stack.probabilities.items()}
    scores = [
        tune(
            small(booster=booster, base="selection"),
            Stack({m: form(p) for m, p in probs.items()}),
            labels,
            groups,
            n_trials=2,
            objective=objective,
        ).trials_["value"]
        for form in (np.asarray, csr_array)
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)


def test_a_fit_without_trials_forgets_those_of_an_earlier_one(part):
    """The model's folder and report showed trials that had nothing to do with it."""
    stack, labels, _ = part
    model = small(n_trials=1).fit(stack, labels)
    assert len(model.study_.trials) == len(model.trials_) == 1
    model.set_params(n_trials=0).fit(stack, labels)
    assert model.study_ is None
    assert not hasattr(model, "trials_")
    found = tune(small(), stack, labels, n_trials=1).fit(stack, labels)
    assert len(found.trials_) == 1


def test_one_trial_runs_however_short_the_time(part):
    """Where rows took longer than the limit, Optuna said that no trials are completed yet."""
    best = tune(small(), part[0], part[1], n_trials=5, timeout=0)
    assert best.trials_["state"].tolist() == ["complete"]
