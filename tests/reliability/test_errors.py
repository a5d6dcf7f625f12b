"""Every error is tested by its message, or stands in ``docs/errors.md`` as one that is not."""

from tests.reliability.errors import PAGE, all_raises, is_tested, plain, shown

# Of the messages that somebody looks for; the rest are marked in the page.
LEAST_SHARE = 0.6


def test_every_error_is_tested_or_listed():
    """A message is changed or lost, and nobody knows that it was ever there."""
    listed = PAGE.read_text(encoding="utf-8")
    unknown = [r for r in all_raises() if not is_tested(r) and shown(r.message) not in listed]
    assert not unknown, (
        f"{len(unknown)} errors have no test with match=, and are not in docs/errors.md; first: "
        f"{unknown[0].where}: {plain(unknown[0].message)}. Add a test, or run `make errors`."
    )


def test_most_errors_are_looked_for_by_a_test():
    """The page becomes a list of errors that nobody has ever seen."""
    found = all_raises()
    assert len(found) > 300
    assert sum(map(is_tested, found)) / len(found) >= LEAST_SHARE


def test_every_error_says_something():
    """An error without a sentence leaves the user with a traceback."""
    short = [r for r in all_raises() if len(r.message) < 12 and r.kind != "AssertionError"]
    assert short == []
