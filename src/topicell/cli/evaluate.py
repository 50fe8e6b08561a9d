"""``topicell evaluate``: score and report topics that another tool fitted."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import fields
from pathlib import Path

from topicell.cli.command import Command
from topicell.cli.errors import raise_report_failure
from topicell.cli.options import read
from topicell.cli.output import print_result
from topicell.cli.overrides import command_line, unquoted
from topicell.config import ExternalConfig, ReadConfig
from topicell.errors import InputError

OF_DATA = ("label_key", "sample_key", *(field.name for field in fields(ReadConfig)))
"""Settings that are written as in ``topicell train``, ``data.NAME``, or as NAME alone."""


def evaluate(arguments: list[str]) -> None:
    """Score and report topics that another tool fitted, in a new folder and MLflow run."""
    config: ExternalConfig = read(COMMAND, in_short(arguments))
    from datetime import datetime

    from topicell import evaluate as external
    from topicell.tracking.provenance import COMMAND_TAG
    from topicell.tracking.runs import open_tracker

    logging.getLogger("anndata").setLevel(logging.WARNING)
    now = f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"
    folder = Path(config.output or f"evaluations/{now}")
    command = command_line("evaluate", arguments)
    tracker = open_tracker(config.tracking, folder, "output=FOLDER", tags={COMMAND_TAG: command})
    try:
        result = external.evaluate(config, tracker)
    except InputError:
        # Nothing was recorded: remove the folder that was made for it.
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    print_result(result.scores, tracker.directory)
    raise_report_failure(result.report_error, tracker.directory)


def in_short(arguments: list[str]) -> list[str]:
    """Return the arguments with the settings of data in this command's short form.

    ``data=file data.path=FILE data.layer=NAME``, as ``topicell train`` has it, means
    ``data=FILE layer=NAME``.

    Raises
    ------
    InputError
        A setting is given in both forms, with different values; or a path is missing, or is given
        to something other than ``data=file``.
    """
    given = {
        name: unquoted(value)
        for name, equals, value in (argument.partition("=") for argument in arguments)
        if equals and (name, value) != ("data.path", "null")
    }
    for name in OF_DATA:
        short, long = given.get(name), given.get(f"data.{name}")
        if None not in (short, long) and short != long:
            raise InputError(
                f"{name}={short} and data.{name}={long} contradict each other; give one of them"
            )
    data, path = given.get("data"), given.get("data.path")
    if data == "file" and not path:
        raise InputError("data.path has no value: data=file needs data.path=FILE")
    if data != "file" and path is not None:
        if data is None:
            raise InputError(f"data has no value: give data=file data.path={path}")
        raise InputError(
            f"data={data} and data.path={path} contradict each other; give data={path}, or "
            f"data=file data.path={path}"
        )
    written = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "data.path":
            written += [] if value == "null" else [f"data={_as_file(value)}"]
        elif name.startswith("data.") and name.removeprefix("data.") in OF_DATA:
            written.append(argument.removeprefix("data."))
        elif (name, unquoted(value)) != ("data", "file"):
            written.append(argument)
    return written


def _as_file(path: str) -> str:
    """Return a path that is not taken for the name of a data set."""
    from topicell.data.catalogue import CATALOGUE

    return f"./{unquoted(path)}" if unquoted(path) in ("simulated", *CATALOGUE) else path


COMMAND = Command(
    name="evaluate",
    summary="scores and report for topics that another tool fitted",
    examples=(
        ("topicell evaluate theta=theta.csv beta=beta.csv data=cells.h5ad", ""),
        ("topicell evaluate … data=file data.path=FILE", "settings of data= as in train"),
    ),
    settings=ExternalConfig,
    function=evaluate,
)
