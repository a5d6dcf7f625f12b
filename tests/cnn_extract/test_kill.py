"""SIGKILL at random moments, then the same command again: the store must not differ by a bit."""

import contextlib
import random
import signal
import subprocess
import sys
import time

import pytest

from cnn_extract.run import RefusedError, run
from tests.cnn_extract.conftest import TINY, assert_same_arrays

pytest.importorskip("torch")

# Imports once, then forks a child for each run: a child that is killed costs no second import.
DRIVER = """
import os, random, signal, sys, time
from pathlib import Path

from features._console import Reporter
from cnn_extract._torchvision import import_timm
from cnn_extract.run import Request, run

import_timm()
folder, labels, out, model, seconds, seed = sys.argv[1:]
request = Request(
    images=Path(folder), labels=Path(labels), models=[model], out=Path(out), heads=("linear",),
    folds=3, size=32, batch_size=4, workers=0, chunk_images=8,
)
draw = random.Random(int(seed))
killed = 0
for _ in range(3):
    child = os.fork()
    if child == 0:
        run(request, Reporter(quiet=True))
        os._exit(0)
    time.sleep(draw.uniform(0.05, 0.9) * float(seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed += os.WIFSIGNALED(status)
print(killed)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="fork and SIGKILL")
def test_killed_run_resumes_to_the_same_bits(make_set, request_for, tmp_path, silent):
    """Acceptance: three kills at random moments change nothing (few images, tiny model)."""
    folder, labels, _ = make_set(32, n_labelled=26)
    whole, cut = (request_for(folder, labels, out=tmp_path / name) for name in ("whole", "cut"))
    start = time.monotonic()
    run(whole, silent)
    seconds = time.monotonic() - start
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    arguments = [folder, labels, cut.out, f"{TINY}=none", seconds, random.randrange(10**6)]
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) > 0
    finish(cut, silent)
    assert_same_arrays(whole.out, cut.out)


def finish(request, silent):
    """Run once more; complete already when the last kill came too late."""
    with contextlib.suppress(RefusedError):
        run(request, silent)


@pytest.mark.slow
def test_killed_command_resumes_to_the_same_bits(make_set, tmp_path):
    """The same with the real command, its worker processes and two backbones."""
    folder, labels, _ = make_set(300, n_labelled=250, side=64)

    def command(out):
        models = ["--model", f"{TINY}=none", "--model", "test_byobnet=none"]
        made = [sys.executable, "-m", "cnn_extract", "run", folder, "--labels", labels, *models]
        return [*map(str, made), "--out", str(out), "--workers", "2", "--quiet"]

    start = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True)
    seconds = time.monotonic() - start
    draw = random.Random()
    killed = 0
    for _ in range(3):
        with subprocess.Popen(command(tmp_path / "cut"), stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(draw.uniform(0.2, 0.9) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
    assert killed
    last = subprocess.run(command(tmp_path / "cut"), check=False).returncode
    assert last in (0, 2)
    assert_same_arrays(tmp_path / "whole", tmp_path / "cut")
