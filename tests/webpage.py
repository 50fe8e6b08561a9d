"""Read a page that topicell wrote, and check that it needs no other file."""

from __future__ import annotations

import re
from html.parser import HTMLParser

EVIL = "<script>alert('x')</script>"
"""A name that would run if it were not escaped."""
VOID = {"meta", "link", "img", "input"}
ADDRESSES = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")


class Page(HTMLParser):
    """Tags with attributes, visible text, and rows of tables; every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "dd":
            self.text += " "
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self) -> str:
        """The text with single blanks."""
        return " ".join(self.text.split())

    @property
    def policy(self) -> str:
        (policy,) = (attrs["content"] for attrs in self.all("meta") if "http-equiv" in attrs)
        return policy


def assert_self_contained(html: str) -> None:
    """Check that a page loads nothing, and that no attribute of it is a script."""
    page = Page(html)
    assert "default-src 'none'" in page.policy
    for tag, attrs in page.tags:
        assert tag not in {"iframe", "object", "embed", "base"}
        for name in ADDRESSES:
            assert (attrs.get(name) or "#").startswith(("data:", "#")), (tag, attrs[name][:80])
        assert not any(name.startswith("on") for name in attrs)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", html, re.IGNORECASE)
    assert not re.search(r"url\((?!#)|@import", html)
