"""Every error that our packages raise, read from the sources; ``make errors`` writes the page.

A message counts as tested when a piece of it stands in a ``match=`` of a test, or in a text that a
test looks for in a command's output.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from re import _parser  # type: ignore[attr-defined]
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("cnn_extract", "features", "stacker")
PAGE = ROOT / "docs" / "errors.md"
SHORTEST = 9  # letters of a piece that says which message it is
# Put together from values alone: the test that asks for one of them whole.
COMPOSED = {
    ("cnn_extract.train.toml", "{...}: {...} must be {...}; got {...}"): (
        "cnn_extract/train/test_messages.py",
        "mine.toml: \\[batch\\] size must be a whole number; got 'x'",
    ),
    ("features._specs", "{...}: expected {...}, got {...}."): (
        "features/test_cli.py",
        "expected int, got 'x'",
    ),
    ("features._tables", "{...}: {...}"): (
        "features/test_store_tables.py",
        "m.csv: a image id may not be empty",
    ),
    ("features.importing", "{...}: {...} first."): (
        "features/test_messages.py",
        "not probabilities: divide percentages by 100 first",
    ),
}


@dataclass(frozen=True)
class Raised:
    """One ``raise`` with a message of its own.

    Attributes
    ----------
    where : str
        Module.
    kind : str
        Exception.
    message : str
        With {...} where a value goes.
    pieces : tuple of str
        What stands between the values.
    """

    where: str
    kind: str
    message: str
    pieces: tuple[str, ...]


def text_of(node: ast.expr | None) -> str | None:
    """Text of a string or f-string, with ∎ where a value goes; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "∎" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left) or "∎") + (text_of(node.right) or "∎")
    return None


def raises_of(file: Path) -> list[Raised]:
    """Every error of a source file that says something."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
            continue
        arguments = node.exc.args
        text = text_of(arguments[0]) if arguments else None
        if text is None:
            continue
        pieces = tuple(plain(piece) for piece in text.split("∎") if len(plain(piece)) >= SHORTEST)
        where = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        found.append(Raised(where, ast.unparse(node.exc.func), text.replace("∎", "{...}"), pieces))
    return found


def plain(text: str) -> str:
    """Text without doubled spaces, for comparison."""
    return re.sub(r"\s+", " ", text).strip()


@cache
def all_raises() -> tuple[Raised, ...]:
    """Every error of our packages."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return tuple(found for file in files for found in raises_of(file))


@cache
def looked_for() -> tuple[str, ...]:
    """Pieces of text that tests look for in errors and outputs."""
    pieces: set[str] = set()
    for file in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        about = docstrings(tree)
        for node in ast.walk(tree):
            text = text_of(node) if isinstance(node, (ast.Constant, ast.JoinedStr)) else None
            if not text or len(text) > 600 or "\n\n" in text or node in about:
                continue
            for piece in [p for part in text.split("∎") for p in literals(part)]:
                if len(plain(piece)) >= SHORTEST:
                    pieces.add(plain(piece))
    return tuple(pieces)


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """Texts that say what a test is for: they look for nothing."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and node.body]
    return {node.value for node in first if isinstance(node, ast.Expr)}


def literals(pattern: str) -> list[str]:
    """Runs of letters that a pattern asks for; a pattern that is none asks for itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [pattern, *"".join(_letters(_parser.parse(pattern))).split("∎")]
    except (re.error, RecursionError, OverflowError):
        return [pattern]


def _letters(parsed: Any) -> Iterator[str]:
    """Letters of a parsed pattern, with ∎ for whatever may be this or that."""
    for kind, value in parsed:
        if kind is _parser.LITERAL:
            yield chr(value)
        elif kind is _parser.SUBPATTERN:
            yield from _letters(value[-1])
        elif kind is _parser.BRANCH:
            for branch in value[1]:
                yield "∎"
                yield from _letters(branch)
            yield "∎"
        elif kind in (_parser.MAX_REPEAT, _parser.MIN_REPEAT) and value[0] > 0:
            yield from _letters(value[2])
            yield "∎"
        else:
            yield "∎"


def is_tested(raised: Raised) -> bool:
    """Whether a test looks for a piece of the message."""
    if (raised.where, raised.message) in COMPOSED:
        file, wanted = COMPOSED[raised.where, raised.message]
        return wanted in (ROOT / "tests" / file).read_text(encoding="utf-8")
    return any(
        _within(wanted, piece) or (_ends_meet(wanted, piece) and raised.message != piece)
        for piece in raised.pieces
        for wanted in looked_for()
    )


def _within(wanted: str, piece: str) -> bool:
    return wanted in piece or (piece in wanted and " " in piece)


def _ends_meet(wanted: str, piece: str) -> bool:
    """Whether one goes on where the other ends: a value of the message stands between."""
    end, begin = wanted.find(piece[-SHORTEST:]), wanted.rfind(piece[:SHORTEST])
    return (end >= 0 and piece.endswith(wanted[: end + SHORTEST])) or (
        begin >= 0 and piece.startswith(wanted[begin:])
    )


def page() -> str:
    """Write the page: every message by package and module."""
    found = all_raises()
    lines = [
        "# Errors",
        "",
        "Every message that our packages raise, with `{...}` where a value goes: names of files,",
        "models, images and classes, and the value that was found. `make errors` writes this page",
        "from the sources.",
        "",
        "How a command ends: `refused: ...` and exit code 2 for bad input or usage, `failed: ...`",
        "and exit code 1 for everything else; see [reliability](reliability.md).",
        "",
        "A test looks for each of them: `tests/reliability/test_errors.py`.",
    ]
    for package in PACKAGES:
        lines += ["", f"## {package}", ""]
        where = ""
        for raised in (r for r in found if r.where.split(".")[0] == package):
            if raised.where != where:
                where = raised.where
                lines += ["", f"### `{where}`", ""]
            lines.append(f"- `{raised.kind}`: {shown(raised.message)}")
    return "\n".join(lines) + "\n"


def shown(message: str) -> str:
    """Message as one line of Markdown."""
    return "``" + plain(message).replace("`", "'") + "``"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
