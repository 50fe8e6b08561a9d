"""The entry point: the table of commands, ``topicell --help``, and the call of a command.

Exit codes: 0 done; 1 the command failed; 2 bad input or configuration; 130 interrupted. Each
failure is one line; ``HYDRA_FULL_ERROR=1`` shows the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

from topicell import signals
from topicell.cli import errors, terminal
from topicell.cli.command import Command
from topicell.redaction import without_password

COMMANDS = {
    "train": "topicell.cli.train",
    "report": "topicell.cli.report",
    "reproduce": "topicell.cli.reproduce",
    "compare": "topicell.cli.compare",
    "consensus": "topicell.cli.consensus",
    "conditions": "topicell.cli.conditions",
    "transform": "topicell.cli.transform",
    "evaluate": "topicell.cli.evaluate",
    "export": "topicell.cli.export",
    "sync": "topicell.cli.sync",
    "ui": "topicell.cli.ui",
    "doctor": "topicell.cli.doctor",
    "completion": "topicell.cli.completion",
}
"""Module of each command, in the order of ``topicell --help``. It is imported when needed, and
holds a `Command` as ``COMMAND``."""

HEAD = """\
topicell: an experiment-tracking harness for topic models of single-cell counts

usage: topicell COMMAND [SETTING=VALUE ...]
"""
FOOT = """\
exit codes: 0 done, 1 failed, 2 bad input or setting, 130 interrupted
HYDRA_FULL_ERROR=1 shows tracebacks; TOPICELL_DATA names the folder of downloaded data
prepared data are cached in the folder topicell/prepared of the user's cache (on Linux
XDG_CACHE_HOME, else ~/.cache), up to preprocess.cache_limit_mb=2000; preprocess.cache=false stores
none
"""
HELP_FLAGS = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its code."""
    arguments, asked = terminal.without_options(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in (*HELP_FLAGS, "help"):
        overviews = (load(name).overview for name in COMMANDS)
        print(HEAD, *overviews, "", terminal.OPTIONS_HELP, FOOT, sep="\n", end="")
        sys.exit(errors.DONE if arguments else errors.BAD_INPUT)
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"topicell {version('topicell')}")
        sys.exit(errors.DONE)
    name, *rest = arguments
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "topicell --help lists them"
        errors.fail(errors.BAD_INPUT, f"{name!r} is not a command; {hint}")
    command = load(name)
    if rest and rest[0] in HELP_FLAGS and command.settings is not None:
        print(command.help, "", terminal.OPTIONS_HELP, sep="\n", end="")
        sys.exit(errors.DONE)

    errors.own_process()
    wants_traceback = os.environ.get(errors.FULL_ERROR, "0") not in ("", "0")
    try:
        with terminal.used(asked):
            command.function(rest)
    except KeyboardInterrupt:
        errors.fail(errors.INTERRUPTED, "interrupted")
    except Exception as error:
        if signals.interrupted():
            errors.fail(errors.INTERRUPTED, "interrupted")
        if wants_traceback:
            shown = "".join(traceback.format_exception(error))
            print(without_password(shown), end="", file=sys.stderr)
        errors.fail(*errors.diagnosis(error, name))
    sys.exit(errors.DONE)


def load(name: str) -> Command:
    """Import the module of a command and return its `Command`."""
    command = import_module(COMMANDS[name]).COMMAND
    assert isinstance(command, Command)
    return command
