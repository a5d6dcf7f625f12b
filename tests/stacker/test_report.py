"""The HTML report: complete, self-contained, and safe to open."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy.sparse import csr_array

from stacker._charts import Line, line_chart
from stacker._gallery import data_uri, gallery
from stacker.estimator import PairStacker
from stacker.report import render_report, write_report
from tests.stacker.report_makers import NASTY, PIXEL, QUOTES, make_model, make_page

SECTIONS = (
    "scores", "images", "curves", "importance", "frequency", "classes", "tuning", "checks", "about",
)  # fmt: skip


@pytest.fixture(scope="module")
def page():
    return make_page()


class Outline(HTMLParser):
    """Collects ids, tags and external references; complains about tags closed out of order."""

    VOID = ("meta", "link", "img", "input", "br", "wbr", "line", "circle", "polyline")

    def __init__(self):
        super().__init__()
        self.ids, self.scripts, self.links, self.open = [], 0, [], []
        self.names = set()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.scripts += tag == "script"
        self.links += [v for k, v in attrs if k in ("src", "href")]
        self.names |= {k for k, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def outline(page):
    parser = Outline()
    parser.feed(page)
    parser.close()
    return parser


def test_the_page_has_every_section_and_is_well_formed(page):
    """A section lost to a template slip would not be noticed by the command."""
    found = outline(page)
    assert set(SECTIONS) <= set(found.ids)
    assert found.open == []
    assert page.count("<details") > 6
    assert page.count("<svg") == 5


def test_every_user_string_is_escaped(page):
    """Class names, ids, titles, features and commands come from users and from file names."""
    assert "alert(" in page
    assert NASTY not in page
    assert outline(page).scripts == 1
    assert "<b>two" not in page
    assert "four&amp;amp;" in page
    assert QUOTES not in page
    assert not [name for name in outline(page).names if name.startswith("on")]


def test_the_page_needs_nothing_else(page):
    """It must open offline: pictures are inside, nothing is fetched."""
    found = outline(page)
    assert all(link.startswith("data:image/") or link[1:] in found.ids for link in found.links)
    assert not re.search(r"url\(|@import|https?://", page)


def test_a_report_without_held_out_images_shows_what_the_model_knows():
    """`stacker report MODEL` alone has no labelled images to score."""
    page = render_report(make_model(["a", "b"]))
    found = outline(page)
    assert {"importance", "about"} <= set(found.ids)
    assert {"scores", "images", "checks"}.isdisjoint(found.ids)
    assert "0.7000" in page


def test_the_page_says_how_the_model_was_fitted_and_with_what():
    """It named the report's command and today's libraries, not those that made the model."""
    rng = np.random.default_rng(0)
    Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    model = PairStacker(cv=3, blocks=("logits",), random_state=7, n_jobs=1).fit(X, Y)
    page = render_report(model)
    assert "PairStacker(blocks=(&#39;logits&#39;,), cv=3, n_jobs=1, random_state=7)" in page
    assert "this page" not in page
    model.libraries_ = {**model.libraries_, "lightgbm": "4.5.<0>"}
    assert "4.5.&lt;0&gt;; this page: " in render_report(model)


def test_a_page_of_the_largest_pictures_stays_under_five_megabytes(monkeypatch):
    """A report that cannot be mailed is not read."""
    monkeypatch.setattr("stacker._gallery._thumbnail", lambda file, side=320: b"")
    large = PIXEL + bytes(150_000 - len(PIXEL))
    assert 2_000_000 < len(make_page(read_image=lambda name: large)) < 5_000_000


def test_the_checks_show_copies_of_held_out_images_first(page):
    """They flatter the scores at the top of the page."""
    section = page[page.index('id="checks"') : page.index('id="about"')]
    assert "2 of 40 held-out images have one" in section
    assert "Without them the gain" in section
    sides = re.findall(r"<b>(held out|fold \d)</b>", section)
    assert sides[1] == sides[3] == "held out"


def test_a_report_that_exists_is_refused_without_force(tmp_path):
    """A long run's report must not vanish under a second one."""
    path = tmp_path / "sub" / "report.html"
    write_report(path, make_model(["a"]))
    with pytest.raises(FileExistsError, match=r"report.html.*--force"):
        write_report(path, make_model(["a"]))
    write_report(path, make_model(["a"]), force=True, title="second")
    assert "second" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_cards_say_what_was_added_and_removed_and_whether_that_was_right():
    """Green and red labels are the page's claim about the truth."""
    Y = csr_array(np.array([[1, 1, 0, 0, 1]], dtype=np.int8))
    stack = csr_array(np.array([[1, 1, 0, 1, 0]], dtype=np.int8))
    blend = csr_array(np.array([[1, 0, 1, 0, 0]], dtype=np.int8))
    (card,) = gallery(np.array(["im"]), Y, stack, blend, np.array(list("abcde")))
    assert card.true == ["a", "b", "e"]
    assert card.kept == [("a", True)]
    assert card.added == [("b", True), ("d", False)]
    assert card.removed == [("c", True)]
    assert card.missed == ["e"]
    assert card.picture == ""


def test_cards_show_gains_and_losses():
    """A page of gains only would be an advertisement."""
    rng = np.random.default_rng(0)
    Y, stack, blend = (csr_array((rng.random((100, 8)) < 0.4).astype(np.int8)) for _ in range(3))
    cards = gallery(np.arange(100).astype(str), Y, stack, blend, np.array(list("abcdefgh")))
    change = [card.score - card.blend_score for card in cards]
    assert len({card.image_id for card in cards}) == 12
    assert min(change[:6]) > 0 > max(change[6:9])


def test_only_pictures_become_data_uris():
    """An SVG or HTML file among the images could run scripts in the report."""
    pytest.importorskip("PIL")
    assert data_uri(b"\x89PNG....").startswith("data:image/png;base64,")
    assert data_uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == ""
    assert data_uri(b"\xff\xd8\xff" + b"\0" * 200_000) == ""


def test_chart_points_lie_inside_the_drawing():
    """A wrong scale would draw the curve outside the axes, where nobody sees it."""
    x = np.linspace(0.013, 0.79, 30)
    svg = line_chart(
        [Line("a", x, np.sin(9 * x), mark=(0.5, 0.2))], title="t", x_label="x", y_label="y"
    )
    points = re.search(r'points="([^"]+)"', svg)[1].split()
    xs, ys = np.array([p.split(",") for p in points], dtype=float).T
    assert 56 <= xs.min() < xs.max() <= 466
    assert 12 <= ys.min() < ys.max() <= 254
