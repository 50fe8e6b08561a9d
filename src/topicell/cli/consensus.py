"""``topicell consensus``: topics on which independent searches agree, refitted."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topicell.cli.command import Command
from topicell.cli.errors import raise_report_failure
from topicell.cli.options import read, stored_run_config
from topicell.cli.output import new_folder, print_result
from topicell.cli.overrides import command_line
from topicell.cli.terminal import say
from topicell.config import RunConfig, TrackingConfig
from topicell.config.checks import SHARE, check_fields, setting
from topicell.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from topicell.model.fit import TopicFit


@dataclass
class ConsensusCommand:
    """Refit the topics on which runs agree: runs=[A,B,…] are ids or folders, output=FOLDER is new.

    Every replicate of every run is a search. The new run has the data and the settings of the
    first run, and starts with the topics that more than min_support of the searches have. A sweep
    in place of a run means the runs with its chosen number of topics.
    """

    runs: list[str] = field(default_factory=list)
    """MLflow ids or folders of runs, or of sweeps."""
    output: str | None = None
    """New folder; null uses ``consensus/DATE/TIME``."""
    min_support: float = setting(0.5, SHARE)
    """A topic is agreed on if more than this share of the searches have it."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_fields("", self)


def consensus(arguments: list[str]) -> None:
    """Make a run of the agreed topics, in a new folder and MLflow run."""
    asked: ConsensusCommand = read(COMMAND, arguments)
    if not asked.runs:
        raise InputError("runs has no value; give runs=[RUN_ID,RUN_ID]")
    from datetime import datetime

    from topicell.consensus import refit
    from topicell.tracking.provenance import COMMAND_TAG
    from topicell.tracking.runs import open_tracker

    logging.getLogger("anndata").setLevel(logging.WARNING)
    folder = new_folder(asked.output, f"consensus/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}")
    fits, config = _stored(asked)
    command = command_line("consensus", arguments)
    tracker = open_tracker(asked.tracking, folder, "output=FOLDER", tags={COMMAND_TAG: command})
    try:
        result, table = refit(fits, config, asked.min_support, tracker)
    except InputError:
        # Nothing was recorded: remove what was made for it.
        (folder / "topics" / "initial_topics.csv").unlink(missing_ok=True)
        for path in (folder / "topics", folder):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
    print_agreement(table, tracker.directory)
    print_result(result.scores, tracker.directory)
    raise_report_failure(result.report_error, tracker.directory)


def print_agreement(table: pd.DataFrame, folder: Path) -> None:
    """Print the topics of the searches with their support, without those of a single search."""
    for _, row in table[table["agreed"] | (table["found_in"] > 1)].iterrows():
        verdict = row["topic"] if row["agreed"] else "not agreed"
        found = f"found in {row['found_in']} of {row['searches']}"
        say(f"{verdict:<12}{found:<20}{row['relevant_genes'][:60]}")
    single = int((~table["agreed"] & (table["found_in"] == 1)).sum())
    if single:
        path = os.path.relpath(folder / "topics" / "agreement.csv")
        say(f"not agreed  {single} further topics, each of a single search: {path}")


def _runs(asked: ConsensusCommand) -> list[str]:
    """Return the runs, with those of the chosen number of topics in place of a sweep."""
    import tempfile

    from topicell.sweep.selection import chosen_trials
    from topicell.sweep.trials import Sweep
    from topicell.tracking.stored import fetch_run, kind_of

    runs = []
    for name in asked.runs:
        if kind_of(name, asked.tracking) != "sweep":
            runs.append(name)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder, _ = fetch_run(name, asked.tracking, Path(scratch), ("sweep.json",))
            sweep = Sweep.read(folder / "sweep.json")
        chosen = chosen_trials(sweep)
        if not chosen:
            raise InputError(f"runs: the sweep {name} chose no number of topics; name runs")
        runs += [trial.run_id or trial.folder for trial in chosen]
    return runs


def _stored(asked: ConsensusCommand) -> tuple[dict[str, TopicFit], RunConfig]:
    """Return the fits of the runs, and the settings of the first run in the store of this one."""
    import json
    import tempfile

    import h5py
    from anndata.io import read_elem

    from topicell.model.loading import load_fit
    from topicell.progress import step
    from topicell.tracking.stored import fetch_run

    runs = _runs(asked)
    if len(set(runs)) < len(runs):
        raise InputError("runs: a run is named twice, and would agree with itself")
    fits: dict[str, TopicFit] = {}
    stored: dict[str, Any] = {}
    for name in runs:
        with step(f"run {name}"), tempfile.TemporaryDirectory() as scratch:
            artifacts = ("model",) if stored else ("model", "adata.h5ad")
            folder, _ = fetch_run(name, asked.tracking, Path(scratch), artifacts)
            fits[name] = load_fit(folder / "model")
            if not stored:
                with h5py.File(folder / "adata.h5ad") as file:
                    stored = json.loads(read_elem(file["uns/topicell/config"]))
    if "theta" in stored:
        raise InputError(
            f"runs: {runs[0]} is an evaluation of external topics, which has no settings of "
            "a fit; name a run of topicell train first"
        )
    config = stored_run_config(stored)
    config.tracking = asked.tracking
    return fits, config


COMMAND = Command(
    name="consensus",
    summary="refit the topics on which independent runs agree",
    examples=(("topicell consensus runs=[RUN_ID,RUN_ID]", "or folders; output=FOLDER"),),
    settings=ConsensusCommand,
    function=consensus,
)
