"""What commands write to the terminal: how much (``-q``, ``-v``), in colour or not, and the log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import IO, Any

from topicell import progress
from topicell.progress import Shown
from topicell.redaction import RedactingFormatter

VERBOSITY = "TOPICELL_VERBOSITY"
"""Environment variable that tells worker processes of `Verbosity`."""


class Verbosity(Enum):
    """How much a command writes to the terminal."""

    quiet = "quiet"
    """Where the results are, and errors."""
    normal = "normal"
    """Also scores, warnings and progress."""
    verbose = "verbose"
    """Also the log: each step with its seconds and the memory."""


OPTIONS = {
    "-q": Verbosity.quiet,
    "--quiet": Verbosity.quiet,
    "-v": Verbosity.verbose,
    "--verbose": Verbosity.verbose,
}
OPTIONS_HELP = """\
options of all commands:
  -q, --quiet       print only errors and where the results are
  -v, --verbose     print the log too: each step with its seconds and the memory
"""
BOLD, RED, YELLOW, GREEN, DIM = "1", "1;31", "1;33", "32", "2"
"""Codes of `styled`."""


def without_options(arguments: Sequence[str]) -> tuple[list[str], Verbosity | None]:
    """Return the arguments without ``-q`` and ``-v``, and what the last of these asks for."""
    asked = [OPTIONS[argument] for argument in arguments if argument in OPTIONS]
    kept = [argument for argument in arguments if argument not in OPTIONS]
    return kept, asked[-1] if asked else None


def verbosity() -> Verbosity:
    """Return how much this process, or the command that started it, writes to the terminal."""
    asked = os.environ.get(VERBOSITY, "")
    return Verbosity(asked) if asked in Verbosity.__members__ else Verbosity.normal


def is_quiet() -> bool:
    """Return whether only errors and the places of results are written."""
    return verbosity() is Verbosity.quiet


@contextlib.contextmanager
def used(asked: Verbosity | None) -> Iterator[None]:
    """Use the terminal for a command: with its log, and with its progress."""
    variable, before = os.environ.get(VERBOSITY), progress.shown()
    if asked is not None:
        os.environ[VERBOSITY] = asked.value
    if is_quiet():
        progress.show(Shown.nothing)
    else:
        progress.show(Shown.bars if sys.stderr.isatty() else Shown.lines)
    logger, handler = logging.getLogger("topicell"), LogHandler()
    handler.setFormatter(LogFormatter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(log_level())
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        progress.show(before)
        os.environ.pop(VERBOSITY, None)
        if variable is not None:
            os.environ[VERBOSITY] = variable


def log_level() -> int:
    """Return the level of topicell's log, also of the file in a run folder."""
    return logging.DEBUG if verbosity() is Verbosity.verbose else logging.INFO


class LogHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Write to standard error the log records that users want to see there."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        super().__init__(stream or sys.stderr)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is shown."""
        if record.levelno >= logging.ERROR or is_quiet():
            shown = record.levelno >= logging.ERROR
        elif record.levelno >= logging.WARNING:
            shown = True
        elif not record.name.startswith("topicell") or progress.shown() is Shown.nothing:
            shown = False
        elif record.levelno < logging.INFO or record.name != "topicell.progress":
            shown = verbosity() is Verbosity.verbose
        else:
            shown = progress.shown() is Shown.lines
        return shown and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, above the bar."""
        with progress.cleared():
            super().emit(record)


class HydraHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Write which job of a grid Hydra starts, unless the command is quiet."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is shown."""
        return (record.levelno >= logging.ERROR or not is_quiet()) and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, above the bar."""
        with progress.cleared():
            super().emit(record)


class LogFormatter(RedactingFormatter):
    """Format a record for the terminal: its level in colour; in the detailed log, its time."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record."""
        text = super().format(record)
        if record.levelno >= logging.ERROR:
            return f"{styled('error:', RED, sys.stderr)} {text}"
        if record.levelno >= logging.WARNING:
            return f"{styled('warning:', YELLOW, sys.stderr)} {text}"
        if verbosity() is not Verbosity.verbose:
            return text
        clock = time.strftime("[%H:%M:%S]")
        return f"{styled(clock, DIM, sys.stderr)} {text}"


def colours(stream: IO[str]) -> bool:
    """Return whether text for a stream is coloured: on a terminal, unless the user decides.

    The variables are those of https://no-color.org and https://force-color.org.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def styled(text: str, code: str, stream: IO[str] | None = None) -> str:
    """Return a text in a colour or bold, if its stream has colours; standard output by default."""
    return f"\x1b[{code}m{text}\x1b[0m" if colours(stream or sys.stdout) else text


def say(line: str = "") -> None:
    """Print a line of standard output that ``--quiet`` leaves out."""
    if not is_quiet():
        print(line)


def note(line: str) -> None:
    """Print a line of standard error that ``--quiet`` leaves out, above the bar."""
    if not is_quiet():
        with progress.cleared():
            print(line, file=sys.stderr, flush=True)
