import io

from rich.console import Console

from features import _console
from features._console import Reporter


def shown(monkeypatch, *, terminal, quiet=False):
    """Progress over 20 images in two steps, and one log line."""
    monkeypatch.setattr(_console, "LINE_SECONDS", 0.0)
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    report = Reporter(quiet=quiet, console=console)
    report.log("reading [images]")
    with report.progress("statistics", 20) as advance:
        advance(10)
        advance(10)
    return file.getvalue()


def test_plain_lines_where_there_is_no_terminal(monkeypatch):
    """A log file full of cursor movements is unreadable; it gets the rate and the time left."""
    lines = shown(monkeypatch, terminal=False).splitlines()
    assert lines[0] == "reading [images]"
    assert lines[1].startswith("statistics: 10/20 images, ")
    assert lines[1].endswith("0:00 left")
    assert lines[2].endswith("taken")
    assert "\x1b" not in "".join(lines)


def test_a_bar_on_a_terminal(monkeypatch):
    """A person sees counts and rate on one moving line."""
    text = shown(monkeypatch, terminal=True)
    assert "20/20" in text
    assert "images/s" in text


def test_quiet_shows_nothing(monkeypatch):
    """Scripts ask for silence."""
    assert shown(monkeypatch, terminal=True, quiet=True) == ""


def test_nothing_to_do_shows_no_progress():
    """A resumed run that finds everything complete must not divide by zero."""
    file = io.StringIO()
    report = Reporter(console=Console(file=file))
    with report.progress("statistics", 0):
        pass
    assert file.getvalue() == ""
