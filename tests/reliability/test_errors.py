"""Every error is tested by its message, and stands in ``docs/errors.md``."""

import pytest

from tests.reliability.errors import PAGE, Raised, all_raises, is_tested, plain, shown


def test_every_error_is_looked_for_by_a_test():
    """A message is changed or lost, and nobody knows that it was ever there."""
    found = all_raises()
    assert len(found) > 400
    unknown = [r for r in found if not is_tested(r)]
    assert not unknown, (
        f"{len(unknown)} errors have no test with match=, first: {unknown[0].where}: "
        f"{plain(unknown[0].message)}. Add a test."
    )


@pytest.mark.parametrize(
    ("message", "pieces"),
    [
        ("no file anywhere holds this text of {...}", ("no file anywhere holds this text of",)),
        ("{...} is {...}", ()),
    ],
)
def test_an_error_without_a_test_is_found(message, pieces):
    """The check takes everything for tested."""
    # Written in two parts, so that this file does not hold the text.
    pieces = tuple(piece.replace("anywhere", "any" + "place") for piece in pieces)
    assert not is_tested(Raised("features.store", "ValueError", message, pieces))


def test_the_page_is_up_to_date():
    """A reader looks up a message that is not there."""
    listed = PAGE.read_text(encoding="utf-8")
    missing = [plain(r.message) for r in all_raises() if shown(r.message) not in listed]
    assert missing == [], "run `make errors`"


def test_every_error_says_something():
    """An error without a sentence leaves the user with a traceback."""
    short = [r for r in all_raises() if len(r.message) < 12 and r.kind != "AssertionError"]
    assert short == []
