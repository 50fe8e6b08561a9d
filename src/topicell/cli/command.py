"""A command: its name, its help, its settings and the function that runs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from topicell.config import dotted

NO_DEFAULT = "???"
"""Default of a setting that must be given; OmegaConf calls it MISSING."""


def conf_folder() -> Path:
    """Return the folder of configuration groups: in the package, or at the top of a checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


@dataclass(frozen=True, kw_only=True)
class Command:
    """Describe a command; each module of `topicell.cli.main.COMMANDS` holds one as ``COMMAND``."""

    name: str
    summary: str
    """One line of ``topicell --help``."""
    examples: tuple[tuple[str, str], ...]
    """Command lines, each with a remark or an empty text."""
    settings: type | None
    """Dataclass of the settings, whose docstring heads ``topicell COMMAND --help``; None for a
    command that answers ``--help`` itself."""
    function: Callable[[list[str]], None]
    """Runs the command, given its arguments."""

    @property
    def overview(self) -> str:
        """Return the lines of ``topicell --help`` about this command."""
        lines = [f"  {self.name:<12}{self.summary}"]
        lines += [f"{'':14}{written:<50}{remark}".rstrip() for written, remark in self.examples]
        return "\n".join(lines)

    @property
    def help(self) -> str:
        """Return ``topicell COMMAND --help``: what it does, and its settings with defaults."""
        assert self.settings is not None
        meaning = inspect.cleandoc(self.settings.__doc__ or "")
        lines = [f"topicell {self.name}: {meaning}", ""]
        lines += [f"  {written:<50}{remark}".rstrip() for written, remark in self.examples]
        lines += ["", "settings, with their defaults:"]
        lines += [
            f"  {name}={'' if value == NO_DEFAULT else value}"
            for name, value in dotted(self.settings()).items()
        ]
        return "\n".join(lines)
