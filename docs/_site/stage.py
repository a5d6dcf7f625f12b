"""Gather the pages of the docs site in one folder, for Sphinx.

Pages link to files of the repository by relative paths, as a repository browser wants them. The
site takes in the pages that do not lie in docs/ (results, notebooks, changelog), makes those of the
reference, and points links at the staged pages; links to code become downloads.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import typer

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("stacker", "features", "cnn_extract")
COMMANDS = {
    "stacker": "stacker.cli",
    "cnn-extract": "cnn_extract.cli",
    "build-features": "features.cli",
}
# Captions and pages of the navigation; * stands for what is there.
NAVIGATION = {
    "Tutorial": ["tutorial"],
    "How to": [
        "from-images",
        "own-predictions",
        "tuning",
        "explain",
        "curate",
        "adapt",
        "many-classes",
        "scikit-learn",
        "interfaces",
        "command-line",
    ],
    "Notebooks": ["notebooks/*"],
    "Explanation": [
        "features",
        "honest-scores",
        "fitting",
        "decisions",
        "reliability",
        "scale",
        "design",
    ],
    "Recipes": ["recipes"],
    "Reference": ["reference/python", "reference/commands", "store", "errors"],
    "Results": ["benchmarks/results", "benchmarks/**/*", "CHANGELOG"],
}
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def stage(out: Path) -> None:
    """Write every page of the site to a folder, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    pages = {path: staged_name(path) for path in source_pages()}
    for path, name in pages.items():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = path.read_text(encoding="utf-8")
            target.write_text(_relink(text, path, target, pages, out), encoding="utf-8")
        else:
            target.write_text(_with_lexer(path.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copytree(DOCS / "img", out / "img")
    reference = out / "reference"
    reference.mkdir()
    modules = public_modules()
    for name in modules:
        (reference / f"{name}.md").write_text(module_page(name), encoding="utf-8")
    (reference / "python.md").write_text(_modules_page(modules), encoding="utf-8")
    (reference / "commands.md").write_text(commands_page(), encoding="utf-8")
    with (out / "index.md").open("a", encoding="utf-8") as file:
        file.write(_navigation(out))


def _with_lexer(notebook: str) -> str:
    """Name IPython's lexer, which knows ``!`` and ``%``; some kernels leave it out."""
    content = json.loads(notebook)
    language = content["metadata"].setdefault("language_info", {"name": "python"})
    language["pygments_lexer"] = "ipython3"
    return json.dumps(content)


def source_pages() -> list[Path]:
    """Pages of the repository that belong to the site."""
    written = [*sorted(DOCS.glob("*.md")), ROOT / "CHANGELOG.md"]
    results = [*sorted((ROOT / "benchmarks").rglob("*.md"))]
    # What has no title is a part of another page.
    titled = [path for path in results if path.read_text(encoding="utf-8").startswith("# ")]
    return [*written, *titled, *sorted((ROOT / "notebooks").glob("*.ipynb"))]


def staged_name(path: Path) -> str:
    """Where a page of the repository stands in the site."""
    base = DOCS if path.is_relative_to(DOCS) else ROOT
    return path.relative_to(base).as_posix()


def _relink(text: str, path: Path, target: Path, pages: dict[Path, str], out: Path) -> str:
    """Point links at the staged pages, or at the files themselves."""

    def moved(match: re.Match[str]) -> str:
        before, link, anchor, after = match.groups()
        if urlsplit(link).scheme:
            return match[0]
        wanted = (path.parent / unquote(link)).resolve()
        if wanted == ROOT / "README.md":
            wanted = DOCS / "index.md"
        elif wanted.parent == ROOT / "benchmarks" / "results":
            wanted = ROOT / "benchmarks" / "results.md"  # the page that joins these parts
        if wanted in pages:
            found = os.path.relpath(out / pages[wanted], target.parent)
        elif wanted.is_file() and not wanted.is_relative_to(DOCS / "img"):
            found, anchor = os.path.relpath(wanted, target.parent), None
        else:
            return match[0]  # Sphinx names the dead link
        return f"{before}{found}{anchor or ''}{after}"

    return LINK.sub(moved, text)


def _navigation(out: Path) -> str:
    """Tables of contents by caption; every page is in one, or Sphinx complains."""
    listed: set[str] = set()
    parts = []
    for caption, names in NAVIGATION.items():
        entries = []
        for name in names:
            found = sorted(out.glob(name)) if "*" in name else [out / f"{name}.md"]
            staged = [p.relative_to(out).with_suffix("").as_posix() for p in found if p.is_file()]
            entries += [entry for entry in staged if entry not in listed]
            listed |= set(entries)
        if entries:
            body = "\n".join(entries)
            parts.append(f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{body}\n```\n")
    return "".join(parts)


def public_modules() -> list[str]:
    """Modules with public objects, by dotted name, the packages before their modules."""
    names = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            private = any(part.startswith("_") for part in parts if part != "__init__")
            if not private and parts[-1] not in ("cli", "commands") and exported(path):
                names.append(".".join(parts).removesuffix(".__init__"))
    return sorted(names, key=lambda name: (PACKAGES.index(name.split(".")[0]), name))


def exported(path: Path) -> list[str]:
    """Names in a module's ``__all__``, read without importing it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _file_of(name: str) -> Path:
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def module_page(name: str) -> str:
    """One module: its public objects from their docstrings, or links where it only gathers."""
    file = _file_of(name)
    if file.name == "__init__.py":
        return _package_page(name, file)
    members = ", ".join(exported(file))
    return f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members: {members}\n```\n"


def _package_page(name: str, file: Path) -> str:
    module = importlib.import_module(name)
    links, own = [], []
    for member in exported(file):
        found = getattr(module, member)
        home = _home(member, getattr(found, "__module__", name))
        first = (inspect.getdoc(found) or "").split("\n\n")[0].replace("\n", " ")
        if "._" in home or home == name or not callable(found):
            kind = {type: "autoclass"}.get(type(found), "autofunction")
            own.append(f"   .. {kind if callable(found) else 'autodata'}:: {name}.{member}\n")
        else:
            links.append(f"- {{py:obj}}`{name}.{member} <{home}.{member}>`: {first}\n")
    body = "".join(line.strip() + "\n\n" for line in own)
    return f"# {name}\n\n{inspect.getdoc(module) or ''}\n\n{''.join(links)}\n" + (
        f"```{{eval-rst}}\n{body}```\n" if own else ""
    )


def _home(member: str, defined_in: str) -> str:
    """Public module that documents an object; a private one may define it."""
    if "._" not in defined_in:
        return defined_in
    modules = [m for m in public_modules() if _file_of(m).name != "__init__.py"]
    return next((m for m in modules if member in exported(_file_of(m))), defined_in)


def _modules_page(modules: list[str]) -> str:
    rows = []
    for name in modules:
        text = ast.get_docstring(ast.parse(_file_of(name).read_text(encoding="utf-8"))) or ""
        rows.append(f"| [`{name}`]({name}.md) | {text.splitlines()[0] if text else ''} |\n")
    listed = "\n".join(modules)
    return (
        "# Python\n\nPublic objects by module, from their docstrings. Most work needs `stacker`.\n"
        "\n"
        f"| module | what it holds |\n|---|---|\n{''.join(rows)}\n"
        f"```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    )


def commands_page() -> str:
    """Every command with its options, from the commands themselves."""
    parts = [
        "# Command-line options\n\nFrom the commands' own `--help`. All exit with 0 when done, 1 "
        "when something failed and 2 when they refused; results go to stdout, the log to stderr.\n"
    ]
    for name, module in COMMANDS.items():
        parts += _command_parts(name, typer.main.get_command(importlib.import_module(module).app))
    return "\n".join(parts)


def _command_parts(name: str, command: Any) -> Iterator[str]:
    yield f"{'##' if ' ' not in name else '###'} {name}\n"
    yield _plain(command.help or "") + "\n"
    if command.epilog:
        yield _plain(command.epilog) + "\n"
    context = command.make_context(name, ["x"], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{name} {usage}\n```\n"
    rows = [_option_row(p, context) for p in command.params if not getattr(p, "hidden", False)]
    if rows:
        yield "| option | what it is | default |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    for child, own in getattr(command, "commands", {}).items():
        yield from _command_parts(f"{name} {child}", own)


def _option_row(parameter: Any, context: Any) -> str:
    is_option = parameter.param_type_name == "option"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.get_default(context, call=False)
    shown = "" if default in (None, False, (), []) or not is_option else f"`{default}`"
    if parameter.required:
        shown = "required"
    text = _plain(getattr(parameter, "help", None) or "").replace("|", "\\|")
    return f"| {names if is_option else f'`{parameter.name.upper()}`'} | {text} | {shown} |"


def _plain(text: str) -> str:
    """Typer's markup as Markdown."""
    marked = re.sub(r"\[bold\](.*?)\[/bold\]", r"`\1`", inspect.cleandoc(text), flags=re.DOTALL)
    return re.sub(r"\[/?\w+\]", "", marked)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    stage(Path(sys.argv[1]))
