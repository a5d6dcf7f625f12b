"""The report in headless Chromium: nothing fetched, no errors, usable by keyboard and phone."""

import shutil

import pytest

from tests.stacker.report_makers import make_page

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: `make browser-test` installs it"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (package chromium): `make browser-test` installs it"
)
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
# Every text against the first background behind it, as WCAG 2.1 measures contrast.
LOW_CONTRAST = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const colour = node.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(parse(colour)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([node.textContent.slice(0, 30), ratio]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as tools:
        # Containers run as root, where Chromium's own sandbox does not start.
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(make_page(), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def open_page(browser, address):
    """Open the report; whatever it complains of or asks for is in `page.complaints`."""
    contexts = []

    def open_page(size=DESKTOP, scheme="light"):
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (page.complaints.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: page.complaints.append(request.url))
        page.goto(address)
        page.complaints = [
            text for text in page.complaints if text != address and not text.startswith("data:")
        ]
        return page

    yield open_page
    for context in contexts:
        context.close()


def shown_rows(page):
    return page.locator("#class-table tbody tr:visible").all_inner_texts()


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_quietly_and_fits(open_page, size, scheme):
    """A script error, a fetch, a lost picture, a page wider than the phone, faint text."""
    page = open_page(size, scheme)
    assert page.complaints == []
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 16
    assert min(widths) > 0
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.scrollingElement.scrollWidth") <= size["width"]
    assert page.evaluate(LOW_CONTRAST) == []


def test_the_search_finds_classes_by_part_of_the_name(open_page):
    """With thousands of classes the table is of no use without it."""
    page = open_page()
    everything = shown_rows(page)
    page.fill("#find", "THRee")
    assert [row.split("\t")[0] for row in shown_rows(page)] == ["tag::three"]
    assert page.inner_text("#found") == f"1 of {len(everything)} classes"
    page.fill("#find", "")
    assert shown_rows(page) == everything


def test_headings_sort_the_class_table_both_ways(open_page):
    """Numbers sorted as text, or a heading that does nothing."""
    page = open_page()
    heads = page.locator("#class-table th button")
    for column in (1, 3, 5):
        values = []
        for direction in ("descending", "ascending"):
            heads.nth(column).click()
            assert (
                page.locator("#class-table th").nth(column).get_attribute("aria-sort") == direction
            )
            values.append([float(row.split("\t")[column]) for row in shown_rows(page)])
        assert values[0] == sorted(values[0], reverse=True)
        assert values[1] == sorted(values[1])
    heads.nth(0).click()
    names = [row.split("\t")[0].lower() for row in shown_rows(page)]
    assert names.index("five") < names.index("tag::three")


def test_the_button_changes_the_theme_and_the_choice_stays(open_page):
    """Who reads on a projector wants the light page under a dark system."""
    page = open_page(scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    assert page.inner_text("#theme") == "Light page"
    page.click("#theme")
    light = page.evaluate(background)
    assert light == "rgb(255, 255, 255)" != dark
    page.reload()
    assert page.evaluate(background) == light


def test_the_keyboard_reaches_the_button_and_the_search(open_page):
    """Without a mouse the page is closed."""
    page = open_page()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        if reached[-1] == "find":
            break
    assert reached.index("theme") < reached.index("find")
    page.keyboard.type("three")
    assert len(shown_rows(page)) == 1
