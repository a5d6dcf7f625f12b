"""docs/recipes.md holds every recipe, and its links lead to code and tests that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "recipes.md"
WANTED = {
    *(f"A{k}" for k in range(1, 31)),
    *(f"B{k}" for k in range(1, 8)),
    *(f"C{k}" for k in range(1, 7)),
    *(f"D{k}" for k in range(1, 7)),
    *(f"E{k}" for k in range(1, 9)),
}
PACKAGES = ("cnn_extract", "features", "stacker")
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")


def rows():
    """Give each row of the tables as id, then its other cells."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if re.fullmatch(r"[A-E]\d+", cells[0]):
            yield cells


ROWS = {cells[0]: cells for cells in rows()}


def target(link):
    """Give the file a link leads to, and the line behind #L, or None."""
    path, _, anchor = link.partition("#")
    return (PAGE.parent / path).resolve(), int(anchor[1:]) if anchor else None


def test_every_recipe_has_a_row_and_none_stands_twice():
    """A practice of a published system is missing from the docs."""
    ids = [cells[0] for cells in rows()]
    assert WANTED - set(ids) == set()
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_says_how_and_links_to_code_and_test(name):
    """A link is dead, or leads to something that is neither our code nor a test."""
    _, what, how, code, test = ROWS[name]
    assert what
    assert how
    code_links, test_links = LINK.findall(code), LINK.findall(test)
    assert code_links
    assert test_links
    for _, link in code_links:
        path, line = target(link)
        assert path.is_file(), f"{name}: dead link {link}"
        assert path.relative_to(ROOT).parts[0] in PACKAGES, link
        assert line is None or line <= len(path.read_text().splitlines()), link
    for text, link in test_links:
        path, _ = target(link)
        assert path.is_file(), f"{name}: dead link {link}"
        assert path.relative_to(ROOT).parts[0] == "tests", link
        assert path.name.startswith("test_"), link
        # A row may name its very test.
        if text.startswith("test_") and not text.endswith(".py"):
            assert f"def {text}(" in path.read_text(encoding="utf-8"), f"{name}: no test {text}"


def test_every_training_row_names_its_very_test():
    """A row of training links to a file in which nothing tests it."""
    training = [cells for cells in ROWS.values() if "cnn_extract/train/" in cells[3]]
    assert len(training) > 25
    for cells in training:
        (text, _), *_ = LINK.findall(cells[4])
        assert text.startswith("test_"), cells[0]
        assert not text.endswith(".py"), f"{cells[0]} names a file, not a test"
