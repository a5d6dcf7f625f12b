"""The same seed on the same machine gives the same bytes, with one thread and with two."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.reliability.makers import make_store

SCRIPT = textwrap.dedent(
    """
    import hashlib, sys
    from pathlib import Path
    from features.store import FeatureStore
    from features.folds import make_folds
    from features._build import Request, build
    from features._console import Reporter
    from stacker import PairStacker

    store, out, threads, booster = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    def said(name, data):
        print(name, hashlib.sha256(data).hexdigest())
    opened = FeatureStore.open(store)
    said("folds", make_folds(opened.labels, 3, opened.split_group, 0).tobytes())
    build(Request(store, out, n_jobs=threads), Reporter(quiet=True))
    for part in sorted(out.glob("part-*")):
        said("features", part.read_bytes())
    model = PairStacker(booster=booster, cv=2, random_state=0, n_jobs=threads)
    known = opened.subset(opened.labels_known)
    model.fit(known)
    said("model", model.boosters_[0].to_text().encode())
    said("predictions", model.predict_proba(opened).tobytes())
    """
)


def run(store, out, threads, booster):
    """Run everything in a process with so many threads; what it made, by name."""
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(store), str(out), str(threads), booster],
        capture_output=True,
        text=True,
        check=False,
        # Waiting threads sleep: on a busy machine two that spin take minutes.
        env={**os.environ, **dict.fromkeys(names, str(threads)), "OMP_WAIT_POLICY": "PASSIVE"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("booster", ["lightgbm", pytest.param("xgboost", marks=pytest.mark.slow)])
def test_one_thread_and_two_give_the_same_bytes(tmp_path, booster):
    """A result that nobody can make again cannot be checked."""
    store = make_store(tmp_path / "store", 60, 4)
    runs = [run(store, tmp_path / f"p{k}", threads, booster) for k, threads in enumerate((1, 1, 2))]
    assert runs[0] == runs[1]
    assert runs[0] == runs[2]
