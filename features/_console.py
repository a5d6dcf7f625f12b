"""What a person sees while a command runs: log lines and progress, on stderr."""

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
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Reporter", "clock"]

# Plain progress lines, where there is no terminal to draw a bar on, come this often.
LINE_SECONDS = 2.0


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
            self.console.print(message, markup=False, soft_wrap=True)

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
        if now - self.last < LINE_SECONDS or self.done >= self.total:
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
