"""Templates of pages: every value is escaped, and a name without a value is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def template(name: str, *folders: Path) -> Any:
    """Return a template from this folder, or from `folders`, which are searched first.

    Parameters
    ----------
    name
        File name of the template.
    folders
        Folders to search first; their templates can include files of this folder, such as
        ``style.css``.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([*folders, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
