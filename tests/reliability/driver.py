"""Run one command whole, then again with kills at random moments; tell what happened as JSON.

Imports once and forks a child for each run, so that a killed run costs no second import. Torch and
LightGBM never share a process: each command has a driver of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

MOST_RUNS = 3
MOST_TRIES = 12  # runs begun for each kill: late ones come when the work is done


def main() -> None:
    """Read {module, imports, whole, cut, kills, seed, signal, ...} from the first argument."""
    task = json.loads(sys.argv[1])
    # A job in the background is started with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    app = importlib.import_module(task["module"]).app
    for given in task["imports"]:
        name, _, function = given.partition(":")
        module = importlib.import_module(name)
        if function:
            getattr(module, function)()
    run(app, task["whole"])  # numba writes its cache
    start = time.monotonic()
    for folder in task["fresh"]:
        remove(folder)
    codes = [run(app, task["whole"])]
    seconds = time.monotonic() - start
    draw, killed, whole, stopped = random.Random(task["seed"]), 0, [], []
    for _ in range(task["kills"] * MOST_TRIES):
        if killed == task["kills"]:
            break
        moment = draw.uniform(0.02, 0.98) * seconds
        code, after = stop(app, task["cut"], moment, task["signal"])
        # It was done before this signal (0) or at the last one (2): put it aside, and begin anew.
        if code in (0, 2):
            whole.append(aside(task["out"], len(whole)))
            continue
        assert code == (-signal.SIGKILL if task["signal"] == signal.SIGKILL else 1), code
        killed += 1
        stopped.append(after)
    for _ in range(MOST_RUNS):
        codes.append(run(app, task["cut"]))
        if codes[-1] in (0, 2):  # 2: the last kill came too late, it is complete
            break
    told = {"codes": codes, "killed": killed, "seconds": seconds, "stopped": stopped}
    print(json.dumps(told | {"whole": whole}))


def aside(out: str, n: int) -> str:
    """Rename a result, and the journal beside it; the new name."""
    path = Path(out)
    moved = path.with_stem(f"{path.stem}-{n}")
    path.rename(moved)
    if path.with_suffix(".journal").exists():
        path.with_suffix(".journal").rename(moved.with_suffix(".journal"))
    return str(moved)


def remove(folder: str) -> None:
    """Forget what the first run made."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(folder)  # noqa: PTH108


def child(app: object, arguments: list[str]) -> int:
    """Fork a process that runs the command; its number."""
    process = os.fork()
    if process:
        return process
    os.setpgid(0, 0)
    code = 1
    try:
        ended = app(arguments, standalone_mode=False)  # type: ignore[operator]
        code = ended if isinstance(ended, int) else 0
    except BaseException as error:
        code = getattr(error, "exit_code", getattr(error, "code", 1)) or 0
    finally:
        sys.stderr.flush()
        os._exit(code)
    return 0


def run(app: object, arguments: list[str]) -> int:
    """Run the command to its end; its exit code."""
    _, status = os.waitpid(child(app, arguments), 0)
    return os.waitstatus_to_exitcode(status)


def stop(app: object, arguments: list[str], moment: float, number: int) -> tuple[int, float]:
    """Send the command a signal after some seconds; its exit code, and how long it took to end."""
    process = child(app, arguments)
    time.sleep(moment)
    start = time.monotonic()
    os.kill(process, number)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - start


if __name__ == "__main__":
    main()
