"""The built docs site in headless Chromium, from its folder: fits a phone, fetches nothing."""

import shutil
from pathlib import Path

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: `make browser-test` installs it"
)
SITE, DOCS = Path(__file__).parents[1] / "site", Path(__file__).parents[1] / "docs" / "_site"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: `make browser-test`"),
    pytest.mark.skipif(
        not (SITE / "index.html").exists()
        or (SITE / "index.html").stat().st_mtime < (DOCS / "conf.py").stat().st_mtime,
        reason="needs the site, no older than its settings: `make docs`",
    ),
]
PAGES = ("index", "recipes", "reference/stacker.estimator")


@pytest.fixture(scope="module")
def page():
    """A page that keeps what it asks of the network and what it complains of."""
    with sync_api.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("request", lambda request: page.complaints.append(request.url))
        yield page
        browser.close()


def open_page(page, name, query=""):
    page.complaints.clear()
    page.goto((SITE / f"{name}.html").as_uri() + query)
    local = ("file:", "data:")
    return [text for text in page.complaints if not text.startswith(local)]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone_and_fetches_nothing(page, name):
    """Without a network the page is bare, or on a phone one reads it sideways."""
    assert open_page(page, name) == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390


@pytest.mark.parametrize(("query", "expected"), [("shrinkage", "Fitting"), ("near-dup", "Honest")])
def test_the_search_finds_pages_without_a_server(page, query, expected):
    """A search that needs a web server finds nothing in a folder."""
    assert open_page(page, "search", f"?q={query}") == []
    page.wait_for_selector("ul.search li", timeout=20_000)
    assert any(expected in text for text in page.locator("ul.search li").all_inner_texts())
