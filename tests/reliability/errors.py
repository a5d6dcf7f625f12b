"""Every error that our packages raise, read from the sources; ``make errors`` writes the page.

A message counts as tested when a piece of it stands in a ``match=`` of a test, or in a text that a
test looks for in a command's output.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("cnn_extract", "features", "stacker")
PAGE = ROOT / "docs" / "errors.md"
SHORTEST = 9  # letters of a piece that says which message it is
SPECIAL = re.compile(r"\.[*+?]|\\[dwsSbW][*+?]?|\[[^\]]*\][*+?]?|[|()^$]|[*+?](?=\s|$)|∎")


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
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            text = text_of(node) if isinstance(node, (ast.Constant, ast.JoinedStr)) else None
            if not text or len(text) > 600 or "\n\n" in text:
                continue
            for piece in SPECIAL.split(text):
                clean = plain(re.sub(r"\\(.)", r"\1", piece))
                if len(clean) >= SHORTEST:
                    pieces.add(clean)
    return tuple(pieces)


def is_tested(raised: Raised) -> bool:
    """Whether a test looks for a piece of the message."""
    return any(
        wanted in piece or (piece in wanted and " " in piece)
        for piece in raised.pieces
        for wanted in looked_for()
    )


def page() -> str:
    """Write the page: every message by package and module."""
    found = all_raises()
    n_tested = sum(map(is_tested, found))
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
        f"{len(found):,} messages; {n_tested:,} are looked for by a test (`match=`), the others",
        "are marked with *.",
    ]
    for package in PACKAGES:
        lines += ["", f"## {package}", ""]
        where = ""
        for raised in (r for r in found if r.where.split(".")[0] == package):
            if raised.where != where:
                where = raised.where
                lines += ["", f"### `{where}`", ""]
            mark = "" if is_tested(raised) else "\\* "
            lines.append(f"- {mark}`{raised.kind}`: {shown(raised.message)}")
    return "\n".join(lines) + "\n"


def shown(message: str) -> str:
    """Message as one line of Markdown."""
    return "``" + plain(message).replace("`", "'") + "``"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
