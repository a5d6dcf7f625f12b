"""Check a built site: no dead link, no missing heading, nothing loaded from the network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Pages that Sphinx makes and that hold no text of ours.
MADE = ("genindex.html", "search.html", "py-modindex.html")


class References(HTMLParser):
    """Ids of a page, what it links to, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the references of one tag."""
        found = {key: value or "" for key, value in attrs}
        self.ids |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link":
            self.loads.append(found.get("href", ""))
        elif "src" in found:
            self.loads.append(found["src"])


def read(path: Path) -> References:
    """Parse one page."""
    references = References()
    references.feed(path.read_text(encoding="utf-8"))
    return references


def problems(site: Path) -> Iterator[str]:
    """Say what is wrong, page by page."""
    pages = {path: read(path) for path in sorted(site.resolve().rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for link in page.loads:
            if urlsplit(link).scheme in ("http", "https") or link.startswith("//"):
                yield f"{name} loads {link} from the network"
        if name.as_posix() in MADE:
            continue
        for link in page.links + page.loads:
            problem = _problem(link, path, pages)
            if problem:
                yield f"{name}: {problem} {link}"
    for sheet in sorted(site.rglob("*.css")):
        text = sheet.read_text(encoding="utf-8")
        if "url(http" in text or "@import" in text or "url(//" in text:
            yield f"{sheet.relative_to(site)} loads from the network"


def _problem(link: str, path: Path, pages: dict[Path, References]) -> str:
    parts = urlsplit(link)
    if parts.scheme or link.startswith("//"):
        return ""
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return "dead link"
    anchor = unquote(parts.fragment)
    return (
        "no such heading"
        if anchor and target in pages and not anchor_in(anchor, pages[target])
        else ""
    )


def anchor_in(anchor: str, page: References) -> bool:
    """Tell whether a page has an element of that name."""
    return anchor in page.ids


if __name__ == "__main__":
    found = list(problems(Path(sys.argv[1])))
    print("\n".join(found) or "links: all lead somewhere; nothing is loaded from the network")
    sys.exit(bool(found))
