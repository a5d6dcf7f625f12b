"""What a person sees while a command runs and how it ends: log, progress, exit codes.

All three commands share it, `cnn-extract` too: the same error must end each in the same way.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = [
    "FAILED",
    "REFUSED",
    "Reporter",
    "clock",
    "exit_codes",
    "printable",
    "show_versions",
    "versions",
]

FAILED, REFUSED = 1, 2
# What the user asked for cannot be done as asked: bad input, or an output that is there already.
# Everything else (no memory, a full disk, a missing package, a bug) is a failure.
REFUSALS = (
    ValueError,
    FileExistsError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    BlockingIOError,
)
FAILURES = (RuntimeError, OSError, MemoryError, ImportError)
# Whoever presses Ctrl-C does not wait for a library that looks up once a minute.
STOP_SECONDS = 1.5
RESUMES = "the same command resumes"

# Plain progress lines, where there is no terminal to draw a bar on, come this often.
LINE_SECONDS = 2.0
# After the first minute they come less often: a night's log stays readable.
CALM_AFTER, CALMER = 60.0, 5


def versions(*names: str) -> dict[str, str]:
    """Versions of pairstack, Python and the distributions named.

    Examples
    --------
    >>> list(versions("numpy"))
    ['pairstack', 'python', 'numpy']
    """
    own = {"pairstack": _version("pairstack"), "python": platform.python_version()}
    return own | {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def show_versions(*names: str) -> None:
    """Print `versions` as ``--version`` does, and end the command."""
    for name, number in versions(*names).items():
        typer.echo(f"{name} {number}")
    raise typer.Exit


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {task.fields['unit']}/s")


class Reporter:
    """Log and progress of one command; silent with `quiet`."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.quiet = quiet
        self.console = console or Console(stderr=True, highlight=False)

    def log(self, message: str) -> None:
        """Write one line."""
        if not self.quiet:
            self.console.print(printable(message), markup=False, soft_wrap=True)

    @contextmanager
    def logging(self, name: str) -> Iterator[None]:
        """Show what the package `name` logs, as long as the block runs."""
        logger, handler = logging.getLogger(name), _Handler(self)
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)

    @contextmanager
    def progress(
        self, label: str, total: int, unit: str = "images"
    ) -> Iterator[Callable[[int], None]]:
        """Show progress with rate and time left; give a function to advance by n units."""
        if self.quiet or total == 0:
            yield lambda n: None
        elif self.console.is_terminal:
            yield from self._bar(label, total, unit)
        else:
            lines = _Lines(self, label, total, unit)
            yield lines.advance
            lines.end()

    def _bar(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(label, total=total, unit=unit)
            yield lambda n: bar.advance(task, n)


class _Handler(logging.Handler):
    """Hands log records to a reporter; warnings are marked as such."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.reporter.log(mark + record.getMessage())


class _Lines:
    """Progress as plain lines, at most one in `LINE_SECONDS`."""

    def __init__(self, reporter: Reporter, label: str, total: int, unit: str) -> None:
        self.reporter, self.label, self.total, self.unit = reporter, label, total, unit
        self.done = 0
        self.start = self.last = time.monotonic()

    def advance(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        pause = LINE_SECONDS * (CALMER if now - self.start > CALM_AFTER else 1)
        if now - self.last < pause or self.done >= self.total:
            return
        self.last = now
        left = (self.total - self.done) * (now - self.start) / self.done
        self.reporter.log(f"{self._so_far(now)}, {clock(left)} left")

    def end(self) -> None:
        now = time.monotonic()
        self.reporter.log(f"{self._so_far(now)}, {clock(now - self.start)} taken")

    def _so_far(self, now: float) -> str:
        rate = self.done / max(now - self.start, 1e-9)
        counts = f"{self.done:,}/{self.total:,} {self.unit}"
        return f"{self.label}: {counts}, {rate:,.1f} {self.unit}/s"


def clock(seconds: float) -> str:
    """Write a duration as minutes and seconds.

    Examples
    --------
    >>> clock(75.4), clock(3_700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def exit_codes(interrupted: str = RESUMES) -> Iterator[None]:
    """Turn errors into one line on stderr and an exit code: 2 refused, 1 failed.

    Parameters
    ----------
    interrupted : str
        What to do after Ctrl-C, which ends the command within seconds.

    Examples
    --------
    >>> try:
    ...     with exit_codes():
    ...         raise FileNotFoundError("there is no store at s/")
    ... except typer.Exit as ended:
    ...     ended.exit_code
    2
    """
    try:
        with _stops_soon(interrupted):
            yield
    except REFUSALS as error:
        _end(f"refused: {error}", REFUSED, error)
    except FAILURES as error:
        _end(f"failed: {error}", FAILED, error)
    except KeyboardInterrupt as error:
        _end(f"interrupted; {interrupted}", FAILED, error)


def printable(text: str) -> str:
    r"""Text as one line that a terminal shows and does not obey.

    Names of files and classes come from others: they may hold line ends and escape sequences.

    Examples
    --------
    >>> printable("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _end(text: str, code: int, error: BaseException) -> None:
    typer.echo(printable(text), err=True)
    raise typer.Exit(code) from error


@contextmanager
def _stops_soon(interrupted: str) -> Iterator[None]:
    """End the process when Ctrl-C has not ended it after `STOP_SECONDS`.

    Python tells the main thread of Ctrl-C when the library it is in returns. Everything we write
    survives a kill, so the process may end anywhere.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    told, tell = socket.socketpair()
    tell.setblocking(False)
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(told, ended, interrupted), daemon=True)
    before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        tell.close()
        watch.join()
        told.close()


def _watch(told: socket.socket, ended: threading.Event, interrupted: str) -> None:
    while signals := told.recv(16):
        if signal.SIGINT in signals and not ended.wait(STOP_SECONDS):
            os.write(2, f"interrupted; {interrupted}\n".encode())
            os._exit(FAILED)
