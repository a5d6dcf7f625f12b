"""`PairStacker(dask=...)` fits and predicts what one machine does."""

import contextlib
import logging
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from stacker import PairStacker, _dask

SETTINGS = {
    "booster_params": {"learning_rate": 0.2},
    "candidates": 8,
    "blocks": ("probabilities", "ranks", "class_prior", "neighbours"),
    "base": "logit_mean",
    "cv": 2,
    "random_state": 0,
    "n_jobs": 1,
}
# More bins than rows and no drawing of rows: what workers cannot do alike is left out, so that the
# trees are those of one machine but for the order of sums.
EXACT = SETTINGS | {"booster_params": {"learning_rate": 0.2, "subsample": 1.0, "max_bin": 4096}}


@pytest.fixture(scope="module")
def data(slice_stack, slice_labels):
    """Training images and labels, and new images."""
    return slice_stack[:150], slice_labels[:150], slice_stack[220:]


@pytest.fixture(scope="module", autouse=True)
def few_rounds():
    """Boost briefly: these tests compare two ways to do the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stacker.estimator.MOST_ROUNDS", 30)
        patch.setattr("stacker.estimator.PATIENCE", 20)
        yield


@pytest.fixture(scope="module")
def local(data):
    """The model of one machine."""
    return PairStacker("xgboost", **EXACT).fit(data[0], data[1])


def test_xgboost_on_workers_is_that_of_one_machine(cluster, data, local):
    """Other rows, starts, weights or folds reach the boosters on Dask."""
    stack, labels, new = data
    model = PairStacker("xgboost", dask=cluster.address, **EXACT).fit(stack, labels)
    assert model.feature_names_ == local.feature_names_
    assert (model.folds_ == local.folds_).all()
    assert model.candidates_ == local.candidates_
    difference = np.abs(model.predict_proba(new) - local.predict_proba(new))
    assert model.rounds_ == local.rounds_
    assert difference.mean() < 1e-4
    assert abs(model.oof_score_ - local.oof_score_) < 0.005


@pytest.mark.slow
def test_lightgbm_on_workers_is_close_to_one_machine(cluster, data):
    """LightGBM's rounds, weights or starts go wrong on Dask."""
    stack, labels, new = data
    here = PairStacker("lightgbm", **SETTINGS).fit(stack, labels)
    there = PairStacker("lightgbm", dask=cluster.address, **SETTINGS).fit(stack, labels)
    assert np.abs(there.predict_proba(new) - here.predict_proba(new)).mean() < 0.01


def test_workers_predict_the_bits_of_one_machine(cluster, data, local):
    """Predictions depend on where they are made."""
    expected = local.predict_proba(data[2])
    local.dask = cluster.address
    try:
        np.testing.assert_array_equal(local.predict_proba(data[2]), expected)
    finally:
        local.dask = None


@pytest.mark.slow
def test_boosting_goes_on_without_a_killed_worker(cluster, data, local, caplog):
    """One lost worker hangs or loses the run."""
    stack, labels, new = data
    (third,) = cluster.start(1)
    model = PairStacker("xgboost", dask=cluster.address, verbose=1, **EXACT)
    run = threading.Thread(target=model.fit, args=(stack, labels))
    with caplog.at_level(logging.INFO, logger="stacker.estimator"):
        run.start()
        cluster.wait_until(lambda: "fold 1" in caplog.text)
        cluster.kill(third)
        run.join(timeout=240)
    assert not run.is_alive()
    assert np.abs(model.predict_proba(new) - local.predict_proba(new)).mean() < 1e-4


def test_dask_is_an_address():
    """A client object would break clone and save."""
    with pytest.raises(ValueError, match="'dask' parameter must be None, a scheduler's address"):
        PairStacker(dask=1).fit(np.full((4, 1, 2), 0.5), np.ones((4, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [2, 4])
def test_the_current_client_of_a_local_cluster_serves(n_workers, data, local):
    """`dask="current"`, a nanny or another number of workers changes features or scores."""
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster):
        model = PairStacker("xgboost", dask="current", **SETTINGS).fit(data[0], data[1])
    here, there = local.features_.states_, model.features_.states_
    assert list(here) == list(there)
    np.testing.assert_array_equal(here["class_prior"]["table"], there["class_prior"]["table"])
    for name in ("blend", "embedding:lite0"):
        codes = [state["neighbours"][f"{name}/values"] for state in (here, there)]
        np.testing.assert_array_equal(*codes)
    assert abs(model.oof_score_ - local.oof_score_) < 0.03


@pytest.mark.slow
def test_lightgbm_ends_when_a_worker_is_killed(cluster, data, caplog):
    """LightGBM waits for a lost worker for ever."""
    (third,) = cluster.start(1)
    model = PairStacker("lightgbm", dask=cluster.address, verbose=1, **SETTINGS)
    outcome = []

    def fit():
        try:
            outcome.append(model.fit(data[0], data[1]))
        except RuntimeError as error:
            outcome.append(error)

    run = threading.Thread(target=fit, daemon=True)
    with caplog.at_level(logging.INFO, logger="stacker.estimator"):
        run.start()
        cluster.wait_until(lambda: "fold 1" in caplog.text)
        cluster.kill(third)
        run.join(timeout=300)
    assert outcome, "it hangs"
    # Either it began again, or it says what happened.
    assert outcome[0] is model or "workers were lost" in str(outcome[0])


def test_waiting_for_a_lost_worker_ends(monkeypatch):
    """A booster whose workers wait for a lost one waits for ever."""
    seen = iter([{"a", "b"}, *[{"a"}] * 100])
    monkeypatch.setattr(_dask, "_workers", lambda client: next(seen))
    monkeypatch.setattr(_dask, "STUCK_SECONDS", 0.04)
    monkeypatch.setattr(_dask, "LOOK_EVERY", 0.02)
    client = SimpleNamespace(as_current=contextlib.nullcontext)
    stop = threading.Event()
    with pytest.raises(RuntimeError, match=r"lightgbm: fold 1: 1 of 2 workers were lost, and"):
        _dask._again(client, "lightgbm: fold 1", stop.wait)
    stop.set()


def test_an_error_without_a_lost_worker_is_not_tried_again(monkeypatch):
    """A wrong parameter is tried four times."""
    tried = []
    monkeypatch.setattr(_dask, "_workers", lambda client: {"a"})
    client = SimpleNamespace(
        as_current=contextlib.nullcontext, scheduler=SimpleNamespace(address="tcp://s")
    )
    with pytest.raises(RuntimeError, match=r"all rows failed on tcp://s \(0 of 1 workers"):
        _dask._again(client, "all rows", lambda: tried.append(1) or 1 / 0)
    assert len(tried) == 1
