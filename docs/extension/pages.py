"""Pages of the site that lie outside docs/, and links between all pages.

Links are written for readers on a Git host: ``../experiments/peers/README.md``. The studies of
experiments/ become pages of the site, and such links lead to them; links to other files of the
repository, such as a table or a script, become downloads.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
"""A link or a picture whose address is a path."""
GENERATED = {
    ROOT / "src" / "topicell" / "config": DOCS / "reference" / "settings.rst",
    ROOT / "conf": DOCS / "reference" / "configurations.rst",
}
"""Folders of the repository that a generated page describes."""


def outside_pages() -> dict[Path, Path]:
    """Return the page of the site for each Markdown file outside docs/."""
    experiments = ROOT / "experiments"
    pages = {
        ROOT / "CONTRIBUTING.md": DOCS / "develop" / "contributing.md",
        ROOT / "CHANGELOG.md": DOCS / "develop" / "changelog.md",
        experiments / "README.md": DOCS / "studies" / "index.md",
        experiments / "LOG.md": DOCS / "studies" / "log.md",
    }
    for study in sorted(experiments.glob("*/README.md")):
        pages[study] = DOCS / "studies" / f"{study.parent.name}.md"
    return pages


def relinked(text: str, written: Path, page: Path) -> str:
    """Return a Markdown text with its links changed so that they lead to pages of the site.

    Parameters
    ----------
    text
        The text.
    written
        The file for which the links were written.
    page
        The page of the site that has the text.
    """
    pages = outside_pages()

    def new(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(written.parent / link[1]))
        if not target.exists():
            return link[0]
        for folder in (target, *target.parents):
            if folder in GENERATED:
                target = GENERATED[folder]
                break
        address = os.path.relpath(pages.get(target, target), page.parent)
        return f"]({Path(address).as_posix()}{link[2] or ''})"

    return LINK.sub(new, text)


def write(path: Path, text: str) -> None:
    """Write a file, unless it has this text: Sphinx reads changed files again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def write_outside_pages(app: Sphinx) -> None:
    """Write the pages whose text is outside docs/."""
    pages = outside_pages()
    for written, page in pages.items():
        text = relinked(written.read_text("utf-8"), written, page)
        if page.stem == "index":
            names = [other.stem for other in pages.values() if other.parent == page.parent]
            listed = "\n".join(name for name in names if name != "index")
            text += f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
        write(page, text)


def relink_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Change the links of a page of docs/."""
    page = Path(app.env.doc2path(docname))
    if page.suffix == ".md" and page not in outside_pages().values():
        source[0] = relinked(source[0], page, page)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the functions with Sphinx."""
    app.connect("builder-inited", write_outside_pages)
    app.connect("source-read", relink_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
