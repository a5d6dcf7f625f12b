"""Result tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from stacker.evaluation import Interval, ScoreTable

__all__ = ["print_bins", "print_key_values", "print_score_table"]

TITLES = {"samples": "(samples)", "macro": "macro", "micro": "micro"}


def print_score_table(table: ScoreTable, *, title: str, console: Console | None = None) -> None:
    """Print methods by metrics, best in bold, and the stack's gain over the best blend."""
    out = console or _stdout()
    metrics = [str(metric) for metric in table.scores.columns]
    grid = Table(title=Text(title), title_justify="left", show_lines=False)
    grid.add_column("method", overflow="fold")
    for metric in metrics:
        grid.add_column(metric_title(metric), justify="right")
    best = table.scores.max()
    for name, row in table.scores.iterrows():
        cells = [
            f"[bold]{row[metric]:.4f}[/bold]"
            if row[metric] == best[metric]
            else f"{row[metric]:.4f}"
            for metric in metrics
        ]
        grid.add_row(Text(table.titles[str(name)]), *cells)
    grid.add_section()
    gains = [table.gain(metric) for metric in metrics]
    grid.add_row("stack minus best blend", *[f"{gain.difference:+.4f}" for gain in gains])
    grid.add_row("95% interval", *[interval_text(gain) for gain in gains])
    grid.add_row("best blend", *[table.titles[table.best_blend[metric]] for metric in metrics])
    out.print(grid)
    out.print(
        f"{table.n_images:,} images; paired bootstrap over {table.n_groups:,} split groups",
        highlight=False,
    )


def print_bins(frame: Any, *, title: str) -> None:
    """Print a table of scores by method or by bin of classes."""
    grid = Table(title=Text(title), title_justify="left")
    grid.add_column(str(frame.index.name or "method"), overflow="fold")
    for name in frame.columns:
        grid.add_column(metric_title(str(name)), justify="right")
    for key, row in frame.iterrows():
        cells = [
            f"{int(v):,}" if str(column).startswith("n_") else f"{v:.4f}"
            for column, v in row.items()
        ]
        grid.add_row(Text(str(key)), *cells)
    _stdout().print(grid)


def print_key_values(values: dict[str, float], *, title: str) -> None:
    """Print names and numbers as two columns."""
    grid = Table(title=Text(title), title_justify="left", show_header=False)
    for name, value in values.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        grid.add_row(Text(name), shown)
    _stdout().print(grid)


def metric_title(metric: str) -> str:
    """Give a metric's name for people.

    Examples
    --------
    >>> metric_title("f2_samples"), metric_title("map"), metric_title("log_loss")
    ('F2 (samples)', 'mAP', 'log loss')
    """
    head, _, tail = metric.partition("_")
    if tail in TITLES:
        return f"{head.upper()} {TITLES[tail]}"
    return {"map": "mAP"}.get(metric, metric.replace("_", " "))


def interval_text(gain: Interval) -> str:
    """Write an interval as "+0.010 to +0.020"."""
    return f"{gain.low:+.4f} to {gain.high:+.4f}"


def _stdout() -> Console:
    # A pipe has no width: 80 columns would wrap the table of a log file.
    console = Console()
    return console if console.is_terminal else Console(width=120)
