"""Ctrl-C ends a command within seconds, wherever it is, and says how to go on."""

import os
import signal
import subprocess
import sys
import time

import pytest

from features import _console
from features._console import exit_codes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of a POSIX system")


def start(body):
    """Start a process that runs some lines inside `exit_codes` and says when it has begun."""
    lines = "\n        ".join(body.splitlines())
    code = f"""
import time, typer
from features._console import exit_codes
try:
    with exit_codes("the same command resumes"):
        print("begun", flush=True)
        {lines}
except typer.Exit as ended:
    raise SystemExit(ended.exit_code)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    return process


def interrupt(process):
    """Press Ctrl-C; seconds until the end, and what was said."""
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    return time.monotonic() - begun, said


def test_python_code_ends_at_once_and_says_how_to_go_on():
    """The user does not know whether the work so far is lost."""
    process = start("while True: time.sleep(0.01)")
    seconds, said = interrupt(process)
    assert seconds < 3
    assert (process.returncode, said) == (1, "interrupted; the same command resumes\n")


def test_a_library_that_does_not_listen_is_ended_all_the_same():
    """LightGBM reads a data set for minutes; Python hears of Ctrl-C afterwards."""
    process = start("import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)")
    time.sleep(0.3)
    seconds, said = interrupt(process)
    assert seconds < 3
    assert process.returncode == 1
    assert "the same command resumes" in said


def test_nothing_is_left_behind_in_a_process_that_goes_on():
    """A notebook that calls a command loses its own Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    with exit_codes():
        pass
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("no"), 2, "refused: no"),
        (FileExistsError("is there"), 2, "refused: is there"),
        (FileNotFoundError("nothing"), 2, "refused: nothing"),
        (BlockingIOError("busy"), 2, "refused: busy"),
        (PermissionError("may not"), 1, "failed: may not"),
        (OSError(28, "No space left on device"), 1, "failed: [Errno 28] No space left on device"),
        (MemoryError("all of it"), 1, "failed: all of it"),
        (ModuleNotFoundError("pip install 'pairstack[cnn]'"), 1, "failed: pip install"),
        (KeyboardInterrupt(), 1, "interrupted; the same command resumes"),
    ],
)
def test_the_same_error_ends_every_command_in_the_same_way(error, code, said, capsys):
    """Scripts tell "give other input" from "try again later" by the exit code."""
    with pytest.raises(_console.typer.Exit) as ended, exit_codes():
        raise error
    assert ended.value.exit_code == code
    assert capsys.readouterr().err.startswith(said)


def test_all_three_commands_use_it():
    """One command ends with another code than the two others."""
    from pathlib import Path

    for name in ("cnn_extract", "features", "stacker"):
        assert "exit_codes(" in Path(__file__).parents[2].joinpath(name, "cli.py").read_text()
