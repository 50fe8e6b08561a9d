"""Output of commands: printed lines, and output folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from topicell.cli.terminal import BOLD, YELLOW, say, styled
from topicell.errors import InputError


def print_result(scores: Mapping[str, float], directory: Path) -> None:
    """Print the main scores of a run, and where its results are."""
    from topicell.evaluation.metrics import METRICS

    for name, row in METRICS.items():
        if row.printed and name in scores:
            value = styled(f"{scores[name]:10.4g}", BOLD)
            say(f"{row.title:<32}{value} {row.unit}".rstrip())
    for heading in _warnings(directory):
        say(f"{styled('warning', YELLOW)}     {heading}")
    print(f"run folder  {os.path.relpath(directory)}")
    if (directory / "report.html").exists():
        print(f"report      {os.path.relpath(directory / 'report.html')}")
    print_delivered(directory)


def _warnings(directory: Path) -> Iterator[str]:
    """Yield the headings of the warnings in the summary of a run."""
    summary = directory / "summary.md"
    for line in summary.read_text("utf-8").splitlines() if summary.exists() else ():
        if line.startswith("- "):
            yield line.removeprefix("- ")


def print_delivered(folder: Path) -> None:
    """Print the MLflow run of a run folder, or how to deliver the folder to MLflow."""
    from topicell.tracking.record import Record

    record = Record.read(folder)
    if record.delivered:
        print(f"MLflow run  {record.run_id}  (topicell ui)")
    elif record.store:
        print(f"MLflow run  not delivered; run topicell sync folders={os.path.relpath(folder)}")


def new_folder(asked: str | None, name: str) -> Path:
    """Return the output folder, which must not exist: the one asked for, else `name`."""
    output = Path(asked or name)
    if output.exists():
        raise InputError(f"output = {str(output)!r} exists; name another folder")
    return output


def make_folder(output: Path) -> None:
    """Make the output folder."""
    try:
        output.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"output = {str(output)!r} cannot be created ({error})") from error
