"""``topicell train``: one run; with ``-m`` a grid of runs, or a search."""

from __future__ import annotations

import atexit
import contextlib
import copy
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from topicell import progress
from topicell.cli.command import Command, conf_folder
from topicell.cli.completion import asked_by_hydra, completion
from topicell.cli.errors import (
    FULL_ERROR,
    TRAIN_LISTER,
    raise_report_failure,
    require_reports,
    unknown_setting,
)
from topicell.cli.output import print_delivered, print_result
from topicell.cli.overrides import as_tag, command_line, literal, quoted, resumes, unquoted
from topicell.cli.terminal import log_level, note
from topicell.config import RunConfig, SweepConfig, TrainCommand, dotted
from topicell.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from topicell.model.ranks import Ranks
    from topicell.sweep.tracker import CurrentTrial
    from topicell.tracking.record import Record

MULTIRUN = {"-m", "--multirun"}
"""Options of Hydra that begin a grid or a search."""


def train(arguments: list[str]) -> None:
    """Train once; with ``-m``, make a grid of runs or search over settings."""
    if (shell := asked_by_hydra(arguments)) is not None:
        # Hydra's scripts would take "topicell" alone for its application.
        completion(shell)
        return
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException

    from topicell.cli.callbacks import GridParent
    from topicell.model.ranks import is_follower, n_processes

    if n_processes() > 1 and not MULTIRUN.isdisjoint(arguments):
        raise InputError(
            f"{n_processes()} processes (torchrun, or WORLD_SIZE) make one run together; start a "
            "single process, or leave out -m"
        )
    if is_follower():
        progress.show(progress.Shown.nothing)
        arguments = _follower_arguments(arguments)
    job = Job()
    ConfigStore.instance().store(name="train_command", node=TrainCommand)
    arguments_before, full_error_before = sys.argv, os.environ.get(FULL_ERROR)
    arguments = literal(arguments, multirun=not MULTIRUN.isdisjoint(arguments))
    # Hydra takes its options before or after the settings, not among them.
    arguments.sort(key=lambda argument: argument not in MULTIRUN)
    if any(argument.startswith("resume=") for argument in arguments):
        arguments = [*arguments, *_folder_to_resume(arguments)]
    sys.argv = ["topicell train", *arguments]
    # Hydra would print errors in its own form and exit with 1; with this set it raises them.
    os.environ[FULL_ERROR] = "1"
    ended = "FAILED"
    GridParent.folder = None
    try:
        hydra.main(config_path=str(conf_folder()), config_name="config", version_base=None)(job)()
        if job.error is not None:
            raise job.error
        ended = "FINISHED"
    except OSError as error:
        if job.begun or isinstance(error, HydraException):
            raise
        raise InputError(
            f"the run folder cannot be created ({error}); choose another with hydra.run.dir=FOLDER"
        ) from error
    except KeyboardInterrupt:
        ended = "KILLED"
        raise
    finally:
        grid = GridParent.folder
        GridParent.finish(ended)
        sys.argv = arguments_before
        os.environ.pop(FULL_ERROR)
        if full_error_before is not None:
            os.environ[FULL_ERROR] = full_error_before
    if grid is not None:
        require_reports(sorted(path for path in grid.glob("*") if path.is_dir()))


def _follower_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a process that helps another: it writes to a temporary folder."""
    import tempfile

    scratch = tempfile.mkdtemp(prefix="topicell-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    left_out = ("resume=", "tracking", "hydra.run.dir=", "hydra.output_subdir=")
    kept = [argument for argument in arguments if not argument.startswith(left_out)]
    return [
        *kept, f"hydra.run.dir={quoted(scratch)}", "hydra.output_subdir=null", "tracking=off",
        "train.progress=false",
    ]  # fmt: skip


class Job:
    """Make one run when Hydra calls it with a composed configuration.

    Hydra prints a line of its own before an error that it sees. In a grid that line says which job
    failed; a single run keeps its error in `error`, and a trial reports it to its sweep.
    """

    def __init__(self) -> None:
        self.begun = False
        self.error: Exception | None = None

    def __call__(self, settings: DictConfig) -> None:
        """Train once, alone or as a trial of a sweep."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from topicell.sweep.tracker import current_trial

        self.begun = True
        # Hydra has just set it to that of its configuration.
        logging.getLogger("topicell").setLevel(log_level())
        trial = current_trial()
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            _train_once(settings, folder, trial)
        except Exception as error:
            if trial is not None:
                trial.fail(error)
            elif HydraConfig.get().mode is RunMode.RUN:
                self.error = error
            else:
                raise


def _folder_to_resume(arguments: Sequence[str]) -> list[str]:
    """Return the override of the run folder, or of a grid's, for ``resume``; none if it is new."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from topicell.tracking.interrupted import last_grid, last_of, named

    overrides = [argument for argument in arguments if not argument.startswith("-")]
    grid = not MULTIRUN.isdisjoint(arguments)
    folder_setting = "hydra.sweep.dir" if grid else "hydra.run.dir"
    given = [a for a in overrides if a.startswith("resume=")][-1].partition("=")[2]
    resume = unquoted(given)
    if not resumes(resume) or any(a.startswith(f"{folder_setting}=") for a in overrides):
        return []
    with initialize_config_dir(str(conf_folder()), version_base=None):
        # Jobs of a grid have only these settings in common.
        common = [a for a in overrides if a.startswith("tracking")] if grid else overrides
        composed = compose("config", overrides=common, return_hydra_config=True)
        default = OmegaConf.to_container(composed.hydra, resolve=False)
        settings = to_run_config(composed)
    if resume.lower() != "true":
        found: Path | None = named(resume, settings.tracking)
    else:
        assert isinstance(default, dict)
        root = Path(default["sweep" if grid else "run"]["dir"].partition("$")[0])
        found = last_grid(root, as_tag(arguments)) if grid else last_of(root, dotted(settings))
    if found is None:
        note("no interrupted run with these settings was found; a new run starts")
        return []
    note(f"resuming {found}")
    return [f"{folder_setting}={quoted(str(found))}"]


def _train_once(settings: DictConfig, folder: Path, trial: CurrentTrial | None) -> None:
    """Make a run or a trial; of several processes, the first one makes the run, the others help."""
    config = to_run_config(settings)
    if settings.sweep.enabled and trial is None:
        raise InputError(
            "sweep=topics needs -m, because it makes several runs: topicell train -m sweep=topics"
        )
    from hydra.core.hydra_config import HydraConfig

    from topicell.model.ranks import together
    from topicell.run import follow, run
    from topicell.sweep.tracker import TrialTracker
    from topicell.tracking.provenance import COMMAND_TAG
    from topicell.tracking.runs import open_tracker

    # anndata logs every column of strings that it stores as categories.
    logging.getLogger("anndata").setLevel(logging.WARNING)
    command = command_line("train", HydraConfig.get().overrides.task)
    if trial is not None:
        tracker = open_tracker(config.tracking, folder, tags={COMMAND_TAG: command})
        result = run(config, TrialTracker(tracker, trial))
        trial.conclude(result.values)
        raise_report_failure(result.report_error, tracker.directory)
        return
    # Processes that torchrun or srun has started make one run.
    with together() as ranks:
        if ranks.rank == 0:
            _make_run(config, folder, ranks, command, resume=resumes(settings.resume))
        elif ranks.first(None):
            follow(config, ranks)


def _make_run(config: RunConfig, folder: Path, ranks: Ranks, command: str, *, resume: bool) -> None:
    """Make the run, unless `resume` finds that it has ended; print its scores."""
    from topicell.report import ReportError
    from topicell.run import run
    from topicell.tracking.interrupted import ended
    from topicell.tracking.provenance import COMMAND_TAG
    from topicell.tracking.record import REPORT_ERROR
    from topicell.tracking.runs import open_tracker

    record = ended(folder, dotted(config)) if resume else None
    # Tell the other processes whether there is something to do.
    ranks.first(record is None)
    if record is not None:
        _print_ended(folder, record, config)
        error = record.tags.get(REPORT_ERROR)
        raise_report_failure(error and ReportError(error), folder)
        return
    tracker = open_tracker(config.tracking, folder, resume=resume, tags={COMMAND_TAG: command})
    result = run(config, tracker, ranks)
    print_result(result.scores, tracker.directory)
    raise_report_failure(result.report_error, tracker.directory)


def _print_ended(folder: Path, record: Record, config: RunConfig) -> None:
    """Deliver a run that has ended before to MLflow if it is not there yet, and print where."""
    from topicell.tracking.delivery import LAST_SECONDS, deliver
    from topicell.tracking.record import Journal, clear
    from topicell.tracking.store import Unreachable

    if record.store and not record.delivered:
        with contextlib.suppress(Unreachable):
            deliver(folder, config.tracking, LAST_SECONDS)
    else:
        # Remove leftovers of a run that was killed during shutdown. A folder that is busy or
        # read-only needs no removal.
        with contextlib.suppress(InputError, OSError), contextlib.closing(Journal(folder)):
            clear(folder, record)
    print(f"run folder  {os.path.relpath(folder)} (the run had already ended)")
    print_delivered(folder)


def to_run_config(settings: DictConfig) -> RunConfig:
    """Return the checked dataclasses of a composed configuration.

    Raises
    ------
    InputError
        A setting does not exist or is out of bounds, or belongs to a sweep and there is none.
    """
    from omegaconf import OmegaConf, open_dict, read_write

    # Hydra's `+name=value` can add a name that no dataclass has.
    known = list(dotted(TrainCommand()))
    if "hydra" in settings:
        settings = copy.deepcopy(settings)
        with read_write(settings), open_dict(settings):
            del settings["hydra"]
    container = OmegaConf.to_container(settings, enum_to_str=True)
    assert isinstance(container, dict)
    # The keys of sweep.params are names of settings.
    container["sweep"].pop("params", None)
    for name in dotted(container):
        if name not in known:
            raise InputError(unknown_setting(name, known, TRAIN_LISTER))
    command = OmegaConf.to_object(settings)
    assert isinstance(command, TrainCommand)
    if not command.sweep.enabled and command.sweep != SweepConfig():
        raise InputError(
            "sweep.… is set, but this is not a sweep; write topicell train -m sweep=topics …"
        )
    return RunConfig(**{f.name: getattr(command, f.name) for f in fields(RunConfig)})


COMMAND = Command(
    name="train",
    summary="one run: data, preprocessing, fit, scores, report; tracked in MLflow",
    examples=(
        ("topicell train", "the included data set, no network"),
        ("topicell train data=file data.path=cells.h5ad model.n_topics=20", ""),
        ("topicell train -m model.n_topics=5,10,20 seed=0,1", "a grid of runs"),
        ("topicell train -m sweep=topics", "choose the number of topics"),
        ("topicell train --cfg job", "print all settings"),
        ("topicell train … resume=true", "continue an interrupted run"),
    ),
    settings=None,
    function=train,
)
