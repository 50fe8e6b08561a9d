"""How pages are filled: every value is escaped, and a name without a value is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def template(name: str, *folders: Path) -> Any:
    """Return a template of this folder, or of one that is searched first.

    Parameters
    ----------
    name
        Its file.
    folders
        Where to look before; templates there include what is here, such as ``style.css``.
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
