"""Take the pictures of docs/img in headless Chromium: the demo's report, and the docs site.

    python docs/_site/shots.py REPORT SITE OUT

REPORT is the file that `make demo` writes, SITE the folder of `make docs`. Needs Debian's chromium.
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

PHONE, GAP, GREY = 390, 20, 136
REPORT_SHOTS = {"report": ("light", 1760), "report-dark": ("dark", 1500)}
# What a phone shows, from which heading on: (scheme, heading, page).
REPORT_PHONE = [("light", None), ("dark", "Decision and calibration"), ("dark", "Classes")]
SITE_PHONE = [("light", "index"), ("light", "recipes"), ("dark", "reference/stacker.estimator")]


def main() -> None:
    """Take them all."""
    report, site, out = (Path(word) for word in sys.argv[1:4])
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as tools:
        # Containers run as root, where Chromium's own sandbox does not start.
        browser = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (scheme, height) in REPORT_SHOTS.items():
            shot(browser, report, scheme, 1080, height).save(out / f"{name}.png", optimize=True)
        parts = [shot(browser, report, scheme, PHONE, 1400, at) for scheme, at in REPORT_PHONE]
        beside(parts).save(out / "report-phone.png", optimize=True)
        index = site / "index.html"
        shot(browser, index, "light", 1280, 900).save(out / "site-desktop.png", optimize=True)
        parts = [shot(browser, site / f"{p}.html", s, PHONE, 844) for s, p in SITE_PHONE]
        beside(parts).save(out / "site-phone.png", optimize=True)
        browser.close()


def shot(
    browser: Any, file: Path, scheme: str, width: int, height: int, heading: str | None = None
) -> Image.Image:
    """One window of a page, from a heading on."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(file.resolve().as_uri())
    if heading is not None:
        page.get_by_role("heading", name=heading, exact=True).evaluate(
            "node => window.scrollTo(0, node.getBoundingClientRect().top + scrollY - 24)"
        )
    page.wait_for_timeout(500)
    picture = Image.open(BytesIO(page.screenshot()))
    page.close()
    return picture.convert("RGB").quantize(256)


def beside(parts: list[Image.Image]) -> Image.Image:
    """Pictures of one height in a row, a grey strip between them."""
    arrays = [np.asarray(part.convert("RGB")) for part in parts]
    strip = np.full((arrays[0].shape[0], GAP, 3), GREY, dtype=np.uint8)
    row = [piece for part in arrays for piece in (part, strip)][:-1]
    return Image.fromarray(np.concatenate(row, axis=1)).quantize(256)


if __name__ == "__main__":
    main()
