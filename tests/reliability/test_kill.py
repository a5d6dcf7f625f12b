"""SIGKILL and Ctrl-C at random moments of every command, then the same command again.

The result must be that of a run that nobody disturbed, bit for bit, and no temporary file stays.
The short form kills each command twice; ``make soak`` 25 times.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.makers import MODULES, commands, content, leftovers, make_images, make_store

DRIVER = Path(__file__).with_name("driver.py")
ROOT = Path(__file__).parents[2]
CNN = ("cnn-extract run", "cnn-extract train")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="fork and SIGKILL")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the commands read."""
    folder = make_images(tmp_path_factory.mktemp("inputs") / "data")
    make_store(folder / "store")
    return folder


@pytest.fixture(scope="module")
def fitted(inputs):
    """Fit the model that `stacker predict` reads."""
    whole = commands(inputs, inputs / "model")["stacker fit"]
    drive("stacker fit", {"whole": whole, "cut": whole, "kills": 0, "fresh": [whole[-2]]})
    return inputs


def drive(name, task):
    """Run a driver process; what it tells."""
    module, imports = MODULES[name]
    given = {"module": module, "imports": imports, "signal": signal.SIGKILL, "seed": 0, **task}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, DRIVER, json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **threads, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def disturb(name, inputs, folder, *, kills, seed, number=signal.SIGKILL):
    """Compare a whole run with one that was stopped; what the driver tells."""
    suffix = ".csv" if name == "stacker predict" else ""
    whole, cut = (folder / f"{part}{suffix}" for part in ("whole", "cut"))
    told = drive(
        name,
        {
            "whole": commands(inputs, whole)[name],
            "cut": commands(inputs, cut)[name],
            "out": str(cut),
            "fresh": [str(whole), str(whole.with_suffix(".journal"))],
            "kills": kills,
            "seed": seed,
            "signal": int(number),
        },
    )
    assert told["codes"][0] == 0
    assert told["codes"][-1] in (0, 2), told
    wanted = content(name, whole)
    for result in (*told["whole"], cut):
        assert content(name, Path(result)) == wanted
    assert told["killed"] == kills
    assert leftovers(folder) == []
    return told


@pytest.mark.parametrize("name", MODULES)
def test_a_killed_command_ends_like_one_that_was_left_alone(name, request, tmp_path):
    """A night's work is lost, or worse: half of it is taken for all of it."""
    if name in CNN:
        pytest.importorskip("torch")
    inputs = request.getfixturevalue("fitted" if name == "stacker predict" else "inputs")
    disturb(name, inputs, tmp_path, kills=2, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_25_kills_of_every_command(name, request, tmp_path):
    """The long form, at other moments each time; the seed is printed."""
    inputs = request.getfixturevalue("fitted" if name == "stacker predict" else "inputs")
    seed = random.randrange(10**6)
    told = disturb(name, inputs, tmp_path, kills=25, seed=seed)
    print(f"{name}: seed {seed}, 25 kills, {len(told['whole']) + 1} runs went on to their end")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_ctrl_c_ends_every_command_within_three_seconds(name, request, tmp_path):
    """Ctrl-C does nothing for minutes, or leaves what cannot be resumed."""
    inputs = request.getfixturevalue("fitted" if name == "stacker predict" else "inputs")
    told = disturb(name, inputs, tmp_path, kills=3, seed=3, number=signal.SIGINT)
    assert max(told["stopped"]) < 3
