"""Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from features._console import printable

__all__ = ["Log"]

PLAIN_EVERY = 2.0


class Log:
    """Log and progress of a command.

    Parameters
    ----------
    quiet : bool
        Print nothing.

    Examples
    --------
    >>> log = Log(quiet=True)
    >>> log("nobody reads this")
    >>> with log.steps(2) as step:
    ...     step("first")
    ...     step("second")
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)

    def __call__(self, text: str) -> None:
        """Print one line."""
        if not self.quiet:
            self.console.print(printable(text), markup=False, soft_wrap=True)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Show what the library logs at level INFO while the block runs."""
        handler = _Forward(self)
        loggers = [logging.getLogger(name) for name in ("stacker", "features")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)

    @contextmanager
    def steps(self, total: int) -> Iterator[Callable[[str], None]]:
        """Give a function to call at the start of each of `total` steps."""
        if self.quiet:
            yield lambda text: None
        elif self.console.is_terminal:
            yield from self._bar(total)
        else:
            yield _PlainLines(self, total)

    def _bar(self, total: int) -> Iterator[Callable[[str], None]]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("", total=total)
            done = iter(range(total + 1))
            yield lambda text: progress.update(task, completed=next(done, total), description=text)


class _Forward(logging.Handler):
    """Hand log records on to a `Log`."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.INFO)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message alone."""
        self.log(record.getMessage())


class _PlainLines:
    """A line at most every two seconds, with rate and time left."""

    def __init__(self, log: Log, total: int) -> None:
        self.log, self.total, self.done = log, total, 0
        self.start = self.last = time.monotonic()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now - self.last >= PLAIN_EVERY and self.done:
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate
            self.log(f"[{self.done}/{self.total}] {text} ({60 * rate:.3g}/min, {left:.0f} s left)")
            self.last = now
        self.done += 1
