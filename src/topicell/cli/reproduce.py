"""``topicell reproduce``: make a stored run again, and say what differs."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topicell.cli.command import NO_DEFAULT, Command
from topicell.cli.errors import FAILED, raise_report_failure
from topicell.cli.options import read, stored_run_config
from topicell.cli.output import new_folder, print_result
from topicell.cli.overrides import command_line
from topicell.cli.terminal import BOLD, say, styled
from topicell.config import RunConfig, TrackingConfig
from topicell.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass
class MovedData:
    """Where the data of the run are now, if they were moved."""

    path: str | None = None
    """New place of the file."""
    samples: str | None = None
    """New place of the table of samples."""


@dataclass
class ReproduceCommand:
    """Make a stored run again: run=RUN_ID or run=FOLDER, output=FOLDER is new.

    The new run has the settings and the data of the stored one. Then code, environment, files and
    scores of both are compared. The exit code is 0 if all files have the same bytes, or all scores
    are within the noise of the stored run (3 standard deviations over replicates and splits), else
    1. data.path=FILE or data.samples=FILE names the new place of data that were moved.
    """

    run: str = NO_DEFAULT
    """MLflow id or folder of the run."""
    output: str | None = None
    """New folder; null uses ``reproductions/DATE/TIME``."""
    data: MovedData = field(default_factory=MovedData)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def reproduce(arguments: list[str]) -> None:
    """Make a stored run again, in a new folder and MLflow run, and print what differs."""
    asked: ReproduceCommand = read(COMMAND, arguments)
    import tempfile
    from datetime import datetime

    import yaml

    from topicell import reproduce as reproduction
    from topicell.tracking.provenance import COMMAND_TAG
    from topicell.tracking.runs import open_tracker
    from topicell.tracking.stored import fetch_run

    logging.getLogger("anndata").setLevel(logging.WARNING)
    output = new_folder(asked.output, f"reproductions/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}")
    with tempfile.TemporaryDirectory() as scratch:
        folder, run_id = fetch_run(
            asked.run,
            asked.tracking,
            Path(scratch),
            reproduction.NEEDED,
            optional=reproduction.OPTIONAL,
        )
        stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        _require_train(asked.run, folder, stored)
        experiment = {"tracking": {"experiment": stored["tracking"]["experiment"]}}
        tracking = read(COMMAND, arguments, experiment).tracking
        config = _config(stored, asked, tracking, folder)
        reproduction.require_reproducible(folder, config)
        tags = {
            COMMAND_TAG: command_line("reproduce", arguments),
            "topicell.reproduces": run_id or str(folder.resolve()),
        }
        try:
            tracker = open_tracker(tracking, output, "output=FOLDER", tags=tags)
            result, found = reproduction.reproduce(folder, config, tracker)
        except BaseException:
            # If nothing was recorded, remove the folders that were made for it.
            with contextlib.suppress(OSError):
                output.rmdir()
                if asked.output is None:
                    output.parent.rmdir()
            raise
    print_result(result.scores, tracker.directory)
    for line in reproduction.described(found):
        say(line)
    print(f"verdict     {styled(_verdict(found), BOLD)}")
    raise_report_failure(result.report_error, tracker.directory)
    if not found.reproduced:
        raise SystemExit(FAILED)


def _require_train(run: str, folder: Path, stored: Mapping[str, Any]) -> None:
    """Check that `topicell train` made the run.

    Raises
    ------
    InputError
        It was another command, which the message names.
    """
    from topicell.tracking.provenance import COMMAND_TAG
    from topicell.tracking.stored import read_tags

    made_by = "evaluate" if "theta" in stored else "consensus"
    if made_by == "evaluate" or (folder / "topics" / "agreement.csv").exists():
        command = read_tags(folder).get(COMMAND_TAG, f"topicell {made_by} …")
        raise InputError(
            f"run = {run!r} was made by topicell {made_by}, from files or runs that it does not "
            f"store; make it again with its own command: {command}"
        )


def _config(
    stored: Mapping[str, Any], asked: ReproduceCommand, tracking: TrackingConfig, folder: Path
) -> RunConfig:
    """Return the settings of the stored run, with the data where they are now."""
    from topicell.tracking.stored import read_dataset

    config = stored_run_config(stored)
    config.tracking = tracking
    if asked.data.path or asked.data.samples:
        if config.data.name != "file":
            raise InputError(f"data.path: the data of the run are {config.data.name}, not a file")
        config.data.path, config.data.samples = asked.data.path, asked.data.samples
    elif isinstance(config.data.path, str) and not Path(config.data.path).exists():
        # The run may have been started in another folder.
        source = read_dataset(folder)["source"]
        if Path(source).exists():
            config.data.path = source
    return config


def _verdict(found: Any) -> str:
    if found.same_bytes:
        return "reproduced, same bytes"
    if found.reproduced:
        return "reproduced within noise; reproduction.csv has all scores"
    if not found.noise_is_known:
        return "not reproduced; the noise is not known, because there is one replicate and split"
    return (
        f"not reproduced: {len(found.beyond_noise)} scores differ by more than noise; "
        "reproduction.csv has all scores"
    )


COMMAND = Command(
    name="reproduce",
    summary="make a stored run again, and say what differs",
    examples=(("topicell reproduce run=RUN_ID", "or run=FOLDER"),),
    settings=ReproduceCommand,
    function=reproduce,
)
