"""The command line: commands and exit codes. With the sweeper plugin, the only place of hydra.

Exit codes: 0 done; 1 the run failed; 2 bad input or configuration; 130 interrupted. Each failure
is said in one line; ``HYDRA_FULL_ERROR=1`` shows the traceback.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from topicell import signals
from topicell.config import (
    ExternalConfig,
    ReadConfig,
    ReportConfig,
    RunConfig,
    SweepConfig,
    TrackingConfig,
    TrainCommand,
    dotted,
)
from topicell.errors import InputError, failure
from topicell.files import whole
from topicell.overrides import TEXT, TEXTS, kinds, listed, literal, plain, quoted, unquoted
from topicell.redaction import without_password

if TYPE_CHECKING:
    from topicell.sweep.tracker import CurrentTrial
    from topicell.tracking.parents import Parent
    from topicell.tracking.record import Record

HELP = """\
topicell: an experiment-tracking harness for topic models of single-cell counts

usage: topicell COMMAND [SETTING=VALUE ...]

  train       one run: data, preprocessing, fit, measures, report; tracked in MLflow
              topicell train                                    the embedded data set, no network
              topicell train data=file data.path=cells.h5ad model.n_topics=20
              topicell train -m model.n_topics=5,10,20 seed=0,1 a grid: one parent, nested runs
              topicell train -m sweep=topics                    how many topics? Optuna, a verdict
              topicell train --cfg job                          every setting and its value
              topicell train … resume=true                      go on with a run that was cut off
  report      remake the report of a stored run
              topicell report run=RUN_ID                        or run=FOLDER; a sweep's parent too
  compare     one page that sets stored runs side by side
              topicell compare runs=[RUN_ID,RUN_ID]             or folders; output=FOLDER
  transform   topic proportions for new cells
              topicell transform run=RUN_ID input=new.h5ad output=mapped.h5ad
              topicell transform model=topicell/champion …      a registered model: NAME/ALIAS
  evaluate    the same measures and report for topics from elsewhere
              topicell evaluate theta=theta.csv beta=beta.csv data=cells.h5ad
  sync        deliver to MLflow what runs kept aside while it could not be reached
              topicell sync                                     or folders=[FOLDER,FOLDER]
  ui          MLflow's UI on the store, in its machine-learning view
              topicell ui [port=5000]

exit codes: 0 done, 1 failed, 2 bad input or setting, 130 interrupted
HYDRA_FULL_ERROR=1 shows tracebacks; TOPICELL_DATA names the folder of downloaded data
prepared data are cached in topicell/prepared of the user's cache folder (on Linux
XDG_CACHE_HOME, else ~/.cache), up to preprocess.cache_limit_mb=2000; see preprocess.cache=false
"""

FULL_ERROR = "HYDRA_FULL_ERROR"
MULTIRUN = {"-m", "--multirun"}
SYNC_SECONDS = 30.0
"""How long ``topicell sync`` waits, for each run, for a store that does not do its part."""
SYNC_BYTES_PER_SECOND = 500_000
MAP_KNOBS = ("n_components", "n_neighbors", "leiden_resolution")
"""Settings of the report that move the maps; the others change figures alone."""


@dataclass
class ReportCommand:
    """Remake the report of a stored run: run=RUN_ID or run=FOLDER, into the folder output."""

    run: str = MISSING
    output: str | None = None
    report: ReportConfig = field(default_factory=ReportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class CompareCommand:
    """Set stored runs side by side: runs=[A,B,…], ids or folders, into the folder output."""

    runs: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    output: str | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class TransformCommand(ReadConfig):
    """Topic proportions for cells, by run=RUN_ID or model=NAME/ALIAS, into FILE.h5ad or .csv."""

    run: str | None = None
    model: str | None = None
    input: str = MISSING
    output: str = MISSING
    replicate: int | None = None
    fill_missing: bool = False
    refine: bool = False
    n_samples: int = 256
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class SyncCommand:
    """Deliver to MLflow what runs kept aside, of folders=[…] or of all runs in this folder."""

    folders: list[str] = field(default_factory=list)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class UICommand:
    """MLflow's UI on the store, until Ctrl-C."""

    host: str = "127.0.0.1"
    port: int = 5000
    browser: bool = True
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


COMMAND_HELP = {
    ReportCommand: "topicell report --help",
    CompareCommand: "topicell compare --help",
    TransformCommand: "topicell transform --help",
    ExternalConfig: "topicell evaluate --help",
    SyncCommand: "topicell sync --help",
    UICommand: "topicell ui --help",
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": train,
        "report": report,
        "compare": compare,
        "transform": transform,
        "evaluate": evaluate,
        "sync": sync,
        "ui": ui,
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"topicell {version('topicell')}")
        sys.exit(0)
    name, *rest = arguments
    if name not in commands:
        near = get_close_matches(name, commands, 1)
        hint = f"did you mean {near[0]!r}?" if near else "topicell --help lists them"
        _fail(2, f"{name!r} is not a command; {hint}")
    if rest and rest[0] in ("-h", "--help") and name != "train":
        print(_help(name))
        sys.exit(0)

    own_process()
    wants_traceback = os.environ.get(FULL_ERROR, "0") not in ("", "0")
    try:
        commands[name](rest)
    except KeyboardInterrupt:
        _fail(130, "interrupted")
    except Exception as error:
        if signals.interrupted():
            _fail(130, "interrupted")
        if wants_traceback:
            import traceback

            shown = "".join(traceback.format_exception(error))
            print(without_password(shown), end="", file=sys.stderr)
        _fail(*_diagnosis(error))
    sys.exit(0)


def own_process() -> None:
    """What holds in every process of ours: how warnings are shown, and what ends it."""
    warnings.showwarning = _show_warning
    signals.install_handlers()


class Discreet(logging.Formatter):
    """Lines of a log, on the terminal and in a run's folder, without passwords of addresses."""

    def format(self, record: logging.LogRecord) -> str:
        """Also where a library or Hydra itself tells of an address."""
        return without_password(super().format(record))


def train(arguments: list[str]) -> None:
    """One run; with ``-m`` a grid of them, or a search."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException

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
            f"the run folder cannot be made ({error}); choose another with hydra.run.dir=FOLDER"
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


class Job:
    """What Hydra calls with a composed configuration: one run.

    Hydra puts a line of its own before an error that it sees. Among the jobs of a grid that says
    which one failed; a single run keeps its error here, and a trial tells it to its sweep.
    """

    def __init__(self) -> None:
        self.begun = False
        self.error: Exception | None = None

    def __call__(self, settings: DictConfig) -> None:
        """Train once."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from topicell.sweep.tracker import current_trial

        self.begun = True
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
    """The override that puts a run, or a grid, into the folder of the one it goes on with."""
    from hydra import compose, initialize_config_dir

    from topicell.tracking.interrupted import last_grid, last_of, named

    overrides = [argument for argument in arguments if not argument.startswith("-")]
    grid = not MULTIRUN.isdisjoint(arguments)
    knob = "hydra.sweep.dir" if grid else "hydra.run.dir"
    given = [a for a in overrides if a.startswith("resume=")][-1].partition("=")[2]
    resume = unquoted(given)
    if not _resumes(resume) or any(a.startswith(f"{knob}=") for a in overrides):
        return []
    with initialize_config_dir(str(conf_folder()), version_base=None):
        # Of a grid, what its jobs have in common.
        common = [a for a in overrides if a.startswith("tracking")] if grid else overrides
        composed = compose("config", overrides=common, return_hydra_config=True)
        default = OmegaConf.to_container(composed.hydra, resolve=False)
        settings = to_run_config(composed)
    if resume.lower() != "true":
        found: Path | None = named(resume, settings.tracking)
    else:
        assert isinstance(default, dict)
        root = Path(default["sweep" if grid else "run"]["dir"].partition("$")[0])
        found = last_grid(root, _as_tag(arguments)) if grid else last_of(root, dotted(settings))
    if found is None:
        print("nothing to go on with: no such run was cut off; one begins", file=sys.stderr)
        return []
    print(f"going on with {found}", file=sys.stderr)
    return [f"{knob}={quoted(str(found))}"]


def _resumes(resume: str | None) -> bool:
    return str(resume).lower() not in ("none", "null", "false", "")


def _as_tag(arguments: Sequence[str]) -> str:
    """The arguments by which a grid is known, without passwords."""
    own = ("resume=", "hydra.sweep.dir=")
    return " ".join(without_password(a) for a in arguments if not a.startswith(own))


def _train_once(settings: DictConfig, folder: Path, trial: CurrentTrial | None) -> None:
    config = to_run_config(settings)
    if settings.sweep.enabled and trial is None:
        raise InputError("sweep=topics makes many runs: topicell train -m sweep=topics")
    from topicell.report import ReportError
    from topicell.run import run
    from topicell.sweep.tracker import TrialTracker
    from topicell.tracking.interrupted import ended
    from topicell.tracking.record import REPORT_ERROR
    from topicell.tracking.runs import open_tracker

    # It announces every column of strings that it stores as categories.
    logging.getLogger("anndata").setLevel(logging.WARNING)
    resume = trial is None and _resumes(settings.resume)
    if resume and (record := ended(folder, dotted(config))) is not None:
        _print_ended(folder, record, config)
        error = record.tags.get(REPORT_ERROR)
        _report_failure(error and ReportError(error), folder)
        return
    tracker = open_tracker(config.tracking, folder, resume=resume)
    if trial is not None:
        result = run(config, TrialTracker(tracker, trial))
        trial.conclude(result.values)
    else:
        result = run(config, tracker)
        _print_result(result.scores, tracker.directory)
    _report_failure(result.report_error, tracker.directory)


class ReportFailed(Exception):  # noqa: N818 the run did not fail
    """A run has all but its report; the message is for the user."""


def _report_failure(error: Exception | str | None, folder: Path) -> None:
    """Say that the report of a run failed; in a grid or a sweep, let the other runs go on."""
    if not error:
        return
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    command = shlex.quote(f"run={os.path.relpath(folder)}")
    message = (
        f"the report is incomplete: {error}; all else is kept, and `topicell report {command}` "
        "makes the report again"
    )
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        logging.getLogger("topicell").error(message)
        return
    raise ReportFailed(message) from (error if isinstance(error, Exception) else None)


def require_reports(folders: Iterable[Path]) -> None:
    """Fail if the report of any of the runs in these folders did.

    Raises
    ------
    ReportFailed
        It names their folders.
    """
    from topicell.tracking.record import RECORD, REPORT_ERROR, Record

    # A folder may be on another machine.
    there = [folder for folder in folders if (folder / RECORD).is_file()]
    failed = [folder for folder in there if REPORT_ERROR in Record.read(folder).tags]
    if failed:
        raise ReportFailed(
            f"the reports of {len(failed)} of {len(there)} runs are incomplete; all else is kept, "
            f"and `topicell report run=FOLDER` makes them again: {', '.join(map(str, failed))}"
        )


def to_run_config(settings: DictConfig) -> RunConfig:
    """The dataclasses of a composed configuration, checked."""
    # Hydra's `+name=value` adds to the composed configuration what no dataclass has.
    known = list(dotted(TrainCommand()))
    if "hydra" in settings:
        settings = copy.deepcopy(settings)
        with read_write(settings), open_dict(settings):
            del settings["hydra"]
    container = OmegaConf.to_container(settings, enum_to_str=True)
    assert isinstance(container, dict)
    # Its keys are names of settings themselves.
    container["sweep"].pop("params", None)
    for name in dotted(container):
        if name not in known:
            raise InputError(_unknown_setting(name, known))
    command = OmegaConf.to_object(settings)
    assert isinstance(command, TrainCommand)
    if not command.sweep.enabled and command.sweep != SweepConfig():
        raise InputError(
            "settings of sweep are given, but no sweep: topicell train -m sweep=topics …"
        )
    return RunConfig(**{f.name: getattr(command, f.name) for f in fields(RunConfig)})


class GridParent(Callback):  # type: ignore[misc]  # hydra is untyped
    """Makes the MLflow parent of a grid before its first job, and ends it after the last."""

    started: Parent | None = None
    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the parent run; a sweep makes its own, which it may find again."""
        if config.hydra.sweeper._target_.startswith("hydra_plugins.topicell_sweeper"):
            return
        from topicell.tracking.parents import Parent
        from topicell.tracking.record import RECORD

        tracking = OmegaConf.to_object(config.tracking)
        assert isinstance(tracking, TrackingConfig)
        folder = Path(config.hydra.sweep.dir)
        if (folder / RECORD).exists() and not _resumes(config.resume):
            # The jobs refuse to write over it, and say so.
            return
        tags = {"topicell.kind": "multirun", "topicell.overrides": _as_tag(sys.argv[1:])}
        GridParent.folder = folder
        GridParent.started = Parent.start(tracking, f"multirun {folder.name}", tags, folder)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take the passwords out of what Hydra has written of a grid before its first job."""
        file = Path(config.hydra.sweep.dir) / "multirun.yaml"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if (shown := without_password(text)) != text:
            # Whole at any time: jobs that start together all come by here.
            aside = file.with_name(f".{file.name}.{os.getpid()}")
            aside.write_text(shown, encoding="utf-8")
            aside.replace(file)

    @classmethod
    def finish(cls, status: str) -> None:
        """End the parent run, if there is one, also when a job failed or was interrupted."""
        if cls.started is not None and cls.folder is not None:
            from topicell.sweep.grid import conclude

            parent, cls.started = cls.started, None
            try:
                if status != "KILLED":
                    # The verdict is of all runs, those too that the store did not take at first.
                    parent.deliver_runs()
                    for line in conclude(parent, cls.folder):
                        print(line)
            finally:
                parent.finish(status)


def report(arguments: list[str]) -> None:
    """Remake the report of a stored run, or of a sweep or a grid where its parent is named."""
    asked = _options(ReportCommand, arguments)
    import tempfile

    from topicell.tracking.stored import PARENT_KINDS, kind_of, replace_report, store_artifacts

    kind = kind_of(asked.run, asked.tracking)
    with tempfile.TemporaryDirectory() as scratch, _progress_shown():
        if kind in PARENT_KINDS:
            run_id, output = _report_sweep(asked, kind, Path(scratch))
            if run_id:
                store_artifacts(run_id, asked.tracking, output)
        else:
            run_id, output = _report_run(asked, arguments, Path(scratch))
            replace_report(asked.run, run_id, asked.tracking, output)
    print(output / "report.html")


def _report_run(asked: ReportCommand, arguments: list[str], scratch: Path) -> tuple[str, Path]:
    """Figures and page of a run, from its cells and its metrics."""
    import json

    import anndata

    from topicell import report
    from topicell.tracking.stored import fetch_run, read_metrics

    folder, run_id = fetch_run(asked.run, asked.tracking, scratch, ("adata.h5ad", "metrics.jsonl"))
    output = _new_folder(asked.output, f"report-{run_id or folder.resolve().name}")
    adata = anndata.read_h5ad(folder / "adata.h5ad")
    if "topicell" not in adata.uns:
        raise InputError(f"{folder / 'adata.h5ad'} was not written by a run")
    stored = json.loads(adata.uns["topicell"]["config"])
    config = _options(ReportCommand, arguments, {"report": stored["report"]}).report
    asked_now = any(argument.startswith("report.gene_sets=") for argument in arguments)
    stored_sets = config.gene_sets not in (None, "blood") and not asked_now
    if stored_sets and not Path(config.gene_sets or "").is_file():
        warnings.warn(
            f"the run's own gene sets, {config.gene_sets}, are not here and are left out; "
            "report.gene_sets=FILE names them",
            stacklevel=2,
        )
        config.gene_sets = None
    report.require_gene_sets(adata, config)
    if any(getattr(config, knob) != stored["report"][knob] for knob in MAP_KNOBS):
        for name in ("X_umap_counts", "X_umap_topics"):
            adata.obsm.pop(name, None)
    _make(output)
    report.catch_up(adata, output)
    report.write(adata, read_metrics(folder)[0], output, config, stored["seed"])
    return run_id, output


def _report_sweep(asked: ReportCommand, kind: str, scratch: Path) -> tuple[str, Path]:
    """Figures and page of a sweep, from what it kept; of a grid, from its runs."""
    from topicell.sweep import page
    from topicell.sweep.grid import as_sweep
    from topicell.sweep.selection import select
    from topicell.sweep.trials import Sweep
    from topicell.tracking.parents import Parent
    from topicell.tracking.stored import fetch_run

    if kind == "multirun":
        sweep, run_id = as_sweep(Parent(asked.tracking, asked.run)), asked.run
        if not any(trial.n_topics for trial in sweep.trials):
            raise InputError(f"run = {asked.run!r}: no runs are stored under it")
    else:
        folder, run_id = fetch_run(asked.run, asked.tracking, scratch, ("sweep.json",))
        sweep = Sweep.read(folder / "sweep.json")
    output = _new_folder(asked.output, f"report-{run_id or sweep.name}")
    verdict = select(sweep.trials, bounds=sweep.bounds, stability_floor=sweep.stability_floor)
    _make(output)
    page.write(sweep, verdict, output, asked.report.dpi, pdf=asked.report.pdf)
    return run_id, output


def compare(arguments: list[str]) -> None:
    """Set stored runs side by side, on a page of their own."""
    for argument in arguments:
        if re.match(r"(runs|labels)=\[", argument) and not argument.endswith("]"):
            raise InputError(f"{argument!r}: has no end; write runs=[A,B] without blanks")
    # A list may go without its brackets, which some shells take for a pattern.
    bare = re.compile(r"(runs|labels)=((?!\[).*)", re.DOTALL)
    asked = _options(CompareCommand, [bare.sub(r"\1=[\2]", argument) for argument in arguments])
    from topicell import comparison
    from topicell.report.compare import write

    output = _new_folder(asked.output, comparison.folder_name(asked.runs))
    found = comparison.compare(asked.runs, asked.labels, asked.tracking)
    _make(output)
    print(write(found, output))


def _new_folder(asked: str | None, name: str) -> Path:
    output = Path(asked or name)
    if output.exists():
        raise InputError(f"output = {str(output)!r} exists; name another folder")
    return output


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"output = {str(output)!r} cannot be made ({error})") from error


def transform(arguments: list[str]) -> None:
    """Topic proportions for new cells, by the model of a stored run or a registered model."""
    options = _options(TransformCommand, arguments)
    if bool(options.run) == bool(options.model):
        found = "run and model are both given" if options.run else "run has no value"
        raise InputError(f"{found}; give run=RUN_ID or model=NAME/ALIAS")
    output = Path(options.output)
    if output.exists():
        raise InputError(f"output = {options.output!r} exists; name another file")
    if not output.parent.is_dir():
        raise InputError(f"output = {options.output!r}: there is no folder {output.parent}")
    if output.suffix not in (".h5ad", ".csv"):
        raise InputError(f"output = {options.output!r}: name a file ending in .h5ad or .csv")
    import tempfile

    from topicell.data.reading import read
    from topicell.model.loading import load_fit
    from topicell.run import annotate
    from topicell.tracking.registry import fetch_model
    from topicell.tracking.stored import fetch_run

    adata = read(options.input, **{f.name: getattr(options, f.name) for f in fields(ReadConfig)})
    with tempfile.TemporaryDirectory() as scratch:
        if options.model:
            folder = fetch_model(options.model, options.tracking, Path(scratch))
        else:
            run, _ = fetch_run(options.run, options.tracking, Path(scratch), ("model",))
            folder = run / "model"
        fit = load_fit(folder)
    frame = fit.transform(
        adata,
        fill_missing=options.fill_missing,
        replicate=options.replicate,
        refine=options.refine,
        n_samples=options.n_samples,
    )
    try:
        with whole(output) as unfinished:
            if output.suffix == ".csv":
                frame.to_csv(unfinished, index_label="cell")
            else:
                annotate(adata, frame.to_numpy())
                adata.write_h5ad(unfinished)
    except OSError as error:
        raise InputError(f"output = {options.output!r} cannot be written ({error})") from error
    print(f"{output}: {len(frame)} cells × {fit.n_topics} topics")


def evaluate(arguments: list[str]) -> None:
    """Measure and report topics from elsewhere, in a folder and an MLflow run of their own."""
    config = _options(ExternalConfig, arguments)
    from datetime import datetime

    from topicell import evaluate as external
    from topicell.tracking.runs import open_tracker

    logging.getLogger("anndata").setLevel(logging.WARNING)
    now = f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"
    folder = Path(config.output or f"evaluations/{now}")
    tracker = open_tracker(config.tracking, folder, "output=FOLDER")
    try:
        with _progress_shown():
            result = external.evaluate(config, tracker)
    except InputError:
        # Nothing was recorded: what was made for it goes.
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    _print_result(result.scores, tracker.directory)
    _report_failure(result.report_error, tracker.directory)


def sync(arguments: list[str]) -> None:
    """Deliver to MLflow what runs kept aside."""
    # A list may go without its brackets, which some shells take for a pattern.
    arguments = [re.sub(r"^folders=((?!\[).*)", r"folders=[\1]", text) for text in arguments]
    asked = _options(SyncCommand, arguments)
    from topicell.tracking.delivery import deliver, undelivered
    from topicell.tracking.interrupted import ROOTS
    from topicell.tracking.record import BusyError, Record
    from topicell.tracking.store import Patience, Unreachable

    folders = [Path(folder) for folder in asked.folders]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"folders: there is no folder {str(folder)!r}")
    waiting = undelivered(folders or [Path(root) for root in ROOTS])
    problems: list[str] = []
    away: set[str] = set()
    n_delivered = 0
    for folder in waiting:
        store = asked.tracking.uri or Record.read(folder).store
        if store in away:
            continue
        try:
            patience = Patience(SYNC_SECONDS, SYNC_BYTES_PER_SECOND)
            run_id = deliver(folder, asked.tracking, patience)
        except BusyError:
            print(f"{folder}: still at work, and delivers itself")
        except Unreachable as error:
            away.add(store)
            problems.append(f"MLflow could not take {folder} ({error})")
        except (InputError, OSError) as error:
            problems.append(f"{folder} cannot be delivered ({error})")
        else:
            n_delivered += 1
            print(f"{folder}: MLflow run {run_id}")
    done = f"{n_delivered} of {len(waiting)} runs delivered"
    if problems:
        then = "topicell sync goes on from here when that is mended"
        _fail(1, f"{done}; {'; '.join(problems)}; {then}")
    print(done if waiting else "nothing waits")


def ui(arguments: list[str]) -> None:
    """Serve MLflow's UI until interrupted."""
    options = _options(UICommand, arguments)
    import subprocess
    import webbrowser

    from topicell.tracking.store import is_server
    from topicell.tracking.ui import ui_address, ui_command

    address = ui_address(options.tracking, options.host, options.port)
    if is_server(options.tracking):
        print(f"the tracking server's own UI: {address}")
        if options.browser:
            webbrowser.open(address)
        return
    if _listens(options.host, options.port):
        raise InputError(f"port = {options.port}: another program has it; try port=5001")
    command = ui_command(options.tracking, options.host, options.port)
    print(f"MLflow's UI: {address}\nCtrl-C ends it", flush=True)
    server = subprocess.Popen(command)
    try:
        if options.browser and _answers(options.host, options.port, server):
            webbrowser.open(address)
        server.wait()
        raise RuntimeError(f"MLflow's server ended by itself, with code {server.returncode}")
    except KeyboardInterrupt:
        pass
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(10)


def _answers(host: str, port: int, server: Any, seconds: float = 60) -> bool:
    """Wait until the server listens; False if it ended or never did."""
    import time

    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        if _listens(host, port):
            return True
        time.sleep(0.3)
    return False


def _listens(host: str, port: int) -> bool:
    import socket

    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def conf_folder() -> Path:
    """The configuration groups: packaged in the wheel, at the top of a checkout."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def _options(schema: type, arguments: list[str], stored: Mapping[str, Any] | None = None) -> Any:
    """The settings of a command other than train: defaults, what a run stored, what is asked."""
    for argument in arguments:
        if "=" not in argument:
            raise InputError(f"{argument!r}: settings are written NAME=VALUE")
    # As of train, where they are named groups.
    off = {f"{group}=off": f"{group}.enabled=false" for group in ("report", "tracking")}
    arguments = [off.get(argument, argument) for argument in arguments]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), stored or {})
        known = kinds(schema())
        for argument in arguments:
            name, _, value = argument.partition("=")
            if known.get(name) in TEXT and value != "null":
                # A file may have any name, and an id may look like a number.
                OmegaConf.update(merged, name, plain(name, value))
            elif known.get(name) == TEXTS and value != "null":
                OmegaConf.update(merged, name, listed(argument, value))
            else:
                merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([argument]))
    except YAMLError as error:
        raise InputError(f"{argument!r}: {_takes(name, known)}") from error
    except OmegaConfBaseException as error:
        names = [*dotted(schema()), *(f.name for f in fields(schema))]
        raise InputError(_setting_message(error, names, COMMAND_HELP[schema])) from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise InputError(f"{missing[0]} has no value; give {missing[0]}=VALUE")
    return OmegaConf.to_object(merged)


def _print_result(scores: Mapping[str, float], directory: Path) -> None:
    shown = {
        "test/perplexity_folded": "held-out perplexity per count",
        "given/perplexity": "perplexity of the proportions given",
        "given/perplexity_folded": "perplexity of half the counts",
        "fit/train_elbo": "ELBO, nats per training cell",
        "topics/used": "topics used",
        "topics/coherence_npmi": "coherence (NPMI)",
        "topics/stability": "stability over replicates",
        "speed/fit_seconds": "seconds to fit",
    }
    for name, meaning in shown.items():
        if name in scores:
            print(f"{meaning:<32}{scores[name]:10.4g}")
    print(f"run folder  {os.path.relpath(directory)}")
    if (directory / "report.html").exists():
        print(f"report      {os.path.relpath(directory / 'report.html')}")
    _print_delivered(directory)


def _print_ended(folder: Path, record: Record, config: RunConfig) -> None:
    """A run that has ended before: what it lacks is that MLflow has it."""
    from topicell.tracking.delivery import deliver
    from topicell.tracking.record import Journal, clear
    from topicell.tracking.store import LAST_SECONDS, Patience, Unreachable

    if record.store and not record.delivered:
        with contextlib.suppress(Unreachable):
            deliver(folder, config.tracking, Patience(LAST_SECONDS))
    else:
        # It may have been killed in its last moments. A folder that is busy, or may not be written
        # to, has what it needs all the same.
        with contextlib.suppress(InputError, OSError), contextlib.closing(Journal(folder)):
            clear(folder, record)
    print(f"run folder  {os.path.relpath(folder)} (it had ended)")
    _print_delivered(folder)


def _print_delivered(folder: Path) -> None:
    from topicell.tracking.record import Record

    record = Record.read(folder)
    if record.delivered:
        print(f"MLflow run  {record.run_id}  (topicell ui)")
    elif record.store:
        print(f"MLflow run  kept aside: topicell sync folders={os.path.relpath(folder)}")


def _show_warning(
    message: Warning | str, category: type[Warning], *_: object, **__: object
) -> None:
    # Only what we say to users is theirs to act on; warnings of libraries are for our tests.
    # Of matplotlib, that its font lacks a letter: the page has it, the files have a box.
    if category is not UserWarning or str(message).startswith("Glyph "):
        return
    if logging.getLogger().hasHandlers():
        # In a run: on the terminal, and in the log of its folder.
        logging.getLogger("topicell").warning(message)
    else:
        print(f"warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def _progress_shown() -> Iterator[None]:
    """Show on the terminal which step is under way, where Hydra does not."""
    logger = logging.getLogger("topicell.progress")
    handler, level = logging.StreamHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _diagnosis(error: BaseException) -> tuple[int, str]:
    """Exit code and the one line that says what was wrong."""
    from hydra.errors import HydraException

    if isinstance(error, ReportFailed):
        return 1, str(error)
    chain = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, InputError):
            return 2, str(link)
    if isinstance(error, ValueError) and str(error).startswith("Config group override"):
        # Hydra's, of train=3.
        return 2, f"a group of settings takes a name, or a setting in it a value ({error})"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return 2, _setting_message(error, list(dotted(TrainCommand())))
    return 1, f"the run failed: {failure(error)} ({FULL_ERROR}=1 shows where)"


def _setting_message(
    error: BaseException, known: list[str], lister: str = "topicell train --cfg job"
) -> str:
    """Hydra's and OmegaConf's messages in one line, with the nearest knob for a typo."""
    text = " ".join(str(error).partition("Config search path")[0].split())
    if error.__cause__ is not None:
        # Hydra names the override, OmegaConf beneath it what is wrong with the value.
        text += f": {str(error.__cause__).splitlines()[0]}"
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text)
    if unknown:
        name = (unknown[1] or unknown[2]).lstrip("+~")
        if name not in known:
            return _unknown_setting(name, known, lister)
    key = re.search(r"full_key: (\S+)", text)
    text = text.partition(" full_key:")[0].partition(" See https://")[0]
    if key:
        return f"{key[1]}: {text}"
    override = getattr(error, "override", None)
    if override and override not in text:
        text = f"{override!r}: {text}"
    if "missing EQUAL" in text:
        return f"{text}: settings are written NAME=VALUE, a file as data=file data.path=FILE"
    if "Could not find 'data/" in text:
        return f"{text}; a file of yours: data=file data.path=FILE"
    if override and type(error).__name__ == "OverrideParseException":
        return _not_parsed(override, text, known, lister)
    return text


def _not_parsed(override: str, text: str, known: list[str], lister: str) -> str:
    """What is wrong with an override that Hydra's grammar does not take, and what it would take."""
    name, equals, value = override.partition("=")
    name = name.lstrip("+~")
    if not equals:
        return f"{override!r}: settings are written NAME=VALUE"
    if not name.startswith("hydra.") and name not in known:
        return _unknown_setting(name, known, lister)
    types = kinds(TrainCommand())
    if name in types:
        return f"{override!r}: {_takes(name, types)} ({text})"
    return f"{text}; write {shlex.quote(f'{name}={quoted(unquoted(value))}')}"


def _takes(name: str, types: Mapping[str, str]) -> str:
    """What kind of value a setting takes, in words."""
    kind = types.get(name, "another kind of value")
    return f"{name} takes {kind.replace(' | ', ' or ').replace('None', 'null')}"


def _unknown_setting(name: str, known: list[str], lister: str = "topicell train --cfg job") -> str:
    groups = {knob.partition(".")[0] for knob in known}
    last = {knob.rpartition(".")[2]: knob for knob in known}
    near = get_close_matches(name, [*groups, *known], 1) or [
        last[match] for match in get_close_matches(name.rpartition(".")[2], last, 1)
    ]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{name!r} is not a setting; {hint}{lister} lists all"


def _help(command: str) -> str:
    """What a command other than train does, and its settings with their defaults."""
    schema = next(schema for schema, text in COMMAND_HELP.items() if command in text)
    lines = [f"topicell {command}: {schema.__doc__}", "", "settings, with their defaults:"]
    lines += [
        f"  {name}={'' if value == MISSING else value}" for name, value in dotted(schema()).items()
    ]
    return "\n".join(lines)


def _fail(code: int, message: str) -> NoReturn:
    print(f"topicell: {without_password(message)}", file=sys.stderr)
    sys.exit(code)
