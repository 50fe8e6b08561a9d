"""``topicell compare``: one page that compares stored runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from topicell.cli.command import Command
from topicell.cli.options import read
from topicell.cli.output import make_folder, new_folder
from topicell.config import TrackingConfig


@dataclass
class CompareCommand:
    """Compare stored runs on one page: runs=[A,B,…] are ids or folders, output=FOLDER is new."""

    runs: list[str] = field(default_factory=list)
    """MLflow ids or folders of at least two runs; the first is the reference."""
    labels: list[str] = field(default_factory=list)
    """Names of the runs on the page, one for each; an empty list uses the names of the runs."""
    output: str | None = None
    """New folder; null makes its name from the runs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def compare(arguments: list[str]) -> None:
    """Write the page of the comparison into a new folder."""
    asked: CompareCommand = read(COMMAND, arguments)
    from topicell import comparison
    from topicell.comparison.page import write

    output = new_folder(asked.output, comparison.folder_name(asked.runs))
    found = comparison.compare(asked.runs, asked.labels, asked.tracking)
    make_folder(output)
    print(write(found, output))


COMMAND = Command(
    name="compare",
    summary="compare stored runs on one page",
    examples=(("topicell compare runs=[RUN_ID,RUN_ID]", "or folders; output=FOLDER"),),
    settings=CompareCommand,
    function=compare,
)
