"""Exit codes, the one line that says why a command failed, and warnings on the terminal."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from topicell import signals
from topicell.cli.overrides import kinds, quoted, unquoted
from topicell.cli.terminal import RED, styled
from topicell.config import TrainCommand, dotted
from topicell.errors import InputError, failure
from topicell.redaction import without_password

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""
FULL_ERROR = "HYDRA_FULL_ERROR"
"""Environment variable that asks for tracebacks."""
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "None": "null",
}
"""Types of settings in messages."""
TRAIN_LISTER = "topicell train --cfg job"
"""Command that lists the settings of ``topicell train``."""


def own_process() -> None:
    """Set how this process shows warnings to users and what ends it."""
    warnings.showwarning = _show_warning
    signals.install_handlers()


def _show_warning(
    message: Warning | str, category: type[Warning], *_: object, **__: object
) -> None:
    # Users can act on our own warnings only. Matplotlib warns that its font lacks a letter: the
    # page shows the letter, the files of the figures a box.
    if category is not UserWarning or str(message).startswith("Glyph "):
        return
    # On the terminal and, in a run, in the log of its folder.
    logging.getLogger("topicell").warning(message)


def fail(code: int, message: str) -> NoReturn:
    """Print why the command failed, and exit."""
    print(styled("topicell:", RED, sys.stderr), without_password(message), file=sys.stderr)
    sys.exit(code)


class ReportFailed(Exception):  # noqa: N818 the run did not fail
    """A run has everything but its report; the message is for the user."""


def raise_report_failure(error: Exception | str | None, folder: Path) -> None:
    """Raise if the report of a run failed; in a grid or a sweep, log it and go on.

    Raises
    ------
    ReportFailed
        The message says how to make the report again.
    """
    if not error:
        return
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    command = shlex.quote(f"run={os.path.relpath(folder)}")
    message = (
        f"the report is incomplete: {error}; all other results are saved, and `topicell report "
        f"{command}` makes the report again"
    )
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        logging.getLogger("topicell").error(message)
        return
    raise ReportFailed(message) from (error if isinstance(error, Exception) else None)


def require_reports(folders: Iterable[Path]) -> None:
    """Raise if the report of any of the runs in these folders failed.

    Raises
    ------
    ReportFailed
        The message names the folders of these runs.
    """
    from topicell.tracking.record import RECORD, REPORT_ERROR, Record

    # A folder may be on another machine.
    there = [folder for folder in folders if (folder / RECORD).is_file()]
    failed = [folder for folder in there if REPORT_ERROR in Record.read(folder).tags]
    if failed:
        raise ReportFailed(
            f"the reports of {len(failed)} of {len(there)} runs are incomplete; all other results "
            "are saved, and `topicell report run=FOLDER` makes a report again: "
            f"{', '.join(map(str, failed))}"
        )


def diagnosis(error: BaseException, command: str) -> tuple[int, str]:
    """Return the exit code of an error of a command, and one line that says what was wrong."""
    if isinstance(error, ReportFailed):
        return FAILED, str(error)
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, InputError):
            return BAD_INPUT, str(link)
        link = link.__cause__ or link.__context__
    if isinstance(error, ValueError) and str(error).startswith("Config group override"):
        # Hydra raises it for train=3.
        return (
            BAD_INPUT,
            "this is a group of settings: give the name of one of its files, or set one of its "
            f"settings ({error})",
        )
    if isinstance(error, ValueError) and str(error).startswith("Only one of --"):
        return BAD_INPUT, "--cfg, --info and -m cannot be combined; leave out all but one"
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return BAD_INPUT, setting_message(error, list(dotted(TrainCommand())), TRAIN_LISTER)
    cause = failure(error, trains=command == "train")
    return FAILED, f"the run failed: {cause} ({FULL_ERROR}=1 shows the traceback)"


def setting_message(error: BaseException, known: Collection[str], lister: str) -> str:
    """Return the message of Hydra or OmegaConf in one line, with the nearest name for a typo.

    Parameters
    ----------
    error
        The error of Hydra or OmegaConf.
    known
        Names of all settings.
    lister
        Command that lists them.
    """
    text = " ".join(str(error).partition("Config search path")[0].split())
    if error.__cause__ is not None:
        # Hydra names the override, and OmegaConf says what is wrong with its value.
        text += f": {str(error.__cause__).splitlines()[0]}"
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text)
    if unknown:
        name = (unknown[1] or unknown[2]).lstrip("+~")
        if name not in known:
            return unknown_setting(name, known, lister)
    option = re.search(r"Could not find '([^']+)/([^']+)' Available options in '[^']+': (.*)", text)
    if option:
        return _unknown_option(*option.groups())
    types = kinds(TrainCommand())
    wrong = re.search(r"Error merging override ([^=]+)=(\S*)", text)
    name = wrong[1].lstrip("+~") if wrong else ""
    # For an enumeration, the text of OmegaConf lists the values.
    if wrong and WORDS.keys() >= set(types.get(name, "?").split(" | ")):
        return f"{name} = {wrong[2].removesuffix(':')!r}: {takes(name, types)}"
    if wrong and (inner := [setting for setting in known if setting.startswith(f"{name}.")]):
        return f"{name} is a group of settings: set one of {', '.join(inner)}"
    several = re.search(r"Ambiguous value for argument '([^=]+)=([^']*)'", text)
    if several:
        return (
            f"{several[1]} = {several[2]!r}: several values need -m (one run for each); write a "
            f"list as {several[1]}=[{several[2]}]"
        )
    key = re.search(r"full_key: (\S+)", text)
    text = text.partition(" full_key:")[0].partition(" See https://")[0]
    if key:
        return f"{key[1]}: {text}"
    override = getattr(error, "override", None)
    if override and override not in text:
        text = f"{override!r}: {text}"
    if "missing EQUAL" in text:
        return f"{text}: write settings as NAME=VALUE, and a file as data=file data.path=FILE"
    if override and type(error).__name__ == "OverrideParseException":
        return _not_parsed(override, text, known, lister)
    return text


def _unknown_option(group: str, name: str, options: str) -> str:
    """Return the message about a name that a group does not have."""
    names = options.split()
    near = get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    own = "; for your own file, write data=file data.path=FILE" if group == "data" else ""
    return f"{group} = {name!r} does not exist; {hint}{group} is one of {', '.join(names)}{own}"


def _not_parsed(override: str, text: str, known: Collection[str], lister: str) -> str:
    """Return why Hydra's grammar rejects an override, and how to write it."""
    name, equals, value = override.partition("=")
    name = name.lstrip("+~")
    if not equals:
        return f"{override!r}: write settings as NAME=VALUE"
    if not name.startswith("hydra.") and name not in known:
        return unknown_setting(name, known, lister)
    types = kinds(TrainCommand())
    if name in types:
        return f"{override!r}: {takes(name, types)} ({text})"
    return f"{text}; write {shlex.quote(f'{name}={quoted(unquoted(value))}')}"


def takes(name: str, types: Mapping[str, str]) -> str:
    """Return in words which kind of value a setting takes."""
    kinds_of_value = types.get(name, "another kind of value").split(" | ")
    return f"{name} takes {' or '.join(WORDS.get(kind, kind) for kind in kinds_of_value)}"


def unknown_setting(name: str, known: Collection[str], lister: str) -> str:
    """Return the message about a name that is no setting, with the nearest that is one."""
    groups = {setting.partition(".")[0] for setting in known}
    last = {setting.rpartition(".")[2]: setting for setting in known}
    near = get_close_matches(name, [*groups, *known], 1) or [
        last[match] for match in get_close_matches(name.rpartition(".")[2], last, 1)
    ]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{name!r} is not a setting; {hint}{lister} lists all"
