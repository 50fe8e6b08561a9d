"""Check the links of the built site: every local address and every anchor must exist.

``python docs/extension/links.py docs/_build/html``
"""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = ("script", "link", "img", "iframe")
"""Elements whose address a browser loads: it may not be of another host."""


class Addresses(HTMLParser):
    """The addresses of a page, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.anchors = {""}  # an address without an anchor is the page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the addresses and the anchor of an element."""
        values = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}
        self.found += [(tag, value) for name in ("href", "src") if (value := values.get(name))]


@cache
def read(page: Path) -> Addresses:
    """Return the addresses of a page."""
    addresses = Addresses()
    addresses.feed(page.read_text("utf-8"))
    return addresses


def pages(site: Path) -> list[Path]:
    """Return the pages of a site, without the templates of its theme."""
    return [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]


def problems(site: Path) -> list[str]:
    """Return one line for each address that leads nowhere, and for each file of another host."""
    lines = []
    for page in pages(site):
        for tag, address in read(page).found:
            url = urlsplit(address)
            if url.scheme in ("http", "https") or url.netloc:
                if tag in LOADED:
                    lines.append(f"{page.relative_to(site)}: <{tag}> loads {address}")
                continue
            if url.scheme:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                lines.append(f"{page.relative_to(site)}: there is no {address}")
            elif target.suffix == ".html" and unquote(url.fragment) not in read(target).anchors:
                lines.append(f"{page.relative_to(site)}: there is no anchor {address}")
    return lines


if __name__ == "__main__":
    site = Path(sys.argv[1]).resolve()
    n_pages = len(pages(site))
    if not n_pages:
        sys.exit(f"{site} holds no pages; build the site first")
    found = problems(site)
    sys.stdout.write("\n".join([*found, f"{n_pages} pages, {len(found)} problems\n"]))
    sys.exit(bool(found))
